"""Thousands of messages through nats-py leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_messaging import NatsPyInstrumentor
from otel_messaging.core.cache import LIMIT
from tests.support.nats_py import client, fresh
from tests.support.recorder import Open

COUNT = 5_000
FEW = 1_000
SLACK = 1_000  # blocks of memory; one per four messages would be as many. Timers that were cancelled last a while


@pytest.fixture
def opened():
    """The spans that have begun and not ended, while none is kept."""
    return Open()


@pytest.fixture
async def connection(instrument, nats_address, opened):
    """A client whose spans are made, and not kept."""
    provider = TracerProvider()
    provider.add_span_processor(opened)
    instrument(NatsPyInstrumentor, tracer_provider=provider)
    async with client(nats_address) as made:
        yield made
    assert opened.spans == {}
    provider.shutdown()


def blocks():
    gc.collect()
    return sys.getallocatedblocks()


async def callbacks(connection):
    """Have messages handled by a callback."""
    subject = fresh()
    seen, all_seen = 0, asyncio.Event()

    async def callback(_message):
        nonlocal seen
        seen += 1
        if seen in (FEW, COUNT):
            all_seen.set()

    await connection.subscribe(subject, cb=callback)

    async def some(count):
        all_seen.clear()
        for _ in range(count):
            await connection.publish(subject, b"x")
        await asyncio.wait_for(all_seen.wait(), 30)

    return some


async def loop(connection):
    """Loop over messages."""
    subject = fresh()
    subscription = await connection.subscribe(subject)

    async def some(count):
        for _ in range(count):
            await connection.publish(subject, b"x")
        seen = 0
        async for _ in subscription.messages:
            seen += 1
            if seen == count:
                break

    return some


async def loops(connection):
    """Loop over each message anew, and leave the loop by `break`."""
    subject = fresh()
    subscription = await connection.subscribe(subject)

    async def some(count):
        for _ in range(count):
            await connection.publish(subject, b"x")
        for _ in range(count):
            async for _ in subscription.messages:
                break

    return some


async def tasks(connection):
    """Ask for each message in a task of its own."""
    subject = fresh()
    subscription = await connection.subscribe(subject)

    async def some(count):
        for _ in range(count):
            await connection.publish(subject, b"x")
        for _ in range(count):
            await asyncio.create_task(subscription.messages.__anext__())

    return some


async def requests(connection):
    """Request and answer."""
    subject = fresh()

    async def callback(message):
        await message.respond(b"x")

    await connection.subscribe(subject, cb=callback)

    async def some(count):
        for _ in range(count):
            await connection.request(subject, b"x", timeout=5)

    return some


async def pulls(connection):
    """Ask for each message by itself."""
    subject = fresh()
    subscription = await connection.subscribe(subject)

    async def some(count):
        for _ in range(count):
            await connection.publish(subject, b"x")
        for _ in range(count):
            await subscription.next_msg(timeout=5)

    return some


async def fetches(connection):
    """Ask a stream for lists of messages."""
    name, jetstream = fresh(), connection.jetstream()
    await jetstream.add_stream(name=name, subjects=[name], storage="memory", max_msgs=FEW)
    subscription = await jetstream.pull_subscribe(name, "worker")

    async def some(count):
        for _ in range(count // 50):
            for _ in range(50):
                await connection.publish(name, b"x")
            seen = 0
            while seen < 50:
                for message in await subscription.fetch(50 - seen, timeout=5):
                    await message.ack()
                    seen += 1

    return some


async def values(connection):
    """Put a value, get it, and see its update."""
    bucket = await connection.jetstream().create_key_value(bucket=fresh(), storage="memory")
    watcher = await bucket.watchall()

    async def some(count):
        for _ in range(count // 10):
            for number in range(10):
                await bucket.put(f"name-{number % 3}", b"x")
            await bucket.get("name-0")
            seen = 0
            while seen < 10:
                seen += await watcher.updates(timeout=5) is not None

    return some


@pytest.mark.parametrize("way", [callbacks, loop, loops, tasks, requests, pulls, fetches, values])
async def test_messages_are_not_kept(connection, way):
    some = await way(connection)
    await some(FEW)
    before = blocks()
    await some(COUNT - FEW)
    assert blocks() - before < SLACK


async def test_what_is_kept_of_subjects_is_limited(connection):
    subject, seen, all_seen = fresh(), set(), asyncio.Event()

    async def callback(message):
        seen.add(message.subject)
        if len(seen) == COUNT:
            all_seen.set()

    await connection.subscribe(f"{subject}.>", cb=callback)
    for number in range(COUNT):
        await connection.publish(f"{subject}.{number}", b"x")
    await asyncio.wait_for(all_seen.wait(), 30)
    state = vars(connection)["_otel_messaging"]
    deliveries = state.deliveries(f"{subject}.>", "")
    assert 0 < len(state._publishes) <= LIMIT
    assert 0 < len(deliveries._operations) <= LIMIT


async def test_what_is_kept_of_subscriptions_is_limited(connection):
    subject = fresh()
    for number in range(2 * LIMIT):
        subscription = await connection.subscribe(f"{subject}.{number}")
        await connection.publish(f"{subject}.{number}")
        async for _ in subscription.messages:
            break
        await subscription.unsubscribe()
    state = vars(connection)["_otel_messaging"]
    assert 0 < len(state._deliveries) <= LIMIT
    assert state.consumers == {}


async def test_no_task_of_the_library_keeps_what_was_published_first(connection):
    """The first request makes the task that gets all replies, in its own context."""

    class Payload(bytearray):
        pass

    name, jetstream = fresh(), connection.jetstream()
    await jetstream.add_stream(name=name, subjects=[name], storage="memory")
    payload = Payload(b"x" * 1000)
    await jetstream.publish(name, payload)
    kept = weakref.ref(payload)
    del payload
    gc.collect()
    assert kept() is None
