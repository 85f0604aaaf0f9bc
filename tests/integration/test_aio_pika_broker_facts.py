"""What the broker and the publisher say of a message: redelivered, counted, dead-lettered, prioritised, dated."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from unittest import mock

import pytest
from aio_pika import Message

from otel_messaging.aio_pika.readers import describe
from otel_messaging.core import vocabulary as v
from tests.support.waiting import until


@pytest.fixture
def library():
    return "aio_pika"


ATTEMPT = "messaging.message.delivery_attempt"
REDELIVERED = "messaging.message.redelivered"
WAITED = "messaging.message.queue_time"
DEATHS = "messaging.rabbitmq.death_count"


async def declared(driver, **arguments):
    """A queue with arguments."""
    queue = await driver.channel.declare_queue(driver.name(), durable=True, arguments=arguments)
    driver.queues.append(queue)
    return queue


async def received(driver, recorder, queue, message, **asked):
    """The attributes of a message that is published and handled."""
    await driver.channel.default_exchange.publish(message, queue.name)
    async for found in queue.iterator(no_ack=True, timeout=5):
        assert found.body == message.body
        break
    (span,) = await until(lambda: recorder.spans(f"receive {queue.name}"))
    return span.attributes


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_message_that_comes_again_says_so(connect, recorder, kind):
    driver = await connect()
    queue = await declared(driver, **{"x-queue-type": kind})
    done = asyncio.Event()

    async def handle(message):
        if message.redelivered:
            await message.ack()
            done.set()
        else:
            await message.nack(requeue=True)

    await queue.consume(handle)
    await driver.publish(queue.name)
    await asyncio.wait_for(done.wait(), 5)
    first, again = await until(lambda: len(found := recorder.spans(f"receive {queue.name}")) == 2 and found)
    assert REDELIVERED not in first.attributes
    assert again.attributes[REDELIVERED] is True
    assert ATTEMPT not in first.attributes or first.attributes[ATTEMPT] == 1
    assert again.attributes.get(ATTEMPT) == (2 if kind == "quorum" else None)


async def test_where_the_broker_has_two_counts_it_is_the_one_of_all_deliveries(connect, recorder):
    """RabbitMQ 4.3 sends them from quorum queues, both only once they are above zero."""
    driver = await connect()
    queue = await driver.queue(driver.name())
    message = Message(b"1", headers={"x-acquired-count": 3, "x-delivery-count": 1})
    await driver.channel.default_exchange.publish(message, queue.name)
    for _ in range(2):
        await (await queue.get()).nack(requeue=True)
    _, again = recorder.spans(f"receive {queue.name}")
    assert again.attributes[ATTEMPT] == 4


@pytest.mark.parametrize("reason", ["rejected", "expired"])
async def test_a_dead_letter_says_where_it_died_first_and_how_often(connect, recorder, reason):
    driver = await connect()
    grave = await driver.queue(driver.name())
    second = await declared(driver, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": grave.name})
    first = await declared(driver, **{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": second.name})
    await driver.channel.default_exchange.publish(
        Message(b"body", expiration=0.01 if reason == "expired" else None), first.name
    )
    if reason == "rejected":
        await (await first.get()).reject()
    await (await until_given(second)).reject()
    await (await until_given(grave)).ack()
    (span,) = recorder.spans(f"receive {grave.name}")
    attributes = span.attributes
    assert attributes["messaging.rabbitmq.first_death.queue"] == first.name
    assert attributes["messaging.rabbitmq.first_death.reason"] == reason
    assert attributes[DEATHS] == 2
    (published, *_) = recorder.producers(1)
    assert span.context.trace_id == published.context.trace_id


async def until_given(queue):
    """What a queue gives, once it has something."""
    for _ in range(500):
        message = await queue.get(fail=False)
        if message is not None:
            return message
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


async def test_priority_and_expiration_are_told_by_both_ends(connect, recorder):
    driver = await connect()
    queue = await declared(driver, **{"x-max-priority": 5})
    attributes = await received(driver, recorder, queue, Message(b"1", priority=3, expiration=60))
    published = recorder.producers(1)[0].attributes
    for found in (attributes, published):
        assert found["messaging.rabbitmq.message.priority"] == 3
        assert found["messaging.rabbitmq.message.expiration"] == 60.0


@pytest.mark.parametrize("pulled", [False, True])
async def test_an_expiration_is_the_same_however_it_was_given_and_got(connect, recorder, pulled):
    driver = await connect()
    queue = await driver.queue(driver.name())
    done = asyncio.Event()

    async def handle(_message):
        done.set()

    await driver.channel.default_exchange.publish(Message(b"1", expiration=timedelta(minutes=1)), queue.name)
    if pulled:
        await (await queue.get()).ack()
    else:
        await queue.consume(handle, no_ack=True)
        await asyncio.wait_for(done.wait(), 5)
    (span,) = await until(lambda: recorder.spans(f"receive {queue.name}"))
    assert span.attributes["messaging.rabbitmq.message.expiration"] == 60.0
    assert recorder.producers(1)[0].attributes["messaging.rabbitmq.message.expiration"] == 60.0


@pytest.mark.parametrize("way", ["callback", "loop", "get"])
async def test_the_time_since_a_dated_message_was_sent_is_told(connect, recorder, way):
    driver = await connect()
    queue = await driver.queue(driver.name())
    done = asyncio.Event()

    async def handle(_message):
        done.set()

    dated = Message(b"1", timestamp=datetime.now(tz=timezone.utc) - timedelta(seconds=90))
    await driver.channel.default_exchange.publish(dated, queue.name)
    if way == "callback":
        await queue.consume(handle, no_ack=True)
        await asyncio.wait_for(done.wait(), 5)
    elif way == "get":
        await (await queue.get()).ack()
    else:
        async for _message in queue.iterator(no_ack=True):
            break
    (span,) = await until(lambda: recorder.spans(f"receive {queue.name}"))
    assert 90 <= span.attributes[WAITED] < 93
    assert 90 <= recorder.sums()["messaging.queue.duration"] < 93


async def test_a_plain_message_says_nothing_of_it(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    attributes = await received(driver, recorder, queue, Message(b"1"))
    assert not {ATTEMPT, REDELIVERED, WAITED, DEATHS} & set(attributes)
    assert not [name for name in attributes if "priority" in name or "expiration" in name or "death" in name]


async def test_a_clock_that_is_ahead_waits_for_nothing(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    ahead = Message(b"1", timestamp=datetime.now(tz=timezone.utc) + timedelta(seconds=90))
    assert (await received(driver, recorder, queue, ahead))[WAITED] == 0.0


@pytest.mark.parametrize(
    "headers",
    [{"x-death": "no list"}, {"x-death": [1]}, {"x-death": []}, {"x-delivery-count": "many"}, {"x-death": [{}]}],
)
async def test_headers_of_another_form_are_passed_over(connect, recorder, headers):
    driver = await connect()
    queue = await driver.queue(driver.name())
    attributes = await received(driver, recorder, queue, Message(b"1", headers=headers))
    assert ATTEMPT not in attributes
    assert attributes.get(DEATHS, 0) == 0


def test_of_a_long_name_in_the_history_of_a_message_the_beginning_is_kept():
    death = {"queue": "q" * 90_000, "reason": b"r" * 90_000, "count": 1}
    message = mock.Mock(delivery_tag=1, redelivered=False)
    properties = mock.Mock(priority=None, expiration=None, message_id=None, correlation_id=None)
    first = {"x-first-death-queue": "q" * 90_000, "x-first-death-reason": "r" * 90_000}
    for headers in ({"x-death": [death]}, {"x-death": [death], **first}):
        facts = dict(describe(message, properties, b"", headers))
        assert (facts[v.RABBITMQ_DEATH_QUEUES], facts[v.RABBITMQ_DEATH_REASONS]) == (["q" * 1024], ["r" * 1024])
        assert (facts[v.RABBITMQ_DEATH_QUEUE], facts[v.RABBITMQ_DEATH_REASON]) == ("q" * 1024, "r" * 1024)


async def test_counts_stay_within_what_an_exporter_can_write(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    most = 2**63 - 1
    headers = {"x-delivery-count": most, "x-death": [{"count": most}, {"count": most}, {"count": -(2**40)}]}
    attributes = await received(driver, recorder, queue, Message(b"1", headers=headers))
    assert ATTEMPT not in attributes
    assert attributes.get(DEATHS, 0) in (0, most)  # RabbitMQ 4 takes x-death from nobody


async def test_a_stream_is_read_like_a_queue(connect, recorder):
    driver = await connect()
    queue = await declared(driver, **{"x-queue-type": "stream"})
    channel = await driver.connection.channel()
    await channel.set_qos(prefetch_count=10)
    for number in range(3):
        await driver.channel.default_exchange.publish(Message(b"%d" % number), queue.name)
    done, bodies = asyncio.Event(), []

    async def handle(message):
        bodies.append(message.body)
        await message.ack()
        if len(bodies) == 3:
            done.set()

    reader = await channel.get_queue(queue.name)
    await reader.consume(handle, arguments={"x-stream-offset": "first"})
    await asyncio.wait_for(done.wait(), 5)
    spans = await until(lambda: len(found := recorder.spans(f"receive {queue.name}")) == 3 and found)
    assert [span.parent.span_id for span in spans] == [span.context.span_id for span in recorder.producers(3)]
    assert [[event.name for event in span.events] for span in spans] == [["ack"]] * 3
    await channel.close()
