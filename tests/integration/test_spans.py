"""Whole spans of one message, in every library and vocabulary."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from opentelemetry import context, trace

from tests.support.drivers import CALLBACKS
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

SUCCESS = {"guide": ("OK", None), "semconv": ("UNSET", None), "both": ("UNSET", None)}

with_callbacks = pytest.mark.parametrize("library", CALLBACKS)


class BrokenError(Exception):
    """What the application raises."""


def without(driver, found, *more):
    left_out = {*driver.varying, *more}
    return {**found, "attributes": {k: v for k, v in found["attributes"].items() if k not in left_out}}


def publish_name(vocabulary, driver, destination):
    return f"{'publish' if vocabulary == 'guide' else driver.verb} {destination}"


def consume_name(vocabulary, destination):
    return f"{'receive' if vocabulary == 'guide' else 'process'} {destination}"


def exception_event(name, message):
    return (
        "exception",
        {"exception.type": name, "exception.message": message, "exception.escaped": "False"},
    )


def consumed_shape(driver, vocabulary, destination, published, **changed):
    return {
        "name": consume_name(vocabulary, destination),
        "kind": "CONSUMER",
        "parent": span_id(published),
        "links": [] if vocabulary == "guide" else [span_id(published)],
        "status": SUCCESS[vocabulary],
        "attributes": driver.consumed(vocabulary, destination, b"hello"),
        "events": [],
        **changed,
    }


async def test_a_published_message_is_one_producer_span(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    await driver.listen(destination)
    await driver.publish(destination, b"hello")
    name = publish_name(vocabulary, driver, destination)
    assert without(driver, shape(recorder.span(name))) == {
        "name": name,
        "kind": "PRODUCER",
        "parent": None,
        "links": [],
        "status": SUCCESS[vocabulary],
        "attributes": driver.published(vocabulary, destination, b"hello"),
        "events": [],
    }


async def test_attributes_that_vary_have_the_right_types(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination, b"hello")
    await driver.loop(listener, 1, lambda _: None)
    (consumed,) = recorder.consumers(1)
    types = {key: type(value).__name__ for key, value in consumed.attributes.items() if key in driver.varying}
    assert types == driver.varying_types(vocabulary)


async def test_a_loop_body_is_one_consumer_span(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination, b"hello")
    current = []
    await driver.loop(listener, 1, lambda _: current.append(trace.get_current_span()))
    (published,) = recorder.producers(1)
    consumed = recorder.span(consume_name(vocabulary, destination))
    found = without(driver, shape(consumed))
    found["events"] = []
    assert found == consumed_shape(driver, vocabulary, destination, published)
    assert [span_id(span) for span in current] == [span_id(consumed)]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_span_is_of_this_package_and_of_its_vocabulary(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    await driver.publish(destination)
    (published,) = recorder.producers(1)
    scope = published.instrumentation_scope
    schema = "https://opentelemetry.io/schemas/1.44.0" if vocabulary == "semconv" else ""
    assert (scope.name, scope.schema_url or "") == (f"otel_messaging.{driver.library}", schema)


@with_callbacks
async def test_a_callback_is_one_consumer_span(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    seen = []

    async def handler(message):
        seen.append((driver.body(message), trace.get_current_span()))

    await driver.subscribe(destination, handler)
    await driver.publish(destination, b"hello")
    await until(lambda: len(recorder.spans()) == 2)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert without(driver, shape(consumed)) == consumed_shape(driver, vocabulary, destination, published)
    assert [(body, span_id(span)) for body, span in seen] == [(b"hello", span_id(consumed))]


@with_callbacks
async def test_an_exception_in_a_callback_is_recorded(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    error = BrokenError("out of stock")

    async def handler(_message):
        raise error

    await driver.subscribe(destination, handler)
    await driver.publish(destination, b"hello")
    await until(lambda: len(recorder.spans()) == 2)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    name = f"{BrokenError.__module__}.BrokenError"
    expected = consumed_shape(driver, vocabulary, destination, published, status=("ERROR", "out of stock"))
    expected["attributes"]["error.type"] = name
    expected["events"] = [exception_event(name, "out of stock")]
    assert without(driver, shape(consumed)) == expected


@with_callbacks
async def test_the_library_gets_the_exception_of_a_callback_as_without_us(connect, recorder):
    driver = await connect()
    raised = []

    async def handler(message):
        raised.append(BrokenError("out of stock"))
        raise raised[-1]

    async def reported():
        subscribed = driver.name()
        await driver.subscribe(subscribed, handler)
        await driver.publish(subscribed)
        await until(lambda: driver.errors)
        await asyncio.sleep(0.02)
        gc.collect()  # a task's exception that nobody has fetched is reported when the task is collected
        found = [error is raised[-1] for error in driver.errors]
        driver.errors.clear()
        return found

    traced = await reported()
    driver.instrumentor().uninstrument()
    assert traced == await reported()
    assert all(traced)


@with_callbacks
async def test_a_callback_that_is_cancelled_is_a_failure(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    running, outcomes = asyncio.Event(), []

    async def handler(_message):
        running.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            outcomes.append("cancelled")
            raise

    subscription = await driver.subscribe(destination, handler)
    await driver.publish(destination, b"hello")
    await asyncio.wait_for(running.wait(), 5)
    await driver.interrupt(subscription)
    await until(lambda: len(recorder.spans()) == 2)
    (consumed,) = recorder.consumers(1)
    assert outcomes == ["cancelled"]
    assert consumed.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert consumed.status.status_code is trace.StatusCode.ERROR
    assert [event.name for event in consumed.events] == ["exception"]


async def test_an_exception_leaves_a_loop_body_as_it_is(connect, recorder):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    error = BrokenError("out of stock")

    def body(_message):
        raise error

    with pytest.raises(BrokenError) as caught:
        await driver.loop(listener, 1, body)
    assert caught.value is error
    assert error.__cause__ is None
    assert error.__context__ is None
    recorder.consumers(1)


async def test_an_exception_that_passes_a_with_block_is_recorded(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination, b"hello")
    error = BrokenError("out of stock")

    def body(_message):
        raise error

    with pytest.raises(BrokenError) as caught:
        await driver.guarded_loop(listener, body)
    assert caught.value is error
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    name = f"{BrokenError.__module__}.BrokenError"
    expected = consumed_shape(driver, vocabulary, destination, published, status=("ERROR", "out of stock"))
    expected["attributes"]["error.type"] = name
    expected["events"] = [exception_event(name, "out of stock")]
    assert without(driver, shape(consumed)) == expected


@pytest.mark.parametrize("closing", [True, False], ids=["closed at once", "closed later"])
async def test_leaving_a_generator_around_a_loop_is_no_failure(connect, recorder, vocabulary, closing):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination, b"hello")
    async with contextlib.AsyncExitStack() as stack:
        messages = driver.generator(listener)
        if closing:
            await stack.enter_async_context(contextlib.aclosing(messages))
        async for _ in messages:
            break
        del messages
    await until(lambda: not recorder.open.spans)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert without(driver, {**shape(consumed), "events": []}) == consumed_shape(
        driver, vocabulary, destination, published
    )
    assert [event.name for event in consumed.events if event.name == "exception"] == []
    context.attach(context.Context())


async def test_being_cancelled_while_waiting_is_no_failure_of_the_message_before(connect, recorder, vocabulary):
    driver = await connect()
    if driver.library == "kafka_python":
        pytest.skip("what blocks its thread cannot be cancelled")
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination, b"hello")

    async def consume():
        async for _ in driver.generator(listener):
            pass

    task = asyncio.create_task(consume())
    await until(lambda: any(span.kind is trace.SpanKind.CONSUMER for span in recorder.spans()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert without(driver, shape(consumed)) == consumed_shape(driver, vocabulary, destination, published)


async def test_a_status_that_the_application_set_stays(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    status = trace.Status(trace.StatusCode.ERROR, "half done")
    await driver.loop(listener, 1, lambda _: trace.get_current_span().set_status(status))
    (consumed,) = recorder.consumers(1)
    assert shape(consumed)["status"] == ("ERROR", "half done")


async def test_publishing_on_a_closed_client_fails_as_without_us(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    await driver.publish(destination, b"hello")
    recorder.exporter.clear()
    await driver.disconnect()

    async def failure():
        try:
            await driver.publish(destination, b"hello")
        except Exception as error:
            return type(error), error.args
        return None

    traced = await failure()
    (published,) = recorder.producers(1)
    driver.instrumentor().uninstrument()
    assert traced == await failure()
    assert published.status.status_code is trace.StatusCode.ERROR
    assert published.attributes["error.type"].rpartition(".")[2] == traced[0].__name__
    assert [event.name for event in published.events] == ["exception"]
    recorder.producers(1)
