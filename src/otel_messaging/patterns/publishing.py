"""Messages that are published as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import INVALID_SPAN

from otel_messaging.core import safety
from otel_messaging.core import vocabulary as v
from otel_messaging.core.publish_batch import PublishBatch

from .libraries import library_in_use, library_named

if TYPE_CHECKING:
    from types import TracebackType

    from opentelemetry.trace import Span

    from otel_messaging.core.telemetry import Telemetry


class BatchPublishing:
    """The publishing of several messages: a ``with`` or an ``async with`` block, which is given the span."""

    __slots__ = ("_batch", "_destination", "_system")

    def __init__(self, destination: str, system: str | None) -> None:
        self._destination = destination
        self._system = system
        self._batch: PublishBatch | None = None

    def __enter__(self) -> Span:
        if self._batch is not None:
            raise RuntimeError("this block is entered already: call batch_publish() once for each")
        try:
            self._batch = self._start()
        except Exception as error:
            safety.report("batch_publish", error)
        return INVALID_SPAN if self._batch is None else self._batch.span

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        try:
            batch.close(error)
        except Exception as failure:
            safety.report("batch_publish", failure)

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _start(self) -> PublishBatch | None:
        system = self._system
        if system is None:
            library, certain = library_in_use()
            system = library.system if certain else None  # the messages will tell
        else:
            library = library_named(system)
        telemetry: Telemetry = library.instrumentor.reader().telemetry
        context = telemetry.context()
        if context is None:
            return None
        destination = v.Destination(self._destination)
        operation = telemetry.prepared(v.BATCH_PUBLISH, "batch_publish", destination, ((v.SYSTEM, system),))
        span = telemetry.start(operation, context)
        return None if span is None else PublishBatch(telemetry, operation, span, context)


def batch_publish(destination: str, /, *, system: str | None = None) -> BatchPublishing:
    """Publish several messages as one: a span ``batch_publish D`` above those of the messages.

    ::

        with batch_publish("orders"):
            for order in orders:
                producer.send("orders", order)

    It counts what is published inside, by any of the three libraries, in every task that is started inside, and in
    threads that are given the context, as ``asyncio.to_thread`` does. It has the number of messages and their total
    size, and for each that failed an event ``message_failed`` with its ``message.index``, in the order of publishing
    from 0. The span ends when the block has been left and the broker has answered for all messages: nothing waits for
    that. This is the guide's chapter 6.

    Args:
        destination: what the messages have in common, for the span's name: a topic, exchange, queue or subject.
        system: ``kafka``, ``rabbitmq`` or ``nats``; needed only where a program uses several of them, and a sampler has
            to know it before the first message.

    Returns:
        A block to enter by ``with`` or ``async with``, which gives the span.

    Raises:
        TypeError: the destination is no text.
        ValueError: there is no such system.
    """
    if not isinstance(destination, str):
        raise TypeError(f"batch_publish() takes the name of the destination, not {type(destination).__name__!r}")
    if system is not None:
        library_named(system)
    return BatchPublishing(destination, system)
