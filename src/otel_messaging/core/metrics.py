"""Messages counted and timed, in the vocabularies in force."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from opentelemetry.metrics import Observation

from . import safety
from . import vocabulary as v
from .cache import LIMIT
from .finalizers import end_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter

Item = TypeVar("Item")
_Left = tuple["Counter", int, v.Attributes]
_Weak = weakref.WeakKeyDictionary[Item, None]
_generation = itertools.count()


def _alive(items: _Weak[Item]) -> list[Item]:
    """What is still there, at one stroke: other threads add to it, and a loop over it, or a `WeakSet`, would raise."""
    return [item for reference in items.keyrefs() if (item := reference()) is not None]


class Metrics:
    """The instruments of the guide, of the conventions, or of both.

    Args:
        meter: where the instruments are made.
        vocabulary: the names in force.
    """

    def __init__(self, meter: Meter, vocabulary: v.Vocabulary) -> None:
        self._guide = _Guide(meter) if vocabulary.guide else None
        self._semconv = _Semconv(meter) if vocabulary.semconv else None
        self._tallies: _Weak[_Tally] = weakref.WeakKeyDictionary()
        self._left: deque[_Left] = deque()
        self._names = vocabulary
        self._queue_duration = meter.create_histogram(
            v.QUEUE_DURATION,
            "s",
            "How long messages had waited at the broker",
            explicit_bucket_boundaries_advisory=v.SECONDS_BUCKETS,
        )
        self._counters = {
            v.RETRIED: meter.create_counter(v.RETRIED, "{retry}", "Times that handling a message was tried again"),
            v.DEAD_LETTERED: meter.create_counter(v.DEAD_LETTERED, "{message}", "Messages put aside as dead letters"),
        }
        self._lags = _lags_of(meter)
        # Never exported, since it never has a value: its callback is how one learns that metrics are being collected.
        # Each instrumenting has a name of its own, because a meter keeps the first callback for a name.
        name = f"otel_messaging.collecting.{next(_generation)}"
        meter.create_observable_gauge(name, [self._collect], description="Not exported")

    def operation(
        self, action: v.Action, verb: str, destination: v.Destination, facts: v.Facts
    ) -> tuple[OperationMetrics, ...]:
        """What to record each time an operation has ended."""
        if len(self._left) >= LIMIT:
            self._hand_over()
        made = []
        for instruments in (self._guide, self._semconv):
            if instruments is not None:
                attributes = instruments.names.metric_attributes(action, verb, destination, facts)
                counter, duration, factor = instruments.choose(action)
                tally = _Tally(counter, attributes, self._left) if counter is not None else None
                if tally is not None:
                    self._tallies[tally] = None
                made.append(OperationMetrics(tally, duration, factor, instruments.timed(action, attributes)))
        return tuple(made)

    def waiting(
        self, action: v.Action, verb: str, destination: v.Destination, facts: v.Facts
    ) -> tuple[Histogram, v.Attributes]:
        """Where to record how long the messages of an operation have waited, in seconds."""
        return self._queue_duration, self._names.metric_attributes(action, verb, destination, facts)

    def count(self, name: str, destination: v.Destination, facts: v.Facts, error_type: str | None) -> None:
        """Count what became of one message that could not be handled."""
        attributes = self._names.metric_attributes(v.PROCESS, "process", destination, facts)
        if error_type is not None:
            attributes[v.ERROR_TYPE] = error_type
        self._counters[name].add(1, attributes)

    def lag(self, facts: v.Facts, holds: Callable[[], bool] | None = None) -> Lag:
        """A new gauge of messages that wait behind those delivered.

        Args:
            facts: what they wait for: system, destination, group, partition.
            holds: whether the consumer still has what they wait for; always if None.
        """
        made = Lag(self._names.write({}, facts), holds)
        self._lags[made] = None
        return made

    def flush(self) -> None:
        """Hand over what was counted."""
        self._hand_over()
        for tally in _alive(self._tallies):
            tally.flush()

    def disown(self) -> None:
        """In a forked child: what was counted, and what waits, is for the parent to tell."""
        self._left.clear()
        for tally in _alive(self._tallies):
            tally.start()
        for lag in _alive(self._lags):
            lag.value = None

    def _hand_over(self) -> None:
        while self._left:
            counter, number, attributes = self._left.popleft()
            counter.add(number, attributes)

    def _collect(self, _options: CallbackOptions) -> Iterable[Observation]:
        try:
            end_aside()
            self.flush()
        except Exception as error:
            safety.report("counting messages", error)
        return ()


class Lag:
    """How many messages wait behind the one delivered last. Gone from the metrics as soon as nobody keeps it.

    Args:
        attributes: what they wait for.
        holds: whether the consumer still has that: a partition may be lost in the middle of a call; always if None.

    Attributes:
        value: that number; None while it is not known.
    """

    __slots__ = ("__weakref__", "_holds", "attributes", "value")

    def __init__(self, attributes: v.Attributes, holds: Callable[[], bool] | None = None) -> None:
        self.attributes = attributes
        self.value: int | None = None
        self._holds = holds

    def observe(self) -> list[Observation]:
        """The number, as the SDK wants it. What was lost has none, until something comes from there again."""
        if self._holds is not None and not self._holds():
            self.value = None
        return [] if self.value is None else [Observation(self.value, self.attributes)]


_lags: weakref.WeakKeyDictionary[Meter, _Weak[Lag]] = weakref.WeakKeyDictionary()


def _lags_of(meter: Meter) -> _Weak[Lag]:
    """The gauges of a meter, which keeps the first callback for a name and so is given just one."""
    lags = _lags.get(meter)
    if lags is None:
        lags = _lags[meter] = weakref.WeakKeyDictionary()

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [observation for lag in _alive(lags) for observation in lag.observe()]

        meter.create_observable_gauge(
            v.CONSUMER_LAG, [observe], "{message}", "Messages waiting behind the one delivered last"
        )
    return lags


class _Tally:
    """Counts messages for a counter, which costs a hundred times as much as this does.

    What was counted is handed over when metrics are collected, and when the operation that counts is forgotten.
    """

    __slots__ = ("__weakref__", "_attributes", "_counter", "_given", "_left", "_lock", "_looks", "add")

    def __init__(self, counter: Counter, attributes: v.Attributes, left: deque[_Left]) -> None:
        self._counter = counter
        self._attributes = attributes
        self._left = left
        self.start()

    def start(self) -> None:
        """Count from nought, and wait for nobody: a forked child has the locks of threads that it has not."""
        self._looks = 0
        self._given = 0
        self._lock = threading.Lock()
        self.add = itertools.count().__next__
        """Count one. Atomic, which adding to a number is not."""

    def count(self, number: int, error_type: str | None) -> None:
        """Count messages that are counted together, or that failed."""
        attributes = self._attributes if error_type is None else {**self._attributes, v.ERROR_TYPE: error_type}
        self._counter.add(number, attributes)

    def flush(self) -> None:
        """Hand over what was counted since the last time."""
        with self._lock:
            new = self._new()
        if new:
            self._counter.add(new, self._attributes)

    def _new(self) -> int:
        counted = self.add() - self._looks  # to look is to count, too
        self._looks += 1
        new, self._given = counted - self._given, counted
        return new

    def __del__(self) -> None:
        # Perhaps in the middle of the SDK's own work, which may hold a lock that the counter needs: so not now.
        try:
            new = self._new()
            if new:
                self._left.append((self._counter, new, self._attributes))
        except Exception as error:
            safety.report("counting messages", error)


class OperationMetrics:
    """The instruments and attributes of one operation in one vocabulary.

    Attributes:
        timed: whether it matters how long the operation took.
    """

    __slots__ = ("_attributes", "_duration", "_factor", "_tally", "timed")

    def __init__(
        self, tally: _Tally | None, duration: Histogram | None, factor: float, attributes: v.Attributes
    ) -> None:
        self._tally = tally
        self._duration = duration
        self._factor = factor
        self._attributes = attributes
        self.timed = duration is not None

    def record(self, seconds: float | None, count: int, error_type: str | None) -> None:
        """Count messages and record how long the operation took, unless that is None."""
        if self._tally is not None:
            if error_type is None and count == 1:
                self._tally.add()
            elif count or error_type is not None:
                self._tally.count(count, error_type)
        if self._duration is not None and seconds is not None:
            attributes = self._attributes if error_type is None else {**self._attributes, v.ERROR_TYPE: error_type}
            self._duration.record(seconds * self._factor, attributes)


class _Guide:
    def __init__(self, meter: Meter) -> None:
        self.names = v.Vocabulary("guide")
        self._produced = meter.create_counter(v.PRODUCED, "{message}", "Messages that were published")
        self._consumed = meter.create_counter(v.CONSUMED, "{message}", "Messages delivered to the application")
        self._duration = meter.create_histogram(
            v.PROCESSING_DURATION,
            "ms",
            "How long the application handled a message",
            explicit_bucket_boundaries_advisory=v.MILLISECONDS_BUCKETS,
        )

    def choose(self, action: v.Action) -> tuple[Counter | None, Histogram | None, float]:
        """The counter and the histogram of an action, and what to multiply seconds by for the latter."""
        counters = {v.PUBLISH: self._produced, v.DELIVER: self._consumed, v.RECEIVE: self._consumed}
        timed = action in v.HANDLING
        return counters.get(action), self._duration if timed else None, 1000.0

    def timed(self, _action: v.Action, attributes: v.Attributes) -> v.Attributes:
        """The attributes of the duration, from those of the counter."""
        return attributes


class _Semconv:
    def __init__(self, meter: Meter) -> None:
        self.names = v.Vocabulary("semconv")
        self._sent = meter.create_counter(v.CLIENT_SENT, "{message}", "Messages that a producer attempted to send")
        self._consumed = meter.create_counter(v.CLIENT_CONSUMED, "{message}", "Messages delivered to the application")
        self._operation = meter.create_histogram(
            v.CLIENT_DURATION,
            "s",
            "Duration of a messaging operation of a producer or consumer client",
            explicit_bucket_boundaries_advisory=v.SECONDS_BUCKETS,
        )
        self._process = meter.create_histogram(
            v.PROCESS_DURATION,
            "s",
            "Duration of processing a message",
            explicit_bucket_boundaries_advisory=v.SECONDS_BUCKETS,
        )

    def choose(self, action: v.Action) -> tuple[Counter | None, Histogram | None, float]:
        """The counter and the histogram of an action, and what to multiply seconds by for the latter."""
        counters = {v.PUBLISH: self._sent, v.DELIVER: self._consumed, v.RECEIVE: self._consumed}
        if action == v.BATCH_PUBLISH:
            return None, None, 1.0  # its messages are counted and timed one by one
        handled = action in v.HANDLING
        return counters.get(action), self._process if handled else self._operation, 1.0

    def timed(self, action: v.Action, attributes: v.Attributes) -> v.Attributes:
        """The attributes of the duration, from those of the counter.

        The conventions have the operation's type on the duration of a client's operation, and on nothing else.
        """
        if action in v.HANDLING:
            return attributes
        return self.names.write(attributes.copy(), ((v.OPERATION_TYPE, action.type or None),))
