"""Messages that are published as one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from otel_messaging.core import vocabulary as v
from otel_messaging.core.publish_batch import PublishBatch

from .blocks import Block
from .libraries import library_in_use, library_named

if TYPE_CHECKING:
    from otel_messaging.core.telemetry import Telemetry


def _start(destination: str, system: str | None) -> PublishBatch | None:
    if system is None:
        library, certain = library_in_use()
        system = library.system if certain else None  # the messages will tell
    else:
        library = library_named(system)
        system = library.system
    telemetry: Telemetry = library.instrumentor.reader().telemetry
    context = telemetry.active_context()
    if context is None:
        return None
    known = telemetry.whereabouts if system is not None else ()
    facts = known or ((v.SYSTEM, system),)
    operation = telemetry.prepared(v.BATCH_PUBLISH, "batch_publish", v.Destination(destination), facts)
    span = telemetry.start(operation, context)
    return None if span is None else PublishBatch(telemetry, operation, span, context)


def batch_publish(destination: str, /, *, system: str | None = None) -> Block:
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
        system: ``kafka``, ``rabbitmq`` or ``nats``, or the name of an adapter, as `process` takes it; needed only where
            a program uses several of them, and a sampler has to know it before the first message.

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
    return Block("batch_publish", partial(_start, destination, system))
