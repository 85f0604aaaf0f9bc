"""The same outage with us and without: handlers run as often, and every span ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter

import aio_pika
import pytest
from aio_pika import Message
from opentelemetry import trace

from otel_messaging import AioPikaInstrumentor
from tests.support.aio_pika import LOST, VERSION, tidy  # noqa: F401 (fixture)
from tests.support.proxy import Proxy
from tests.support.recorder import span_id
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("tidy")
COUNT = 4
STRUCK = 1
"""The message that is in hand when it happens."""


class Program:
    """Handles a few messages one by one; while it handles the second, something happens.

    Args:
        wire: what its connection goes through.
        way: how it consumes.
        heartbeat: of its connection, in seconds.
        struck: called when the second message is in hand.
    """

    def __init__(self, wire, way, heartbeat, struck):
        self.address = f"{wire.address}?heartbeat={heartbeat}"
        self.wire, self.way, self.struck = wire, way, struck
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        self.calls, self.spans, self.outcomes = [], [], []
        self.settled = set()
        self.over = asyncio.Event()

    async def run(self):
        """Handle all messages."""
        await self.open()
        for number in range(COUNT):
            await self.channel.default_exchange.publish(Message(b"%d" % number), self.name)
        await asyncio.wait_for(getattr(self, self.way)(), 30)

    async def open(self):
        self.connection = await aio_pika.connect_robust(self.address, reconnect_interval=0.1)
        self.connection.reconnect_callbacks.add(lambda *_: self.over.set())
        self.channel = await self.connection.channel()
        await self.channel.set_qos(prefetch_count=1)
        self.queue = await self.channel.declare_queue(self.name, durable=True)

    async def close(self):
        with contextlib.suppress(*LOST):
            await asyncio.wait_for((await self.connection.channel()).queue_delete(self.name), 5)
        await self.connection.close()

    async def handle(self, message):
        """What the application does with a message."""
        number = int(message.body)
        self.calls.append(number)
        self.spans.append(trace.get_current_span())
        if number == STRUCK and not message.redelivered:
            self.struck()
            await self.over.wait()
        await asyncio.wait_for(message.ack(), 1)  # for which aio-pika 9.0 may wait for ever
        self.settled.add(number)

    async def callback(self):
        await self.queue.consume(self.handle)
        await until(lambda: len(self.settled) == COUNT, 30)

    async def get(self):
        while len(self.settled) < COUNT:
            with contextlib.suppress(*LOST):
                message = await self.queue.get(fail=False, timeout=2)
                if message is not None:
                    await self.handle(message)
            await asyncio.sleep(0.01)

    async def loop(self):
        while len(self.settled) < COUNT:
            try:
                async with self.queue.iterator() as messages:
                    async for message in messages:
                        await self.handle(message)
                        if len(self.settled) == COUNT:
                            break
            except LOST:
                await self.again()

    async def again(self):
        """Anew: the library restores the consumer of the iterator that was left, which would keep its messages."""
        with contextlib.suppress(*LOST):
            await asyncio.wait_for(self.connection.close(), 5)
        with contextlib.suppress(*LOST):
            await asyncio.wait_for(self.open(), 5)


async def cut(programs):
    programs[0].wire.cut()


async def closed_by_the_broker(programs):
    """RabbitMQ does not implement `immediate`, and says so by closing the connection."""
    for program in programs:
        channel = await program.connection.channel()
        await fail(program, channel.default_exchange, immediate=True)


async def channel_closed_by_the_broker(programs):
    for program in programs:
        await fail(program, await program.channel.get_exchange(f"{program.name}-missing", ensure=False))
        program.over.set()


async def fail(program, exchange, **options):
    try:
        await exchange.publish(Message(b""), "key", **options)
    except (Exception, asyncio.CancelledError) as error:
        program.outcomes.append(type(error))


async def silence(programs):
    """No heartbeat arrives, and the library gives up."""
    wire = programs[0].wire
    losses = [asyncio.Event() for _ in programs]
    for program, lost in zip(programs, losses, strict=True):
        program.connection.close_callbacks.add(lambda *_, lost=lost: lost.set())
    wire.hold()
    await asyncio.wait_for(asyncio.gather(*(lost.wait() for lost in losses)), 20)
    wire.resume()


async def blocked(_programs):
    """No heartbeat is sent, and the broker gives up."""
    time.sleep(4)


FAULTS = (cut, closed_by_the_broker, channel_closed_by_the_broker, silence, blocked)
WAYS = ("callback", "loop", "get")


async def outage(address, fault):
    """Programs that consume in each of the ways, and have each a message in hand when it happens to all of them."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    at_work = asyncio.Semaphore(0)
    async with Proxy(address) as wire:
        heartbeat = 1 if fault in (silence, blocked) else 60
        programs = [Program(wire, way, heartbeat, at_work.release) for way in WAYS]

        async def strike():
            for _ in programs:
                await at_work.acquire()
            await fault(programs)

        try:
            await asyncio.gather(strike(), *(program.run() for program in programs))
        finally:
            for program in programs:  # they take no cancellation for an answer
                program.settled.update(range(COUNT))
        await asyncio.gather(*(program.close() for program in programs))
        await asyncio.sleep(0.02)
    asyncio.get_running_loop().set_exception_handler(None)
    return programs


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_handlers_run_as_often_as_without_us_in_an_outage(rabbitmq_address, instrument, recorder, fault):
    if VERSION == (9, 1) and fault is silence:
        pytest.skip("aio-pika 9.1 may wait in get() for ever")
    plain = await outage(rabbitmq_address, fault)
    instrument(AioPikaInstrumentor)
    traced = await outage(rabbitmq_address, fault)
    assert [Counter(program.calls) for program in traced] == [Counter(program.calls) for program in plain]
    assert [program.outcomes for program in traced] == [program.outcomes for program in plain]
    assert [program.calls.count(STRUCK) for program in traced] == [2, 2, 2]
    await until(lambda: not recorder.open.spans)
    for program in traced:
        spans = recorder.spans(f"receive {program.name}")
        handled = [span_id(span) for span in spans if "messaging.rabbitmq.message.delivery_tag" in span.attributes]
        assert handled == [span_id(span) for span in program.spans]
    assert trace.get_current_span() is trace.INVALID_SPAN
