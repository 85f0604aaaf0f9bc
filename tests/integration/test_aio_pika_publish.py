"""`Exchange.publish`: the span of every outcome, and a call that is otherwise the application's own."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import gc
import logging
import weakref

import aio_pika
import pytest
from aio_pika import ExchangeType, Message
from aiormq import spec
from opentelemetry.instrumentation.utils import suppress_instrumentation
from yarl import URL

from otel_messaging.aio_pika.readers import consumed_from, published_to, server
from otel_messaging.core import vocabulary as v
from otel_messaging.patterns import process
from tests.support.proxy import Proxy
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

SUCCESS = {"guide": ("OK", None), "semconv": ("UNSET", None), "both": ("UNSET", None)}
NOBODY = "nobody-listens-here"


@pytest.fixture
def library():
    return "aio_pika"


@pytest.fixture
async def exchange(connect):
    """Declare an exchange and a queue that is bound to it."""
    made = []

    async def declare(kind=ExchangeType.DIRECT, key="orders.new", **arguments):
        driver = await connect(**arguments)
        exchange = await driver.channel.declare_exchange(driver.name(), kind)
        queue = await driver.queue(driver.name())
        await queue.bind(exchange, key)
        made.append((driver, exchange.name))
        return driver, exchange, queue

    yield declare
    for driver, name in made:
        await (await driver.connection.channel()).exchange_delete(name)


async def fetch(queue):
    """What is on the wire."""
    with suppress_instrumentation():
        return await queue.get(no_ack=True)


async def outcome(awaitable):
    """How a call ends, as a value that can be compared."""
    try:
        result = await awaitable
    except BaseException as error:
        return type(error), str(error), type(error.__context__)
    return type(result), getattr(getattr(result, "delivery", None), "reply_text", None)


async def with_and_without(driver, act):
    """The outcome of the same thing instrumented and not."""
    instrumented = await outcome(act())
    driver.instrumentor().uninstrument()
    return instrumented, await outcome(act())


def carried(message):
    return int(message.headers["traceparent"].split("-")[2], 16)


# What a span says.


async def test_a_message_to_a_named_exchange_is_one_span(exchange, recorder, vocabulary):
    driver, exchange, queue = await exchange()
    await exchange.publish(Message(b"hello", message_id="m-1", correlation_id="c-1"), "orders.new")
    composed = f"{exchange.name}:orders.new"
    common = {
        "messaging.system": "rabbitmq",
        "messaging.rabbitmq.destination.routing_key": "orders.new",
        "messaging.message.id": "m-1",
        **driver._server(),
    }
    guide = {
        "messaging.destination.name": exchange.name,
        "messaging.operation": "publish",
        "messaging.message.payload_size_bytes": 5,
    }
    semconv = {
        "messaging.destination.name": composed,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.message.conversation_id": "c-1",
        **driver.peer(),
    }
    chosen = {"guide": guide, "semconv": semconv, "both": {**guide, **semconv}}[vocabulary]
    name = f"publish {exchange.name if vocabulary == 'guide' else composed}"
    span = recorder.span(name)
    assert shape(span) == {
        "name": name,
        "kind": "PRODUCER",
        "parent": None,
        "links": [],
        "status": SUCCESS[vocabulary],
        "attributes": {**common, **chosen},
        "events": [],
    }
    assert carried(await fetch(queue)) == span_id(span)


async def test_an_empty_routing_key_is_no_attribute_and_no_part_of_a_name(exchange, recorder, vocabulary):
    _, exchange, _ = await exchange(ExchangeType.FANOUT, "")
    await exchange.publish(Message(b""), "")
    span = recorder.span(f"publish {exchange.name}")
    assert span.attributes["messaging.destination.name"] == exchange.name
    assert "messaging.rabbitmq.destination.routing_key" not in span.attributes


async def test_a_routing_key_that_is_an_enumeration_shows_its_value(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    keys = enum.Enum("Keys", {"ORDERS": queue.name}, type=str)
    await driver.channel.default_exchange.publish(Message(b""), keys.ORDERS)
    span = recorder.span(f"publish {queue.name}")
    assert type(span.attributes["messaging.rabbitmq.destination.routing_key"]) is str


@pytest.mark.parametrize("given", ["m-1", None, ""])
async def test_the_message_id_is_the_one_that_the_consumer_sees(connect, recorder, given):
    driver = await connect()
    queue = await driver.queue(driver.name())
    message = Message(b"", message_id=given)
    await driver.channel.default_exchange.publish(message, queue.name)
    received = await fetch(queue)
    assert received.message_id
    assert recorder.span(f"publish {queue.name}").attributes["messaging.message.id"] == received.message_id
    assert message.message_id == (given or None)


@pytest.mark.parametrize("name", ["", None])
async def test_a_temporary_queue_is_named_in_no_span_and_no_metric(connect, recorder, vocabulary, name):
    driver = await connect()
    queue = await driver.channel.declare_queue(name, exclusive=True)
    await driver.channel.default_exchange.publish(Message(b""), queue.name)
    span = recorder.span("publish")
    assert span.attributes["messaging.destination.name"] == queue.name
    assert span.attributes.get("messaging.destination.temporary") == (None if vocabulary == "guide" else True)
    assert queue.name not in str(recorder.metrics())


async def test_a_queue_called_amq_something_by_the_application_is_not_temporary(connect, recorder):
    driver = await connect()
    queue = await driver.queue(f"amq_{driver.name()}")
    await driver.channel.default_exchange.publish(Message(b""), queue.name)
    recorder.span(f"publish {queue.name}")


async def test_a_template_stands_for_routing_keys(exchange, recorder, vocabulary):
    """In the conventions they are part of the name, in the guide they are not."""
    globs = "*:devices.*.status,*:devices.*.status:*"
    _, exchange, queue = await exchange(ExchangeType.TOPIC, "devices.#", destination_templates=globs, settle="off")
    for number in range(5):
        await exchange.publish(Message(b""), f"devices.{number}.status")
        await (await queue.get()).ack()
    published, consumed = recorder.producers(5), recorder.consumers(5)
    names = {span.name for span in published}, {span.name for span in consumed}
    points = {metric: len(found) for metric, found in recorder.metrics().items() if "lag" not in metric}
    if vocabulary == "guide":
        assert names == ({f"publish {exchange.name}"}, {f"receive {queue.name}"})
    else:
        assert names == ({"publish *:devices.*.status"}, {"process *:devices.*.status:*"})
        keys = [f"{exchange.name}:devices.{number}.status" for number in range(5)]
        assert [span.attributes["messaging.destination.name"] for span in published] == keys
        assert points.pop("messaging.client.operation.duration") == 2  # to publish and to get
    assert set(points.values()) == {1}


@pytest.mark.parametrize("way", ["callback", "loop", "get", "process"])
async def test_where_a_request_asks_to_be_answered_is_no_name_whatever_it_looks_like(
    connect, recorder, vocabulary, way
):
    driver = await connect()
    questions, answers = await driver.queue(driver.name()), await driver.queue(driver.name())
    publish = driver.channel.default_exchange.publish
    answered = asyncio.Event()

    async def answer(message):
        await publish(Message(b"pong"), message.reply_to)
        answered.set()

    await publish(Message(b"ping", reply_to=answers.name), questions.name)
    if way == "callback":
        await questions.consume(answer, no_ack=True)
    elif way == "loop":
        async with questions.iterator(no_ack=True) as messages:
            async for message in messages:
                await answer(message)
                break
    elif way == "get":
        await answer(await questions.get(no_ack=True))
    else:
        message = await fetch(questions)
        async with process(message):
            await answer(message)
    await asyncio.wait_for(answered.wait(), 5)
    asked, told = recorder.producers(2)
    assert [asked.name, told.name] == [f"publish {questions.name}", "publish"]
    temporary = {} if vocabulary == "guide" else {"messaging.destination.temporary": True}
    expected = {**driver.published(vocabulary, answers.name, b"pong"), **temporary}
    found = dict(told.attributes)
    assert isinstance(found.pop("messaging.message.id"), str)
    assert found == expected
    assert answers.name not in str(recorder.metrics())


async def test_no_attribute_holds_the_password(exchange, recorder, vocabulary):
    _, exchange, _ = await exchange()
    await exchange.publish(Message(b""), "orders.new")
    (span,) = recorder.spans()
    assert "guest" not in str(dict(span.attributes))
    assert "guest" not in str(recorder.metrics())


@pytest.mark.parametrize(
    ("address", "port"), [("amqp://u:p@host/", 5672), ("amqps://u:p@host/", 5671), ("amqps://u:p@host:99/", 99)]
)
def test_a_port_that_is_not_given_is_the_one_of_the_scheme(address, port):
    assert dict(server(URL(address)))[v.SERVER_PORT] == port


@pytest.mark.parametrize(
    ("path", "name"),
    [("", None), ("/", None), ("/%2F", None), ("/shop", "shop"), ("/%2Fshop", "/shop"), ("/a%20b", "a b")],
)
def test_a_virtual_host_is_told_unless_it_is_the_default_one(path, name):
    assert dict(server(URL(f"amqp://u:p@host{path}"))).get(v.RABBITMQ_VHOST) == name


@pytest.mark.parametrize(
    ("exchange", "routing_key", "name"),
    [("logs", "warning", "logs:warning"), ("logs", "logs", "logs:logs"), ("logs", "", "logs"), ("", "q", "q")]
    + [("", "", "amq.default")],
)
def test_the_conventions_compose_where_a_message_is_published_to(exchange, routing_key, name):
    assert published_to(exchange, routing_key, True).semconv == name


@pytest.mark.parametrize(
    ("routed", "name"),
    [
        (("logs", "warning", "q"), "logs:warning:q"),
        (("logs", "q", "q"), "logs:q"),
        (("", "q", "q"), "q"),
        (("logs", "", "q"), "logs:q"),
        (("logs", "warning", ""), "logs:warning"),
        (("orders", "orders", "q"), "orders:orders:q"),
        (("orders", "new", "orders"), "orders:new:orders"),
    ],
)
def test_the_conventions_compose_where_a_message_is_consumed_from(routed, name):
    assert consumed_from(*routed, True).semconv == name


# What the application's objects are.


@pytest.mark.parametrize("headers", [None, {}, {"kind": "new", "n": 1}])
async def test_a_message_and_its_headers_stay_as_they_are_when_published_three_times(connect, recorder, headers):
    driver = await connect()
    queue = await driver.queue(driver.name())
    before = None if headers is None else dict(headers)
    message = Message(b"", headers=headers)
    wire = []
    for _ in range(3):
        await driver.channel.default_exchange.publish(message, queue.name)
        wire.append(await fetch(queue))
    assert headers == before
    assert message.headers == (headers or {})
    assert headers != {"kind": "new", "n": 1} or message.headers is headers
    assert [carried(found) for found in wire] == [span_id(span) for span in recorder.spans(count=3)]
    assert [set(found.headers) for found in wire] == [{"traceparent", *(headers or {})}] * 3


async def test_a_received_message_published_again_carries_the_new_context_and_links_the_old_one(connect, recorder):
    driver = await connect()
    first, second = await driver.queue(driver.name()), await driver.queue(driver.name())
    await driver.channel.default_exchange.publish(Message(b"x", headers={"kind": "new"}), first.name)
    received = await fetch(first)
    assert received.locked
    before = dict(received.headers)
    await driver.channel.default_exchange.publish(received, second.name)
    one, two = recorder.span(f"publish {first.name}"), recorder.span(f"publish {second.name}")
    assert shape(two)["links"] == [span_id(one)]
    assert received.headers == before
    again = await fetch(second)
    assert carried(again) == span_id(two)
    assert again.headers["kind"] == "new"


async def test_header_values_of_every_type_arrive_as_they_were_sent(connect):
    driver = await connect()
    queue = await driver.queue(driver.name())
    headers = {
        "bytearray": bytearray(b"\xff\x00"),
        "list": ["a", 1, None],
        "none": None,
        "int": 7,
        "when": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc),
        "nested": {"traceparent": "not ours"},
    }
    await driver.channel.default_exchange.publish(Message(b"", headers=headers), queue.name)
    found = dict((await fetch(queue)).headers)
    assert found.pop("traceparent")
    found["when"] = found["when"].replace(tzinfo=dt.timezone.utc)  # old pamqp leaves the zone out
    assert found == headers


@pytest.mark.parametrize("headers", [{"blob": b"x"}, {1: "one"}, {("a",): "tuple"}])
async def test_headers_that_cannot_be_sent_raise_what_the_library_raises(connect, recorder, headers):
    driver = await connect()
    queue = await driver.queue(driver.name())

    async def publish():
        exchange = (await driver.connection.channel()).default_exchange
        await exchange.publish(Message(b"", headers=headers), queue.name)

    instrumented, plain = await with_and_without(driver, publish)
    assert instrumented == plain
    assert instrumented[0] in (TypeError, AttributeError)
    span = recorder.span(f"publish {queue.name}")
    assert shape(span)["status"] == ("ERROR", instrumented[1])
    assert span.attributes["error.type"] == instrumented[0].__name__


async def test_a_channel_is_as_usable_after_bad_headers_as_without_us(connect):
    driver = await connect()
    queue = await driver.queue(driver.name())

    async def publish():
        exchange = (await driver.connection.channel()).default_exchange
        with pytest.raises(TypeError):
            await exchange.publish(Message(b"", headers={"blob": b"x"}), queue.name)
        await asyncio.wait_for(exchange.publish(Message(b""), queue.name), 1)  # old aiormq waits for ever

    instrumented, plain = await with_and_without(driver, publish)
    assert instrumented == plain


# How it is called, and how it ends.


async def test_a_message_may_be_given_by_position_and_by_keyword(exchange, recorder):
    _, exchange, queue = await exchange()
    await exchange.publish(Message(b"1"), "orders.new")
    await exchange.publish(Message(b"2"), routing_key="orders.new", mandatory=False)
    await exchange.publish(routing_key="orders.new", message=Message(b"3"), timeout=5)
    recorder.spans(f"publish {exchange.name}", count=3)
    assert [(await fetch(queue)).body for _ in range(3)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((Message(b""),), {}),
        ((Message(b""), "key", True), {}),
        ((Message(b""), "key"), {"unknown": 1}),
        ((Message(b""), "k" * 256), {}),
    ],
)
async def test_wrong_arguments_raise_what_the_library_raises(connect, args, kwargs):
    driver = await connect()

    async def publish():
        await (await driver.connection.channel()).default_exchange.publish(*args, **kwargs)

    instrumented, plain = await with_and_without(driver, publish)
    assert instrumented == plain
    assert issubclass(instrumented[0], (TypeError, ValueError))


async def test_a_message_that_the_broker_returns_is_an_error_of_the_span_alone(connect, recorder):
    driver = await connect()

    async def publish():
        return await driver.channel.default_exchange.publish(Message(b"lost"), NOBODY)

    instrumented, plain = await with_and_without(driver, publish)
    assert instrumented == plain
    assert instrumented[1] == "NO_ROUTE"
    span = shape(recorder.span(f"publish {NOBODY}"))
    assert span["status"] == ("ERROR", "returned by the broker: NO_ROUTE")
    assert span["attributes"]["error.type"] == "NO_ROUTE"
    assert span["events"] == []


async def test_a_return_callback_gets_the_message_as_it_was_sent(connect, recorder):
    driver = await connect()
    returned = asyncio.get_running_loop().create_future()
    driver.channel.return_callbacks.add(lambda _channel, message: returned.set_result(message))
    await driver.channel.default_exchange.publish(Message(b"lost"), NOBODY)
    assert carried(await asyncio.wait_for(returned, 2)) == span_id(recorder.span(f"publish {NOBODY}"))


async def test_a_message_that_may_get_lost_is_no_error(connect, recorder):
    driver = await connect()
    await driver.channel.default_exchange.publish(Message(b"lost"), NOBODY, mandatory=False)
    assert shape(recorder.span(f"publish {NOBODY}"))["status"] == ("OK", None)


async def test_a_return_that_raises_is_recorded_and_raised(connect, recorder):
    driver = await connect()

    async def publish():
        channel = await driver.connection.channel(on_return_raises=True)
        await channel.default_exchange.publish(Message(b"lost"), NOBODY)

    instrumented, plain = await with_and_without(driver, publish)
    assert instrumented[0] is plain[0] is aio_pika.exceptions.PublishError
    span = shape(recorder.span(f"publish {NOBODY}"))
    assert span["status"] == ("ERROR", instrumented[1])
    assert span["attributes"]["error.type"] == "aiormq.exceptions.PublishError"
    assert [name for name, _ in span["events"]] == ["exception"]


async def test_a_message_that_nobody_confirms_is_a_success(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    channel = await driver.connection.channel(publisher_confirms=False)
    assert await channel.default_exchange.publish(Message(b""), queue.name) is None
    assert shape(recorder.span(f"publish {queue.name}"))["status"] == ("OK", None)


async def test_messages_of_a_transaction_are_spans(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    channel = await driver.connection.channel(publisher_confirms=False)
    async with channel.transaction():
        assert await channel.default_exchange.publish(Message(b"1"), queue.name) is None
        await channel.default_exchange.publish(Message(b"2"), queue.name)
    spans = recorder.spans(f"publish {queue.name}", count=2)
    assert [carried(await fetch(queue)) for _ in range(2)] == [span_id(span) for span in spans]


async def test_messages_that_are_rolled_back_are_spans_too(connect, recorder):
    """The broker had them: what it does with them is known later, and to no call that publishes."""
    driver = await connect()
    queue = await driver.queue(driver.name())
    channel = await driver.connection.channel(publisher_confirms=False)
    async with channel.transaction() as transaction:
        await channel.default_exchange.publish(Message(b"1"), queue.name)
        await transaction.rollback()
    assert shape(recorder.span(f"publish {queue.name}"))["status"] == ("OK", None)
    assert await queue.get(fail=False) is None


async def test_a_message_that_the_broker_refuses_is_an_error(connect, recorder):
    driver = await connect()
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = await driver.channel.declare_queue(driver.name(), arguments=full)
    driver.queues.append(queue)
    await driver.publish(queue.name)
    recorder.exporter.clear()

    async def publish():
        await driver.publish(queue.name)

    instrumented, plain = await with_and_without(driver, publish)
    assert instrumented[0] is plain[0] is aio_pika.exceptions.DeliveryError
    span = shape(recorder.span(f"publish {queue.name}"))
    assert span["status"] == ("ERROR", instrumented[1])
    assert span["attributes"]["error.type"] == "aiormq.exceptions.DeliveryError"


async def test_headers_that_route_a_message_still_route_it(connect, recorder):
    driver = await connect()
    exchange = await driver.channel.declare_exchange(driver.name(), ExchangeType.HEADERS, auto_delete=True)
    queue = await driver.queue(driver.name())
    await queue.bind(exchange, arguments={"x-match": "all", "kind": "new", "n": 1})
    await exchange.publish(Message(b"", headers={"kind": "new", "n": 1}), "")
    assert carried(await fetch(queue)) == span_id(recorder.span(f"publish {exchange.name}"))


async def test_a_missing_exchange_is_the_brokers_error(connect, recorder):
    driver = await connect()

    async def publish():
        channel = await driver.connection.channel()
        exchange = await channel.get_exchange("missing", ensure=False)
        await exchange.publish(Message(b""), "key")

    instrumented, plain = await with_and_without(driver, publish)
    assert instrumented == plain
    assert instrumented[0] is aio_pika.exceptions.ChannelNotFoundEntity
    span = shape(recorder.span("publish missing"))
    assert span["status"] == ("ERROR", instrumented[1])
    assert span["attributes"]["error.type"] == "aiormq.exceptions.ChannelNotFoundEntity"


async def test_a_closed_channel_is_the_librarys_error(connect, recorder):
    driver = await connect()
    channel = await driver.connection.channel()
    await channel.close()

    async def publish():
        await asyncio.wait_for(channel.default_exchange.publish(Message(b""), "key"), 1)

    instrumented, plain = await with_and_without(driver, publish)
    assert instrumented[0] is plain[0]
    assert shape(recorder.span("publish key"))["status"][0] == "ERROR"


async def test_a_deleted_exchange_is_the_librarys_error(connect, recorder):
    driver = await connect()

    async def publish():
        exchange = await (await connection.channel()).declare_exchange("deleted")
        await exchange.delete()
        await exchange.publish(Message(b""), "key")

    # Once the broker has closed the channel, a robust connection of aio-pika 9.0 declares the exchange again.
    async with await aio_pika.connect(driver.address) as connection:
        instrumented, plain = await with_and_without(driver, publish)
    assert instrumented == plain
    assert shape(recorder.span("publish deleted"))["status"] == ("ERROR", instrumented[1])


async def test_a_timeout_is_recorded_and_raised(silent, recorder):
    with pytest.raises(asyncio.TimeoutError):
        await silent.publish(Message(b""), "key", timeout=0.05)
    assert recorder.span("publish key").attributes["error.type"].endswith("TimeoutError")


async def test_a_cancelled_publish_is_recorded_and_cancelled(silent, recorder):
    task = asyncio.create_task(silent.publish(Message(b""), "key"))
    await asyncio.sleep(0.05)
    assert recorder.spans() == []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.span("publish key").attributes["error.type"] == "asyncio.exceptions.CancelledError"


@pytest.fixture
async def silent(connect):
    """An exchange of a broker that does not answer."""
    driver = await connect()
    async with Proxy(driver.address) as wire:
        connection = await aio_pika.connect(wire.address)
        exchange = (await connection.channel()).default_exchange
        wire.hold()
        yield exchange
        wire.resume()
        await connection.close()


# What is not ours.


async def test_a_message_of_the_transport_itself_stays_untouched(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    await driver.channel.default_exchange.publish(Message(b"1"), queue.name)
    underlay = await underlying(driver.channel)
    await underlay.basic_publish(b"2", routing_key=queue.name, properties=spec.Basic.Properties())
    recorder.spans(count=1)
    assert [("traceparent" in ((await fetch(queue)).headers or {})) for _ in range(2)] == [True, False]


async def underlying(channel):
    if hasattr(channel, "get_underlay_channel"):
        return await channel.get_underlay_channel()
    return channel.channel  # 9.0


async def test_a_failed_publish_leaves_nothing_for_the_next_message_of_the_transport(connect, recorder):
    driver = await connect()
    queue = await driver.queue(driver.name())
    exchange = await driver.channel.get_exchange("internal", ensure=False)
    exchange.internal = True
    with pytest.raises(ValueError, match="internal exchange"):
        await exchange.publish(Message(b"1"), queue.name)
    underlay = await underlying(driver.channel)
    await underlay.basic_publish(b"2", routing_key=queue.name, properties=spec.Basic.Properties())
    assert not (await fetch(queue)).headers


async def test_a_hook_is_told_of_the_message_by_the_librarys_names(connect, recorder):
    requests = []
    driver = await connect(publish_hook=lambda span, request: requests.append(request))
    queue = await driver.queue(driver.name())
    message = Message(b"")
    await driver.channel.default_exchange.publish(message, queue.name, mandatory=False)
    (request,) = requests
    assert request.client is driver.channel.default_exchange
    assert request.destination == ""
    asked = {"message": message, "routing_key": queue.name, "mandatory": False, "immediate": False, "timeout": None}
    assert request.arguments == asked


async def test_what_is_kept_for_an_exchange_goes_with_it(connect, caplog):
    caplog.set_level(logging.CRITICAL)  # what is logged is kept, with the channel that it is about
    driver = await connect()
    async with await aio_pika.connect(driver.address) as connection:
        async with connection.channel() as channel:
            await channel.default_exchange.publish(Message(b""), NOBODY)
            exchange = weakref.ref(channel.default_exchange)
        del channel
        await until(lambda: gc.collect() >= 0 and exchange() is None)  # tasks of the library end after it is closed
