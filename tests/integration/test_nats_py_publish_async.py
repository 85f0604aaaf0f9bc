"""Messages that nats-py publishes to a stream without waiting: their spans end with the acknowledgement's future."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace

from tests.support.nats_py import VERSION, traceparent
from tests.support.recorder import shape

pytestmark = pytest.mark.skipif(VERSION < (2, 8), reason="publish_async came with nats-py 2.8")


@pytest.fixture
def library():
    return "nats_py"


async def stream(driver, **config):
    name, jetstream = driver.name(), driver.client.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"{name}.a"], storage="memory", **config)
    return jetstream, name


def unanswered(driver):
    return vars(driver.client)["_otel_messaging"].unanswered


async def test_the_span_ends_with_the_future(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name = await stream(driver)
    subject = f"{name}.a"
    future = await jetstream.publish_async(subject, b"hello", headers={"kind": "order"})
    assert isinstance(future, asyncio.Future)
    assert recorder.spans() == []
    acknowledgement = await future
    await asyncio.sleep(0)
    (span,) = recorder.producers(1)
    assert shape(span) == {
        "name": f"publish {subject}",
        "kind": "PRODUCER",
        "parent": None,
        "links": [],
        "status": ("OK" if vocabulary == "guide" else "UNSET", None),
        "attributes": {
            **driver.published(vocabulary, subject, b"hello"),
            "messaging.client.id": str(driver.client.client_id),
            "messaging.nats.stream": name,
            "messaging.nats.sequence": acknowledgement.seq,
        },
        "events": [],
    }
    stored = await jetstream.get_msg(name, 1)
    assert stored.headers == {"kind": "order", "traceparent": traceparent(span)}
    assert unanswered(driver) == {}


async def test_several_wait_at_the_same_time(connect, recorder):
    driver = await connect()
    jetstream, name = await stream(driver)
    futures = [await jetstream.publish_async(f"{name}.a") for _ in range(5)]
    assert trace.get_current_span() is trace.INVALID_SPAN
    await asyncio.gather(*futures)
    await jetstream.publish_async_completed()
    await asyncio.sleep(0)
    spans = recorder.producers(5)
    assert sorted(span.attributes["messaging.nats.sequence"] for span in spans) == [1, 2, 3, 4, 5]


async def test_a_message_that_the_stream_has_already_is_a_duplicate(connect, recorder):
    driver = await connect()
    jetstream, name = await stream(driver)
    for _ in range(2):
        await (await jetstream.publish_async(f"{name}.a", headers={"Nats-Msg-Id": "7"}))
        await jetstream.publish(f"{name}.a", headers={"Nats-Msg-Id": "8"})
    await asyncio.sleep(0)
    duplicates = [span.attributes.get("messaging.nats.duplicate") for span in recorder.producers(4)]
    assert duplicates == [None, None, True, True]


async def test_a_subject_without_a_stream_is_an_error(connect, recorder):
    from nats.js.errors import NoStreamResponseError

    driver = await connect()
    future = await driver.client.jetstream().publish_async(driver.name())
    with pytest.raises(NoStreamResponseError):
        await future
    await asyncio.sleep(0)
    (span,) = recorder.producers(1)
    assert span.attributes["error.type"] == "nats.js.errors.NoStreamResponseError"


async def test_a_refused_message_is_an_error_though_its_future_never_resolves(connect, recorder):
    driver = await connect()
    jetstream, name = await stream(driver)
    future = await jetstream.publish_async(f"{name}.a", stream="another")
    (span,) = await asyncio.to_thread(recorder.spans, count=1)
    assert span.attributes["error.type"] == "nats.js.errors.BadRequestError"
    assert not future.done()
    assert unanswered(driver) == {}
    assert [type(error).__name__ for error in driver.errors] == ["BadRequestError"]
    driver.errors.clear()


async def test_a_cancelled_future_ends_the_span(connect, recorder):
    driver = await connect()
    subject = driver.name()
    await driver.listen(subject)  # somebody is there, but it is no stream
    future = await driver.client.jetstream().publish_async(subject)
    future.cancel()
    await asyncio.sleep(0)
    (span,) = recorder.producers(1)
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"


async def test_what_is_never_acknowledged_ends_with_the_connection(connect, recorder):
    driver = await connect()
    subject = driver.name()
    await driver.listen(subject)
    future = await driver.client.jetstream().publish_async(subject)
    await driver.client.flush()
    assert recorder.spans() == []
    await driver.client.close()
    (span,) = recorder.producers(1)
    assert span.attributes["error.type"] == "nats.errors.ConnectionClosedError"
    assert not future.done()


async def test_wrong_arguments_are_refused_by_the_library(connect, recorder):
    driver = await connect()
    with pytest.raises(TypeError, match="unexpected keyword argument 'header'"):
        await driver.client.jetstream().publish_async(driver.name(), header={})
    assert recorder.spans() == []
