"""`queue.iterator()`: messages by `async for`."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

import wrapt

from otel_messaging.core.finalizers import finalizer
from otel_messaging.core.operations import Moment
from otel_messaging.core.safety import guard, report
from otel_messaging.instrumentation.loops import AsyncLoop, Shared, shared_since
from otel_messaging.instrumentation.state import find, keep

from .readers import identify
from .settling import giving_back, marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.loops import Held

    from .adapter import AioPika
    from .consuming import Source


class _Iterated:
    """What is kept for an iterator over a queue."""

    def __init__(self, telemetry: Telemetry, iterator: Any) -> None:
        self.shared = Shared()  # first: the finalizer needs it, whatever fails here
        self.telemetry = telemetry
        self.shared = shared_since(find(iterator))  # which loops have
        self._queue = iterator._amqp_queue
        self._channel: Any = None
        self._source: Source | None = None

    def hand_out(self, pika: AioPika, message: Any, held: Held | None) -> None:
        """The application has a message.

        Args:
            pika: the adapter.
            message: the library's.
            held: where it was asked for, if that was seen.
        """
        channel = message._IncomingMessage__channel
        if self._source is None or channel is not self._channel:  # which is another after a reconnect
            self._channel, self._source = channel, pika.source(self._queue.name, channel.connection)
        delivery = self._source.hand_out(message, message, message.body, identify(message))
        (held or self.shared.asked()).hold(delivery)
        if delivery is not None:
            self.telemetry.tell_consume_hook(delivery, message)

    @finalizer
    def __del__(self) -> None:
        """The iterator is collected, and cannot be asked for the next message any more."""
        guard("QueueIterator", self.shared.close)


def wrap_anext(pika: AioPika, advance: Callable[..., Any]) -> Callable[..., Any]:
    """`QueueIterator.__anext__` hands out one message, which is handled until the next is asked for."""

    async def wrapper(self: Any) -> Any:
        held, began = None, time_ns()
        try:
            state = find(self)
            if state is not None:
                held = state.shared.asked()
        except Exception as error:
            report("QueueIterator.__anext__", error)
        try:
            message = await advance(self)
        except BaseException as error:
            guard("QueueIterator.__anext__", pika.failed, "consume", self._amqp_queue, error, Moment.since(began))
            raise
        try:
            if pika.telemetry.enabled:
                keep(self, pika.telemetry, _Iterated).hand_out(pika, message, held)
        except Exception as error:
            report("QueueIterator.__anext__", error)
        return message

    return wrapper


def wrap_aiter(pika: AioPika, iterate: Callable[..., Any]) -> Callable[..., Any]:
    """`async for` gets an iterator of its own, which it lets go of when the loop is left."""

    def wrapper(self: Any) -> Any:
        iterator = iterate(self)
        try:
            if pika.telemetry.enabled and not isinstance(iterator, AsyncLoop) and hasattr(iterator, "_amqp_queue"):
                return keep(iterator, pika.telemetry, _Iterated).shared.loop(iterator)
        except Exception as error:
            report("QueueIterator.__aiter__", error)
        return iterator

    return wrapper


def wrap_aenter(pika: AioPika, enter: Callable[..., Any]) -> Callable[..., Any]:
    """`QueueIterator.__aenter__`: its block will show the exceptions that leave a loop in it."""

    async def wrapper(self: Any) -> Any:
        entered = await enter(self)
        try:
            if pika.telemetry.enabled:
                keep(self, pika.telemetry, _Iterated).shared.enter()
        except Exception as error:
            report("QueueIterator.__aenter__", error)
        return entered

    return wrapper


def wrap_aexit(_pika: AioPika, leave: Callable[..., Any]) -> Callable[..., Any]:
    """`QueueIterator.__aexit__`: the exception that passes is the one that handling a message raised."""

    async def wrapper(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        try:
            state = find(self)
            if state is not None:
                state.shared.exit(error)
        except Exception as failure:
            report("QueueIterator.__aexit__", failure)
        return await leave(self, kind, error, trace)

    return wrapper


def wrap_close(_pika: AioPika, close: Callable[..., Any]) -> Callable[..., Any]:
    """`QueueIterator.close` ends the handling of the last message.

    Up to 9.3 it is the queue's callback too, called with arguments when the channel closes, which is no end of a loop's
    body; and it is looked up among the callbacks by equality. So its replacement must equal the original.
    """

    async def closing(self: Any, args: Any, kwargs: Any) -> Any:
        try:
            state = find(self)
            if state is not None and not args:
                state.shared.close()
        except Exception as error:
            report("QueueIterator.close", error)
        with marked(giving_back):
            return await close(self, *args, **kwargs)

    def wrapper(_wrapped: Any, self: Any, args: Any, kwargs: Any) -> Any:
        return closing(self, args, kwargs)

    return wrapt.FunctionWrapper(close, wrapper)
