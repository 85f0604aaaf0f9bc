"""NATS: what a dead letter keeps and leaves behind, and what JetStream tells of messages that it gives up."""

from __future__ import annotations

import asyncio
import json
from unittest.mock import AsyncMock

import pytest
from nats.aio.msg import Msg
from nats.js.errors import APIError
from opentelemetry.trace import SpanKind

from otel_messaging import NatsPyInstrumentor
from otel_messaging.core import vocabulary as v
from otel_messaging.nats_py import dead_letter
from otel_messaging.systems.nats_advisories import GIVEN_UP, given_up
from tests.support.nats_py import client, on_the_wire, server
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

ERROR = ValueError("out of stock")


@pytest.fixture
def library():
    return "nats_py"


async def stream(driver, *subjects, **config):
    """A JetStream context, and a stream of a test's own with the subjects below its name."""
    name, jetstream = driver.name(), driver.client.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"{name}.{subject}" for subject in subjects], **config)
    return jetstream, name


async def fetched(jetstream, subject, durable=None):
    (message,) = await (await jetstream.pull_subscribe(subject, durable)).fetch(1, timeout=5)
    return message


async def test_what_would_order_a_server_about_has_another_name(connect):
    driver = await connect()
    jetstream, name = await stream(driver, "orders", "dead", "others")
    await jetstream.publish(f"{name}.others", b"hello")
    orders = {"Nats-Msg-Id": "m-1", "Nats-Expected-Stream": name, "Nats-Expected-Last-Sequence": "1", "tenant": "acme"}
    await jetstream.publish(f"{name}.orders", b"hello", headers=orders)
    message = await fetched(jetstream, f"{name}.orders")
    acknowledgement = await dead_letter(message, ERROR, jetstream, f"{name}.dead")
    assert (acknowledgement.stream, acknowledgement.seq, acknowledgement.duplicate) == (name, 3, None)
    letter = await fetched(jetstream, f"{name}.dead")
    headers = dict(letter.headers)
    assert headers.pop("traceparent")
    assert headers == {
        "tenant": "acme",
        "dead-letter-original-nats-msg-id": "m-1",
        "dead-letter-original-nats-expected-stream": name,
        "dead-letter-original-nats-expected-last-sequence": "1",
        "dead-letter-original-subject": f"{name}.orders",
        "dead-letter-original-stream": name,
        "dead-letter-original-sequence": "2",
        "dead-letter-error-type": "ValueError",
        "dead-letter-error": "out of stock",
    }
    assert message.headers["Nats-Msg-Id"] == "m-1"


async def test_a_rollup_does_not_empty_the_stream_of_dead_letters(connect):
    driver = await connect()
    jetstream, name = await stream(driver, "dead", allow_rollup_hdrs=True)
    await jetstream.publish(f"{name}.dead", b"another")
    listener = await driver.listen(driver.name())
    await driver.publish(listener.subject, b"hello", {"Nats-Rollup": "all"})
    await dead_letter(await listener.next_msg(timeout=5), ERROR, jetstream, f"{name}.dead")
    assert (await jetstream.stream_info(name)).state.messages == 2


async def test_a_dead_letter_that_is_played_again_can_die_again(connect):
    driver = await connect()
    jetstream, name = await stream(driver, "orders", "dead")
    for _ in range(2):
        await jetstream.publish(f"{name}.orders", b"hello", headers={"Nats-Msg-Id": driver.name()})
        message = await fetched(jetstream, f"{name}.orders", "worker")
        await message.ack()
        assert not (await dead_letter(message, ERROR, jetstream, f"{name}.dead")).duplicate
    assert (await jetstream.stream_info(name)).state.messages == 4


@pytest.mark.usefixtures("real_broker")
@pytest.mark.parametrize("room", [0, 100, 5000])
async def test_the_connection_survives_a_message_as_large_as_it_may_be(instrument, recorder, room):
    with server("max_payload: 10000") as running:
        instrument(NatsPyInstrumentor)
        async with client(running.address) as connection:
            origin, grave = await connection.subscribe("orders"), await connection.subscribe("dead")
            body = b"x" * (10000 - room - len("NATS/1.0\r\ntenant: acme\r\n\r\n"))
            await connection.publish("orders", body, headers={"tenant": "acme"})
            await dead_letter(await origin.next_msg(timeout=5), ERROR, connection, "dead")
            letter = await grave.next_msg(timeout=5)
            assert (letter.data, letter.headers["tenant"]) == (body, "acme")
            assert ("dead-letter-error" in letter.headers) == (room == 5000)
            assert connection.is_connected
            assert connection.errors == []


@pytest.mark.parametrize("instrumented", [False, True])
async def test_a_stream_that_finds_our_headers_too_large_gets_the_next_letter_without(connect, instrumented):
    driver = await connect()
    if not instrumented:
        driver.instrumentor().uninstrument()
    jetstream, name = await stream(driver, "dead", max_msg_size=1000)
    listener = await driver.listen(driver.name())
    await driver.client.publish(listener.subject, b"x" * 900, headers={"tenant": "acme"})
    message, commands = await listener.next_msg(timeout=5), on_the_wire(driver.client)
    with pytest.raises(APIError):
        await dead_letter(message, ERROR, jetstream, f"{name}.dead")
    assert sum(name.encode() in command for command in commands) == 1
    acknowledgement = await dead_letter(message, ERROR, jetstream, f"{name}.dead")
    assert acknowledgement.seq == 1
    letter = await fetched(jetstream, f"{name}.dead")
    assert (letter.data, letter.headers["tenant"]) == (b"x" * 900, "acme")
    assert not [name for name in letter.headers if name.startswith("dead-letter-")]


async def test_a_stream_that_finds_the_message_too_large_says_so(connect, recorder):
    driver = await connect()
    jetstream, name = await stream(driver, "dead", max_msg_size=100)
    listener = await driver.listen(driver.name())
    await driver.publish(listener.subject, b"x" * 900)
    with pytest.raises(APIError):
        await dead_letter(await listener.next_msg(timeout=5), ERROR, jetstream, f"{name}.dead")
    assert "messaging.messages.dead_lettered" not in recorder.metrics()


@pytest.mark.usefixtures("real_broker")
@pytest.mark.parametrize("instrumented", [False, True])
async def test_a_server_without_headers_gets_none(instrument, instrumented):
    with server("no_header_support: true") as running:
        if instrumented:
            instrument(NatsPyInstrumentor)
        async with client(running.address) as connection:
            origin, grave = await connection.subscribe("orders"), await connection.subscribe("dead")
            await connection.publish("orders", b"hello")
            await dead_letter(await origin.next_msg(timeout=5), ERROR, connection, "dead")
            letter = await grave.next_msg(timeout=5)
            assert (letter.data, letter.headers) == (b"hello", None)


async def test_headers_that_the_library_would_not_send_are_left_out(connect):
    driver = await connect()
    origin, grave = await driver.listen(driver.name()), await driver.listen(driver.name())
    await driver.publish(origin.subject, b"hello", {"tenant": "acme"})
    message = await origin.next_msg(timeout=5)
    message.headers.update({"two words": "1", "": "2", "list": ["3", "4"], "nothing": None})  # fast_parse gives lists
    await dead_letter(message, ERROR, driver.client, grave.subject)
    headers = (await grave.next_msg(timeout=5)).headers
    assert (headers["tenant"], headers["list"]) == ("acme", "4")
    assert not {"two words", "", "nothing"} & set(headers)


async def test_a_message_without_data_and_headers_goes_on(connect):
    driver = await connect()
    origin, grave = await driver.listen(driver.name()), await driver.listen(driver.name())
    driver.instrumentor().uninstrument()
    await driver.publish(origin.subject, b"")
    await dead_letter(await origin.next_msg(timeout=5), ERROR, driver.client, grave.subject)
    letter = await grave.next_msg(timeout=5)
    assert letter.data == b""
    assert set(letter.headers) == {"dead-letter-original-subject", "dead-letter-error-type", "dead-letter-error"}


class GivenUp:
    """A message that a consumer has got twice and not acknowledged, which is as often as it may."""

    async def open(self, driver):
        self.jetstream, self.name = await stream(driver, "orders")
        self.graves, self.grave = await stream(driver, "dead")
        self.subject = f"{GIVEN_UP}{self.name}.worker"
        return self

    async def give_up(self):
        from nats.js.api import ConsumerConfig

        config = ConsumerConfig(max_deliver=2, ack_wait=0.2)
        await self.jetstream.publish(f"{self.name}.orders", b"hello", headers={"tenant": "acme"})
        pulled = await self.jetstream.pull_subscribe(f"{self.name}.orders", "worker", config=config)
        for _ in range(2):
            (message,) = await pulled.fetch(1, timeout=5)
            await message.nak()
        with pytest.raises(asyncio.TimeoutError):
            await pulled.fetch(1, timeout=0.5)  # the server notices when it is asked again

    def told(self, attributes):
        return {name.rpartition(".")[2]: value for name, value in attributes.items() if ".max_deliveries." in name}


async def test_the_advisory_of_a_message_that_is_given_up_is_a_message_like_any_other(connect, recorder, vocabulary):
    driver = await connect()
    case, received = await GivenUp().open(driver), []

    async def undertake(advisory):
        told = json.loads(advisory.data)
        message = await case.jetstream.get_msg(told["stream"], told["stream_seq"])
        await dead_letter(message, ERROR, case.jetstream, f"{case.grave}.dead")
        received.append(advisory)

    await driver.client.subscribe(case.subject, cb=undertake)
    await case.give_up()
    await until(lambda: received)
    (told,) = [span for span in recorder.spans() if case.subject in span.name]
    assert told.name == f"{'receive' if vocabulary == 'guide' else 'process'} {case.subject}"
    assert told.attributes["messaging.destination.name"] == case.subject
    assert case.told(told.attributes) == {"stream": case.name, "consumer": "worker", "sequence": 1, "deliveries": 2}
    assert told.parent is None
    published, letter = recorder.producers(2)
    assert letter.parent.span_id == span_id(told)
    assert shape(letter)["links"] == [span_id(published)]
    (event,) = told.events
    assert dict(event.attributes) == {"original_topic": f"{case.name}.orders", "error": "out of stock"}
    ((attributes, value),) = recorder.metrics()["messaging.messages.dead_lettered"]
    assert (attributes["messaging.destination.name"], value) == (f"{case.name}.orders", 1)
    headers = (await fetched(case.graves, f"{case.grave}.dead")).headers
    assert headers["tenant"] == "acme"
    assert (headers["dead-letter-original-subject"], headers["dead-letter-original-sequence"]) == (
        f"{case.name}.orders",
        "1",
    )


@pytest.mark.parametrize("way", ["fetch", "next_msg", "loop"])
async def test_a_stream_of_advisories_is_a_queue_of_dead_letters(connect, recorder, way):
    driver = await connect()
    case = await GivenUp().open(driver)
    stored = driver.name()
    await case.jetstream.add_stream(name=stored, subjects=[f"{GIVEN_UP}{case.name}.*"])
    await case.give_up()
    pattern = f"{GIVEN_UP}{case.name}.*"
    if way == "fetch":
        for message in await (await case.jetstream.pull_subscribe(pattern, "undertaker", stream=stored)).fetch(1):
            await message.ack()
    else:
        subscription = await case.jetstream.subscribe(pattern, stream=stored, manual_ack=True)
        if way == "next_msg":
            await (await subscription.next_msg(timeout=5)).ack()
        else:
            async for message in subscription.messages:
                await message.ack()
                break
    word = "process" if way == "fetch" else "receive"
    (span,) = await until(lambda: recorder.spans(f"{word} {pattern}"))
    assert case.told(span.attributes) == {"stream": case.name, "consumer": "worker", "sequence": 1, "deliveries": 2}
    assert span.attributes["messaging.nats.stream"] == stored
    assert [event.name for event in span.events] == ["ack"]


async def test_in_the_conventions_asking_for_an_advisory_is_a_call_too(connect, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    driver = await connect()
    case = await GivenUp().open(driver)
    subscription = await driver.client.subscribe(case.subject)
    await case.give_up()
    await subscription.next_msg(timeout=5)
    await subscription.unsubscribe()
    assert [span.kind for span in recorder.spans() if case.subject in span.name] == [SpanKind.CLIENT, SpanKind.CONSUMER]


async def test_what_stands_for_a_client_in_a_test_gets_the_letter():
    publisher, message = AsyncMock(), Msg(None, subject="orders", data=b"hello", headers={"tenant": "acme"})
    assert await dead_letter(message, ERROR, publisher, "dead", timeout=1) is publisher.publish.return_value
    publisher.publish.assert_awaited_once_with(
        "dead",
        b"hello",
        headers={
            "tenant": "acme",
            "dead-letter-original-subject": "orders",
            "dead-letter-error-type": "ValueError",
            "dead-letter-error": "out of stock",
        },
        timeout=1,
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"7", b"\xff", b"[" * 9000, b"{}", b'{"stream": 7, "consumer": null, "stream_seq": "1"}']
    + [b'{"stream_seq": true, "deliveries": -1}', b'{"stream_seq": 99999999999999999999}', b" " * 20000],
)
def test_an_advisory_of_another_form_tells_nothing(data):
    assert given_up(data) == ()


def test_of_a_long_name_in_an_advisory_the_beginning_is_kept():
    data = b'{"stream": "%s", "consumer": "worker"}' % (b"s" * 5000)
    assert dict(given_up(data)) == {v.NATS_GIVEN_UP_STREAM: "s" * 1024, v.NATS_GIVEN_UP_CONSUMER: "worker"}


def test_a_name_in_an_advisory_that_cannot_be_encoded_costs_no_export():
    assert dict(given_up(rb'{"stream": "s\udcff"}')) == {v.NATS_GIVEN_UP_STREAM: "s?"}


async def test_whoever_publishes_nonsense_there_does_no_harm(connect, recorder):
    driver = await connect()
    subject = f"{GIVEN_UP}{driver.name()}.worker"
    listener = await driver.listen(subject)
    await driver.publish(subject, b"no advisory")
    assert (await listener.next_msg(timeout=5)).data == b"no advisory"
    assert recorder.producers(0) == []
    await listener.unsubscribe()
    assert recorder.span(f"receive {subject}").attributes["messaging.message.payload_size_bytes"] == 11
