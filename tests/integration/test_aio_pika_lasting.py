"""Connections that break, and programs that run for long."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections import Counter

import aio_pika
import pytest
from aio_pika import Message
from opentelemetry import context, trace

from tests.support.aio_pika import LOST, tidy  # noqa: F401 (fixture)
from tests.support.proxy import Proxy
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("tidy")
MANY = 3000


@pytest.fixture
def library():
    return "aio_pika"


@pytest.fixture
async def driver(connect):
    return await connect()


@pytest.fixture
async def broken(driver):
    """A robust connection over a wire that can be cut, and a queue that survives it."""
    async with Proxy(driver.address) as wire:
        connection = await aio_pika.connect_robust(wire.address, reconnect_interval=0.05)
        channel = await connection.channel()
        queue = await channel.get_queue((await driver.queue(driver.name())).name)

        async def break_off():
            again = asyncio.Event()
            connection.reconnect_callbacks.add(lambda *_: again.set())
            wire.cut()
            await asyncio.wait_for(again.wait(), 10)
            await asyncio.sleep(0.05)

        yield channel, queue, break_off
        await connection.close()
    await asyncio.sleep(0.02)


async def publish(driver, queue, body=b""):
    await driver.channel.default_exchange.publish(Message(body), queue.name)


# Reconnecting.


async def test_a_callback_has_one_span_per_message_after_reconnecting_twice(driver, broken, recorder):
    _, queue, break_off = broken
    seen = []

    async def handle(message):
        seen.append(span_id(trace.get_current_span()))
        await message.ack()

    await queue.consume(handle)
    for number in range(3):
        if number:
            await break_off()
        await publish(driver, queue)
        await until(lambda number=number: len(recorder.spans(f"receive {queue.name}")) > number)
    spans = recorder.spans(f"receive {queue.name}", count=3)
    assert seen == [span_id(span) for span in spans]
    assert [shape(span)["parent"] for span in spans] == [
        span_id(span) for span in recorder.spans(f"publish {queue.name}")
    ]
    assert [shape(span)["events"] for span in spans] == [[("ack", {})]] * 3


async def test_an_exchange_publishes_one_span_per_message_after_reconnecting(driver, broken, recorder):
    channel, queue, break_off = broken
    for number in range(2):
        if number:
            await break_off()
        await channel.default_exchange.publish(Message(b""), queue.name)
    recorder.spans(f"publish {queue.name}", count=2)


async def test_a_message_in_hand_when_the_connection_breaks_is_handled_in_two_spans(driver, broken, recorder):
    _, queue, break_off = broken
    calls = []

    async def handle(message):
        calls.append(message.redelivered)
        if len(calls) == 1:
            await asyncio.sleep(60)
        await message.ack()

    await queue.consume(handle)
    await publish(driver, queue)
    await until(lambda: calls)
    await break_off()
    await until(lambda: len(recorder.spans(f"receive {queue.name}")) == 2)
    one, two = recorder.spans(f"receive {queue.name}")
    assert calls == [False, True]
    assert one.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert shape(two)["status"] == ("OK", None)
    assert shape(one)["parent"] == shape(two)["parent"]


async def test_a_publish_that_the_connection_breaks_off_is_an_error(driver, broken, recorder):
    channel, queue, break_off = broken
    task = asyncio.create_task(break_off())
    outcomes = Counter()
    for _ in range(200):
        try:
            await channel.default_exchange.publish(Message(b""), queue.name)
        except LOST:
            outcomes["ERROR"] += 1
        else:
            outcomes["OK"] += 1
        await asyncio.sleep(0.001)
    await task
    assert outcomes["ERROR"]
    found = Counter(span.status.status_code.name for span in recorder.spans(f"publish {queue.name}", count=200))
    assert found == outcomes


async def test_a_loop_has_one_span_per_message_after_the_connection_broke(driver, broken, recorder):
    _, queue, break_off = broken
    seen = 0
    async with queue.iterator() as messages:
        await publish(driver, queue)
        async for message in messages:
            seen += 1
            await message.ack()
            if seen == 2:
                break
            await break_off()
            await publish(driver, queue)
        assert context.get_current() == {}
    recorder.spans(f"receive {queue.name}", count=2)


# Running for long.


@pytest.fixture
async def growth(driver):
    """By how many objects of each kind the program has grown when it does something for the third time."""

    async def measure(work):
        counts = []
        for _ in range(3):
            await work()
            gc.collect()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                counts.append(Counter(type(thing).__name__ for thing in gc.get_objects()))
        return {kind: count for kind, count in (counts[2] - counts[1]).items() if count > MANY // 20}

    return measure


async def fill(driver, queue, count):
    channel = await driver.connection.channel(publisher_confirms=False)
    for _ in range(count):
        await channel.default_exchange.publish(Message(b"x", headers={"n": 1}), queue.name)
    await channel.close()


async def test_callbacks_keep_nothing(driver, growth, recorder):
    recorder.exporter.shutdown()  # it keeps no span
    queue = await driver.queue(driver.name())
    await driver.channel.set_qos(prefetch_count=50)
    handled = 0

    async def handle(message):
        nonlocal handled
        async with message.process():
            handled += 1

    await queue.consume(handle)

    async def work():
        expected = handled + MANY // 3
        await fill(driver, queue, MANY // 3)
        await until(lambda: handled == expected, 20)
        await until(lambda: not recorder.open.spans)

    assert await growth(work) == {}
    assert handled == MANY


async def test_loops_keep_nothing(driver, growth, recorder):
    recorder.exporter.shutdown()
    queue = await driver.queue(driver.name())
    await driver.channel.set_qos(prefetch_count=50)
    messages = queue.iterator()

    async def work():
        handled = 0
        await fill(driver, queue, MANY // 3)
        async for message in messages:
            async with message.process():
                handled += 1
            if handled == MANY // 3:
                break

    assert await growth(work) == {}
    await messages.close()
    assert recorder.open.spans == {}


async def test_iterators_that_are_made_for_one_message_keep_nothing_of_it(driver, growth, recorder):
    recorder.exporter.shutdown()
    queue = await driver.queue(driver.name())
    await driver.channel.set_qos(prefetch_count=1)

    async def work():
        await fill(driver, queue, MANY // 15)
        for _ in range(MANY // 15):
            async with queue.iterator() as messages:
                async for message in messages:
                    await message.ack()
                    break

    # The library itself keeps every iterator up to 9.6, and a future for each since.
    assert not {"Operation", "Delivery", "_Span", "_HeldByLoop"} & set(await growth(work))
    assert recorder.open.spans == {}


async def test_messages_with_keys_of_their_own_keep_nothing(driver, growth, recorder):
    recorder.exporter.shutdown()
    numbers = iter(range(10 * MANY))
    channel = await driver.connection.channel(publisher_confirms=False)

    async def work():
        for _ in range(MANY):
            await channel.default_exchange.publish(Message(b""), f"nobody-{next(numbers)}", mandatory=False)

    assert "Operation" not in await growth(work)
