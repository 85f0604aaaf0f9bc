"""What the instrumentor of kafka-python keeps: its producers and consumers, and an end to them at exit."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import TYPE_CHECKING, Any

from otel_messaging.core import forking
from otel_messaging.core.state import keep

from .consumer import Consumer
from .producer import Producer

if TYPE_CHECKING:
    from otel_messaging.core.telemetry import Operation, Telemetry


class Kafka:
    """Reads kafka-python's objects for the telemetry of one instrumentor.

    Attributes:
        leaving: whether the interpreter exits.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self._producers: weakref.WeakSet[Producer] = weakref.WeakSet()
        self._consumers: weakref.WeakSet[Consumer] = weakref.WeakSet()
        self._adding = threading.Lock()
        self._watching = False
        self.leaving: bool | None = None  # until there is a producer that could be left

    def watch(self) -> None:
        """End what is still on its way when the interpreter exits.

        Called before a producer is made: exit handlers run last in, first out, so that the producer, which flushes in
        its own, comes first, and a tracer provider made earlier can still export.
        """
        if not self._watching:
            self._watching = True
            atexit.register(_at_exit, weakref.ref(self))
            forking.watch(self)

    def disown(self) -> None:
        """In a forked child, which has no sender thread: what its parent sent is its parent's."""
        for producer in self.producers():
            producer.pending.clear()

    def producers(self) -> list[Producer]:
        """The producers that have sent something and are still there."""
        return list(self._producers)

    def producer(self, producer: Any) -> Producer:
        """What is kept for a producer."""
        return keep(producer, self.telemetry, self.add_producer)

    def consumer(self, consumer: Any) -> Consumer:
        """What is kept for a consumer."""
        return keep(consumer, self.telemetry, self._add_consumer)

    def assigned(self, topic: str, partition: int) -> Operation | None:
        """How records of a partition are handled, if there is just one consumer here that they come to."""
        found = [operation for consumer in list(self._consumers) if (operation := consumer.assigned(topic, partition))]
        return found[0] if len(found) == 1 else None

    def add_producer(self, telemetry: Telemetry, producer: Any) -> Producer:
        """What is to be kept for a producer."""
        state = Producer(telemetry, producer)
        self._producers.add(state)
        if self.leaving is None:
            # A producer made before it was instrumented flushes in an exit handler that runs after all of ours.
            self.leaving = False
            atexit.register(_leave, weakref.ref(self))
        return state

    def _add_consumer(self, telemetry: Telemetry, consumer: Any) -> Consumer:
        state = Consumer(telemetry, consumer)
        with self._adding:  # to another set: threads may be looking at this one
            self._consumers = weakref.WeakSet((*self._consumers, state))
        return state


def _leave(adapter: weakref.ref[Kafka]) -> None:
    kafka = adapter()
    if kafka is not None:
        kafka.leaving = True


def _at_exit(adapter: weakref.ref[Kafka]) -> None:
    kafka = adapter()
    for producer in kafka.producers() if kafka is not None else ():
        producer.abandon()
