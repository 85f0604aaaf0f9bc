"""`queue.iterator()`: messages by `async for`."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

import wrapt

from otel_messaging.core.finalizers import finalizer
from otel_messaging.core.operations import Moment
from otel_messaging.core.safety import guard
from otel_messaging.instrumentation.loops import AsyncLoop, Shared, shared_since
from otel_messaging.instrumentation.nested_calls import EnclosingCall
from otel_messaging.instrumentation.settling import settled, settling_failed
from otel_messaging.instrumentation.state import find, keep
from otel_messaging.instrumentation.wrapping import around

from .adapter import giving_back
from .pulling import tell_failure
from .readers import identify

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.loops import Held

    from .adapter import AioPika
    from .sources import Source


class _Iterated:
    """What is kept for an iterator over a queue."""

    def __init__(self, telemetry: Telemetry, iterator: Any) -> None:
        self.shared = Shared()  # first: the finalizer needs it, whatever fails behind this
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
        guard("QueueIterator", self._close)  # all of it: to make this object may have failed, before it had `shared`

    def _close(self) -> None:
        self.shared.close()


def asks_iterator(pika: AioPika, iterator: Any) -> tuple[AioPika, Any, Held | None, int]:
    """`QueueIterator.__anext__` hands out one message, which is handled until the next is asked for."""
    state = find(iterator)
    return pika, iterator, None if state is None else state.shared.asked(), time_ns()


def iterator_gave(asking: tuple[AioPika, Any, Held | None, int], message: Any) -> Any:
    """The application has a message."""
    pika, iterator, held, _ = asking
    if pika.telemetry.enabled:
        keep(iterator, pika.telemetry, _Iterated).hand_out(pika, message, held)
    return message


def iterator_failed(asking: tuple[AioPika, Any, Held | None, int], error: BaseException) -> None:
    """There is no message, which mostly is the end of the loop."""
    pika, iterator, _, began = asking
    tell_failure(pika, "consume", iterator._amqp_queue, error, Moment.since(began))


def if_enabled(pika: AioPika, iterator: Any) -> tuple[AioPika, Any] | None:
    """What is to be done when the call has returned is done only if instrumentation is on."""
    return (pika, iterator) if pika.telemetry.enabled else None


def loops_over(begun: tuple[AioPika, Any], iterator: Any) -> Any:
    """`async for` gets an iterator of its own, which it lets go of when the loop is left."""
    pika, _ = begun
    if isinstance(iterator, AsyncLoop) or not hasattr(iterator, "_amqp_queue"):
        return iterator
    return keep(iterator, pika.telemetry, _Iterated).shared.loop(iterator)


def enters(begun: tuple[AioPika, Any], entered: Any) -> Any:
    """`QueueIterator.__aenter__`: its block will show the exceptions that leave a loop in it."""
    pika, iterator = begun
    keep(iterator, pika.telemetry, _Iterated).shared.enter()
    return entered


def exits(_pika: AioPika, iterator: Any, exc_val: BaseException | None) -> None:
    """`QueueIterator.__aexit__`: the exception that passes is the one that handling a message raised."""
    state = find(iterator)
    if state is not None:
        state.shared.exit(exc_val)


def _closes(_pika: AioPika, iterator: Any, _: tuple[Any, ...] = ()) -> EnclosingCall:
    """The arguments, up to 9.3, are those of a channel that closes, which is no end of a loop's body."""
    state = find(iterator)
    if state is not None and not _:
        guard("QueueIterator.close", state.shared.close)
    return EnclosingCall(giving_back)


def wrap_close(pika: AioPika, close: Callable[..., Any]) -> Callable[..., Any]:
    """`QueueIterator.close` ends the handling of the last message.

    Up to 9.3 it is the queue's callback too, called with arguments when the channel closes; and it is looked up among
    the callbacks by equality. So its replacement must equal the original, which a proxy of it does.
    """
    replacement = around(_closes, settled, settling_failed)(pika, close)

    def wrapper(_wrapped: Any, self: Any, args: Any, kwargs: Any) -> Any:
        return replacement(self, *args, **kwargs)

    return wrapt.FunctionWrapper(close, wrapper)
