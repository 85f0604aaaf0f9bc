"""Publishing by nats-py: what goes over the wire, and what does not."""

from __future__ import annotations

import asyncio
from types import MappingProxyType

import pytest
from opentelemetry.trace import NoOpTracerProvider

from otel_messaging import NatsPyInstrumentor
from tests.support.nats_py import VERSION, client, flushed, fresh, on_the_wire, outcome, server, traceparent, twice
from tests.support.recorder import shape, span_id, trace_id
from tests.support.waiting import until

LIMIT = 1024
HEADERS = len("NATS/1.0\r\n\r\n")
TEXT = "välue" if VERSION >= (2, 15) else "value"  # older clients drop all headers of a message that has such a one
TRACEPARENT = len("traceparent: 00-" + 32 * "0" + "-" + 16 * "0" + "-01\r\n")


@pytest.fixture
def library():
    return "nats_py"


@pytest.fixture(scope="module")
def small(real_broker):
    """A server that takes no message of more than 1024 bytes."""
    with server(f"max_payload: {LIMIT}") as running:
        yield running


@pytest.fixture(scope="module")
def headless(real_broker):
    """A server that knows no headers, as all did until 2020."""
    with server("no_header_support: true") as running:
        yield running


async def received(connection, publish, subject):
    """What a call publishes to a subject, as it arrives."""
    inbox = asyncio.Queue()
    subscription = await connection.subscribe(subject)
    try:
        await publish()
        task = asyncio.create_task(subscription.next_msg(5))
        inbox.put_nowait(await task)
    finally:
        await subscription.unsubscribe()
    return inbox.get_nowait()


@pytest.mark.parametrize("wrap", [dict, MappingProxyType], ids=["dict", "mappingproxy"])
@pytest.mark.parametrize("by_name", [True, False], ids=["keyword", "positional"])
async def test_headers_get_a_context_in_a_copy(connect, recorder, wrap, by_name):
    driver = await connect()
    subject, own = driver.name(), {"kind": "order", "Nats-Msg-Id": "7"}
    headers = wrap(own)

    async def publish():
        if by_name:
            await driver.client.publish(subject, b"x", headers=headers)
        else:
            await driver.client.publish(subject, b"x", "", headers)

    for number in range(3):
        message = await received(driver.client, publish, subject)
        span = recorder.producers(number + 1)[-1]
        assert message.headers == {"kind": "order", "Nats-Msg-Id": "7", "traceparent": traceparent(span)}
        assert span.attributes["messaging.message.id"] == "7"
        assert own == {"kind": "order", "Nats-Msg-Id": "7"}


async def test_of_a_long_id_the_beginning_is_kept(connect, recorder):
    driver = await connect()
    subject = driver.name()
    listener = await driver.listen(subject)
    await driver.publish(subject, headers={"Nats-Msg-Id": "7" * 900_000})
    await driver.loop(listener, 1, lambda _: None)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert [span.attributes["messaging.message.id"] for span in (published, consumed)] == ["7" * 1024] * 2


@pytest.mark.parametrize("headers", [None, {}])
async def test_a_message_without_headers_gets_one(connect, recorder, headers):
    driver = await connect()
    subject = driver.name()
    message = await received(driver.client, lambda: driver.client.publish(subject, headers=headers), subject)
    assert message.headers == {"traceparent": traceparent(recorder.producers(1)[0])}
    assert headers in (None, {})


@pytest.mark.parametrize(
    "arguments",
    [
        ("subject",),
        ("subject", b"body", "reply.to"),
        ("subject", b"body", "", {}),
        ("subject", b"body", "", {"name": " value "}),
    ],
)
async def test_without_an_sdk_the_bytes_are_the_same(connect, arguments):
    driver = await connect(tracer_provider=NoOpTracerProvider())
    commands = on_the_wire(driver.client)
    await driver.client.publish(*arguments)
    NatsPyInstrumentor().uninstrument()
    await driver.client.publish(*arguments)
    traced, plain = (command for command in commands if b"PUB" in command)
    assert traced == plain


class Broken:
    """Headers that raise an exception of their own."""

    def __init__(self, error):
        self.error = error

    def __repr__(self):
        return f"Broken({self.error.__name__})"

    def items(self):
        raise self.error("broken")


BAD_HEADERS = [
    {"name": 1},
    {"name": None},
    {"name": b"bytes"},
    {"name": ["a", "list"]},
    {"name": "surrogate \udcff"},
    {1: "value"},
    {"": "no name"},
    {"bad name": "value"},
    {"bad:name": "value"},
    [("a", "list")],
    "text",
    7,
    [],
    "",
    (),
    0,
    False,
    b"",
    set(),
    Broken(KeyError),
    Broken(RuntimeError),
    {"Traceparent": "their own", "bad name": "value"},
]


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=repr)
async def test_headers_that_the_library_refuses_are_refused_by_it(connect, recorder, headers):
    driver = await connect()
    subject = driver.name()
    traced = await outcome(lambda: driver.client.publish(subject, headers=headers))
    (span,) = recorder.producers(1)
    NatsPyInstrumentor().uninstrument()
    assert traced == await outcome(lambda: driver.client.publish(subject, headers=headers))
    assert driver.client.is_connected
    if traced is None:
        assert span.status.status_code.name == "OK"
    else:
        assert (span.status.status_code.name, span.status.description) == ("ERROR", traced[1])
        assert span.attributes["error.type"].endswith(traced[0].__name__)


CALLS = {
    "request": lambda connection, subject, headers: connection.request(subject, timeout=0.1, headers=headers),
    "old request": lambda connection, subject, headers: connection.request(subject, b"", 0.1, True, headers),
    "js.publish": lambda connection, subject, headers: connection.jetstream().publish(subject, headers=headers),
    "with a stream": lambda connection, subject, headers: connection.jetstream().publish(
        subject, stream="none", headers=headers
    ),
    "js.publish_async": lambda connection, subject, headers: connection.jetstream().publish_async(
        subject, headers=headers
    ),
}


@pytest.mark.parametrize("call", [name for name in CALLS if VERSION >= (2, 8) or "async" not in name])
@pytest.mark.parametrize("headers", BAD_HEADERS, ids=repr)
async def test_headers_that_the_library_refuses_are_refused_by_it_in_every_call(
    instrument, nats_address, headers, call
):
    async def scenario(connection):
        subject = fresh()
        commands = on_the_wire(connection)
        found = await outcome(lambda: CALLS[call](connection, subject, headers))
        if isinstance(found, asyncio.Future):
            found = await outcome(lambda: asyncio.wait_for(found, 5))
        return found, [command.split()[0] for command in commands if subject.encode() in command]

    traced, plain = await twice(instrument, nats_address, scenario)
    assert (traced[0], len(traced[1])) == (plain[0], len(plain[1]))


@pytest.mark.parametrize("headers", [[], "", (), 0, False, b"", None, {}], ids=repr)
async def test_a_reply_has_the_headers_of_its_request_whatever_they_are(instrument, nats_address, headers):
    async def scenario(connection):
        subscription, inbox = await connection.subscribe(fresh()), await connection.subscribe(fresh())
        await connection.publish(subscription._subject, b"hello", inbox._subject)
        message = await subscription.next_msg(5)
        message.headers = headers
        return await outcome(lambda: message.respond(b"answer"))

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain


@pytest.mark.parametrize("payload", [None, "text", 7, ["list"]], ids=repr)
async def test_a_payload_that_is_not_bytes_is_refused_by_the_library(connect, recorder, payload):
    driver = await connect()
    subject = driver.name()
    traced = await outcome(lambda: driver.client.publish(subject, payload))
    recorder.producers(1)
    NatsPyInstrumentor().uninstrument()
    assert traced == await outcome(lambda: driver.client.publish(subject, payload))
    assert issubclass(traced[0], Exception)


@pytest.mark.parametrize("subject", ["", None, b"bytes", 7], ids=repr)
async def test_a_subject_that_is_none_is_left_to_the_library(connect, recorder, subject):
    driver = await connect()
    traced = await outcome(lambda: driver.client.publish(subject))
    spans = recorder.producers(1 if subject == "" else 0)
    assert [(span.name, span.status.status_code.name) for span in spans] == [("publish", "ERROR")] * len(spans)
    NatsPyInstrumentor().uninstrument()
    assert traced == await outcome(lambda: driver.client.publish(subject))


async def test_wrong_arguments_are_refused_by_the_library(connect, recorder):
    driver = await connect()
    with pytest.raises(TypeError, match=r"publish\(\) got an unexpected keyword argument 'header'"):
        await driver.client.publish(driver.name(), header={})
    with pytest.raises(TypeError, match=r"publish\(\) missing 1 required positional argument: 'subject'"):
        await driver.client.publish()
    assert recorder.spans() == []


async def test_a_closed_connection_is_an_error_of_its_span(connect, recorder):
    from nats.errors import ConnectionClosedError

    driver = await connect()
    await driver.client.close()
    with pytest.raises(ConnectionClosedError) as caught:
        await driver.client.publish("subject")
    (span,) = recorder.producers(1)
    assert shape(span)["status"] == ("ERROR", str(caught.value))
    assert span.attributes["error.type"] == "nats.errors.ConnectionClosedError"


async def test_a_message_that_goes_on_is_linked_to_where_it_came_from(connect, recorder):
    driver = await connect()
    first, second = driver.name(), driver.name()
    message = await received(driver.client, lambda: driver.client.publish(first), first)
    before = dict(message.headers)
    onward = await received(driver.client, lambda: driver.client.publish(second, headers=message.headers), second)
    origin, copy = recorder.producers(2)
    assert message.headers == before
    assert [link.context.span_id for link in copy.links] == [span_id(origin)]
    assert onward.headers == {"traceparent": traceparent(copy)}


# Limits of the server


@pytest.mark.parametrize("room", [0, -1], ids=["fits", "does not fit"])
@pytest.mark.parametrize("headers", [None, {"name": TEXT}], ids=["alone", "with others"])
async def test_a_context_is_left_out_where_the_message_would_be_too_large(instrument, recorder, small, room, headers):
    instrument(NatsPyInstrumentor)
    others = sum(len(f"{name}: {value}\r\n".encode()) for name, value in (headers or {}).items())
    body = b"x" * (LIMIT - HEADERS - TRACEPARENT - others - room)
    async with client(small.address) as connection:
        message = await received(connection, lambda: connection.publish("subject", body, headers=headers), "subject")
        assert message.data == body
        assert ("traceparent" in (message.headers or {})) is (room == 0)
        await flushed(connection)
        assert connection.is_connected
        assert connection.errors == []
    assert recorder.producers(1)[0].status.status_code.name == "OK"


async def test_a_request_is_answered_where_its_context_would_make_it_too_large(instrument, recorder, small):
    instrument(NatsPyInstrumentor)

    async def answer(message):
        await message.respond(b"%d" % len(message.data))

    async with client(small.address) as connection:
        await connection.subscribe("ask", cb=answer)
        reply = await connection.request("ask", b"x" * LIMIT, timeout=5)
        assert reply.data == b"%d" % LIMIT
        assert connection.is_connected
    assert recorder.producers(1)[0].status.status_code.name == "OK"


async def test_headers_that_jetstream_adds_count(instrument, recorder, small):
    """`stream=` becomes a header after the call."""
    instrument(NatsPyInstrumentor)
    expected = len("Nats-Expected-Stream: ORDERS\r\n")
    async with client(small.address) as connection:
        jetstream = connection.jetstream()
        await jetstream.add_stream(name="ORDERS", subjects=["orders"])
        for room, carried in ((0, True), (-1, False), (-10, False)):
            body = b"x" * (LIMIT - HEADERS - TRACEPARENT - expected - room)
            acknowledgement = await jetstream.publish("orders", body, stream="ORDERS")
            stored = await jetstream.get_msg("ORDERS", acknowledgement.seq)
            assert ("traceparent" in stored.headers) is carried
            assert stored.headers["Nats-Expected-Stream"] == "ORDERS"
        assert connection.errors == []
    assert [span.status.status_code.name for span in recorder.producers(3)] == ["OK"] * 3


async def test_a_server_without_headers_gets_none(instrument, recorder, headless):
    instrument(NatsPyInstrumentor)

    async def answer(message):
        await message.respond(b"pong")

    async with client(headless.address) as connection:
        await connection.subscribe("ask", cb=answer)
        reply = await connection.request("ask", b"ping", timeout=5)
        assert reply.data == b"pong"
        message = await received(connection, lambda: connection.publish("subject", b"x"), "subject")
        assert message.headers is None
        await flushed(connection)
        assert connection.stats["reconnects"] == 0
        assert connection.errors == []
    assert [span.name for span in recorder.producers(2)] == ["publish ask", "publish subject"]


# The connection


@pytest.mark.usefixtures("real_broker")
async def test_a_message_published_while_reconnecting_carries_its_context(instrument, recorder):
    instrument(NatsPyInstrumentor)
    handled = []

    async def handler(message):
        handled.append(message.data)

    with server() as running:
        async with client(running.address, max_reconnect_attempts=-1) as connection:
            await connection.subscribe("subject", cb=handler)
            await flushed(connection)
            running.stop()
            await until(lambda: connection.is_reconnecting)
            await connection.publish("subject", b"buffered")
            (published,) = recorder.producers(1)
            assert handled == []
            running.start()
            await until(lambda: len(recorder.spans()) == 2)
            (consumed,) = recorder.consumers(1)
    assert handled == [b"buffered"]
    assert consumed.parent.span_id == span_id(published)
    assert published.status.status_code.name == "OK"


@pytest.mark.usefixtures("real_broker")
async def test_a_full_buffer_is_an_error_of_the_span(instrument, recorder):
    from nats.errors import OutboundBufferLimitError

    instrument(NatsPyInstrumentor)
    with server() as running:
        async with client(running.address, max_reconnect_attempts=-1, pending_size=100) as connection:
            running.stop()
            await until(lambda: connection.is_reconnecting)
            with pytest.raises(OutboundBufferLimitError):
                await connection.publish("subject", b"x" * 200)
    (span,) = recorder.producers(1)
    assert span.attributes["error.type"] == "nats.errors.OutboundBufferLimitError"


@pytest.mark.usefixtures("real_broker")
async def test_after_a_reconnect_the_server_is_the_new_one(instrument, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging/dup")
    instrument(NatsPyInstrumentor)

    async def handler(message):
        pass

    expected = []
    with server() as first, server() as second:
        async with (
            client(second.address),
            client(first.address, second.address, dont_randomize=True, max_reconnect_attempts=-1) as connection,
        ):
            await connection.subscribe("subject", cb=handler)
            for running in (first, second):
                if expected:
                    first.stop()
                    await until(lambda: connection.is_connected and connection.connected_url.port == second.port)
                await connection.publish("subject")
                await flushed(connection)
                await until(lambda: len(recorder.spans()) == 2 * len(expected) + 2)
                expected.append(("127.0.0.1", running.port, str(connection.client_id)))
    names = ("server.address", "server.port", "messaging.client.id")
    sent, handled = recorder.producers(2), recorder.consumers(2)
    for spans in (sent, handled):
        assert [tuple(span.attributes[name] for name in names) for span in spans] == expected
    assert expected[0][2] != expected[1][2]
    peers = [tuple(span.attributes[f"network.peer.{part}"] for part in ("address", "port")) for span in sent]
    assert peers == [address[:2] for address in expected]


@pytest.mark.usefixtures("real_broker")
async def test_a_reconnect_to_the_same_server_gives_another_client_id(instrument, recorder):
    instrument(NatsPyInstrumentor)
    with server() as running:
        async with client(running.address, max_reconnect_attempts=-1) as connection:
            await connection.publish("subject")
            first = connection.client_id
            connection._transport.close()
            await until(lambda: connection.is_connected and connection.client_id != first)
            await connection.publish("subject")
            expected = [str(first), str(connection.client_id)]
    assert [span.attributes["messaging.client.id"] for span in recorder.producers(2)] == expected


@pytest.mark.usefixtures("real_broker")
async def test_no_attribute_holds_the_credentials(instrument, recorder, vocabulary):
    instrument(NatsPyInstrumentor)

    async def answer(message):
        await message.respond(b"pong")

    with server('authorization { user: "alice", password: "s3cret" }', "alice:s3cret") as running:
        async with client(running.address) as connection:
            await connection.subscribe("ask", cb=answer)
            await connection.request("ask", timeout=5)
        told = [dict(span.attributes) for span in (*recorder.producers(1), *recorder.consumers(1))]
        assert [attributes["server.address"] for attributes in told] == ["127.0.0.1"] * 2
    assert "s3cret" not in repr(told)
    assert "alice" not in repr(told)


async def test_a_client_that_was_used_before_it_was_connected_knows_its_inbox(instrument, recorder, nats_address):
    """Connecting may set another inbox prefix."""
    from nats.aio.client import Client

    instrument(NatsPyInstrumentor)
    connection = Client()
    await outcome(lambda: connection.publish("too.early"))
    await connection.connect(nats_address, inbox_prefix="mine")
    try:
        await connection.publish(connection.new_inbox())
    finally:
        await connection.close()
    assert [span.name for span in recorder.producers(1)] == ["publish too.early"]


async def test_messages_of_one_trace_are_in_it(connect, recorder):
    driver = await connect()
    with recorder.tracer.start_as_current_span("job") as job:
        await driver.client.publish(driver.name())
        await driver.client.publish(driver.name())
    assert {trace_id(span) for span in recorder.producers(2)} == {trace_id(job)}
