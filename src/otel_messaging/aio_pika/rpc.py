"""`RPC`: a call is one operation, which the reply ends."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from otel_messaging.instrumentation.nested_calls import EnclosingCall

from .readers import assigned_id

if TYPE_CHECKING:
    from otel_messaging.core.operations import Failure, Publication

    from .adapter import AioPika


class Call(EnclosingCall):
    """A call of `RPC` on its way: the message that it publishes lasts until the reply."""

    __slots__ = ("publication",)

    def __init__(self) -> None:
        self.publication: Publication | None = None
        super().__init__(at_work)

    def concerns(self, message: Any, _routing_key: str) -> bool:
        """Whether a message that is published is the call."""
        return self.publication is None and message.type == "call" and bool(message.reply_to)

    def end(self, error: BaseException | Failure | None = None) -> None:
        """The reply is there, or will not come."""
        super().end()
        if self.publication is not None:
            self.publication.end(error, assigned_id(self.publication.sent))


class Reply(EnclosingCall):
    """A call of `RPC` that is being answered: the reply is no message of its own."""

    __slots__ = ("_pika", "call")

    def __init__(self, pika: AioPika, call: Any) -> None:
        self._pika = pika
        self.call = call
        super().__init__(at_work)

    def concerns(self, message: Any, routing_key: str) -> bool:
        """Whether a message that is published is the reply."""
        call = self.call
        if message.type not in ("result", "error") or routing_key != call.reply_to:
            return False
        return bool(message.correlation_id == call.correlation_id)

    def fail(self, error: BaseException | Failure, unless_failed: bool = False) -> None:
        """Answering has failed, and the caller will be told."""
        delivery = self._pika.handled(self.call)
        if delivery is not None and not (unless_failed and delivery.failed):
            delivery.fail(error)


at_work: ContextVar[Call | Reply | None] = ContextVar("otel_messaging_aio_pika_pattern", default=None)
"""The pattern of the library that is at work here, for `Exchange.publish` below it."""


def calls(_pika: AioPika, _rpc: Any) -> Call:
    """`RPC.call` publishes and waits for the reply: one operation, which the reply ends."""
    return Call()


def answers(pika: AioPika, _rpc: Any, message: Any) -> Reply:
    """`RPC.on_call_message` publishes the reply, which belongs to the call."""
    return Reply(pika, message)


def executes(_pika: AioPika, _rpc: Any) -> Reply | None:
    """`RPC.execute` sees what the called function raises, of which the caller is told instead."""
    pattern = at_work.get()
    return pattern if isinstance(pattern, Reply) else None


def execution_failed(reply: Reply, error: BaseException) -> None:
    """The called function has raised an exception. To be cancelled is none of which the caller is told."""
    if isinstance(error, Exception):
        reply.fail(error)
