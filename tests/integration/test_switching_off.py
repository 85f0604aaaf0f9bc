"""`uninstrument()` while messages are handled: they are over at once, and the application goes on."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from opentelemetry import context, trace

from otel_messaging.patterns import process
from tests.support.drivers import CALLBACKS, DRIVERS
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

SUCCESS = {"guide": ("OK", None), "semconv": ("UNSET", None), "both": ("UNSET", None)}
with_callbacks = pytest.mark.parametrize("library", CALLBACKS)


async def prepared(driver, count=1):
    """A listener to a destination with some messages."""
    destination = driver.name()
    listener = await driver.listen(destination)
    for number in range(count):
        await driver.publish(destination, str(number).encode())
    return listener


async def got_from_a_loop(driver, listener):
    iterator = driver.iterate(listener)
    return [iterator, await driver.advance(iterator)]


async def got_from_a_generator(driver, listener):
    generator = driver.generator(listener)
    return [generator, await anext(generator)]


async def pulled(driver, listener):
    """By the library's call for one message; Kafka's gives it in a list."""
    if driver.library == "aio_pika":
        return [await listener.get(no_ack=True)]
    if driver.library == "nats_py":
        return [await listener.next_msg(timeout=5)]
    return [records[0] for records in listener.poll(timeout_ms=8000, max_records=1).values()]


async def listed(driver, listener):
    """By a loop over a list, which is still in its body."""
    if driver.library != "kafka_python":
        pytest.skip("aio-pika and core NATS give no lists: JetStream's are below")
    (records,) = listener.poll(timeout_ms=8000).values()
    generator = (record for record in records)
    return [generator, next(generator)]


WAYS = pytest.mark.parametrize("way", [got_from_a_loop, got_from_a_generator, pulled, listed])


@WAYS
@pytest.mark.parametrize("where", ["here", "in another thread"])
async def test_what_is_handled_ends(connect, recorder, vocabulary, way, where):
    driver = await connect()
    listener = await prepared(driver)
    before = context.get_current()
    kept = await way(driver, listener)
    handling = trace.get_current_span()
    assert handling.is_recording()
    if where == "here":
        driver.instrumentor().uninstrument()
        assert context.get_current() is before
    else:
        await asyncio.to_thread(driver.instrumentor().uninstrument)
        context.attach(before)
    assert recorder.open.spans == {}
    (published,) = recorder.producers(1)
    (consumed,) = [span for span in recorder.spans() if span_id(span) == span_id(handling)]
    found = shape(consumed)
    assert found["parent"] == span_id(published)
    assert found["status"] == SUCCESS[vocabulary]
    assert [name for name, _ in found["events"] if name == "exception"] == []
    if vocabulary == "guide":
        assert [value for _, value in recorder.metrics()["messaging.processing.duration"]] == [1]
    ended = recorder.spans()
    del kept
    assert context.get_current() is before
    assert recorder.spans() == ended


async def test_a_loop_goes_on_natively_and_is_left_by_nothing(connect, recorder):
    driver = await connect()
    listener = await prepared(driver, 3)
    before, seen = context.get_current(), []

    def body(message):
        if not seen:
            driver.instrumentor().uninstrument()
        seen.append((driver.body(message), context.get_current() is before))

    await driver.loop(listener, 3, body)
    assert seen == [(b"0", True), (b"1", True), (b"2", True)]
    recorder.consumers(1)


async def test_a_loop_in_another_task_has_its_context_back_at_its_next_step(connect, recorder):
    driver = await connect()
    listener = await prepared(driver, 2)
    inside, over, seen = asyncio.Event(), asyncio.Event(), []

    async def body(message):
        seen.append(context.get_current() == {})
        if not inside.is_set():
            inside.set()
            await over.wait()
            seen.append(trace.get_current_span().is_recording())

    task = asyncio.create_task(driver.loop(listener, 2, body))
    await inside.wait()
    driver.instrumentor().uninstrument()
    recorder.consumers(1)
    over.set()
    await task
    assert seen == [False, False, True]


@pytest.mark.parametrize("library", ["kafka_python"])
async def test_a_loop_in_another_thread_has_its_context_back_at_its_next_step(connect, recorder):
    driver = await connect()
    listener = await prepared(driver, 2)
    inside, over, seen = threading.Event(), threading.Event(), []

    def loop():
        for _ in listener:
            seen.append(context.get_current() == {})
            if inside.is_set():
                break
            inside.set()
            over.wait(10)

    thread = threading.Thread(target=loop)
    thread.start()
    assert await asyncio.to_thread(inside.wait, 10)
    driver.instrumentor().uninstrument()
    recorder.consumers(1)
    over.set()
    await asyncio.to_thread(thread.join, 10)
    assert seen == [False, True]


async def test_a_loop_that_outlives_switching_off_and_on_is_traced_again_to_its_end(connect, recorder):
    driver = await connect()
    listener = await prepared(driver, 2)
    before, seen = context.get_current(), []

    async def body(message):
        seen.append(trace.get_current_span())
        if len(seen) == 1:
            driver.instrumentor().uninstrument()
            driver.instrumentor().instrument(**recorder.providers)
        await driver.publish(driver.name())

    await driver.loop(listener, 2, body, after=lambda: seen.append(context.get_current() is before))
    assert [span_id(span) for span in recorder.consumers(2)] == [span_id(span) for span in seen[:2]]
    published = recorder.producers(4)[2:]
    assert [span.parent and span.parent.span_id for span in published] == [None, span_id(seen[1])]
    assert seen[2]
    assert context.get_current() is before


async def test_another_library_goes_on(connect, recorder, library, instrument):
    driver = await connect()
    other = next(found for name, found in DRIVERS.items() if name != library)
    instrument(other.instrumentor)
    listener = await prepared(driver)
    kept = await got_from_a_loop(driver, listener)
    other.instrumentor().uninstrument()
    assert trace.get_current_span().is_recording()
    await driver.stop(listener, kept[0])
    recorder.consumers(1)


@with_callbacks
async def test_a_callback_that_runs_keeps_its_span_until_it_returns(connect, recorder):
    driver = await connect()
    destination = driver.name()
    inside, over, seen = asyncio.Event(), asyncio.Event(), []

    async def handler(_message):
        inside.set()
        await over.wait()
        seen.append(trace.get_current_span().is_recording())

    await driver.subscribe(destination, handler)
    await driver.publish(destination)
    await asyncio.wait_for(inside.wait(), 5)
    driver.instrumentor().uninstrument()
    over.set()
    await until(lambda: seen and not recorder.open.spans)
    assert seen == [True]
    recorder.consumers(1)


async def test_a_block_of_the_applications_own_keeps_its_span_until_it_is_left(connect, recorder):
    driver = await connect()
    listener = await prepared(driver)
    with contextlib.suppress(StopAsyncIteration):
        message = await driver.first(listener)
    with process(message) as span:
        driver.instrumentor().uninstrument()
        assert span.is_recording()
        assert trace.get_current_span() is span
    recorder.consumers(2)
    assert context.get_current() == {}


@pytest.mark.parametrize("library", ["nats_py"])
async def test_what_is_handled_of_a_list_that_was_fetched_ends(connect, recorder):
    driver = await connect()
    name, jetstream = driver.name(), driver.client.jetstream()
    await jetstream.add_stream(name=name, subjects=[name], storage="memory")
    subscription = await jetstream.pull_subscribe(name, "worker")
    for body in (b"0", b"1", b"2"):
        await jetstream.publish(name, body)
    seen = []
    for message in await subscription.fetch(3, timeout=5):
        if not seen:
            driver.instrumentor().uninstrument()
        seen.append((message.data, context.get_current() == {}))
    assert seen == [(b"0", True), (b"1", True), (b"2", True)]
    recorder.spans(f"process {name}", count=1)


@pytest.mark.parametrize("library", ["nats_py"])
async def test_what_is_handled_of_a_watchers_updates_ends(connect, recorder):
    driver = await connect()
    bucket = await driver.client.jetstream().create_key_value(bucket=driver.name(), storage="memory")
    await bucket.put("key", b"value")
    watcher = await bucket.watchall()
    while (update := await watcher.updates(timeout=5)) is None:  # a marker
        pass
    assert (update.key, trace.get_current_span().is_recording()) == ("key", True)
    driver.instrumentor().uninstrument()
    assert context.get_current() == {}
    assert recorder.open.spans == {}
    await watcher.stop()


@pytest.mark.parametrize("library", ["nats_py"])
async def test_a_watcher_that_outlives_switching_off_and_on_is_traced_again(connect, recorder):
    driver = await connect()
    bucket = await driver.client.jetstream().create_key_value(bucket=driver.name(), storage="memory")
    for key in ("first", "second"):
        await bucket.put(key, b"value")
    watcher, name, seen = await bucket.watchall(), driver.name(), []
    async for update in watcher:
        seen.append(update.key)
        if len(seen) == 1:
            driver.instrumentor().uninstrument()
            driver.instrumentor().instrument(**recorder.providers)
        else:
            handling = trace.get_current_span()
            await driver.publish(name)
            break
    assert seen == ["first", "second"]
    assert recorder.span(f"publish {name}").parent.span_id == span_id(handling)
    await watcher.stop()
