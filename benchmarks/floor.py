"""The floor: the least that a span costs, written by hand with the public API, attribute by attribute as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import attach, detach, get_current
from opentelemetry.propagators.textmap import Getter, Setter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

from .paths import TRACEPARENT

_OK = Status(StatusCode.OK)
_EIGHT = {
    "messaging.system": "kafka",
    "messaging.operation": "publish",
    "messaging.destination": "orders",
    "messaging.client_id": "sender",
    "server.address": "127.0.0.1",
    "server.port": 9092,
    "messaging.kafka.message_key": "order-1",
    "messaging.message_payload_size_bytes": 100,
}


class _List(Getter, Setter):
    """Kafka's headers: pairs of text and bytes."""

    def get(self, carrier, key):
        for name, value in carrier:
            if name == key:
                return [value.decode()]
        return None

    def keys(self, carrier):
        return [name for name, _ in carrier]

    def set(self, carrier, key, value):
        carrier.append((key, value.encode()))


_list = _List()


def floor(told: dict[str, Any], pairs: bool) -> Callable[[int], None]:
    """A loop over the operation that was told of.

    Args:
        told: the span to imitate, as `worker.describe` tells it.
        pairs: whether headers are pairs in a list instead of a dictionary.
    """
    operation = (_consumer if told["kind"] == "CONSUMER" else _producer)(told, pairs, _finisher(told))

    def loop(count: int) -> None:
        for _ in range(count):
            operation()

    return loop


def empty(count: int) -> None:
    """What the loop itself costs."""

    def operation() -> None:
        pass

    for _ in range(count):
        operation()


def sending(count: int) -> None:
    """A span of eight attributes around a message that is sent, as one writes it who does not count instructions."""
    tracer = trace.get_tracer("floor")

    def operation() -> None:
        span = tracer.start_span("publish", kind=SpanKind.PRODUCER, attributes=_EIGHT)
        propagate.inject({}, context=set_span_in_context(span))
        span.end()

    for _ in range(count):
        operation()


def receiving(count: int) -> None:
    """The same around a message that has come with a context, which is current meanwhile."""
    tracer, headers = trace.get_tracer("floor"), {"traceparent": TRACEPARENT}

    def operation() -> None:
        context = propagate.extract(headers)
        span = tracer.start_span("receive", context=context, kind=SpanKind.CONSUMER, attributes=_EIGHT)
        token = attach(set_span_in_context(span, context))
        detach(token)
        span.end()

    for _ in range(count):
        operation()


def _producer(told: dict[str, Any], pairs: bool, finish: Callable[[Any], None]) -> Callable[[], None]:
    start_span, name, attributes = trace.get_tracer("floor").start_span, told["name"], told["attributes"]
    kind, inject = SpanKind[told["kind"]], propagate.inject

    def with_dictionary() -> None:
        context = get_current()
        span = start_span(name, context, kind, attributes)
        inject({}, set_span_in_context(span, context))
        finish(span)

    def with_pairs() -> None:
        context = get_current()
        span = start_span(name, context, kind, attributes)
        inject([], set_span_in_context(span, context), _list)
        finish(span)

    return with_pairs if pairs else with_dictionary


def _consumer(told: dict[str, Any], pairs: bool, finish: Callable[[Any], None]) -> Callable[[], None]:
    start_span, name, attributes = trace.get_tracer("floor").start_span, told["name"], told["attributes"]
    kind, extract = SpanKind[told["kind"]], propagate.extract
    dictionary, headers = {"traceparent": TRACEPARENT}, [("traceparent", TRACEPARENT.encode())]

    def with_dictionary() -> None:
        context = extract(dictionary)
        span = start_span(name, context, kind, attributes)
        token = attach(set_span_in_context(span, context))
        detach(token)
        finish(span)

    def with_pairs() -> None:
        context = extract(headers, None, _list)
        span = start_span(name, context, kind, attributes)
        token = attach(set_span_in_context(span, context))
        detach(token)
        finish(span)

    return with_pairs if pairs else with_dictionary


def _finisher(told: dict[str, Any]) -> Callable[[Any], None]:
    late, succeeds, record = told["late"], told["ok"], _recorder(told["metrics"])
    if not (late or succeeds or record):
        return lambda span: span.end()

    def finish(span: Any) -> None:
        if span.is_recording():
            if len(late) > 2:  # to look at a mapping costs the SDK as much as two attributes
                span.set_attributes(late)
            else:
                for key, value in late.items():
                    span.set_attribute(key, value)
            if succeeds:
                span.set_status(_OK)
        span.end()
        for call, value, attributes in record:
            call(value, attributes)

    return finish


def _recorder(told: list[dict[str, Any]]) -> tuple[tuple[Callable[..., None], float, dict[str, Any]], ...]:
    meter = metrics.get_meter("floor")
    return tuple(
        (meter.create_histogram(one["name"]).record, 0.5, one["attributes"])
        if one["histogram"]
        else (meter.create_counter(one["name"]).add, 1, one["attributes"])
        for one in told
    )
