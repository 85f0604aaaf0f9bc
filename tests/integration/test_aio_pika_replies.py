"""Requests and replies that a program writes by hand: direct replies, and reply queues of every kind."""

from __future__ import annotations

import asyncio

import pytest
from aio_pika import Message
from aio_pika.exceptions import PublishError

from tests.support.recorder import shape, span_id
from tests.support.waiting import until

DIRECT = "amq.rabbitmq.reply-to"
SUCCESS = {"guide": ("OK", None), "semconv": ("UNSET", None), "both": ("UNSET", None)}


@pytest.fixture
def library():
    return "aio_pika"


class Asker:
    """Asks by direct reply-to, as `docs <https://www.rabbitmq.com/docs/direct-reply-to>`_ say."""

    def __init__(self, driver):
        self.channel = driver.channel
        self.replies = asyncio.Queue()

    async def listen(self):
        queue = await self.channel.get_queue(DIRECT, ensure=False)
        await queue.consume(self.replies.put, no_ack=True)

    async def ask(self, queue):
        await self.channel.default_exchange.publish(Message(b"?", reply_to=DIRECT), queue)

    async def answered(self):
        return await asyncio.wait_for(self.replies.get(), 5)


@pytest.fixture
async def asked(connect):
    """What was asked, who has asked, and the driver."""
    driver = await connect()
    queue = await driver.queue(driver.name())
    asker = Asker(driver)
    await asker.listen()
    await asker.ask(queue.name)
    request = await queue.get(no_ack=True)
    return request, asker, driver


async def test_a_direct_reply_is_a_message_that_was_delivered(vocabulary, asked, recorder):
    request, asker, driver = asked
    returned = await driver.channel.default_exchange.publish(Message(b"!", message_id="m-1"), request.reply_to)
    assert returned.delivery.reply_text == "NO_ROUTE"
    assert (await asker.answered()).body == b"!"
    common = {
        "messaging.system": "rabbitmq",
        "messaging.destination.name": request.reply_to,
        "messaging.rabbitmq.destination.routing_key": request.reply_to,
        "messaging.message.id": "m-1",
        **driver._server(),
    }
    guide = {"messaging.operation": "publish", "messaging.message.payload_size_bytes": 1}
    semconv = {
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.temporary": True,
        "messaging.destination.anonymous": True,
        **driver.peer(),
    }
    chosen = {"guide": guide, "semconv": semconv, "both": {**guide, **semconv}}[vocabulary]
    span = recorder.span("publish")
    assert shape(span) == {
        "name": "publish",
        "kind": "PRODUCER",
        "parent": shape(span)["parent"],
        "links": [],
        "status": SUCCESS[vocabulary],
        "attributes": {**common, **chosen},
        "events": [],
    }
    metrics = str(recorder.metrics())
    assert "error.type" not in metrics
    assert DIRECT not in metrics


async def test_a_direct_reply_that_raises_because_it_was_returned_was_delivered_too(asked, recorder):
    request, asker, driver = asked
    channel = await driver.connection.channel(on_return_raises=True)
    with pytest.raises(PublishError):
        await channel.default_exchange.publish(Message(b"!"), request.reply_to)
    assert (await asker.answered()).body == b"!"
    assert shape(recorder.span("publish"))["status"] == ("OK", None)
    assert "error.type" not in str(recorder.metrics())


async def test_a_direct_reply_that_need_not_be_routed_is_the_same(asked, recorder):
    request, asker, driver = asked
    await driver.channel.default_exchange.publish(Message(b"!"), request.reply_to, mandatory=False)
    assert (await asker.answered()).body == b"!"
    assert shape(recorder.span("publish"))["status"] == ("OK", None)


async def test_a_direct_reply_that_fails_otherwise_is_an_error(asked, recorder):
    request, _, driver = asked
    with pytest.raises(TypeError):
        await driver.channel.default_exchange.publish(Message(b"!", headers={"blob": b"x"}), request.reply_to)
    assert shape(recorder.span("publish"))["status"][0] == "ERROR"


async def test_what_is_returned_from_a_named_exchange_is_an_error_whatever_its_routing_key(connect, recorder):
    driver = await connect()
    exchange = await driver.channel.declare_exchange(driver.name(), auto_delete=True)
    try:
        await exchange.publish(Message(b"!"), f"{DIRECT}.nobody")
    finally:
        await exchange.delete()
    assert shape(recorder.span(f"publish {exchange.name}"))["status"][0] == "ERROR"


async def test_a_question_and_its_direct_reply_are_one_trace(asked, recorder):
    request, asker, driver = asked
    await driver.channel.default_exchange.publish(Message(b"!"), request.reply_to)
    reply = await asker.answered()
    assert int(reply.headers["traceparent"].split("-")[2], 16) == span_id(recorder.span("publish"))
    await until(lambda: recorder.spans("receive"))
    (received,) = recorder.spans("receive")
    assert shape(received)["parent"] == span_id(recorder.span("publish"))
