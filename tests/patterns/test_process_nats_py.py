"""`process` and messages of NATS: JetStream, requests, services, and subscriptions that are over."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from opentelemetry import trace

from otel_messaging import NatsPyInstrumentor
from otel_messaging.patterns import process
from tests.support import nats_py
from tests.support.recorder import span_id
from tests.support.waiting import until


@pytest.fixture
async def connection(nats_address, instrument):
    instrument(NatsPyInstrumentor)
    async with nats_py.client(nats_address) as connected:
        yield connected


async def in_a_fresh_task(message, work=None):
    """Handle a message where nothing is known of its delivery; returns the span."""

    async def run():
        async with process(message) as span:
            if work is not None:
                await work(message)
            return span

    return await asyncio.create_task(run())


async def test_jetstream_tells_of_a_message_wherever_it_is(connection, recorder):
    jetstream, subject = connection.jetstream(), nats_py.fresh()
    await jetstream.add_stream(name=subject, subjects=[subject])
    await jetstream.publish(subject, b"hello")
    subscription = await jetstream.pull_subscribe(subject, "readers")
    messages = await subscription.fetch(1, timeout=5)
    span = await in_a_fresh_task(messages[0], lambda message: message.ack())
    await jetstream.delete_stream(subject)
    assert span.name == f"process {subject}"
    told = {"messaging.nats.stream": subject, "messaging.nats.sequence": 1, "messaging.message.delivery_attempt": 1}
    assert told.items() <= dict(span.attributes).items()
    assert [event.name for event in span.events] == ["ack"]
    assert {span.name.split()[0] for span in recorder.consumers(2)} == {"receive", "process"}


async def test_what_was_taken_out_of_a_list_of_one_is_handled_once(connection, recorder):
    jetstream, subject = connection.jetstream(), nats_py.fresh()
    await jetstream.add_stream(name=subject, subjects=[subject])
    await jetstream.publish(subject, b"hello")
    subscription = await jetstream.pull_subscribe(subject, "readers")
    (published,) = recorder.producers(1)
    message = (await subscription.fetch(1, timeout=5))[0]
    with contextlib.suppress(ValueError), process(message) as span:
        await message.ack()
        assert span.is_recording()
        with process(message) as inner:
            assert inner is not span
        raise ValueError("no")
    await jetstream.delete_stream(subject)
    assert trace.get_current_span() is trace.INVALID_SPAN
    call, again, handled = recorder.consumers(3)
    assert [each.name.split()[0] for each in (call, again, handled)] == ["receive", "process", "process"]
    assert span_id(handled) == span_id(span)
    assert handled.parent.span_id == span_id(published)
    assert (handled.status.status_code.name, handled.status.description) == ("ERROR", "no")
    assert [event.name for event in handled.events] == ["ack", "exception"]
    assert [count for _, count in recorder.metrics()["messaging.processing.duration"]] == [1]


async def test_a_wildcard_stays_in_the_name(connection, recorder):
    prefix = nats_py.fresh()
    subscription = await connection.subscribe(f"{prefix}.*")
    await connection.publish(f"{prefix}.a", b"hello")
    span = await in_a_fresh_task(await subscription.next_msg(timeout=5))
    assert span.name == f"process {prefix}.*"
    assert span.attributes["messaging.destination.name"] == f"{prefix}.a"


async def test_a_message_outlives_its_subscription(connection, recorder):
    subject = nats_py.fresh()
    subscription = await connection.subscribe(subject)
    await connection.publish(subject, b"hello")
    message = await subscription.next_msg(timeout=5)
    await subscription.unsubscribe()
    assert (await in_a_fresh_task(message)).name == f"process {subject}"


async def test_a_request_is_answered_where_it_is_handled_and_the_reply_has_no_span(connection, recorder):
    subject, tasks = nats_py.fresh(), []

    async def hand_on(message):
        tasks.append(asyncio.create_task(in_a_fresh_task(message, lambda given: given.respond(b"done"))))

    await connection.subscribe(subject, cb=hand_on)
    assert (await connection.request(subject, b"", timeout=5)).data == b"done"
    await asyncio.gather(*tasks)
    await until(lambda: len(recorder.spans()) == 3)
    assert sorted(span.name.split()[0] for span in recorder.spans()) == ["process", "publish", "receive"]


async def test_a_decorated_callback_has_its_span_beside_the_other(connection, recorder):
    subject = nats_py.fresh()

    @process
    async def handle(_message):
        pass

    await connection.subscribe(subject, cb=handle)
    await connection.publish(subject, b"hello")
    await until(lambda: len(recorder.spans()) == 3)
    published = recorder.span(f"publish {subject}")
    for verb in ("receive", "process"):
        assert recorder.span(f"{verb} {subject}").parent.span_id == span_id(published)


@pytest.mark.skipif(nats_py.VERSION < (2, 9), reason="nats.micro is there since 2.9")
async def test_a_request_to_a_service_is_a_message_too(connection, recorder):
    import nats.micro

    subject, spans = nats_py.fresh(), []

    async def handle(request):
        async with process(request) as span:
            spans.append(span)
        await request.respond(b"done")

    service = await nats.micro.add_service(connection, name="orders", version="1.0.0")
    await service.add_endpoint(name="place", subject=subject, handler=handle)
    await connection.request(subject, b"hello", timeout=5)
    await service.stop()
    assert [span.name for span in spans] == [f"process {subject}"]
