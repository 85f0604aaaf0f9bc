"""Contexts in the headers of messages, on the wire."""

from __future__ import annotations

import copy
import logging
from asyncio import CancelledError
from contextlib import ExitStack

import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tests.support.drivers import CALLBACKS
from tests.support.propagators import Failing, Odd, Silent, SingleHeader
from tests.support.recorder import span_id, trace_id
from tests.support.waiting import until

with_callbacks = pytest.mark.parametrize("library", CALLBACKS)
VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
VALID_TRACE, VALID_SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


@pytest.fixture
def propagator():
    """Set another global propagator for this test."""
    before = propagate.get_global_textmap()
    yield propagate.set_global_textmap
    propagate.set_global_textmap(before)


def traceparent(span):
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


async def exchanged(driver, headers=None, *, count=1, traced=True):
    """Publish and consume; the headers of each message, as they were on the wire."""
    destination = driver.name()
    listener = await driver.listen(destination)
    with ExitStack() as stack:
        if not traced:
            stack.enter_context(suppress_instrumentation())
        for _ in range(count):
            await driver.publish(destination, b"body", headers)
    wire = []
    await driver.loop(listener, count, lambda message: wire.append(driver.headers(message)))
    return wire


async def test_one_traceparent_is_on_the_wire(connect, recorder):
    driver = await connect()
    (wire,) = await exchanged(driver)
    (published,) = recorder.producers(1)
    assert wire == [("traceparent", traceparent(published))]


async def test_headers_of_the_caller_are_sent_too_and_left_as_they_are(connect, recorder):
    driver = await connect()
    mine = driver.native({"tenant": "acme", "kind": "order"})
    before, items = copy.deepcopy(mine), list(mine)
    wires = await exchanged(driver, mine, count=3)
    assert mine == before
    assert list(mine) == items
    published = recorder.producers(3)
    assert [sorted(wire) for wire in wires] == [
        [("kind", "order"), ("tenant", "acme"), ("traceparent", traceparent(span))] for span in published
    ]


async def test_empty_headers_of_the_caller_stay_empty(connect, recorder):
    driver = await connect()
    mine = driver.native({})
    (wire,) = await exchanged(driver, mine)
    assert not mine
    assert [name for name, _ in wire] == ["traceparent"]


async def test_baggage_is_current_while_a_message_is_handled(connect, recorder):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    await driver.publish(destination)
    context.detach(token)
    seen = []
    token = context.attach(baggage.set_baggage("mine", "own"))
    await driver.loop(listener, 1, lambda _: seen.append(dict(baggage.get_all())))
    seen.append(dict(baggage.get_all()))
    context.detach(token)
    assert seen == [{"tenant": "acme"}, {"mine": "own"}]


@with_callbacks
async def test_baggage_is_current_in_a_callback_and_not_in_the_next(connect, recorder):
    driver = await connect()
    destination = driver.name()
    seen = []

    async def handler(_message):
        seen.append(dict(baggage.get_all()))

    await driver.subscribe(destination, handler)
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    await driver.publish(destination)
    context.detach(token)
    await driver.publish(destination)
    await until(lambda: len(seen) == 2)
    assert sorted(seen, key=len) == [{}, {"tenant": "acme"}]


async def test_baggage_alone_is_carried_too(connect, recorder):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    with suppress_instrumentation():
        await driver.publish(destination, headers={"baggage": "tenant=acme"})
    seen = []
    with recorder.tracer.start_as_current_span("job") as job:
        await driver.loop(listener, 1, lambda _: seen.append(baggage.get_baggage("tenant")))
    (consumed,) = recorder.consumers(1)
    assert seen == ["acme"]
    assert consumed.parent.span_id == span_id(job)


async def test_the_global_propagator_decides_what_is_sent(connect, recorder, propagator):
    propagator(SingleHeader())
    driver = await connect()
    (wire,) = await exchanged(driver)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert wire == [("X-Single", f"{trace_id(published):032x}-{span_id(published):016x}")]
    assert consumed.parent.span_id == span_id(published)


async def test_a_propagator_that_carries_nothing_changes_nothing(connect, recorder, propagator):
    propagator(Silent())
    driver = await connect()
    wires = [*await exchanged(driver), *await exchanged(driver, {"tenant": "acme"})]
    assert wires == [[], [("tenant", "acme")]]
    assert [span.parent for span in recorder.spans() if span.kind is not trace.SpanKind.CLIENT] == [None] * 4


@pytest.mark.parametrize("error", [RuntimeError, CancelledError])
async def test_a_propagator_that_fails_loses_no_message(connect, recorder, propagator, lenient, caplog, error):
    propagator(Failing(error))
    driver = await connect()
    with caplog.at_level(logging.ERROR, "otel_messaging"):
        wires = await exchanged(driver, {"tenant": "acme", "traceparent": VALID}, count=2)
    assert [dict(wire)["tenant"] for wire in wires] == ["acme", "acme"]
    places = [record.getMessage().partition(":")[0] for record in caplog.records if record.name == "otel_messaging"]
    assert sorted(places) == ["extracting a context", "injecting a context"]
    recorder.producers(2)
    recorder.consumers(2)


@pytest.mark.parametrize("headers", [None, {"tenant": "acme"}])
async def test_what_a_propagator_writes_that_is_no_text_costs_no_message(
    connect, recorder, propagator, lenient, caplog, headers
):
    propagator(Odd())
    driver = await connect()
    wires = await exchanged(driver, headers, count=2)
    assert [sorted(wire) for wire in wires] == [sorted([*(headers or {}).items(), ("X-Good", "good")])] * 2
    places = [record.getMessage().partition(":")[0] for record in caplog.records if record.name == "otel_messaging"]
    assert places == ["injecting a context"]
    recorder.producers(2)
    recorder.consumers(2)


async def test_a_message_published_again_has_the_new_context_and_a_link_to_the_old(connect, recorder):
    driver = await connect()
    destination, elsewhere = driver.name(), driver.name()
    listener, second_listener = await driver.listen(destination), await driver.listen(elsewhere)
    await driver.publish(destination, headers={"tenant": "acme"})

    async def body(message):
        await driver.publish(elsewhere, headers=driver.native(dict(driver.headers(message))))

    wire = []
    await driver.loop(listener, 1, body)
    await driver.loop(second_listener, 1, lambda message: wire.extend(driver.headers(message)))
    first, second = recorder.producers(2)
    handled = recorder.consumers(2)[0]
    assert sorted(wire) == [("tenant", "acme"), ("traceparent", traceparent(second))]
    assert second.parent.span_id == span_id(handled)
    assert [link.context.span_id for link in second.links] == [span_id(first)]
    assert first.links == ()


async def test_a_context_that_was_injected_by_hand_is_replaced_without_a_link(connect, recorder):
    driver = await connect()
    with recorder.tracer.start_as_current_span("request"):
        carrier = {}
        propagate.inject(carrier)
        (wire,) = await exchanged(driver, carrier)
    (published,) = recorder.producers(1)
    assert wire == [("traceparent", traceparent(published))]
    assert published.links == ()


async def test_an_old_context_of_another_case_is_replaced(connect, recorder):
    driver = await connect()
    (wire,) = await exchanged(driver, {"Traceparent": VALID, "TRACESTATE": "a=b"})
    (published,) = recorder.producers(1)
    assert [name for name, _ in wire if name.lower() == "traceparent"] == ["traceparent"]
    assert dict(wire)["traceparent"] == traceparent(published)
    assert "TRACESTATE" not in dict(wire)
    assert [link.context.span_id for link in published.links] == [VALID_SPAN]


@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT"])
async def test_a_context_is_read_in_any_case(connect, recorder, name):
    driver = await connect()
    await exchanged(driver, {name: VALID}, traced=False)
    (consumed,) = recorder.consumers(1)
    assert (consumed.parent.trace_id, consumed.parent.span_id) == (VALID_TRACE, VALID_SPAN)


@pytest.mark.parametrize("value", ["", "00-0-0-00", "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\u00e9"])
async def test_a_context_that_is_no_context_is_ignored(connect, recorder, value):
    driver = await connect()
    if not value.isascii() and driver.ascii_headers:
        pytest.skip("this version of the library loses headers that are not ASCII")
    await exchanged(driver, {"traceparent": value, "tenant": "acme"}, traced=False)
    (consumed,) = recorder.consumers(1)
    assert consumed.parent is None


MALFORMED = {
    "blanks": f"a=b{' ' * 8180}c",
    "members": ",".join(f"secret number {number}" for number in range(180)),
    "long": f"secret={'x' * 50_000}",
    "growing": f"a={'!' * 4000}",
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_malformed_headers_of_a_context_are_left_out_without_a_line_in_the_log(connect, recorder, caplog, kind):
    driver = await connect()
    value, seen = MALFORMED[kind], []
    destination = driver.name()
    listener = await driver.listen(destination)
    with suppress_instrumentation():
        await driver.publish(destination, headers={"traceparent": VALID, "tracestate": value, "baggage": value})

    async def body(message):
        seen.append((driver.body(message), dict(baggage.get_all())))
        await driver.publish(elsewhere)

    elsewhere = driver.name()
    await driver.listen(elsewhere)
    with caplog.at_level(logging.INFO, "opentelemetry"):
        await driver.loop(listener, 1, body)
    assert seen == [(b"body", {})]
    (consumed,) = recorder.consumers(1)
    assert (consumed.parent.trace_id, consumed.parent.span_id) == (VALID_TRACE, VALID_SPAN)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def test_headers_of_odd_types_are_tolerated(connect, recorder):
    driver = await connect()
    odd = driver.odd_headers()
    if not odd:
        pytest.skip(f"{driver.library} sends text only")
    for headers in odd:
        destination = driver.name()
        listener = await driver.listen(destination)
        with suppress_instrumentation():
            await driver.publish(destination, headers=headers)
        await driver.loop(listener, 1, lambda _: None)
    assert [span.parent for span in recorder.consumers(len(odd))] == [None] * len(odd)


async def test_headers_of_odd_types_can_be_sent(connect, recorder):
    driver = await connect()
    odd = driver.odd_headers()
    if not odd:
        pytest.skip(f"{driver.library} sends text only")
    for headers in odd:
        before = copy.deepcopy(headers)
        destination = driver.name()
        await driver.listen(destination)
        await driver.publish(destination, headers=headers)
        assert headers == before
    assert [span.links for span in recorder.producers(len(odd))] == [()] * len(odd)
