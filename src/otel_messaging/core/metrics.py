"""Messages counted and timed, in the vocabularies in force."""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Observation
from opentelemetry.trace import INVALID_SPAN

from otel_messaging._version import __version__

from . import fork, safety, settings
from . import vocabulary as v
from .contexts import SPAN
from .finalizers import end_aside
from .otel_private import has_meter_provider, stands_for

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider
    from opentelemetry.trace import Span

_logger = logging.getLogger("otel_messaging")
Item = TypeVar("Item")
_Weak = weakref.WeakKeyDictionary[Item, None]
_generation = itertools.count()
_NOWHERE = Context({SPAN: INVALID_SPAN})
"""No span, in a context that is not empty: the SDK takes an empty one for none, and would look at the current one."""
_PATIENCE = 1.0
"""How long a collection waits for another one, in seconds. The other may be below it, where a signal has broken in."""


NAMES = 1000
"""How many destinations each instrument tells apart, and failures of them. Whoever sends messages may make them up."""
_FULL_OF_ERRORS = "%s: metrics have %d errors of destinations already, and count all others as %s"
_FULL = (
    "%s: metrics have %d names of destinations already, and count all others as %s; where names are made up per device,"
    " user or the like, let one stand for them: %s=devices.*.status"
)


class _Instrument(NamedTuple):
    unit: str
    description: str
    buckets: tuple[float, ...] | None = None


_COUNTERS = {
    v.PRODUCED: _Instrument("{message}", "Messages that were published"),
    v.CONSUMED: _Instrument("{message}", "Messages delivered to the application"),
    v.CLIENT_SENT: _Instrument("{message}", "Messages that a producer attempted to send"),
    v.CLIENT_CONSUMED: _Instrument("{message}", "Messages delivered to the application"),
    v.RETRIED: _Instrument("{retry}", "Times that handling a message was tried again"),
    v.DEAD_LETTERED: _Instrument("{message}", "Messages put aside as dead letters"),
}
_HISTOGRAMS = {
    v.PROCESSING_DURATION: _Instrument("ms", "How long the application handled a message", v.MILLISECONDS_BUCKETS),
    v.CLIENT_DURATION: _Instrument(
        "s", "Duration of a messaging operation of a producer or consumer client", v.SECONDS_BUCKETS
    ),
    v.PROCESS_DURATION: _Instrument("s", "Duration of processing a message", v.SECONDS_BUCKETS),
    v.QUEUE_DURATION: _Instrument("s", "How long messages had waited at the broker", v.SECONDS_BUCKETS),
}
_SENT = {"guide": v.PRODUCED, "semconv": v.CLIENT_SENT}
_CONSUMED = {"guide": v.CONSUMED, "semconv": v.CLIENT_CONSUMED}
_HANDLED = {"guide": v.PROCESSING_DURATION, "semconv": v.PROCESS_DURATION}


def _alive(items: _Weak[Item]) -> list[Item]:
    """What is still there, at one stroke: other threads add to it, and a loop over it, or a `WeakSet`, would raise."""
    return [item for reference in items.keyrefs() if (item := reference()) is not None]


class Metrics:
    """What one instrumenting counts and times, under the names of the guide, of the conventions, or of both.

    Args:
        meter: where the instruments are made.
        vocabulary: the names in force.
    """

    def __init__(self, meter: Meter, vocabulary: v.Vocabulary) -> None:
        self._ledger = _ledger_of(meter)
        self._names = vocabulary
        self._modes = [
            (mode, v.Vocabulary(mode, vocabulary.templates))
            for mode, chosen in (("guide", vocabulary.guide), ("semconv", vocabulary.semconv))
            if chosen
        ]
        for mode, _ in self._modes:  # at once: a provider that is set later finds them
            for action in (v.PUBLISH, v.DELIVER, v.RECEIVE):
                self._ledger.provide(*_chosen(mode, action))
        self._ledger.provide(v.RETRIED, v.QUEUE_DURATION)
        self._ledger.provide(v.DEAD_LETTERED, None)

    def operation(
        self, action: v.Action, verb: str, destination: v.Destination, facts: v.Facts
    ) -> tuple[OperationMetrics, ...]:
        """What to record each time an operation has ended."""
        made, ledger = [], self._ledger
        for mode, names in self._modes:
            counter, duration = _chosen(mode, action)
            tally = timer = None
            attributes: v.Attributes = {}
            if counter is not None:
                tally = ledger.tally(counter, self._attributes(names, counter, verb, destination, facts))
            if duration is not None:
                timer = ledger.histogram(duration)
                attributes = self._attributes(names, duration, verb, destination, facts)
            if duration == v.CLIENT_DURATION:  # which has it, and no other metric
                names.write(attributes, ((v.OPERATION_TYPE, action.type or None),))
            if tally is not None or timer is not None:
                factor = 1000.0 if duration == v.PROCESSING_DURATION else 1.0
                failed = partial(ledger.failed, duration or "")
                made.append(OperationMetrics(tally, timer, factor, attributes, failed))
        return tuple(made)

    def waiting(self, verb: str, destination: v.Destination, facts: v.Facts) -> tuple[Histogram, v.Attributes]:
        """Where to record how long the messages of an operation have waited, in seconds."""
        attributes = self._attributes(self._names, v.QUEUE_DURATION, verb, destination, facts)
        return self._ledger.histogram(v.QUEUE_DURATION), attributes

    def count(self, name: str, destination: v.Destination, facts: v.Facts, error_type: str | None) -> None:
        """Count what became of one message that could not be handled."""
        attributes = self._attributes(self._names, name, "process", destination, facts)
        if error_type is not None:
            attributes = self._ledger.failed(name, attributes, error_type)
        self._ledger.counter(name).add(1, attributes)

    def lag(self, destination: v.Destination, facts: v.Facts, holds: Callable[[], bool] | None = None) -> Lag:
        """A new gauge of messages that wait behind those delivered.

        Args:
            destination: where they wait.
            facts: what else tells them from others: system, group, partition.
            holds: whether the consumer still has what they wait for; always if None.
        """
        name = self._names.low_name(destination)
        where = [value for fact, value in facts if fact != v.KAFKA_PARTITION]  # of which a topic has what it has
        other = not self._ledger.knows(v.CONSUMER_LAG, (name, *where) if any(where) else name)
        told = [pair for pair in facts if pair[0] in (v.SYSTEM, v.KAFKA_PARTITION)] if other else facts
        itself = (destination.name, facts) if other else destination.name
        made = Lag(self._names.write(self._names.place(destination, other), told), itself, holds)
        self._ledger.lags[made] = None
        return made

    def _attributes(
        self, names: v.Vocabulary, instrument: str, verb: str, destination: v.Destination, facts: v.Facts
    ) -> v.Attributes:
        other = not self._ledger.knows(instrument, names.low_name(destination))
        return names.metric_attributes(verb, destination, facts, other)

    def close(self) -> None:
        """Hand over what was counted. What is on its way still is counted when it ends, and its lag not known."""
        self._ledger.forget_lags()
        self._ledger.flush()


def _chosen(mode: str, action: v.Action) -> tuple[str | None, str | None]:
    """The counter and the histogram of an action in a vocabulary."""
    counters = {v.PUBLISH: _SENT[mode], v.DELIVER: _CONSUMED[mode], v.RECEIVE: _CONSUMED[mode]}
    elsewhere = v.CLIENT_DURATION if mode == "semconv" else None
    return counters.get(action), _HANDLED[mode] if action in v.HANDLING else elsewhere


class _Ledger:
    """What is kept for a meter, however often its library is instrumented: instruments, what they count, and lags.

    The SDK has its one callback of ours, and so keeps this as long as it collects metrics.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.lags: _Weak[Lag] = weakref.WeakKeyDictionary()
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self._tallies: dict[tuple[Any, ...], _Tally] = {}
        self._names: defaultdict[str, set[Hashable]] = defaultdict(set)
        self._errors: defaultdict[str, set[Hashable]] = defaultdict(set)
        self._full = self._full_of_errors = False
        self._flushing = threading.Lock()
        # Never exported, since it never has a value: its callback is how one learns that metrics are being collected.
        # Its name is its own, because the SDK keeps the first callback for a name, whatever meter it was given to.
        name = f"otel_messaging.collecting.{next(_generation)}"
        meter.create_observable_gauge(name, [self._collect], description="Not exported")
        meter.create_observable_gauge(
            v.CONSUMER_LAG, [self._observe], "{message}", "Messages waiting behind the one delivered last"
        )
        fork.watch(self)

    def provide(self, counter: str | None, histogram: str | None) -> None:
        """Make instruments that will be used."""
        if counter is not None:
            self.counter(counter)
        if histogram is not None:
            self.histogram(histogram)

    def counter(self, name: str) -> Counter:
        """The counter of a name."""
        found = self._counters.get(name)
        if found is None:
            unit, description, _ = _COUNTERS[name]
            found = self._counters[name] = self.meter.create_counter(name, unit, description)
        return found

    def histogram(self, name: str) -> Histogram:
        """The histogram of a name."""
        found = self._histograms.get(name)
        if found is None:
            unit, description, buckets = _HISTOGRAMS[name]
            found = self.meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)
            self._histograms[name] = found
        return found

    def knows(self, instrument: str, name: Hashable) -> bool:
        """Whether an instrument tells a destination from others: the first thousand, as long as this lasts.

        Args:
            instrument: its name.
            name: that of the destination, or what stands for it, and what else tells it from others; empty for none.
        """
        if not name or _has_room(self._names[instrument], name):
            return True
        if not self._full:
            self._full = True
            _logger.warning(_FULL, self.meter.name, NAMES, v.OTHER, settings.variable("destination_templates"))
        return False

    def failed(self, instrument: str, attributes: v.Attributes, error_type: str) -> v.Attributes:
        """The attributes of what has failed: an instrument tells the first thousand errors of destinations apart.

        Args:
            instrument: its name.
            attributes: of what has succeeded.
            error_type: what went wrong. Whoever answers may have made it up.
        """
        if not _has_room(self._errors[instrument], (error_type, *sorted(attributes.items()))):
            if not self._full_of_errors:
                self._full_of_errors = True
                _logger.warning(_FULL_OF_ERRORS, self.meter.name, NAMES, v.OTHER)
            error_type = v.OTHER
        return {**attributes, v.ERROR_TYPE: error_type}

    def tally(self, counter: str, attributes: v.Attributes) -> _Tally:
        """What counts for a counter with these attributes, for all operations that have them."""
        key = (counter, *sorted(attributes.items()))
        found = self._tallies.get(key)
        return found or self._tallies.setdefault(key, _Tally(self, counter, attributes))

    def flush(self) -> None:
        """Hand over what was counted."""
        if not self._flushing.acquire(timeout=_PATIENCE):
            return  # it is not lost: the next collection has it
        try:
            for tally in self._tallies.copy().values():
                tally.flush()
        finally:
            self._flushing.release()

    def forget_lags(self) -> None:
        """How many messages wait is not known any more."""
        for lag in _alive(self.lags):
            lag.value = None
        self.lags.clear()

    def disown(self) -> None:
        """In a forked child: what was counted, and what waits, is for the parent to tell."""
        self._flushing = threading.Lock()
        for tally in self._tallies.copy().values():
            tally.start()
        for lag in _alive(self.lags):
            lag.value = None

    def _collect(self, _options: CallbackOptions) -> Iterable[Observation]:
        try:
            end_aside()
            self.flush()
        except safety.MISTAKES as error:
            safety.report("counting messages", error)
        return ()

    def _observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        """What waits at destinations that are not told apart is added up."""
        found: defaultdict[tuple[tuple[str, Any], ...], dict[Hashable, int]] = defaultdict(dict)
        for lag in _alive(self.lags):
            waiting = lag.waiting()
            if waiting is not None:
                found[tuple(lag.attributes.items())][lag.name] = waiting
        return [Observation(sum(each.values()), dict(attributes), _NOWHERE) for attributes, each in found.items()]


def _has_room(known: set[Hashable], one: Hashable) -> bool:
    """Whether one is among the first thousand."""
    if one in known:
        return True
    if len(known) >= NAMES:
        return False
    known.add(one)
    return True


_ledgers: weakref.WeakKeyDictionary[Meter, weakref.ref[_Ledger]] = weakref.WeakKeyDictionary()
_unset: dict[tuple[str, str | None], Meter] = {}
"""The meters of whoever was instrumented before there was a provider. The API keeps each for ever, too."""


def meter_of(scope: str, provider: MeterProvider | None, schema_url: str | None) -> Meter:
    """The meter of a scope: the same one for everybody who asks while there is no provider.

    Args:
        scope: the name of the instrumentation scope.
        provider: what makes meters; the global one if None.
        schema_url: of the vocabulary in force.
    """
    known = _unset.get((scope, schema_url)) if provider is None and not has_meter_provider() else None
    if known is None:
        known = metrics.get_meter(scope, __version__, provider, schema_url)
        if provider is None and not has_meter_provider():
            _unset[scope, schema_url] = known
    return known


def _ledger_of(meter: Meter) -> _Ledger:
    """What is kept for a meter, also if it was known before its provider was, as one that stands for it."""
    for known in list(_ledgers.keyrefs()):
        found = known()
        if found is not None and (found is meter or stands_for(found, meter)):
            ledger = _ledgers[found]()
            if ledger is not None:
                return ledger
    made = _Ledger(meter)
    _ledgers[meter] = weakref.ref(made)
    return made


class Lag:
    """How many messages wait behind the one delivered last. Gone from the metrics as soon as nobody keeps it.

    Args:
        attributes: what they wait for.
        name: the destination's own, and what else tells it from others that are added up with it.
        holds: whether the consumer still has that: a partition may be lost in the middle of a call; always if None.

    Attributes:
        value: that number; None while it is not known.
    """

    __slots__ = ("__weakref__", "_holds", "attributes", "name", "value")

    def __init__(self, attributes: v.Attributes, name: Hashable, holds: Callable[[], bool] | None = None) -> None:
        self.attributes = attributes
        self.name = name
        self.value: int | None = None
        self._holds = holds

    def waiting(self) -> int | None:
        """That number. What was lost has none, until something comes from there again."""
        if self._holds is not None and not self._holds():
            self.value = None
        return self.value


class _Tally:
    """Counts messages for a counter, which costs a hundred times as much as this does.

    What was counted is handed over when metrics are collected. Nothing else is done to it: it lasts as long as the
    counter, and needs no end.
    """

    __slots__ = ("_attributes", "_counter", "_given", "_ledger", "_looks", "_name", "_next", "add")

    def __init__(self, ledger: _Ledger, name: str, attributes: v.Attributes) -> None:
        self._ledger = ledger
        self._name = name
        self._counter = ledger.counter(name)
        self._attributes = attributes
        self.start()

    def start(self) -> None:
        """Count from nought."""
        self._looks = 0
        self._given = 0
        self._next = itertools.count().__next__
        self.add: Callable[[], object] = self._first
        """Count one. Atomic, which adding to a number is not."""

    def _first(self) -> None:
        """Count one, and let the series begin: at the first message, not when metrics are first collected."""
        self.add = self._next
        self.add()
        self._counter.add(0, self._attributes, _NOWHERE)

    def count(self, number: int, error_type: str | None, context: Context) -> None:
        """Count messages that are counted together, or that failed, in the context of their span."""
        attributes = self._attributes
        if error_type is not None:
            attributes = self._ledger.failed(self._name, attributes, error_type)
        self._counter.add(number, attributes, context)

    def flush(self) -> None:
        """Hand over what was counted since the last time. Not for several threads at once."""
        if self.add is not self._next:
            return  # nothing was, ever
        counted = self._next() - self._looks  # to look is to count, too
        self._looks += 1
        new, self._given = counted - self._given, counted
        if new:
            self._counter.add(new, self._attributes, _NOWHERE)


class OperationMetrics:
    """The instruments and attributes of one operation in one vocabulary.

    Attributes:
        timed: whether it matters how long the operation took.
    """

    __slots__ = ("_attributes", "_duration", "_factor", "_failed", "_tally", "timed")

    def __init__(
        self,
        tally: _Tally | None,
        duration: Histogram | None,
        factor: float,
        attributes: v.Attributes,
        failed: Callable[[v.Attributes, str], v.Attributes],
    ) -> None:
        self._tally = tally
        self._duration = duration
        self._factor = factor
        self._failed = failed
        self._attributes = attributes
        self.timed = duration is not None

    def record(self, seconds: float | None, count: int, error_type: str | None, span: Span) -> None:
        """Count messages and record how long the operation took, unless that is None.

        Args:
            seconds: how long that was.
            count: how many messages it was about.
            error_type: what went wrong, if anything did.
            span: that of the operation.
        """
        if self._tally is not None:
            if error_type is None and count == 1:
                self._tally.add()
            elif count or error_type is not None:
                self._tally.count(count, error_type, Context({SPAN: span}))
        if self._duration is not None and seconds is not None:
            attributes = self._attributes if error_type is None else self._failed(self._attributes, error_type)
            self._duration.record(seconds * self._factor, attributes, Context({SPAN: span}))
