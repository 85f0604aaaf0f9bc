"""`process` and messages of RabbitMQ: the queue that they came from, and callbacks."""

from __future__ import annotations

import asyncio
import uuid

import aio_pika
import pytest
from opentelemetry import trace

from otel_messaging import AioPikaInstrumentor
from otel_messaging.patterns import process
from tests.support.recorder import span_id
from tests.support.waiting import until


@pytest.fixture
async def bound(rabbitmq_address, instrument):
    """A queue bound to an exchange of another name."""
    instrument(AioPikaInstrumentor)
    async with await aio_pika.connect_robust(rabbitmq_address) as connection:
        channel = await connection.channel()
        name = f"test-{uuid.uuid4().hex[:12]}"
        exchange = await channel.declare_exchange(f"{name}-exchange", auto_delete=True)
        queue = await channel.declare_queue(f"{name}-queue", auto_delete=True)
        await queue.bind(exchange, "key")
        await exchange.publish(aio_pika.Message(b"hello"), "key")
        yield queue


async def in_a_fresh_task(message):
    """Handle a message where nothing is known of its delivery; returns the span."""

    async def work():
        async with process(message) as span:
            return span

    return await asyncio.create_task(work())


async def test_a_loop_tells_the_queue_of_its_messages(bound, recorder):
    async with bound.iterator(no_ack=True, timeout=8) as messages:
        span = await in_a_fresh_task(await messages.__anext__())
    assert span.name == f"process {bound.name}"


async def test_a_callback_tells_the_queue_of_its_messages(bound, recorder):
    got = []

    async def handle(message):
        got.append(message)

    await bound.consume(handle, no_ack=True)
    await until(lambda: got)
    assert (await in_a_fresh_task(got[0])).name == f"process {bound.name}"


async def test_a_message_that_was_pulled_is_known_until_it_is_settled(bound, recorder):
    message = await bound.get(timeout=8)
    span = await in_a_fresh_task(message)
    assert span.name == f"process {bound.name}"
    await message.ack()
    exchange = bound.name.replace("-queue", "-exchange")
    assert (await in_a_fresh_task(message)).name == f"process {exchange}"


async def test_a_decorated_callback_has_its_span_beside_the_other(bound, recorder):
    spans = []

    @process
    async def handle(message):
        async with message.process():
            spans.append(trace.get_current_span())

    await bound.consume(handle)
    await until(lambda: len(recorder.spans()) == 3)
    received, handled = recorder.span(f"receive {bound.name}"), recorder.span(f"process {bound.name}")
    assert handled.parent == received.parent
    assert [span_id(span) for span in spans] == [span_id(handled)]
    assert [event.name for event in handled.events] == ["ack"]


async def test_an_exception_that_leaves_the_library_s_own_block_is_recorded_once(bound, recorder):
    message = await bound.get(timeout=8)
    with pytest.raises(ValueError, match="out of stock"):
        async with process(message), message.process(requeue=False):
            raise ValueError("out of stock")
    span = recorder.span(f"process {bound.name}")
    assert [event.name for event in span.events] == ["reject", "exception"]
