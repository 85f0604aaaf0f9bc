"""What limits a message: the sizes that streams and buckets allow, and who else counts the headers."""

from __future__ import annotations

import asyncio

import pytest

from otel_messaging import NatsPyInstrumentor
from otel_messaging.nats_py.limits import Limits
from tests.support.nats_py import VERSION, client, flushed, fresh, on_the_wire, outcome, server, twice
from tests.support.recorder import shape
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


async def heard(connection, subject):
    """What a plain subscriber of a stream's subject gets."""
    seen = []

    async def callback(message):
        seen.append((message.data, message.headers and set(message.headers)))

    await connection.subscribe(subject, cb=callback)
    await flushed(connection)
    return seen


async def refused(call):
    kind, text = await outcome(call)
    assert (kind.__name__, "err_code=10054" in text) == ("BadRequestError", True)


async def test_a_message_that_fits_only_without_its_context_is_refused_once(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    seen = await heard(driver.client, subject)
    commands = on_the_wire(driver.client)
    await refused(lambda: jetstream.publish(subject, FITS))
    assert sum(subject.encode() in command for command in commands) == 1
    assert (await jetstream.publish(subject, FITS)).seq == 1
    assert await stored(jetstream, subject, 1) == (FITS, None)
    await until(lambda: len(seen) == 2)
    assert seen == [(FITS, {"traceparent"}), (FITS, None)]
    assert [told(span) for span in recorder.producers(2)] == [(None, "ERROR"), (1, "OK")]


async def test_the_span_of_a_refused_message_has_what_the_stream_has_said(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    kind, text = await outcome(lambda: jetstream.publish(subject, FITS))
    (span,) = recorder.producers(1)
    assert shape(span) == {
        "name": f"publish {subject}",
        "kind": "PRODUCER",
        "parent": None,
        "links": [],
        "status": ("ERROR", text),
        "attributes": {
            **driver.published(vocabulary, subject, FITS),
            "messaging.client.id": str(driver.client.client_id),
            "error.type": "nats.js.errors.BadRequestError",
        },
        "events": [
            (
                "exception",
                {
                    "exception.type": "nats.js.errors.BadRequestError",
                    "exception.message": text,
                    "exception.escaped": "False",
                },
            )
        ],
    }
    assert kind.__name__ == "BadRequestError"


async def test_a_stream_refuses_one_message_for_our_sake_at_the_most(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    await refused(lambda: jetstream.publish(subject, FITS))
    other = f"{subject}.other"  # of the same stream, and new to the client
    commands = on_the_wire(driver.client)
    for where in (subject, other, subject):
        for size in range(LIMIT, LIMIT - 100, -20):
            await jetstream.publish(where, FITS[:size])
    assert {command.split()[0] for command in commands if subject.encode() in command} == {b"PUB"}
    await jetstream.publish(other, b"short")
    assert "traceparent" in (await stored(jetstream, subject, 16))[1]
    recorder.producers(17)


async def test_a_limit_is_that_of_its_stream_alone(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    name = fresh()
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"], storage="memory")
    await refused(lambda: jetstream.publish(subject, FITS))
    for _ in range(2):  # until it has answered once, it may be the stream that has refused a message
        await jetstream.publish(f"{name}.a", FITS)
    assert [(await stored(jetstream, f"{name}.a", number))[1] is None for number in (1, 2)] == [True, False]
    seen = await heard(driver.client, "elsewhere")
    await driver.client.publish("elsewhere", FITS)  # no stream will answer
    await until(lambda: seen)
    assert seen == [(FITS, {"traceparent"})]
    recorder.producers(4)


async def test_a_message_without_an_answer_has_no_context_either_where_its_stream_refuses_it(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    await refused(lambda: jetstream.publish(subject, FITS))
    await driver.client.publish(subject, FITS)
    await flushed(driver.client)
    assert await stored(jetstream, subject, 1) == (FITS, None)
    recorder.producers(2)


async def test_a_limit_that_was_raised_is_noticed(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    await refused(lambda: jetstream.publish(subject, FITS))
    name = subject.partition(".")[0]
    await jetstream.update_stream(name=name, subjects=[f"{name}.>"], max_msg_size=10 * LIMIT, storage="memory")
    for payload in (FITS, FITS * 2, FITS):
        await jetstream.publish(subject, payload)
    assert [(await stored(jetstream, subject, number))[1] is None for number in (1, 2, 3)] == [True, True, False]
    recorder.producers(4)


async def test_messages_that_do_not_fit_anyway_hide_no_limit(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    await refused(lambda: jetstream.publish(subject, FITS * 5))  # whose fault it was nobody knows
    await refused(lambda: jetstream.publish(subject, FITS))
    for size in (LIMIT, LIMIT - 1, LIMIT - 80):
        await jetstream.publish(subject, FITS[:size])
    assert (await jetstream.publish(subject, b"short")).seq == 4
    assert "traceparent" in (await stored(jetstream, subject, 4))[1]
    recorder.producers(6)


async def test_a_message_that_does_not_fit_is_refused_as_before(instrument, nats_address):
    async def scenario(connection):
        jetstream, subject = await narrow(connection)
        commands = on_the_wire(connection)
        found = [await outcome(lambda: jetstream.publish(subject, FITS + b"x")) for _ in range(3)]
        return found, sum(subject.encode() in command for command in commands)

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain


async def test_the_applications_headers_are_stored_where_the_context_does_not_fit(connect, recorder):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    headers = {"Nats-Msg-Id": "7", "kind": "order"}
    await refused(lambda: jetstream.publish(subject, FITS[:120], headers=headers))
    acks = [await jetstream.publish(subject, FITS[:120], headers=headers) for _ in range(2)]
    assert [(ack.seq, ack.duplicate) for ack in acks] == [(1, None), (1, True)]
    assert await stored(jetstream, subject, 1) == (FITS[:120], headers)
    assert [span.attributes.get("messaging.nats.duplicate") for span in recorder.producers(3)] == [None, None, True]


@needs_publish_async
@pytest.mark.parametrize("headers", [None, {"kind": "order"}])
async def test_a_refused_message_of_publish_async_is_not_sent_again(connect, recorder, headers):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    payload = FITS if headers is None else FITS[:150]
    commands = on_the_wire(driver.client)
    future = await jetstream.publish_async(subject, payload, headers=headers)
    await until(lambda: driver.errors)
    assert [error.err_code for error in driver.errors] == [10054]
    driver.errors.clear()
    assert not future.done()  # nats-py never resolves it
    assert sum(subject.encode() in command for command in commands) == 1
    acknowledgement = await asyncio.wait_for(await jetstream.publish_async(subject, payload, headers=headers), 5)
    assert acknowledgement.seq == 1
    assert await stored(jetstream, subject, 1) == (payload, headers)
    await until(lambda: len(recorder.spans()) == 2)
    assert [told(span) for span in recorder.producers(2)] == [(None, "ERROR"), (1, "OK")]


@needs_publish_async
async def test_what_publish_async_has_learnt_holds_for_publish(connect):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    await jetstream.publish_async(subject, FITS)
    await until(lambda: driver.errors)
    driver.errors.clear()
    await jetstream.publish(subject, FITS)
    assert await stored(jetstream, subject, 1) == (FITS, None)


@needs_publish_async
async def test_what_publish_has_learnt_holds_for_publish_async(connect):
    driver = await connect()
    jetstream, subject = await narrow(driver.client)
    await refused(lambda: jetstream.publish(subject, FITS[:130]))
    for size in (130, 200, 100):  # since it has stored 200 bytes, a context fits that makes 186 of 100
        await asyncio.wait_for(await jetstream.publish_async(subject, FITS[:size]), 5)
        await asyncio.sleep(0)
    assert [(await stored(jetstream, subject, number))[1] is None for number in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize("call", ["put", "create", "update"])
async def test_a_bucket_refuses_one_value_with_a_context_at_the_most(connect, recorder, call):
    driver = await connect(store_context=True)
    name = fresh()
    bucket = await driver.client.jetstream().create_key_value(bucket=name, max_value_size=LIMIT, storage="memory")
    value = FITS if call == "put" else FITS[: LIMIT - 60]  # the library's own header counts too
    commands = on_the_wire(driver.client)
    await refused(lambda: getattr(bucket, call)("first", value))
    assert sum(b"$KV." in command for command in commands) == 1
    for revision, key in enumerate(("first", "second"), 1):
        assert await getattr(bucket, call)(key, value) == revision
        assert (await bucket.get(key)).value == value
    assert [span.status.status_code.name for span in recorder.spans(count=5)] == ["ERROR", "OK", "OK", "OK", "OK"]


async def test_a_value_that_is_too_large_is_an_error(connect, recorder):
    driver = await connect()
    name = fresh()
    bucket = await driver.client.jetstream().create_key_value(bucket=name, max_value_size=LIMIT, storage="memory")
    await refused(lambda: bucket.put("name", FITS + b"x"))
    assert recorder.span(f"put {name}").attributes["error.type"] == "nats.js.errors.BadRequestError"


def test_what_was_learnt_is_bounded():
    limits = Limits()
    for number in range(3000):
        limits.refused(f"a.{number}", 200, f"stream {number}")
        limits.accepted(f"b.{number}", 100, "another")
    assert len(limits.sizes) <= 1024
    assert len(limits._streams) <= 1024


def test_a_stream_that_tells_no_name_is_known_by_its_subject():
    limits = Limits()
    limits.refused("a", 200)
    assert [limits.lower(1000, "a", stored) for stored in (True, False)] == [200, 200]
    assert [limits.lower(1000, "b", stored) for stored in (True, False)] == [200, 1000]
    limits.refused("a", 0)
    assert limits.lower(1000, "a", True) == 0


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
