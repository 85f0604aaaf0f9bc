"""What the instrumentor of kafka-python keeps: its producers and consumers, and an end to them at exit."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import TYPE_CHECKING, Any

from otel_messaging.core import fork
from otel_messaging.core.safety import report
from otel_messaging.instrumentation.state import keep

from .consumer import Consumer
from .limits import Limits
from .producer import Producer

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.operations import Operation
    from otel_messaging.core.telemetry import Telemetry

_MADE = "_otel_messaging_made"


class Kafka:
    """Reads kafka-python's objects for the telemetry of one instrumentor.

    A producer flushes in an exit handler of its own, and handlers run last in, first out. So what is on its way ends in
    `abandon`, registered before the first producer is made. A producer that was made before it was instrumented flushes
    after that: it ends what is on its way itself, when its handler has closed it.

    Attributes:
        leaving: whether the interpreter exits.
        limits: how large records may be.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self._producers: weakref.WeakSet[Producer] = weakref.WeakSet()
        self._consumers: weakref.WeakSet[Consumer] = weakref.WeakSet()
        self._adding = threading.Lock()
        self._registered: set[str] = set()
        self.leaving = False
        self.limits = Limits()
        fork.watch(self)

    def making(self, producer: Any) -> None:
        """A producer is about to be made."""
        producer.__dict__[_MADE] = self.telemetry
        self._at_exit("abandon")

    def disown(self) -> None:
        """In a forked child, which has none of the clients' threads: what its parent sent is its parent's."""
        self._adding = threading.Lock()
        for producer in self._producers:
            producer.pending.clear()
        for consumer in self._consumers:
            consumer.pending.clear()

    def abandon(self) -> None:
        """The interpreter exits: nothing will be heard of what is on its way, unless a producer has yet to flush."""
        for producer in self._producers:
            if producer.flushes_first:
                producer.abandon()
        for consumer in self._consumers:
            consumer.abandon()

    def leave(self) -> None:
        """The interpreter exits."""
        self.leaving = True

    def producer(self, producer: Any) -> Producer:
        """What is kept for a producer."""
        return keep(producer, self.telemetry, self.add_producer)

    def consumer(self, consumer: Any) -> Consumer:
        """What is kept for a consumer."""
        return keep(consumer, self.telemetry, self._add_consumer)

    def assigned(self, topic: str, partition: int) -> Operation | None:
        """How records of a partition are handled, if there is just one consumer here that they come to.

        One that is closed counts only where none is open: what it has received may be handled after that.
        """
        having = [consumer for consumer in list(self._consumers) if consumer.has(topic, partition)]
        found = [consumer for consumer in having if not consumer.closed] or having
        return found[0].listed(topic, partition).operation if len(found) == 1 else None

    def taking(self, delivery: Delivery | None) -> Callable[[], None] | None:
        """What leaves the end of a record's handling to who calls it, if that was taken out of a list."""
        if delivery is not None:
            for consumer in list(self._consumers):
                if consumer.held.took(delivery):
                    return consumer.held.release
        return None

    def add_producer(self, telemetry: Telemetry, producer: Any) -> Producer:
        """What is to be kept for a producer."""
        state = Producer(telemetry, producer)
        self.limits.add(state.largest)
        state.flushes_first = producer.__dict__.get(_MADE) is telemetry
        self._at_exit("leave")
        with self._adding:  # to another set: threads may be looking at this one
            self._producers = weakref.WeakSet((*self._producers, state))
        return state

    def _add_consumer(self, telemetry: Telemetry, consumer: Any) -> Consumer:
        state = Consumer(telemetry, consumer)
        self._at_exit("abandon")
        with self._adding:  # as above
            self._consumers = weakref.WeakSet((*self._consumers, state))
        return state

    def _at_exit(self, method: str) -> None:
        if method not in self._registered:
            self._registered.add(method)
            atexit.register(_call, weakref.ref(self), method)


def _call(adapter: weakref.ref[Kafka], method: str) -> None:
    kafka = adapter()
    if kafka is not None:
        try:
            getattr(kafka, method)()
        except Exception as error:
            report("leaving the interpreter", error)
