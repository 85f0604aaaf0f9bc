"""Whole spans of one message, in every library and vocabulary."""

from __future__ import annotations

import pytest
from opentelemetry import trace

from tests.support.recorder import shape, span_id

SUCCESS = {"guide": ("OK", None), "semconv": ("UNSET", None), "both": ("UNSET", None)}


def without(driver, found):
    return {**found, "attributes": {k: v for k, v in found["attributes"].items() if k not in driver.varying}}


async def test_a_published_message_is_one_producer_span(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    await driver.listen(destination)
    await driver.publish(destination, b"hello")
    verb = "publish" if vocabulary == "guide" else driver.verb
    assert without(driver, shape(recorder.span(f"{verb} {destination}"))) == {
        "name": f"{verb} {destination}",
        "kind": "PRODUCER",
        "parent": None,
        "links": [],
        "status": SUCCESS[vocabulary],
        "attributes": driver.published(vocabulary, destination, b"hello"),
        "events": [],
    }


async def test_a_loop_body_is_one_consumer_span(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination, b"hello")
    current = []
    await driver.loop(listener, 1, lambda _: current.append(trace.get_current_span()))
    verb = "receive" if vocabulary == "guide" else "process"
    (published,) = [span for span in recorder.spans() if span.kind is trace.SpanKind.PRODUCER]
    consumed = recorder.span(f"{verb} {destination}")
    found = without(driver, shape(consumed))
    found["events"] = []
    assert found == {
        "name": f"{verb} {destination}",
        "kind": "CONSUMER",
        "parent": span_id(published),
        "links": [] if vocabulary == "guide" else [span_id(published)],
        "status": SUCCESS[vocabulary],
        "attributes": driver.consumed(vocabulary, destination, b"hello"),
        "events": [],
    }
    assert [span_id(span) for span in current] == [span_id(consumed)]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_an_exception_in_a_callback_is_recorded(connect, recorder, vocabulary):
    driver = await connect()
    if not driver.callbacks:
        pytest.skip(f"{driver.library} has no callbacks")
