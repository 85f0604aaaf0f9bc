"""`Queue.consume`: one span around each callback, of whatever kind, and a consumer that notices nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from functools import partial

import aio_pika
import pytest
from aio_pika import ExchangeType, Message
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tests.support.aio_pika import VERSION
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

OLD = VERSION < (9, 1)  # before callbacks were made awaitable


@pytest.fixture
def library():
    return "aio_pika"


@pytest.fixture
async def driver(connect):
    return await connect()


async def consume(driver, callback, count=1, headers=None, **options):
    """Have some messages handled, and wait until the consumer has been called with each."""
    queue = await driver.queue(driver.name())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # synchronous callbacks
        tag = await queue.consume(callback, **options)
    for number in range(count):
        await publish(driver, queue.name, b"%d" % number, headers)
    return queue, tag


async def publish(driver, name, body=b"", headers=None):
    await driver.channel.default_exchange.publish(Message(body, headers=headers), name)


async def underlying(channel):
    return channel.channel if OLD else await channel.get_underlay_channel()


class Handler:
    """Callbacks of every kind that note the message and what is current."""

    def __init__(self):
        self.seen = []

    async def asynchronous(self, message):
        self.synchronous(message)

    def synchronous(self, message):
        self.seen.append((message, trace.get_current_span()))

    def function(self):
        async def handle(message):
            self.synchronous(message)

        return handle

    def synchronous_function(self):
        def handle(message):
            self.synchronous(message)

        return handle

    async def __call__(self, message):
        self.synchronous(message)


KINDS = {
    "coroutine function": lambda handler: handler.function(),
    "partial of a coroutine function": lambda handler: partial(handler.function()),
    "bound method": lambda handler: handler.asynchronous,
    "partial of a bound method": lambda handler: partial(handler.asynchronous),
    "callable object": lambda handler: handler,
    "synchronous function": lambda handler: handler.synchronous_function(),
    "synchronous method": lambda handler: handler.synchronous,
}


@pytest.mark.parametrize("no_ack", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 9.0 does not await the result of a callable object
async def test_a_callback_of_any_kind_runs_in_the_messages_span(driver, recorder, kind, no_ack):
    if OLD and kind == "callable object":
        pytest.skip("aio-pika 9.0 never awaits it")
    handler = Handler()
    queue, _ = await consume(driver, KINDS[kind](handler), no_ack=no_ack)
    await until(lambda: handler.seen)
    ((message, current),) = handler.seen
    span = recorder.span(f"receive {queue.name}")
    assert span_id(current) == span_id(span)
    assert type(message) is aio_pika.IncomingMessage
    assert message.processed is no_ack
    assert shape(span)["parent"] == span_id(recorder.span(f"publish {queue.name}"))
    assert shape(span)["status"] == ("OK", None)
    assert span.attributes["messaging.rabbitmq.message.delivery_tag"] == 1


@pytest.mark.skipif(OLD, reason="aio-pika 9.0 takes synchronous callbacks in silence")
async def test_a_synchronous_callback_is_warned_of_as_often_as_without_us(driver):
    async def warned():
        handler = Handler()
        queue = await driver.queue(driver.name())
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            await queue.consume(handler.synchronous_function())
            await publish(driver, queue.name)
            await until(lambda: handler.seen)
            await asyncio.sleep(0.05)
        return [(warning.category, str(warning.message).split(" at 0x")[0]) for warning in found]

    instrumented = await warned()
    driver.instrumentor().uninstrument()
    assert instrumented == await warned() != []


async def test_a_consumed_message_is_one_whole_span(driver, connect, recorder):
    handler = Handler()
    exchange = await driver.channel.declare_exchange(driver.name(), ExchangeType.TOPIC, auto_delete=True)
    queue = await driver.queue(driver.name())
    await queue.bind(exchange, "orders.*")
    await queue.consume(handler.asynchronous)
    await exchange.publish(Message(b"hello", message_id="m-1"), "orders.new")
    await until(lambda: handler.seen)
    assert shape(recorder.span(f"receive {queue.name}")) == {
        "name": f"receive {queue.name}",
        "kind": "CONSUMER",
        "parent": span_id(recorder.span(f"publish {exchange.name}")),
        "links": [],
        "status": ("OK", None),
        "attributes": {
            "messaging.system": "rabbitmq",
            "messaging.operation": "receive",
            "messaging.destination.name": queue.name,
            "messaging.message.id": "m-1",
            "messaging.message.payload_size_bytes": 5,
            "messaging.rabbitmq.destination.routing_key": "orders.new",
            "messaging.rabbitmq.message.delivery_tag": 1,
            **driver._server(),
        },
        "events": [],
    }


async def test_the_conventions_compose_exchange_routing_key_and_queue(connect, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    driver = await connect()
    handler = Handler()
    exchange = await driver.channel.declare_exchange(driver.name(), auto_delete=True)
    queue = await driver.queue(driver.name())
    await queue.bind(exchange, "new")
    await queue.consume(handler.asynchronous)
    await exchange.publish(Message(b"", correlation_id="c-1"), "new")
    await until(lambda: handler.seen)
    span = recorder.span(f"process {exchange.name}:new:{queue.name}")
    assert span.attributes["messaging.destination.name"] == f"{exchange.name}:new:{queue.name}"
    assert span.attributes["messaging.message.conversation_id"] == "c-1"


async def test_a_temporary_queue_is_named_in_no_span_and_no_metric(connect, recorder, vocabulary):
    driver = await connect()
    handler = Handler()
    exchange = await driver.channel.declare_exchange(driver.name(), ExchangeType.FANOUT, auto_delete=True)
    queue = await driver.channel.declare_queue(exclusive=True)
    await queue.bind(exchange)
    await queue.consume(handler.asynchronous)
    await exchange.publish(Message(b""), "")
    await until(lambda: handler.seen)
    span = recorder.span("receive" if vocabulary == "guide" else "process")
    assert queue.name in span.attributes["messaging.destination.name"]
    assert queue.name not in str(recorder.metrics())


async def test_a_reply_address_is_in_no_name_of_the_queue_that_receives_it(connect, recorder, vocabulary):
    driver = await connect()
    handler = Handler()
    exchange = await driver.channel.declare_exchange(driver.name(), auto_delete=True)
    queue = await driver.queue(driver.name())
    key = f"amq.gen-{driver.name()}"
    await queue.bind(exchange, key)
    await queue.consume(handler.asynchronous)
    await exchange.publish(Message(b""), key)
    await until(lambda: handler.seen)
    recorder.spans(count=2)
    assert key not in str([span.name for span in recorder.spans()])
    assert key not in str(recorder.metrics())


# Failures.


async def failing(driver, recorder, callback, caplog):
    """What the application sees of a callback that fails, and of the message afterwards."""
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: seen.append(report))
    caplog.clear()
    queue, tag = await consume(driver, callback)
    await until(lambda: seen)
    await queue.cancel(tag)
    await asyncio.sleep(0.02)
    gc.collect()  # old aiormq leaves the report of a task to the garbage collector
    reports = sorted({(report["message"].split("(")[0], repr(report.get("exception"))) for report in seen})
    logged = sorted(record.name for record in caplog.records if record.name == "aiormq.channel")
    return reports, logged, driver.channel.is_closed


async def test_a_callback_that_raises_is_reported_as_without_us(driver, recorder, caplog):
    caplog.set_level(logging.ERROR)

    async def handle(message):
        raise ValueError("no good")

    instrumented = await failing(driver, recorder, handle, caplog)
    (span,) = [span for span in recorder.spans() if span.name.startswith("receive")]
    driver.instrumentor().uninstrument()
    assert instrumented == await failing(driver, recorder, handle, caplog)
    assert shape(span)["status"] == ("ERROR", "no good")
    assert span.attributes["error.type"] == "ValueError"
    assert [name for name, _ in shape(span)["events"]] == ["exception"]


async def test_a_synchronous_callback_that_raises_is_recorded(driver, recorder, caplog):
    def handle(message):
        raise ValueError("no good")

    await failing(driver, recorder, handle, caplog)
    (span,) = [span for span in recorder.spans() if span.name.startswith("receive")]
    assert shape(span)["status"] == ("ERROR", "no good")


async def test_a_message_whose_callback_raised_is_not_acknowledged(driver, recorder):
    calls = []

    async def handle(message):
        calls.append(message.redelivered)
        if len(calls) == 1:
            raise ValueError("no good")
        await message.ack()

    connection = await aio_pika.connect(driver.address)
    first = await (await connection.channel()).get_queue((await driver.queue(driver.name())).name)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    await first.consume(handle)
    await publish(driver, first.name)
    await until(lambda: calls)
    await connection.close()
    await driver.queues[0].consume(handle)
    await until(lambda: len(calls) == 2)
    assert calls == [False, True]
    spans = recorder.spans(f"receive {first.name}", count=2)
    assert [shape(span)["status"] for span in spans] == [("ERROR", "no good"), ("OK", None)]
    assert len({span_id(span) for span in spans}) == 2
    gc.collect()


async def test_a_callback_that_is_cancelled_is_recorded(driver, recorder):
    started = asyncio.Event()
    ends = []

    async def handle(message):
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    connection = await aio_pika.connect(driver.address)
    queue = await (await connection.channel()).get_queue((await driver.queue(driver.name())).name)
    await queue.consume(handle)
    await publish(driver, queue.name)
    await started.wait()
    await connection.close()
    await until(lambda: ends and recorder.spans(f"receive {queue.name}"))
    span = recorder.span(f"receive {queue.name}")
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert ends == ["cancelled"]


async def test_a_consumer_that_is_cancelled_lets_its_callback_finish(driver, recorder):
    started, go_on = asyncio.Event(), asyncio.Event()
    current = []

    async def handle(message):
        started.set()
        await go_on.wait()
        current.append(trace.get_current_span())
        await message.ack()

    queue, tag = await consume(driver, handle)
    await started.wait()
    await queue.cancel(tag)
    assert recorder.spans(f"receive {queue.name}") == []
    go_on.set()
    await until(lambda: recorder.spans(f"receive {queue.name}"))
    span = recorder.span(f"receive {queue.name}")
    assert span_id(current[0]) == span_id(span)
    assert shape(span)["status"] == ("OK", None)
    assert shape(span)["events"] == [("ack", {})]


# What is current.


async def test_messages_that_are_handled_at_once_have_a_span_each(driver, recorder):
    both = asyncio.Event()
    current = {}

    async def handle(message):
        before = trace.get_current_span()
        current[message.body] = before
        if len(current) == 2:
            both.set()
        await both.wait()
        assert trace.get_current_span() is before
        await message.ack()

    queue, _ = await consume(driver, handle, 2)
    await until(lambda: len(recorder.spans(f"receive {queue.name}")) == 2)
    assert {span_id(span) for span in current.values()} == {
        span_id(span) for span in recorder.spans(f"receive {queue.name}")
    }
    assert [shape(span)["events"] for span in recorder.spans(f"receive {queue.name}")] == [[("ack", {})]] * 2


async def test_what_a_handler_publishes_hangs_below_its_message(driver, recorder):
    target = await driver.queue(driver.name())

    async def handle(message):
        await publish(driver, target.name)

    queue, _ = await consume(driver, handle)
    await until(lambda: recorder.spans(f"receive {queue.name}"))
    received = recorder.span(f"receive {queue.name}")
    assert shape(recorder.span(f"publish {target.name}"))["parent"] == span_id(received)


async def test_what_was_current_when_the_channel_was_opened_is_not_the_messages(driver, recorder):
    found = []

    async def handle(message):
        found.append(dict(baggage.get_all()))

    token = context.attach(baggage.set_baggage("opened", "here"))
    with recorder.tracer.start_as_current_span("startup"):
        channel = await driver.connection.channel()
    context.detach(token)
    queue = await driver.queue(driver.name())
    await (await channel.get_queue(queue.name)).consume(handle)
    await publish(driver, queue.name)
    await until(lambda: recorder.spans(f"receive {queue.name}"))
    assert found == [{}]
    received = shape(recorder.span(f"receive {queue.name}"))
    assert (received["parent"], received["links"]) == (span_id(recorder.span(f"publish {queue.name}")), [])


async def test_a_message_without_a_context_begins_a_trace(driver, recorder):
    with recorder.tracer.start_as_current_span("startup"):
        channel = await driver.connection.channel()
    handler = Handler()
    queue = await driver.queue(driver.name())
    await (await channel.get_queue(queue.name)).consume(handler.asynchronous)
    await (await underlying(channel)).basic_publish(b"", routing_key=queue.name)
    await until(lambda: recorder.spans(f"receive {queue.name}"))
    received = shape(recorder.span(f"receive {queue.name}"))
    assert (received["parent"], received["links"]) == (None, [])


async def test_nothing_of_one_message_is_left_for_the_next(driver, recorder):
    found = []

    async def handle(message):
        found.append((dict(baggage.get_all()), trace.get_current_span().get_span_context().trace_id))
        context.attach(baggage.set_baggage("left", "behind"))

    await consume(driver, handle, 2)
    await until(lambda: len(found) == 2)
    assert [left for left, _ in found] == [{}, {}]
    assert found[0][1] != found[1][1]


# Consumers.


async def test_a_hook_is_told_of_the_message_as_the_application_is(connect, recorder):
    told = []

    def hook(span, message):
        told.append(message)
        span.set_attribute("app.body", message.body)

    driver = await connect(consume_hook=hook)
    handler = Handler()
    queue, _ = await consume(driver, handler.asynchronous)
    await until(lambda: handler.seen)
    assert type(told[0]) is aio_pika.IncomingMessage
    assert (told[0].body, told[0].delivery_tag) == (b"0", handler.seen[0][0].delivery_tag)
    assert recorder.span(f"receive {queue.name}").attributes["app.body"] == b"0"


async def test_a_queue_that_is_consumed_again_has_one_span_per_message(driver, recorder):
    handler = Handler()
    queue, tag = await consume(driver, handler.asynchronous)
    await until(lambda: len(handler.seen) == 1)
    for number in (2, 3):
        await queue.cancel(tag)
        tag = await queue.consume(handler.asynchronous)
        await publish(driver, queue.name)
        await until(lambda number=number: len(handler.seen) == number)
    recorder.spans(f"receive {queue.name}", count=3)


async def test_a_consumer_from_before_uninstrumenting_goes_on_without_spans(driver, recorder):
    handler = Handler()
    queue, _ = await consume(driver, handler.asynchronous)
    await until(lambda: handler.seen)
    driver.instrumentor().uninstrument()
    await publish(driver, queue.name)
    await until(lambda: len(handler.seen) == 2)
    recorder.spans(f"receive {queue.name}", count=1)
    assert handler.seen[1][1] is trace.INVALID_SPAN


async def test_a_consumer_of_the_transport_itself_stays_untouched(driver, recorder):
    found = []

    async def handle(message):
        found.append((message, trace.get_current_span()))

    queue = await driver.queue(driver.name())
    await (await underlying(driver.channel)).basic_consume(queue.name, handle, no_ack=True)
    await publish(driver, queue.name)
    await until(lambda: found)
    assert found[0][1] is trace.INVALID_SPAN
    assert type(found[0][0]).__name__ == "DeliveredMessage"


@pytest.mark.parametrize("arguments", [(), (None,)])
async def test_wrong_arguments_raise_what_the_library_raises(driver, arguments):
    async def outcome():
        queue = await (await driver.connection.channel()).declare_queue(exclusive=True)
        try:
            await queue.consume(*arguments)
        except Exception as error:
            return type(error), str(error)

    instrumented = await outcome()
    driver.instrumentor().uninstrument()
    assert instrumented == await outcome()


# Consumers and channels that the broker ends.


async def test_a_queue_that_is_deleted_and_declared_again_has_one_span_per_message(driver, recorder):
    """The broker cancels the consumer; in the course of 10.1 the library began to restore both."""
    handler = Handler()
    queue, _ = await consume(driver, handler.asynchronous, no_ack=True)
    await until(lambda: handler.seen)
    await (await driver.connection.channel()).queue_delete(queue.name)
    if VERSION < (10, 2):
        await (await driver.channel.declare_queue(queue.name)).consume(handler.asynchronous, no_ack=True)
    with suppress_instrumentation():  # the first ones may be too early, and are lost
        while len(handler.seen) == 1:
            await publish(driver, queue.name, b"early")
            await asyncio.sleep(0.02)
    await publish(driver, queue.name, b"last")
    await until(lambda: handler.seen[-1][0].body == b"last")
    spans = recorder.spans(f"receive {queue.name}", count=len(handler.seen))
    assert [span_id(span) for span in spans] == [span_id(current) for _, current in handler.seen]


async def test_a_publish_that_closes_the_channel_of_its_callback_raises_as_without_us(driver, recorder):
    """From aio-pika 10 on it takes the cancellation of the callback back, and raises what the broker has said."""

    async def fail():
        raised = []
        channel = await driver.connection.channel()
        missing = await channel.get_exchange("missing", ensure=False)

        async def handle(_message):
            try:
                await missing.publish(Message(b""), "key")
            except BaseException as error:
                raised.append(
                    (type(error), str(error), [type(cause) for cause in (error.__cause__, error.__context__)])
                )
                raised.append(getattr(asyncio.current_task(), "cancelling", int)())
                raise

        queue = await channel.get_queue((await driver.queue(driver.name())).name)
        await queue.consume(handle, no_ack=True)
        await publish(driver, queue.name)
        await until(lambda: len(raised) == 2)
        return queue.name, raised

    name, instrumented = await fail()
    await until(lambda: recorder.spans(f"receive {name}"))
    driver.instrumentor().uninstrument()
    _, plain = await fail()
    assert instrumented == plain
    failed = recorder.span("publish missing")
    assert failed.attributes["error.type"].endswith(instrumented[0][0].__name__)
    assert shape(failed)["parent"] == span_id(recorder.span(f"receive {name}"))
    assert recorder.span(f"receive {name}").attributes["error.type"] == failed.attributes["error.type"]
