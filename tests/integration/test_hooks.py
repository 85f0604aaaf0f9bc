"""What the application hooks in, and what it breaks by that: nothing."""

from __future__ import annotations

import logging
from asyncio import CancelledError

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from otel_messaging import PublishRequest
from tests.support.drivers import CALLBACKS
from tests.support.recorder import span_id
from tests.support.waiting import until

with_callbacks = pytest.mark.parametrize("library", CALLBACKS)


class FailingStart(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise RuntimeError("on_start is broken")


class FailingEnd(SpanProcessor):
    def on_end(self, span):
        raise RuntimeError("on_end is broken")


class CancelledStart(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise CancelledError


class CancelledEnd(SpanProcessor):
    def on_end(self, span):
        raise CancelledError


@pytest.fixture
def places(lenient, caplog):
    """Where errors of ours were logged."""
    with caplog.at_level(logging.ERROR, "otel_messaging"):
        yield lambda: [
            record.getMessage().partition(":")[0] for record in caplog.records if record.name == "otel_messaging"
        ]


async def exchanged(driver, count=1):
    """Publish and consume; the bodies that arrived."""
    destination = driver.name()
    listener = await driver.listen(destination)
    for number in range(count):
        await driver.publish(destination, str(number).encode())
    bodies = []
    await driver.loop(listener, count, lambda message: bodies.append(driver.body(message)))
    return bodies


async def test_the_publish_hook_is_told_of_the_message(connect, recorder):
    calls = []
    driver = await connect(publish_hook=lambda span, request: calls.append((span, request)))
    destination = driver.name()
    await driver.listen(destination)
    headers = driver.native({"tenant": "acme"})
    await driver.publish(destination, b"hello", headers)
    (published,) = recorder.producers(1)
    ((span, request),) = calls
    assert span_id(span) == span_id(published)
    assert type(request) is PublishRequest
    assert request.client is driver.publisher
    assert driver.asked(request) == (destination, b"hello", headers)


async def test_a_status_that_the_publish_hook_sets_stays(connect, recorder):
    driver = await connect(publish_hook=lambda span, _request: span.set_status(trace.StatusCode.ERROR, "not ours"))
    destination = driver.name()
    await driver.listen(destination)
    await driver.publish(destination, b"hello")
    (published,) = recorder.producers(1)
    assert (published.status.status_code, published.status.description) == (trace.StatusCode.ERROR, "not ours")


async def test_the_consume_hook_is_told_of_the_message_of_a_loop(connect, recorder):
    calls, messages = [], []
    driver = await connect(consume_hook=lambda span, message: calls.append((span, message)))
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination, b"hello")
    await driver.loop(listener, 1, messages.append)
    (consumed,) = recorder.consumers(1)
    assert [span_id(span) for span, _ in calls] == [span_id(consumed)]
    assert calls[0][1] is messages[0]


@with_callbacks
async def test_the_consume_hook_is_told_of_the_message_of_a_callback(connect, recorder):
    calls, messages = [], []
    driver = await connect(consume_hook=lambda span, message: calls.append((span, message)))
    destination = driver.name()

    async def handler(message):
        messages.append((len(calls), message))

    await driver.subscribe(destination, handler)
    await driver.publish(destination, b"hello")
    await until(lambda: len(recorder.spans()) == 2)
    (consumed,) = recorder.consumers(1)
    ((told_before, message),) = messages
    assert told_before == 1
    assert [span_id(span) for span, _ in calls] == [span_id(consumed)]
    assert type(calls[0][1]) is type(message)
    assert driver.body(calls[0][1]) == b"hello"


async def test_hooks_may_set_attributes(connect, recorder):
    driver = await connect(
        publish_hook=lambda span, _: span.set_attribute("tenant", "acme"),
        consume_hook=lambda span, _: span.set_attribute("tenant", "acme"),
    )
    await exchanged(driver)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert [span.attributes["tenant"] for span in (published, consumed)] == ["acme", "acme"]


@pytest.mark.parametrize("error", [RuntimeError, CancelledError])
async def test_hooks_that_fail_lose_nothing_and_are_logged_once(connect, recorder, places, error):
    def broken(span, told):
        raise error("the hook is broken")

    driver = await connect(publish_hook=broken, consume_hook=broken)
    assert await exchanged(driver, 2) == [b"0", b"1"]
    assert places() == ["publish_hook", "consume_hook"]
    assert [span.status.status_code.name for span in recorder.producers(2)] == ["OK", "OK"]


@with_callbacks
async def test_a_hook_that_is_cancelled_keeps_no_message_from_a_callback(connect, recorder, places):
    def cancelled(span, message):
        raise CancelledError

    driver = await connect(consume_hook=cancelled)
    destination = driver.name()
    bodies = []

    async def handler(message):
        bodies.append(driver.body(message))

    await driver.subscribe(destination, handler)
    await driver.publish(destination, b"0")
    await driver.publish(destination, b"1")
    assert await until(lambda: len(bodies) == 2 and bodies) == [b"0", b"1"]
    assert places() == ["consume_hook"]
    assert [span.status.status_code.name for span in recorder.consumers(2)] == ["OK", "OK"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
async def test_what_interrupts_the_application_in_a_hook_reaches_it(connect, recorder, interrupt):
    def interrupted(span, request):
        raise interrupt

    driver = await connect(publish_hook=interrupted)
    destination = driver.name()
    await driver.listen(destination)
    with pytest.raises(interrupt):
        await driver.publish(destination)
    (published,) = recorder.producers(1)
    assert published.status.status_code is trace.StatusCode.ERROR
    assert published.attributes["error.type"] == interrupt.__name__


@pytest.mark.parametrize("processor", [FailingStart, FailingEnd, CancelledStart, CancelledEnd])
async def test_span_processors_that_fail_lose_nothing(connect, recorder, places, processor):
    provider = TracerProvider()
    provider.add_span_processor(processor())
    driver = await connect(tracer_provider=provider)
    assert await exchanged(driver, 2) == [b"0", b"1"]
    assert len(places()) == len(set(places())) > 0


@with_callbacks
@pytest.mark.parametrize("processor", [FailingStart, FailingEnd, CancelledStart, CancelledEnd])
async def test_span_processors_that_fail_keep_no_message_from_a_callback(connect, recorder, lenient, processor):
    provider = TracerProvider()
    provider.add_span_processor(processor())
    driver = await connect(tracer_provider=provider)
    destination = driver.name()
    bodies = []

    async def handler(message):
        bodies.append(driver.body(message))

    await driver.subscribe(destination, handler)
    await driver.publish(destination, b"0")
    await driver.publish(destination, b"1")
    assert await until(lambda: len(bodies) == 2 and bodies) == [b"0", b"1"]


async def test_an_argument_that_is_not_known_is_named(connect, recorder, caplog):
    await connect(publish_hok=None)
    assert [record.getMessage() for record in caplog.records if "publish_hok" in record.getMessage()]
