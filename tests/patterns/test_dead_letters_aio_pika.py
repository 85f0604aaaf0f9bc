"""RabbitMQ: what a dead letter keeps and leaves behind, and what the broker tells of its own dead letters."""

from __future__ import annotations

import asyncio

import pytest
from aio_pika import DeliveryMode, Message
from aiormq.abc import DeliveredMessage
from opentelemetry.trace import StatusCode

from otel_messaging.aio_pika import dead_letter
from tests.support.recorder import span_id
from tests.support.waiting import until

ERROR = ValueError("out of stock")


@pytest.fixture
def library():
    return "aio_pika"


async def got(queue):
    """What a queue gives, once it has something."""
    for _ in range(500):
        message = await queue.get(fail=False)
        if message is not None:
            return message
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


async def buried(driver, message, settle="ack", **options):
    """What comes out of the queue for dead letters; also the message, and what `dead_letter` returned."""
    origin, grave = await driver.queue(driver.name()), await driver.queue(driver.name())
    exchange = driver.channel.default_exchange
    await exchange.publish(message, origin.name)
    received = await got(origin)
    if settle:
        await getattr(received, settle)()
    result = await dead_letter(received, ERROR, exchange, grave.name, **options)
    letter = await got(grave)
    await letter.ack()
    return letter, received, result


async def test_properties_are_kept(connect):
    driver = await connect()
    sent = Message(
        b"hello",
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=DeliveryMode.PERSISTENT,
        priority=3,
        correlation_id="c-1",
        reply_to="answers",
        message_id="m-1",
        type="order",
        app_id="shop",
    )
    letter, _, result = await buried(driver, sent)
    kept = ("content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to")
    for name in (*kept, "message_id", "type", "app_id"):
        assert getattr(letter, name) == getattr(sent, name), name
    assert type(result).__name__ == "Ack"


async def test_what_would_order_the_broker_about_has_another_name(connect):
    driver = await connect()
    copies = await driver.queue(driver.name())
    sent = Message(b"hello", expiration=60, user_id="guest", headers={"CC": [copies.name], "tenant": "acme"})
    letter, _, _ = await buried(driver, sent)
    headers = {name: value for name, value in letter.headers.items() if name != "traceparent"}
    assert headers == {
        "tenant": "acme",
        "dead-letter-original-cc": [copies.name],
        "dead-letter-original-user-id": "guest",
        "dead-letter-original-exchange": "",
        "dead-letter-original-routing-key": headers["dead-letter-original-routing-key"],
        "dead-letter-error-type": "ValueError",
        "dead-letter-error": "out of stock",
    }
    assert (letter.expiration, letter.user_id) == (None, None)
    assert (await got(copies)).body == b"hello"
    assert await copies.get(fail=False) is None, "the dead letter was copied, too"


async def test_what_had_another_name_keeps_it_in_a_letter_that_dies_again(connect):
    driver = await connect()
    first, _, _ = await buried(driver, Message(b"hello", user_id="guest", headers={"CC": ["nowhere"]}))
    again, grave = await driver.queue(driver.name()), await driver.queue(driver.name())
    await driver.channel.default_exchange.publish(Message(first.body, headers=dict(first.headers)), again.name)
    received = await got(again)
    await dead_letter(received, KeyError("order"), driver.channel.default_exchange, grave.name)
    await received.ack()
    letter = await got(grave)
    await letter.ack()
    assert letter.headers["dead-letter-original-user-id"] == "guest"
    assert letter.headers["dead-letter-original-cc"] == ["nowhere"]
    assert letter.headers["dead-letter-original-routing-key"] == again.name
    assert letter.headers["dead-letter-error-type"] == "KeyError"


@pytest.mark.parametrize("settle", ["ack", "reject", None])
async def test_the_message_stays_as_it_was(connect, settle):
    driver = await connect()
    _, received, _ = await buried(driver, Message(b"hello", headers={"a": ["b"]}, expiration=60), settle)
    assert {name: value for name, value in received.headers.items() if name != "traceparent"} == {"a": ["b"]}
    assert received.expiration == 60.0


async def test_headers_that_no_publisher_of_the_library_could_send_go_on(connect):
    driver = await connect()
    odd = {"raw": bytearray(b"\xff"), "nested": {"list": [1, None, True, bytearray(b"\x00")]}, "number": 7}
    letter, _, _ = await buried(driver, Message(b"hello", headers=odd))
    assert {name: letter.headers[name] for name in odd} == odd


async def test_text_that_is_no_unicode_goes_on(connect, monkeypatch):
    driver = await connect()
    origin, grave = await driver.queue(driver.name()), await driver.queue(driver.name())
    await driver.publish(origin.name)
    received = await got(origin)
    received.headers["raw"] = b"\xff"  # as the library reads such text
    await dead_letter(received, ERROR, driver.channel.default_exchange, grave.name)
    letter = await got(grave)
    assert letter.headers["raw"] == b"\xff"
    await driver.publish(grave.name)  # the channel is as good as before
    await received.ack()
    await letter.ack()


async def test_a_count_of_deliveries_is_not_that_of_the_dead_letter(connect, recorder):
    driver = await connect()
    origin = await driver.channel.declare_queue(driver.name(), durable=True, arguments={"x-queue-type": "quorum"})
    driver.queues.append(origin)
    grave = await driver.queue(driver.name())
    await driver.publish(origin.name)
    await (await got(origin)).nack(requeue=True)
    received = await got(origin)
    await dead_letter(received, ERROR, driver.channel.default_exchange, grave.name)
    await received.ack()
    letter = await got(grave)
    await letter.ack()
    counts = [letter.headers.get(f"dead-letter-original-x-{name}-count") for name in ("acquired", "delivery")]
    assert 1 in counts  # the first since RabbitMQ 4.3
    (span,) = recorder.spans(f"receive {grave.name}")
    assert "messaging.message.delivery_attempt" not in span.attributes


async def test_a_dead_letter_that_cannot_be_routed_is_returned_and_not_counted(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    await driver.publish(queue.name)
    received = await got(queue)
    result = await dead_letter(received, ERROR, driver.channel.default_exchange, driver.name())
    assert isinstance(result, DeliveredMessage)
    assert recorder.producers(2)[1].status.status_code is StatusCode.ERROR
    assert "messaging.messages.dead_lettered" not in recorder.metrics()
    await received.ack()


async def test_the_exchange_and_the_routing_key_are_those_it_was_published_with(connect, recorder):
    driver = await connect()
    exchange = await driver.channel.declare_exchange(driver.name(), auto_delete=True)
    origin, grave = await driver.queue(driver.name()), await driver.queue(driver.name())
    await origin.bind(exchange, "order.paid")
    await exchange.publish(Message(b"hello"), "order.paid")
    received = await got(origin)
    await dead_letter(received, ERROR, driver.channel.default_exchange, grave.name)
    await received.ack()
    letter = await got(grave)
    await letter.ack()
    assert letter.headers["dead-letter-original-exchange"] == exchange.name
    assert letter.headers["dead-letter-original-routing-key"] == "order.paid"
    (event, _) = recorder.spans(f"receive {origin.name}")[0].events
    assert event.attributes["original_topic"] == origin.name


async def test_a_callback_puts_its_message_aside(connect, recorder):
    driver = await connect()
    origin, grave = await driver.queue(driver.name()), await driver.queue(driver.name())

    async def handle(message):
        async with message.process():
            await dead_letter(message, ERROR, driver.channel.default_exchange, grave.name)

    await origin.consume(handle)
    await driver.publish(origin.name)
    await (await got(grave)).ack()
    (received,) = await until(lambda: recorder.spans(f"receive {origin.name}"))
    assert [event.name for event in received.events] == ["send_to_dead_letter", "ack"]
    published, letter = recorder.producers(2)
    assert letter.parent.span_id == span_id(received)
    assert [link.context.span_id for link in letter.links] == [span_id(published)]


async def test_each_death_is_told_of_from_the_first_on(connect, recorder):
    driver = await connect()
    grave = await driver.queue(driver.name())

    async def dying(then, **arguments):
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": then.name, **arguments}
        queue = await driver.channel.declare_queue(driver.name(), arguments=arguments)
        driver.queues.append(queue)
        return queue

    second = await dying(grave)
    first = await dying(second, **{"x-message-ttl": 10})
    await driver.publish(first.name)
    await (await got(second)).reject()
    await (await got(grave)).ack()
    (span,) = recorder.spans(f"receive {grave.name}")
    found = {name.rpartition(".")[2]: value for name, value in span.attributes.items() if ".deaths." in name}
    assert found == {
        "queues": (first.name, second.name),
        "reasons": ("expired", "rejected"),
        "counts": (1, 1),
    }
    assert span.parent.span_id == span_id(recorder.producers(1)[0])


async def test_a_message_that_has_died_before_can_be_put_aside(connect):
    driver = await connect()
    dead = await driver.queue(driver.name())
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name}
    first = await driver.channel.declare_queue(driver.name(), arguments=arguments)
    driver.queues.append(first)
    await driver.publish(first.name)
    await (await got(first)).reject()
    received, grave = await got(dead), await driver.queue(driver.name())
    await dead_letter(received, ERROR, driver.channel.default_exchange, grave.name)
    await received.ack()
    letter = await got(grave)
    await letter.ack()
    assert letter.headers["x-death"] == received.headers["x-death"]
    assert letter.headers["x-death"][0]["queue"] == first.name


async def test_deaths_in_the_same_place_are_counted(connect, recorder):
    driver = await connect()
    waiting, working = driver.name(), driver.name()
    for name, then, more in ((waiting, working, {"x-message-ttl": 10}), (working, waiting, {})):
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": then, **more}
        driver.queues.append(await driver.channel.declare_queue(name, arguments=arguments))
    await driver.publish(working)
    queue = driver.queues[1]
    for _ in range(2):
        await (await got(queue)).reject()
    await (await got(queue)).ack()
    *_, span = recorder.spans(f"receive {working}")
    assert span.attributes["messaging.rabbitmq.deaths.queues"] == (working, waiting)
    assert span.attributes["messaging.rabbitmq.deaths.reasons"] == ("rejected", "expired")
    assert span.attributes["messaging.rabbitmq.deaths.counts"] == (2, 2)


async def test_a_history_that_is_made_up_does_no_harm(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    deaths = [{"queue": f"q{number}", "count": "many", "reason": number} for number in range(100)]
    await driver.publish(queue.name, headers={"x-death": deaths})
    await (await got(queue)).ack()
    (span,) = recorder.spans(f"receive {queue.name}")
    assert span.attributes["messaging.rabbitmq.deaths.queues"] == tuple(f"q{number}" for number in reversed(range(32)))
    assert set(span.attributes["messaging.rabbitmq.deaths.reasons"]) == {""}
    assert set(span.attributes["messaging.rabbitmq.deaths.counts"]) == {0}
