"""What a connection knows: queues that do not last, whose names say nothing, and the address that it is to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika import Message

from otel_messaging.aio_pika.connections import Connection
from otel_messaging.core.cache import LIMIT
from tests.support.aio_pika import VERSION, tidy  # noqa: F401 (fixture)
from tests.support.proxy import Proxy
from tests.support.recorder import shape
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("tidy")
WAYS = ["callback", "loop", "get"]
CALLS = {"callback": [], "loop": [], "get": ["get"]}
KINDS = {
    "exclusive": {"exclusive": True},
    "exclusive and durable": {"exclusive": True, "durable": True},
    "auto-delete": {"auto_delete": True},
    "lasting": {"durable": True},
}


@pytest.fixture
def library():
    return "aio_pika"


async def pass_through(channel, queue, way):
    """Publish a message to a queue, handle and acknowledge it."""
    await channel.default_exchange.publish(Message(b"x"), queue.name)
    if way == "callback":
        done = asyncio.Event()

        async def handle(message):
            await message.ack()
            done.set()

        tag = await queue.consume(handle)
        await asyncio.wait_for(done.wait(), 5)
        await asyncio.sleep(0)
        await queue.cancel(tag)
    elif way == "loop":
        async with queue.iterator() as messages:
            async for message in messages:
                await message.ack()
                break
    else:
        await (await queue.get()).ack()


def told(recorder, of):
    """By the first word of their names: the names of spans, and of each whether its queue lasts."""
    spans = {span.name.split()[0]: span for span in recorder.spans()}
    return {verb: (span.name, span.attributes.get(f"messaging.destination.{of}")) for verb, span in spans.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", list(KINDS))
async def test_a_queue_that_does_not_last_is_named_in_no_span_and_no_metric(vocabulary, connect, recorder, kind, way):
    driver = await connect()
    queue = await driver.channel.declare_queue(driver.name(), **KINDS[kind])
    await pass_through(driver.channel, queue, way)
    guide = vocabulary == "guide"
    handled = "receive" if guide else "process"
    hidden = kind.startswith("exclusive") or (kind == "auto-delete" and not guide)
    verbs = ["publish", handled] if guide else ["publish", handled, "ack", *CALLS[way]]
    await until(lambda: len(recorder.spans()) == len(verbs))
    temporary = True if hidden and not guide else None
    assert told(recorder, "temporary") == {
        verb: (verb if hidden else f"{verb} {queue.name}", temporary) for verb in verbs
    }
    assert told(recorder, "anonymous") == {verb: (verb if hidden else f"{verb} {queue.name}", None) for verb in verbs}
    for span in recorder.spans():
        assert span.attributes["messaging.destination.name"] == queue.name
    assert (queue.name in str(recorder.metrics())) != hidden
    if kind == "lasting":
        await queue.delete()


@pytest.mark.parametrize("way", WAYS)
async def test_a_queue_that_nobody_has_named_is_anonymous(connect, recorder, monkeypatch, way):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    driver = await connect()
    queue = await driver.channel.declare_queue("", durable=True)
    await pass_through(driver.channel, queue, way)
    verbs = ["publish", "process", "ack", *CALLS[way]]
    await until(lambda: len(recorder.spans()) == len(verbs))
    for of in ("anonymous", "temporary"):
        assert told(recorder, of) == {verb: (verb, True) for verb in verbs}
    assert queue.name not in str(recorder.metrics())
    await queue.delete()


async def test_a_message_to_an_exchange_is_named_whatever_its_routing_key(connect, recorder):
    driver = await connect()
    exchange = await driver.channel.declare_exchange(driver.name(), auto_delete=True)
    queue = await driver.channel.declare_queue(driver.name(), exclusive=True)
    await queue.bind(exchange)
    await exchange.publish(Message(b"x"), queue.name)
    recorder.span(f"publish {exchange.name}")


async def test_an_exclusive_queue_of_another_connection_is_not_known(connect, recorder):
    driver = await connect()
    async with await aio_pika.connect(driver.address) as connection:
        queue = await (await connection.channel()).declare_queue(driver.name(), exclusive=True)
        await driver.channel.default_exchange.publish(Message(b"x"), queue.name)
    recorder.span(f"publish {queue.name}")


async def test_a_queue_that_is_asked_for_only_stays_what_it_is(connect, recorder):
    driver = await connect()
    queue = await driver.channel.declare_queue(driver.name(), exclusive=True)
    await driver.channel.declare_queue(queue.name, passive=True)
    await driver.channel.default_exchange.publish(Message(b"x"), queue.name)
    recorder.span("publish")


async def test_a_name_that_is_declared_anew_is_what_it_was_declared_as_last(connect, recorder):
    driver = await connect()
    name = driver.name()
    queue = await driver.channel.declare_queue(name, exclusive=True)
    await pass_through(driver.channel, queue, "get")
    await queue.delete()
    await driver.queue(name)
    await pass_through(driver.channel, await driver.channel.get_queue(name), "get")
    assert [span.name for span in recorder.spans()] == [
        "publish",
        "receive",
        f"publish {name}",
        f"receive {name}",
    ]


async def test_no_more_names_are_kept_than_a_cache_has_room_for():
    closing = asyncio.get_running_loop().create_future()
    url = SimpleNamespace(host="h", port=1, scheme="amqp", path="/")
    telemetry = SimpleNamespace(vocabulary=SimpleNamespace(semconv=True))
    connection = Connection(telemetry, SimpleNamespace(url=url, closing=closing))
    for number in range(LIMIT + 1):
        connection.declared(f"q-{number}", exclusive=True, auto_delete=False)
    assert not connection.is_temporary("q-0")
    assert connection.is_temporary("q-1")
    assert connection.is_temporary(f"q-{LIMIT}")
    assert len(connection._temporary) == LIMIT


# Whom a connection is to.


@pytest.fixture
def conventions(monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")


def peers(recorder):
    return {
        span.name.split()[0]: (span.attributes.get("network.peer.address"), span.attributes.get("network.peer.port"))
        for span in recorder.spans()
    }


@pytest.mark.parametrize("way", WAYS)
async def test_calls_to_the_broker_tell_to_what_address_they_went(conventions, connect, recorder, way):
    driver = await connect()
    queue = await driver.queue(driver.name())
    await pass_through(driver.channel, queue, way)
    verbs = ["publish", "process", "ack", *CALLS[way]]
    await until(lambda: len(recorder.spans()) == len(verbs))
    address = tuple(driver.peer().values())
    assert peers(recorder) == {verb: (None, None) if verb == "process" else address for verb in verbs}
    assert "network.peer" not in str(recorder.metrics())


async def test_a_failing_get_tells_it_too(conventions, connect, recorder):
    driver = await connect()
    channel = await driver.connection.channel()
    queue = await channel.get_queue("nowhere", ensure=False)
    with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
        await queue.get()
    assert shape(recorder.span("get nowhere"))["attributes"].items() >= driver.peer().items()


@pytest.mark.skipif(VERSION < (9, 1), reason="aio-pika 9.0 does not reconnect here")
@pytest.mark.parametrize("way", WAYS)
async def test_after_a_reconnect_it_is_the_new_address_and_queues_are_as_temporary_as_before(
    conventions, connect, recorder, way
):
    driver = await connect()
    async with Proxy(driver.address) as one, Proxy(driver.address) as other:
        ports = [urlsplit(wire.address).port for wire in (one, other)]
        connection = await aio_pika.connect_robust(one.address, reconnect_interval=0.1)
        channel = await connection.channel()
        queue = await channel.declare_queue(driver.name(), exclusive=True)
        handled = asyncio.Queue()

        async def handle(message):
            await message.ack()
            handled.put_nowait(message)

        if way == "callback":
            await queue.consume(handle)
        elif way == "loop":
            iterator = queue.iterator()
            await iterator.consume()
        for port in ports:
            if port == ports[1]:
                over = asyncio.Event()
                connection.reconnect_callbacks.add(lambda *_, over=over: over.set())
                connection.url = connection.url.with_port(port)
                one.cut()
                await asyncio.wait_for(over.wait(), 10)
            await channel.default_exchange.publish(Message(b"x"), queue.name)
            if way == "callback":
                await asyncio.wait_for(handled.get(), 5)
            elif way == "loop":
                await handle(await iterator.__anext__())
            else:
                await handle(await queue.get())
            verbs = {"publish", "ack", *CALLS[way]} | ({"process"} if way != "loop" else set())
            await until(lambda verbs=verbs: {span.name for span in recorder.spans()} >= verbs)
            assert {span.name for span in recorder.spans()} <= {*verbs, "process"}
            assert {found for _, found in peers(recorder).values()} - {None} == {port}
            recorder.exporter.clear()
        if way == "loop":
            await iterator.close()
        await connection.close()
