"""Messages counted and timed, in the vocabularies in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import vocabulary as v

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter, Histogram, Meter


class Metrics:
    """The instruments of the guide, of the conventions, or of both.

    Args:
        meter: where the instruments are made.
        vocabulary: the names in force.
    """

    def __init__(self, meter: Meter, vocabulary: v.Vocabulary) -> None:
        self._guide = _Guide(meter) if vocabulary.guide else None
        self._semconv = _Semconv(meter) if vocabulary.semconv else None

    def operation(
        self, action: v.Action, verb: str, destination: v.Destination, facts: v.Facts
    ) -> tuple[OperationMetrics, ...]:
        """What to record each time an operation has ended."""
        return tuple(
            OperationMetrics(
                *recorded.choose(action), recorded.names.metric_attributes(action, verb, destination, facts)
            )
            for recorded in (self._guide, self._semconv)
            if recorded is not None
        )


class OperationMetrics:
    """The instruments and attributes of one operation in one vocabulary."""

    __slots__ = ("_attributes", "_counter", "_duration", "_factor")

    def __init__(
        self, counter: Counter | None, duration: Histogram | None, factor: float, attributes: v.Attributes
    ) -> None:
        self._counter = counter
        self._duration = duration
        self._factor = factor
        self._attributes = attributes

    def record(self, seconds: float, count: int, error_type: str | None) -> None:
        """Count messages and record how long the operation took."""
        attributes = self._attributes if error_type is None else {**self._attributes, v.ERROR_TYPE: error_type}
        if self._counter is not None:
            self._counter.add(count, attributes)
        if self._duration is not None:
            self._duration.record(seconds * self._factor, attributes)


class _Guide:
    def __init__(self, meter: Meter) -> None:
        self.names = v.Vocabulary("guide")
        self._produced = meter.create_counter(v.PRODUCED, "{message}", "Messages that were published")
        self._consumed = meter.create_counter(
            v.CONSUMED, "{message}", "Messages that were delivered to the application"
        )
        self._duration = meter.create_histogram(
            v.PROCESSING_DURATION,
            "ms",
            "How long the application handled a message",
            explicit_bucket_boundaries_advisory=v.MILLISECONDS_BUCKETS,
        )

    def choose(self, action: v.Action) -> tuple[Counter | None, Histogram | None, float]:
        counters = {v.PUBLISH: self._produced, v.DELIVER: self._consumed, v.RECEIVE: self._consumed}
        timed = action in (v.DELIVER, v.PROCESS)
        return counters.get(action), self._duration if timed else None, 1000.0


class _Semconv:
    def __init__(self, meter: Meter) -> None:
        self.names = v.Vocabulary("semconv")
        self._sent = meter.create_counter(v.CLIENT_SENT, "{message}", "Messages that a producer attempted to send")
        self._consumed = meter.create_counter(
            v.CLIENT_CONSUMED, "{message}", "Messages that were delivered to the application"
        )
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
        counters = {v.PUBLISH: self._sent, v.DELIVER: self._consumed, v.RECEIVE: self._consumed}
        handled = action in (v.DELIVER, v.PROCESS)
        return counters.get(action), self._process if handled else self._operation, 1.0
