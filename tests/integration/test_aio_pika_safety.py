"""Our own code fails, at every place in turn: the application does what it does without us."""

from __future__ import annotations

import asyncio

import pytest
from aio_pika import Message
from aio_pika.exceptions import QueueEmpty
from aio_pika.patterns import RPC

from otel_messaging.aio_pika import adapter, connections, consuming, iterating, publishing, pulled, rpc, sources
from otel_messaging.core import telemetry
from otel_messaging.instrumentation import loops

BROKEN = [
    (adapter, "identify"),
    (adapter.AioPika, "source"),
    (adapter.AioPika, "settlement"),
    (adapter.AioPika, "delivery"),
    (consuming, "keep"),
    (connections, "server"),
    (connections.Connection, "declared"),
    (connections.v, "peer"),
    (consuming, "_is_application"),
    (sources, "describe"),
    (sources, "fold"),
    (sources.Source, "hand_out"),
    (sources.Source, "pull"),
    (iterating, "identify"),
    (iterating, "keep"),
    (iterating, "find"),
    (publishing, "keep"),
    (publishing, "transport"),
    (publishing, "fits"),
    (publishing, "_complete"),
    (publishing, "_returned"),
    (publishing, "assigned_id"),
    (publishing.Exchange, "publish"),
    (pulled.Pulled, "hold"),
    (pulled.Pulled, "settled"),
    (rpc, "assigned_id"),
    (rpc.Call, "concerns"),
    (rpc.Reply, "concerns"),
    (rpc.Reply, "fail"),
    (loops.Shared, "loop"),
    (loops.Shared, "asked"),
    (loops.Shared, "enter"),
    (loops.Shared, "exit"),
    (loops.Shared, "close"),
    (telemetry.Telemetry, "active_context"),
    (telemetry.Telemetry, "outgoing"),
    (telemetry.Telemetry, "publish"),
    (telemetry.Telemetry, "deliver"),
    (telemetry.Telemetry, "receive"),
    (telemetry.Telemetry, "settle"),
]


@pytest.fixture
def library():
    return "aio_pika"


class Application:
    """Does some of everything; what comes of it are values that can be compared.

    Args:
        driver: has a connection.
    """

    def __init__(self, driver):
        self.driver, self.exchange, self.seen = driver, driver.channel.default_exchange, []

    async def run(self):
        for part in (self.publish, self.get, self.loop, self.bare_loop, self.callback, self.call):
            queue = await self.driver.queue(self.driver.name())
            for number in range(2):
                await self.exchange.publish(Message(b"%d" % number, headers={"n": number, "tags": ["a"]}), queue.name)
            await asyncio.wait_for(part(queue), 5)
        return self.seen

    def see(self, message):
        self.seen.append((message.body, message.headers["n"], message.message_id is not None, message.redelivered))

    async def publish(self, queue):
        returned = await self.exchange.publish(Message(b"lost"), f"{queue.name}-missing")
        self.seen.append(returned.delivery.reply_text)
        with pytest.raises(asyncio.TimeoutError):
            await self.exchange.publish(Message(b""), queue.name, timeout=1e-9)

    async def get(self, queue):
        for _ in range(2):
            message = await queue.get()
            self.see(message)
            await message.ack()
        self.seen.append(await queue.get(fail=False))
        with pytest.raises(QueueEmpty):
            await queue.get()

    async def loop(self, queue):
        with pytest.raises(LookupError, match="no good"):
            await self.fail_in_a_loop(queue)

    async def fail_in_a_loop(self, queue):
        async with queue.iterator(timeout=5) as messages:
            async for message in messages:
                async with message.process():
                    self.see(message)
                    if message.body == b"1":
                        raise LookupError("no good")

    async def bare_loop(self, queue):
        async for message in queue:
            self.see(message)
            await message.nack(requeue=False)
            if message.body == b"1":
                break

    async def callback(self, queue):
        both = asyncio.Event()

        async def handle(message):
            self.see(message)
            await message.reject(requeue=False)
            if message.body == b"1":
                both.set()

        await queue.consume(handle)
        await both.wait()

    async def call(self, queue):
        async def double(number):
            return 2 * number

        calls = await RPC.create(self.driver.channel)
        await calls.register(f"{queue.name}-call", double, auto_delete=True)
        self.seen.append(await calls.call(f"{queue.name}-call", {"number": 21}))
        with pytest.raises(TypeError):
            await calls.call(f"{queue.name}-call", {"digits": 21})
        await calls.close()


@pytest.mark.parametrize(
    "place", BROKEN, ids=lambda place: f"{place[0].__name__}.{place[1]}".rpartition("messaging.")[2]
)
async def test_an_error_of_ours_changes_nothing(connect, recorder, lenient, monkeypatch, place):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging/dup")  # where there is the most to do
    driver = await connect()
    driver.instrumentor().uninstrument()
    plain = await Application(driver).run()
    calls = []

    def fail(*_, **__):
        calls.append(place)
        raise ZeroDivisionError("our own mistake")

    monkeypatch.setattr(*place, fail)
    driver.instrumentor().instrument(**recorder.providers)
    assert await Application(driver).run() == plain
    assert calls
    recorder.open.spans.clear()
