"""What limits a message: the sizes that streams and buckets allow, and who else counts the headers."""

from __future__ import annotations

import asyncio

import pytest

from otel_messaging import NatsPyInstrumentor
from tests.support.nats_py import VERSION, client, flushed, fresh, on_the_wire, outcome, server, twice
from tests.support.waiting import until

LIMIT = 200
FITS = b"x" * LIMIT
needs_publish_async = pytest.mark.skipif(VERSION < (2, 8), reason="there was no publish_async before 2.8")


@pytest.fixture
def library():
    return "nats_py"


async def narrow(connection, **config):
    """A JetStream context, and a subject whose stream takes messages of `LIMIT` bytes."""
    name, jetstream = fresh(), connection.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"], max_msg_size=LIMIT, storage="memory", **config)
    return jetstream, f"{name}.a"


async def stored(jetstream, subject, sequence):
    message = await jetstream.get_msg(subject.partition(".")[0], sequence)
    return message.data, message.headers


def told(span):
    return span.attributes.get("messaging.nats.sequence"), span.status.status_code.name


# A stream's limit


async def test_a_message_that_fits_without_its_context_is_stored_without(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    assert (await jetstream.publish(subject, FITS)).seq == 1
    assert await stored(jetstream, subject, 1) == (FITS, None)
    assert [told(span) for span in recorder.producers(1)] == [(1, "OK")]


async def test_a_stream_refuses_one_message_of_a_subject_at_the_most(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    await jetstream.publish(subject, FITS)
    commands = on_the_wire(driver.client)
    await jetstream.publish(subject, FITS)
    assert [command.split()[0] for command in commands if subject.encode() in command] == [b"PUB"]
    await jetstream.publish(subject, b"short")
    assert "traceparent" in (await stored(jetstream, subject, 3))[1]
    recorder.producers(3)


async def test_a_message_that_does_not_fit_is_refused_as_before(instrument, nats_address):
    async def scenario(connection):
        jetstream, subject = await narrow(connection)
        return [await outcome(lambda: jetstream.publish(subject, FITS + b"x")) for _ in range(3)]

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain


async def test_the_applications_headers_are_stored_where_the_context_does_not_fit(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    headers = {"Nats-Msg-Id": "7", "kind": "order"}
    acks = [await jetstream.publish(subject, FITS[:120], headers=headers) for _ in range(2)]
    assert [(ack.seq, ack.duplicate) for ack in acks] == [(1, None), (1, True)]
    assert await stored(jetstream, subject, 1) == (FITS[:120], headers)
    assert [span.attributes.get("messaging.nats.duplicate") for span in recorder.producers(2)] == [None, True]


async def test_an_expected_sequence_is_still_expected(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    headers = {"Nats-Expected-Last-Sequence": "0"}
    assert (await jetstream.publish(subject, FITS[:120], headers=headers)).seq == 1
    recorder.producers(1)


@needs_publish_async
@pytest.mark.parametrize("headers", [None, {"kind": "order"}])
async def test_a_message_of_publish_async_that_fits_without_its_context_is_stored_without(connect, recorder, headers):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    payload = FITS if headers is None else FITS[:150]
    future = await jetstream.publish_async(subject, payload, headers=headers)
    if headers is not None:
        headers["kind"] = "changed meanwhile"
    acknowledgement = await asyncio.wait_for(future, 5)
    assert acknowledgement.seq == 1
    assert await stored(jetstream, subject, 1) == (payload, headers and {"kind": "order"})
    assert [told(span) for span in recorder.producers(1)] == [(1, "OK")]
    await asyncio.wait_for(jetstream.publish_async_completed(), 5)
    assert driver.errors == []


@needs_publish_async
async def test_a_message_of_publish_async_that_does_not_fit_is_refused_as_before(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    commands = on_the_wire(driver.client)
    future = await jetstream.publish_async(subject, FITS + b"x")
    await until(lambda: driver.errors)
    assert [error.err_code for error in driver.errors] == [10054]
    assert not future.done()
    assert [told(span) for span in recorder.producers(1)] == [(None, "ERROR")]
    assert sum(subject.encode() in command for command in commands) == 2
    await jetstream.publish_async(subject, FITS + b"x")  # without a context to begin with
    await until(lambda: len(driver.errors) == 2)
    recorder.producers(2)
    assert sum(subject.encode() in command for command in commands) == 3


@needs_publish_async
async def test_another_refusal_of_publish_async_is_not_tried_again(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    commands = on_the_wire(driver.client)
    await jetstream.publish_async(subject, b"x", headers={"Nats-Expected-Last-Sequence": "7"})
    await until(lambda: driver.errors)
    recorder.producers(1)
    assert sum(subject.encode() in command for command in commands) == 1


@pytest.mark.parametrize("call", ["put", "create", "update"])
async def test_a_value_of_the_largest_size_is_stored_with_contexts_too(connect, recorder, call):
    driver = await connect(store_context=True)
    name = fresh()
    bucket = await driver.client.jetstream().create_key_value(bucket=name, max_value_size=LIMIT, storage="memory")
    value = FITS if call == "put" else FITS[: LIMIT - 60]  # the library's own header counts too
    assert await getattr(bucket, call)("name", value) == 1
    assert (await bucket.get("name")).value == value
    assert [span.status.status_code.name for span in recorder.spans(count=2)] == ["OK", "OK"]


async def test_a_value_that_is_too_large_is_an_error(connect, recorder):
    driver = await connect()
    name = fresh()
    bucket = await driver.client.jetstream().create_key_value(bucket=name, max_value_size=LIMIT, storage="memory")
    kind, _ = await outcome(lambda: bucket.put("name", FITS + b"x"))
    assert kind.__name__ == "BadRequestError"
    assert recorder.span(f"put {name}").attributes["error.type"] == "nats.js.errors.BadRequestError"


async def test_a_refused_message_is_sent_again_only_for_its_size(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    commands = on_the_wire(driver.client)
    await outcome(lambda: jetstream.publish(subject, b"x", stream="another"))
    assert sum(subject.encode() in command for command in commands) == 1
    recorder.producers(1)


# Who else reads headers

TRACING = """
accounts {
  APP {
    jetstream: enabled
    users: [ { user: app, password: app } ]
    msg_trace: { dest: "trace.dest", sampling: 100 }
  }
}
no_auth_user: app
"""


@pytest.mark.usefixtures("real_broker")
async def test_a_server_that_traces_messages_by_their_context_delivers_them_as_ever(instrument, recorder):
    instrument(NatsPyInstrumentor)
    with server(TRACING) as running:
        async with client(running.address) as connection:
            reports, seen = [], []

            async def report(message):
                reports.append(message.data)

            async def callback(message):
                seen.append(message.data)

            await connection.subscribe("trace.dest", cb=report)
            await connection.subscribe("orders", cb=callback)
            await flushed(connection)
            for number in range(3):
                await connection.publish("orders", b"%d" % number)
            await until(lambda: len(seen) == 3 and len(reports) == 3)
            assert seen == [b"0", b"1", b"2"]
    published = recorder.producers(3)
    received = [span for span in recorder.consumers(6) if span.name == "receive orders"]
    assert [span.parent.span_id for span in received] == [span.context.span_id for span in published]
