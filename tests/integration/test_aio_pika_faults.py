"""A broker that stops and starts, connections that break: each span ends, and no handler is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import aio_pika
import pytest
from aio_pika import DeliveryMode, Message
from aio_pika.patterns import RPC
from opentelemetry import trace

from examples.brokers import BrokerUnavailable, RabbitMQ
from otel_messaging import AioPikaInstrumentor
from tests.support.aio_pika import LOST, tidy  # noqa: F401 (fixture)
from tests.support.proxy import Proxy
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture(scope="module")
def rabbitmq(real_broker):
    """A broker of our own, which may be stopped."""
    try:
        with RabbitMQ() as broker:
            yield broker
    except BrokerUnavailable as error:
        pytest.skip(str(error))


class Program:
    """A robust connection, and a queue that survives."""

    def __init__(self, address):
        self.address = address
        self.handled = Counter()
        self.spans = []
        self.again = asyncio.Event()

    async def __aenter__(self):
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        self.connection = await aio_pika.connect_robust(self.address, reconnect_interval=0.1)
        self.connection.reconnect_callbacks.add(lambda *_: self.again.set())
        self.channel = await self.connection.channel()
        await self.channel.set_qos(prefetch_count=10)
        self.queue = await self.channel.declare_queue(f"test-{id(self)}", durable=True)
        return self

    async def __aexit__(self, *_):
        with contextlib.suppress(*LOST):
            await asyncio.wait_for(self.queue.delete(if_unused=False, if_empty=False), 5)
        await self.connection.close()
        asyncio.get_running_loop().set_exception_handler(None)
        await asyncio.sleep(0.02)

    async def publish(self, count):
        """Each message once at the least, however long that takes."""
        attempts = 0
        for number in range(count):
            message = Message(b"%d" % number, delivery_mode=DeliveryMode.PERSISTENT)
            while True:
                attempts += 1
                try:
                    await self.channel.default_exchange.publish(message, self.queue.name, timeout=5)
                except LOST:
                    await asyncio.sleep(0.05)
                else:
                    break
            await asyncio.sleep(0.002)
        return attempts

    async def handle(self, message):
        self.spans.append(trace.get_current_span())
        async with message.process(requeue=True, ignore_processed=True):
            await asyncio.sleep(0.001)
            self.handled[int(message.body)] += 1

    async def get(self, count):
        while len(self.handled) < count:
            try:
                message = await self.queue.get(fail=False, timeout=2)
                if message is not None:
                    await asyncio.wait_for(self.handle(message), 5)  # aio-pika 9.0 may wait for ever to settle
            except LOST:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.001)

    async def loop(self, count):
        """With a connection for each: a robust one restores the consumers of iterators that were left."""
        while len(self.handled) < count:
            with contextlib.suppress(*LOST):
                async with await aio_pika.connect(self.address) as connection:
                    await self.loop_once(await connection.channel(), count)
            await asyncio.sleep(0.05)

    async def loop_once(self, channel, count):
        await channel.set_qos(prefetch_count=10)
        queue = await channel.get_queue(self.queue.name)
        async with queue.iterator() as messages:
            async for message in messages:
                await asyncio.wait_for(self.handle(message), 5)
                if len(self.handled) == count:
                    break


COUNT = 150


async def consumed_by(program, way):
    """Start to consume in one of the ways."""
    if way == "callback":
        await program.queue.consume(program.handle)
        return asyncio.create_task(until(lambda: len(program.handled) == COUNT, 40))
    return asyncio.create_task(getattr(program, way)(COUNT))


@pytest.mark.parametrize("way", ["callback", "get", "loop"])
async def test_a_broker_that_restarts_costs_no_span_and_no_message(rabbitmq, instrument, recorder, way):
    instrument(AioPikaInstrumentor)
    async with Program(rabbitmq.address) as program:
        consuming = await consumed_by(program, way)
        publishing = asyncio.create_task(program.publish(COUNT))
        await until(lambda: len(program.handled) > 20)
        await asyncio.to_thread(rabbitmq.stop)
        await asyncio.to_thread(rabbitmq.start)
        attempts = await asyncio.wait_for(publishing, 40)
        await asyncio.wait_for(consuming, 40)
        name = program.queue.name
        await until(lambda: not recorder.open.spans)
        assert sorted(program.handled) == list(range(COUNT))
        assert len(recorder.spans(f"publish {name}")) == attempts
        handlings = {span_id(span) for span in recorder.spans(f"receive {name}")}
        mine = [span_id(span) for span in program.spans]
        assert len(mine) == len(set(mine))
        assert set(mine) <= handlings
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.fixture
async def wired(instrument, rabbitmq_address):
    """A program behind a wire that can be cut or held still."""
    instrument(AioPikaInstrumentor)
    async with Proxy(rabbitmq_address) as wire:
        yield wire


async def settled(recorder):
    """Every span has ended."""
    await until(lambda: not recorder.open.spans)
    return recorder.spans()


async def until_answered(queue):
    """What a queue gives, once it answers again."""
    while True:
        with contextlib.suppress(*LOST):
            return await queue.get(fail=False)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("settle", [True, False])
async def test_a_pulled_message_ends_when_the_connection_is_cut(wired, recorder, settle):
    async with Program(wired.address) as program:
        await program.publish(1)
        message = await program.queue.get()
        assert trace.get_current_span().is_recording()
        wired.cut()
        await settled(recorder)
        if settle:
            with contextlib.suppress(*LOST):
                await asyncio.wait_for(message.ack(), 1)  # for which aio-pika 9.0 waits for ever
        await asyncio.wait_for(program.again.wait(), 10)
        again = await until_answered(program.queue)
        if again is not None:
            await again.ack()
        assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_get_that_the_connection_breaks_off_is_an_error(wired, recorder):
    async with Program(wired.address) as program:
        wired.hold()
        getting = asyncio.create_task(program.queue.get())
        await asyncio.sleep(0.02)
        wired.cut()
        with pytest.raises(LOST) as caught:
            await getting
        wired.resume()
        (span,) = recorder.spans(f"receive {program.queue.name}")
        assert shape(span)["status"] == ("ERROR", str(caught.value))


async def test_a_publish_while_there_is_no_connection_still_names_its_server(wired, recorder):
    async with Program(wired.address) as program:
        exchange, port = program.channel.default_exchange, int(wired.address.rsplit(":")[-1].strip("/"))
        wired.refuse()
        for number in range(2):
            with contextlib.suppress(*LOST):
                await asyncio.wait_for(exchange.publish(Message(b""), f"key-{number}"), 0.3)
            await asyncio.sleep(0.05)
        await wired.accept()
        await asyncio.wait_for(program.again.wait(), 10)
    for number in range(2):
        attributes = recorder.span(f"publish key-{number}").attributes
        assert (attributes["server.address"], attributes["server.port"]) == ("127.0.0.1", port)
        assert "error.type" in attributes


async def test_a_call_that_the_connection_breaks_off_is_an_error(wired, recorder):
    async with Program(wired.address) as program:
        called, never = asyncio.Event(), asyncio.Event()

        async def wait():
            called.set()
            await never.wait()

        rpc = await RPC.create(program.channel)
        name = f"{program.queue.name}-call"
        await rpc.register(name, wait, auto_delete=True)
        calling = asyncio.create_task(rpc.call(name))
        await asyncio.wait_for(called.wait(), 5)
        wired.cut()
        with pytest.raises((Exception, asyncio.CancelledError)):
            await asyncio.wait_for(calling, 5)
        await settled(recorder)
        assert shape(recorder.spans(f"publish {name}")[0])["status"][0] == "ERROR"
        assert recorder.spans(f"receive {name}")[0].attributes["error.type"].endswith("CancelledError")
        never.set()


async def test_a_channel_that_an_error_closes_ends_what_is_handled_on_it(wired, recorder):
    async with Program(wired.address) as program:
        plain = await program.connection.channel()
        queue = await plain.get_queue(program.queue.name)
        begun = asyncio.Event()

        async def handle(_message):
            if not begun.is_set():
                begun.set()
                await asyncio.sleep(60)

        await queue.consume(handle, no_ack=True)
        await program.publish(1)
        await asyncio.wait_for(begun.wait(), 5)
        missing = await plain.get_exchange("no-such-exchange", ensure=False)
        with pytest.raises((Exception, asyncio.CancelledError)):
            await missing.publish(Message(b""), "key")
        await settled(recorder)
        (handled,) = recorder.spans(f"receive {queue.name}")
        assert handled.attributes["error.type"].endswith("CancelledError")
        assert shape(recorder.span("publish no-such-exchange"))["status"][0] == "ERROR"


async def test_a_broker_that_falls_silent_ends_what_waits_for_it(wired, recorder):
    """The heartbeat is lost, once the library has noticed."""
    async with Program(f"{wired.address}?heartbeat=1") as program:
        wired.hold()
        publishing = asyncio.create_task(program.channel.default_exchange.publish(Message(b""), program.queue.name))
        with pytest.raises((Exception, asyncio.CancelledError)):
            await asyncio.wait_for(asyncio.shield(publishing), 15)
        publishing.cancel()
        with contextlib.suppress(*LOST):
            await publishing
        await settled(recorder)
        assert shape(recorder.spans(f"publish {program.queue.name}")[0])["status"][0] == "ERROR"
        wired.resume()
        await asyncio.wait_for(program.again.wait(), 10)
