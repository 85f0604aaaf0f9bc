"""What a sender writes into headers costs nobody much time, and writes nothing into a log."""

from __future__ import annotations

import logging
import time

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_messaging.core import propagation

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN = propagate.get_global_textmap()


class Curious(TextMapPropagator):
    """Keeps what it is given, as B3, Jaeger's or anybody's own would read it."""

    fields = frozenset({"x-own"})

    def __init__(self):
        self.given = []

    def extract(self, carrier, context=None, getter=None):
        for name in [*getter.keys(carrier), "x-own", "X-OWN"]:
            self.given.extend(getter.get(carrier, name) or ())
        return context

    def inject(self, carrier, context=None, setter=None):
        return None


@pytest.fixture
def propagator():
    before = propagate.get_global_textmap()
    yield propagate.set_global_textmap
    propagate.set_global_textmap(before)


@pytest.fixture
def silent(caplog):
    """Nothing is logged while the test runs, by whomever."""
    with caplog.at_level(logging.DEBUG):
        yield
    assert [record.getMessage() for record in caplog.get_records("call")] == []


def read(**headers):
    """The baggage and the trace state that are read of a message's headers."""
    found = propagation.extract({"traceparent": PARENT, **headers}, Context())
    span = trace.get_current_span(found).get_span_context()
    assert f"{span.span_id:016x}" in PARENT
    return dict(baggage.get_all(found)), dict(span.trace_state)


def natively(**headers):
    """The same as the API reads it alone."""
    logging.disable()
    found = OWN.extract({"traceparent": PARENT, **headers}, Context())
    logging.disable(logging.NOTSET)
    return dict(baggage.get_all(found)), dict(trace.get_current_span(found).get_span_context().trace_state)


HONEST_BAGGAGE = [
    "user=ada",
    "user=ada,tenant=acme",
    "user=ada;secret;ttl=60,tenant=acme",
    "user=Zo%C3%AB+L,empty=,a=b=c",
    "url=https://example.org/a?b#c",
    "!#$%&'*+-.^_`|~=!#$%&'()*+-./:<=>?@[]^_`{|}~",
    ",".join(f"key{number}=value" for number in range(180)),
    f"a={'b' * 4093},c={'d' * 4094}",
]
SPACED_BAGGAGE = [
    "user=ada , tenant=acme",
    "user=ada\t,\ttenant=acme",
    " user=ada,  tenant=acme ",
    ",user=ada,,tenant=acme,",
]
HONEST_STATE = [
    "vendor=1",
    "a=1,b=2",
    "t@v=a b  c;d",
    "k_-*/9=!~",
    ",".join(f"key{number}={'v' * 200}" for number in range(32)),
    f"a={'b' * 256}",
]


@pytest.mark.parametrize("value", HONEST_BAGGAGE)
def test_honest_baggage_is_read_as_the_api_reads_it(silent, value):
    assert read(baggage=value) == natively(baggage=value)
    assert read(baggage=value)[0]


def test_the_longest_baggage_that_there_may_be_is_read():
    value = f"a={'b' * 4094},c={'d' * 4093}"
    assert len(value) == 8192
    assert read(baggage=value)[0] == {"a": "b" * 4094, "c": "d" * 4093}


@pytest.mark.parametrize("value", SPACED_BAGGAGE)
def test_blanks_and_tabs_between_members_of_baggage_are_nothing(silent, value):
    assert read(baggage=value)[0] == {"user": "ada", "tenant": "acme"}


@pytest.mark.parametrize("value", HONEST_STATE)
def test_an_honest_state_is_read_as_the_api_reads_it(silent, value):
    assert read(tracestate=value) == natively(tracestate=value)
    assert read(tracestate=value)[1]


@pytest.mark.parametrize("value", ["a=1 ,\tb=2", " a=1,, b=2 ", "a=1,b=2,"])
def test_blanks_and_tabs_between_members_of_a_state_are_nothing(silent, value):
    assert read(tracestate=value)[1] == {"a": "1", "b": "2"}


@pytest.mark.parametrize("key", ["a = b", "a= b", "a =b", "a=b ; c", "a=b;c = d"])
def test_blanks_around_other_delimiters_of_baggage_cost_no_member(silent, key):
    assert read(baggage=f"{key},user=ada")[0]["user"] == "ada"
    assert read(baggage=f"{key},user=ada")[0]["a"].startswith("b")


HOSTILE = {
    "blanks": " " * 8190,
    "tabs": "\t" * 8190,
    "a gap": f"a={' ' * 8180}b",
    "gaps": f"a=b{' ' * 60}c" * 120,
    "a long gap": f"a=b{' ' * 16_000}c",
    "long": "a=" + "b" * 1_000_000,
    "long members": f"a={'b' * 5000},{'c' * 3000}=d",
    "malformed members": ",".join(f"secret number {number}" for number in range(180)),
    "more malformed members": "secret," * 1100,
    "invalid members": '"secret"=1,' * 180,
    "members without end": ",".join(f"a{number}=b" for number in range(1100)),
    "no members": "," * 8190,
    "delimiters": "=,;" * 2700,
    "properties": "a=b;" + ";".join("c" for _ in range(4000)),
    "properties with blanks": "a=b;" + f"{' ' * 63};" * 120,
    "line breaks": "a=b\r\nERROR all is lost,c=d",
    "nul": "a=\0",
    "escape": "a=\x1b[31m",
    "separators": "a=b\u2028c",
    "no ASCII": "secret=\u00e9,\u00e9=secret",
    "no bytes of text": b"secret=\xff",
    "growing": "a=" + "!" * 4000,
    "growing members": ",".join(f"a{number}={'!' * 100}" for number in range(70)),
    "growing bytes": "a=" + "%ff" * 1300,
    "duplicates": "a=1,a=2",
    "capitals": "SECRET=1",
    "nothing": "",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage"])
def test_nothing_is_logged_of_what_a_sender_writes(silent, name, kind, recorder):
    found = propagation.extract({"traceparent": PARENT, name: HOSTILE[kind]}, Context())
    with recorder.tracer.start_as_current_span("publish", found) as span:
        propagation.inject(span, found)


@pytest.mark.parametrize("kind", HOSTILE)
def test_any_propagator_is_given_what_cannot_hurt_it(propagator, silent, kind):
    curious = Curious()
    propagator(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator(), curious]))
    value = HOSTILE[kind]
    propagation.extract({"traceparent": PARENT, "x-own": value, "baggage": value, "tracestate": value}, Context())
    assert all(len(text.encode()) <= 8192 and text.isprintable() and " " * 64 not in text for text in curious.given)


def test_an_honest_value_reaches_any_propagator_as_it_is(propagator):
    curious = Curious()
    propagator(curious)
    for value in ("80f198ee56343ba8-e457b5a2e4d86bd1-1", "Zo\u00eb Ltd., {1: 2}", "x" * 8192):
        propagation.extract({"x-own": value}, Context())
    assert list(dict.fromkeys(curious.given)) == [
        "80f198ee56343ba8-e457b5a2e4d86bd1-1",
        "Zo\u00eb Ltd., {1: 2}",
        "x" * 8192,
    ]


def test_a_propagator_that_looks_for_a_prefix_sees_no_endless_list(propagator):
    curious = Curious()
    propagator(curious)
    propagation.extract({f"uberctx-{number}": "1" for number in range(50_000)}, Context())
    assert len(curious.given) == 256
    curious.given.clear()
    propagation.extract({"uberctx-" + "x" * 1000: "1", "uberctx-a": "2"}, Context())
    assert curious.given == ["2"]


def test_of_more_members_than_there_may_be_the_first_are_read():
    value = ",".join(f"a{number}=b" for number in range(1000))
    assert list(read(baggage=value)[0]) == [f"a{number}" for number in range(180)]


def test_a_malformed_member_costs_no_other():
    assert read(baggage='user=ada,nonsense,"quoted"=1,tenant=acme')[0] == {"user": "ada", "tenant": "acme"}


def test_a_malformed_state_is_dropped_as_a_whole():
    assert read(tracestate="a=1,NONSENSE,b=2")[1] == natively(tracestate="a=1,NONSENSE,b=2")[1] == {}


def seconds(headers):
    """The shortest of some times that it takes to read headers."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        propagation.extract(headers, Context())
        times.append(time.perf_counter() - began)
    return min(times)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["tracestate", "baggage"])
def test_no_header_takes_longer_than_an_honest_one_of_the_same_length(name, kind):
    honest = ",".join(f"key{number}={'v' * 36}" for number in range(180))
    assert seconds({"traceparent": PARENT, name: HOSTILE[kind]}) < 10 * seconds(
        {"traceparent": PARENT, "baggage": honest}
    )
