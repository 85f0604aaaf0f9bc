"""`RPC`: a call is one operation, which the reply ends."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from otel_messaging.core.safety import report

from .readers import assigned_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.operations import Failure, Publication

    from .adapter import AioPika


class Call:
    """A call of `RPC` on its way: the message that it publishes lasts until the reply."""

    __slots__ = ("publication",)

    def __init__(self) -> None:
        self.publication: Publication | None = None

    def concerns(self, message: Any, _routing_key: str) -> bool:
        """Whether a message that is published is the call."""
        return self.publication is None and message.type == "call" and bool(message.reply_to)


class Reply:
    """A call of `RPC` that is being answered: the reply is no message of its own."""

    __slots__ = ("_pika", "call")

    def __init__(self, pika: AioPika, call: Any) -> None:
        self._pika = pika
        self.call = call

    def concerns(self, message: Any, routing_key: str) -> bool:
        """Whether a message that is published is the reply."""
        call = self.call
        if message.type not in ("result", "error") or routing_key != call.reply_to:
            return False
        return bool(message.correlation_id == call.correlation_id)

    def fail(self, error: BaseException | Failure, unless_failed: bool = False) -> None:
        """Answering has failed, and the caller will be told."""
        context = self._pika.telemetry.active_context()
        delivery = self._pika.delivery(self.call, context) if context is not None else None
        if delivery is not None and not (unless_failed and delivery.failed):
            delivery.fail(error)


at_work: ContextVar[Call | Reply | None] = ContextVar("otel_messaging_aio_pika_pattern", default=None)
"""The pattern of the library that is at work here, for `Exchange.publish` below it."""


def end(publication: Publication | None, error: BaseException | None = None) -> None:
    """A message, if one was traced, has been published or will not be."""
    if publication is None:
        return
    try:
        publication.end(error, assigned_id(publication.sent))
    except Exception as failure:
        report("ending a message that was published", failure)


def wrap_call(_pika: AioPika, call: Callable[..., Any]) -> Callable[..., Any]:
    """`RPC.call` publishes and waits for the reply: one operation, which the reply ends."""

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        calling, before = Call(), at_work.get()
        at_work.set(calling)
        try:
            result = await call(self, *args, **kwargs)
        except BaseException as error:
            end(calling.publication, error)
            raise
        finally:
            if at_work.get() is calling:  # a coroutine may be closed in another context than it ran in
                at_work.set(before)
        end(calling.publication)
        return result

    return wrapper


def wrap_answer(pika: AioPika, answer: Callable[..., Any]) -> Callable[..., Any]:
    """`RPC.on_call_message` publishes the reply, which belongs to the call."""

    async def wrapper(self: Any, method_name: Any, message: Any) -> Any:
        reply, before = Reply(pika, message), at_work.get()
        at_work.set(reply)
        try:
            return await answer(self, method_name, message)
        finally:
            if at_work.get() is reply:  # as above
                at_work.set(before)

    return wrapper


def wrap_execute(_pika: AioPika, execute: Callable[..., Any]) -> Callable[..., Any]:
    """`RPC.execute` sees what the called function raises, of which the caller is told instead."""

    async def wrapper(self: Any, func: Any, payload: Any) -> Any:
        try:
            return await execute(self, func, payload)
        except Exception as error:
            _report_to_caller(error)
            raise

    return wrapper


def _report_to_caller(error: Exception) -> None:
    try:
        pattern = at_work.get()
        if isinstance(pattern, Reply):
            pattern.fail(error)
    except Exception as failure:
        report("RPC.execute", failure)
