"""Headers that just fit into a frame: RabbitMQ closes the connection of who sends larger ones."""

from __future__ import annotations

import asyncio
import logging

import aio_pika
import pytest
from aio_pika import Message
from aiormq import spec
from opentelemetry import baggage, context

from otel_messaging.aio_pika.limits import fits
from tests.support.aio_pika import tidy  # noqa: F401 (fixture)
from tests.support.recorder import shape, span_id

pytestmark = pytest.mark.usefixtures("tidy")
TRACEPARENT = 1 + len("traceparent") + 1 + 4 + 55
"""How many bytes our header has in a frame: its name, its type, its value."""
ASSIGNED_ID = 1 + 32
"""The same of the id that a message gets which has none."""


@pytest.fixture
def library():
    return "aio_pika"


@pytest.fixture
async def wire(connect, recorder):
    """A connection that may break, a queue, and for how many bytes a frame has room."""
    driver = await connect()
    queue = await driver.queue(driver.name())
    connection = await aio_pika.connect(driver.address)
    yield await Wire.on(connection, queue), queue
    await connection.close()


class Wire:
    """An exchange behind a connection of its own.

    Args:
        exchange: the exchange.
        room: for how many bytes a frame has room.
        queue: the name of a queue on another connection.
    """

    def __init__(self, exchange, room, queue):
        self.exchange, self.room, self.queue = exchange, room, queue

    @classmethod
    async def on(cls, connection, queue):
        channel = await connection.channel()
        underlay = await channel.get_underlay_channel() if hasattr(channel, "get_underlay_channel") else channel.channel
        frame = underlay.connection.connection_tune.frame_max - 8  # the frame's own head and end
        return cls(channel.default_exchange, frame, queue.name)

    async def publish(self, message):
        """How publishing ends, as a value that can be compared."""
        try:
            result = await asyncio.wait_for(self.exchange.publish(message, self.queue), 5)
        except Exception as error:
            return type(error), str(error)
        return type(result)


def sized(size, **arguments):
    """A message whose properties take as many bytes as is said."""
    room = size - 12 - len(Message(b"", headers={"blob": ""}, **arguments).properties.marshal())
    return Message(b"body", headers={"blob": "x" * room}, **arguments)


async def fetch(queue):
    message = await queue.get(no_ack=True)
    return message, message.headers.get("traceparent")


@pytest.mark.parametrize(("spare", "carried"), [(TRACEPARENT, True), (TRACEPARENT - 1, False), (0, False), (-8, False)])
async def test_headers_go_with_our_own_only_where_a_frame_has_room_for_them(wire, recorder, spare, carried):
    wire, queue = wire
    message = sized(wire.room - spare, message_id="m-1")
    headers = dict(message.headers)
    assert await wire.publish(message) is spec.Basic.Ack
    span = shape(recorder.span(f"publish {queue.name}"))
    assert span["status"] == ("OK", None)
    found, parent = await fetch(queue)
    assert found.headers["blob"] == headers["blob"]
    assert (parent is not None) == carried
    assert message.headers == headers


@pytest.mark.parametrize(("spare", "carried"), [(0, True), (1, False)])
async def test_the_id_that_a_message_gets_needs_room_too(wire, recorder, spare, carried):
    wire, queue = wire
    await wire.publish(sized(wire.room - TRACEPARENT - ASSIGNED_ID + spare))
    assert ((await fetch(queue))[1] is not None) == carried
    assert recorder.span(f"publish {queue.name}").attributes["messaging.message.id"]


async def test_baggage_needs_room_too(wire, recorder):
    wire, queue = wire
    value = "v" * 3000
    token = context.attach(baggage.set_baggage("who", value))
    try:
        size = 1 + len("baggage") + 1 + 4 + len("who=") + len(value)
        for spare in (0, 1):
            await wire.publish(sized(wire.room - TRACEPARENT - size + spare, message_id="m-1"))
    finally:
        context.detach(token)
    first, second = [(await fetch(queue))[0].headers for _ in range(2)]
    assert first["baggage"] == f"who={value}"
    assert set(second) == {"blob"}
    assert recorder.spans(f"publish {queue.name}", count=2)


async def test_a_context_that_was_in_a_message_makes_room_for_the_new_one(wire, recorder):
    wire, queue = wire
    message = sized(wire.room, message_id="m-1")
    before = f"00-{'1' * 32}-{'2' * 16}-01"
    message.headers = {"blob": message.headers["blob"][:-TRACEPARENT], "traceparent": before}
    await wire.publish(message)
    assert int((await fetch(queue))[1].split("-")[2], 16) == span_id(recorder.span(f"publish {queue.name}"))
    assert message.headers["traceparent"] == before


async def test_headers_that_are_too_large_without_us_end_as_they_do_without_us(connect, recorder, caplog):
    caplog.set_level(logging.CRITICAL)
    driver = await connect()
    queue = await driver.queue(driver.name())
    outcomes = []
    for _ in range(2):
        connection = await aio_pika.connect(driver.address)
        wire = await Wire.on(connection, queue)
        outcomes.append(await wire.publish(sized(wire.room + 9, message_id="m-1")))
        await connection.close()
        if driver.instrumentor().is_instrumented_by_opentelemetry:
            driver.instrumentor().uninstrument()
    instrumented, plain = outcomes
    assert instrumented == plain
    assert "frame_too_large" in plain[1]
    assert shape(recorder.span(f"publish {queue.name}"))["status"][0] == "ERROR"


class Properties:
    """Those of a message, which say whether they were encoded."""

    message_id = "m-1"

    def __init__(self, headers, size=0):
        self.headers, self.size, self.encoded = headers, size, False

    def marshal(self):
        self.encoded = True
        return b"x" * self.size


@pytest.mark.parametrize(
    ("headers", "encoded"),
    [
        ({"a": "x" * 1000, "b": 1, "c": None, "d": 1.5, "e": True}, False),
        ({"a": [{"b": "x" * 1000}, bytearray(1000)]}, False),
        ({"a": "x" * 40_000}, True),
        ({"a": ["x" * 40_000]}, True),
        ({"a": bytearray(131_000)}, True),
        ({"a": object()}, True),
    ],
)
def test_headers_are_encoded_to_be_measured_only_where_they_may_be_too_large(headers, encoded):
    properties = Properties(headers)
    assert fits(properties, 131_064)
    assert properties.encoded is encoded


def test_frames_without_a_limit_have_room_for_all():
    assert fits(Properties({"a": "x" * 200_000}, 200_000), -8)
    assert not fits(Properties({"a": "x" * 200_000}, 200_000), 131_064)


def test_the_library_says_itself_that_headers_cannot_be_sent():
    properties = Properties({"a": b"x"})
    properties.marshal = lambda: 1 / 0
    assert fits(properties, 131_064)
