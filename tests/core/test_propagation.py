"""Contexts into headers and out of headers of any kind, by the global propagator alone."""

from __future__ import annotations

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_messaging.core import propagation

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"


def remote(context):
    found = trace.get_current_span(context).get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}" if found.is_valid else None


class Broken(TextMapPropagator):
    fields = frozenset({"X-Broken"})

    def extract(self, *arguments, **keywords):
        raise ValueError("broken")

    inject = extract


class Absent(TextMapPropagator):
    """What OTEL_PROPAGATORS=none gives: it answers nothing."""

    fields = frozenset()

    def extract(self, *arguments, **keywords):
        return None

    inject = extract


@pytest.fixture
def propagator():
    before = propagate.get_global_textmap()
    yield propagate.set_global_textmap
    propagate.set_global_textmap(before)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"),
        ("", ""),
        (b"bytes", "bytes"),
        (bytearray(b"array"), "array"),
        (memoryview(b"view"), "view"),
        ("é".encode(), "é"),
        (b"\xff\xfe", None),
        (["first", b"last"], "last"),
        (("only",), "only"),
        ([], None),
        ([None], None),
        ([["nested"]], None),
        (None, None),
        (5, None),
        (True, None),
        ({"a": "b"}, None),
    ],
)
def test_a_value_as_text(value, text):
    assert propagation.as_text(value) == text


@pytest.mark.parametrize(
    "value", [TRACEPARENT, TRACEPARENT.encode(), [OTHER, TRACEPARENT], [OTHER, TRACEPARENT.encode()]]
)
def test_a_context_is_read_from_any_type(value):
    assert remote(propagation.extract({"traceparent": value}, Context())) == TRACEPARENT


@pytest.mark.parametrize(
    "value", [None, b"\xff", 5, [], [None], "", "00-nonsense", object(), {"a": 1}, [[TRACEPARENT]]]
)
def test_a_value_that_is_no_context_is_none(value):
    before = Context({"mine": 1})
    found = propagation.extract({"traceparent": value, "other": None}, before)
    assert remote(found) is None
    assert found["mine"] == 1


def test_baggage_and_state_come_along():
    headers = {"traceparent": TRACEPARENT, "tracestate": b"vendor=1", "baggage": [b"user=ada"]}
    found = propagation.extract(headers, Context())
    assert baggage.get_all(found) == {"user": "ada"}
    assert trace.get_current_span(found).get_span_context().trace_state == {"vendor": "1"}


def test_for_the_usual_header_no_propagator_is_asked(monkeypatch):
    monkeypatch.setattr(CompositePropagator, "extract", None)
    assert remote(propagation.extract({"traceparent": TRACEPARENT.encode(), "other": "1"}, Context())) == TRACEPARENT


def test_what_is_extracted_is_added_to_the_context():
    assert propagation.extract({"traceparent": TRACEPARENT}, Context({"mine": 1}))["mine"] == 1


def test_headers_are_not_changed():
    headers = {"traceparent": [TRACEPARENT], "other": b"\xff"}
    propagation.extract(headers, Context())
    assert headers == {"traceparent": [TRACEPARENT], "other": b"\xff"}


def test_what_is_injected_is_extracted(recorder):
    with recorder.tracer.start_as_current_span("publish") as span:
        context = baggage.set_baggage("user", "ada", trace.set_span_in_context(span))
        carrier = propagation.inject(span, context)
    assert set(carrier) == {"traceparent", "baggage"}
    assert remote(propagation.extract(carrier, Context())) == carrier["traceparent"]
    assert f"{span.get_span_context().span_id:016x}" in carrier["traceparent"]


def test_nothing_is_injected_where_there_is_nothing():
    assert propagation.inject(trace.INVALID_SPAN, Context()) == {}


def test_the_fields_are_the_propagators_in_lower_case(propagator):
    assert propagation.fields() == {"traceparent", "tracestate", "baggage"}
    propagator(Broken())
    assert propagation.fields() == {"x-broken"}
    propagator(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    assert propagation.fields() == {"traceparent", "tracestate", "baggage"}


def test_a_broken_propagator_costs_the_context_only(propagator, lenient):
    propagator(Broken())
    before = Context({"mine": 1})
    assert propagation.inject(trace.INVALID_SPAN, before) == {}
    assert propagation.extract({"x-broken": "1"}, before) is before


def test_a_propagator_that_answers_nothing_changes_nothing(propagator):
    propagator(Absent())
    before = Context({"mine": 1})
    assert propagation.inject(trace.INVALID_SPAN, before) == {}
    assert propagation.extract({"traceparent": TRACEPARENT}, before) is before


USUAL = [
    TRACEPARENT,
    TRACEPARENT.encode(),
    bytearray(TRACEPARENT.encode()),
    [OTHER, TRACEPARENT],
    TRACEPARENT[:-2] + "00",
    TRACEPARENT[:-2] + "03",
    TRACEPARENT[:-2] + "ff",
]
UNUSUAL = [
    "",
    "garbage",
    b"\xff",
    7,
    None,
    [],
    TRACEPARENT.upper(),
    f" {TRACEPARENT} ",
    f"{TRACEPARENT}\n",
    f"{TRACEPARENT}-more",
    f"cc{TRACEPARENT[2:]}",
    f"ff{TRACEPARENT[2:]}",
    f"00-{'0' * 32}-b7ad6b7169203331-01",
    f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    "x" * 10_000,
]


@pytest.mark.parametrize("value", USUAL)
def test_the_usual_form_is_read_as_the_propagator_reads_it(value):
    short = propagation.remote({"traceparent": value})
    full = trace.get_current_span(propagation.extract({"traceparent": value}, Context()))
    assert type(short) is type(full)
    assert tuple(short.get_span_context()) == tuple(full.get_span_context())
    assert type(short.get_span_context().trace_flags) is type(full.get_span_context().trace_flags)


@pytest.mark.parametrize("value", UNUSUAL)
def test_any_other_form_is_left_to_the_propagator(value):
    assert propagation.remote({"traceparent": value}) is None


@pytest.mark.parametrize("beside", ["tracestate", "baggage"])
def test_what_carries_more_is_left_to_the_propagator(beside):
    assert propagation.remote({"traceparent": TRACEPARENT, beside: "a=b"}) is None


@pytest.mark.parametrize("other", [Absent, TraceContextTextMapPropagator, lambda: CompositePropagator([])])
def test_another_propagator_reads_for_itself(propagator, other):
    propagator(other())
    assert propagation.remote({"traceparent": TRACEPARENT}) is None


@pytest.mark.parametrize("state", [None, trace.TraceState([("vendor", "1")])])
@pytest.mark.parametrize("flags", [0, 1, 3, 255])
@pytest.mark.parametrize("ids", [(1, 2), (2**128 - 1, 2**64 - 1), (0, 2), (1, 0)])
def test_a_span_is_written_as_the_propagator_writes_it(ids, flags, state):
    span = trace.NonRecordingSpan(trace.SpanContext(*ids, False, trace.TraceFlags(flags), state))
    expected = {}
    if all(ids):
        propagate.inject(expected, trace.set_span_in_context(span, Context()))
    assert propagation.inject(span, Context()) == expected


class Untold(TextMapPropagator):
    """Fails when it is asked what it writes."""

    @property
    def fields(self):
        raise ValueError("broken")

    def inject(self, carrier, *arguments, **keywords):
        carrier["x-own"] = "1"

    def extract(self, carrier, context=None, getter=None):
        return context


def test_a_propagator_that_does_not_say_what_it_writes_costs_no_span(desk, recorder, lenient, caplog, monkeypatch):
    monkeypatch.setattr(propagate, "get_global_textmap", Untold)  # another one each time
    office = desk()
    office.deliver(headers={"traceparent": TRACEPARENT}).end()
    publication = office.publish(headers={"a": "1"})
    publication.end()
    assert publication.carrier == {"x-own": "1"}
    assert [span.name for span in recorder.spans()] == ["receive orders", "publish orders"]
    assert len(caplog.records) == 1
