"""ack, nack, reject and `message.process()`: told on the message's span, or by spans of their own."""

from __future__ import annotations

import asyncio
import contextlib
from importlib.metadata import version
from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika import Message
from aio_pika.exceptions import ChannelInvalidStateError, MessageProcessError

from tests.support.proxy import Proxy
from tests.support.recorder import shape, span_id
from tests.support.waiting import until


@pytest.fixture
def library():
    return "aio_pika"


closed_is_closed = pytest.mark.skipif(
    version("aio-pika").startswith("9.0."), reason="aio-pika 9.0 sends it through a closed channel, and loses all"
)


class Handled:
    """One message in a callback, with a way to wait for its end."""

    def __init__(self, driver):
        self.driver = driver
        self.outcome = None

    async def by(self, handler, messages=1, **options):
        """What the handler returns or raises."""
        queue = self.queue = await self.driver.queue(self.driver.name())
        done = asyncio.Event()

        async def handle(message):
            if message.redelivered:
                return await message.ack()
            try:
                self.outcome = await handler(message)
            except Exception as error:
                self.outcome = error
            return done.set()

        for number in range(messages):
            message = Message(b"%d" % number, message_id=f"m-{number}", correlation_id="c-1")
            await self.driver.channel.default_exchange.publish(message, queue.name)
        tag = await queue.consume(handle, **options)
        await asyncio.wait_for(done.wait(), 5)
        await queue.cancel(tag)
        return self.outcome


@pytest.fixture
async def handled(connect):
    return Handled(await connect())


@pytest.fixture
async def conventions(connect, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    return Handled(await connect())


def events(recorder, handled):
    return shape(recorder.spans(f"receive {handled.queue.name}")[0])["events"]


IDS = {"messaging.message.id": "m-0", "messaging.message.conversation_id": "c-1"}
"""Those of the message, which are not told where several are settled at once."""
SETTLEMENTS = [
    ("ack", (), {}, {}),
    ("ack", (True,), {}, {"messaging.settle.multiple": True}),
    ("ack", (), {"multiple": True}, {"messaging.settle.multiple": True}),
    ("nack", (), {}, {"messaging.settle.requeue": True}),
    ("nack", (True, False), {}, {"messaging.settle.multiple": True, "messaging.settle.requeue": False}),
    ("nack", (), {"requeue": False}, {"messaging.settle.requeue": False}),
    ("reject", (), {}, {"messaging.settle.requeue": False}),
    ("reject", (True,), {}, {"messaging.settle.requeue": True}),
    ("reject", (), {"requeue": True}, {"messaging.settle.requeue": True}),
]


@pytest.mark.parametrize(("verb", "args", "kwargs", "details"), SETTLEMENTS)
async def test_a_settlement_is_an_event_with_what_was_told(handled, recorder, verb, args, kwargs, details):
    assert await handled.by(lambda message: getattr(message, verb)(*args, **kwargs)) is None
    assert events(recorder, handled) == [(verb, details)]
    assert {span.name.split()[0] for span in recorder.spans()} == {"publish", "receive"}


@pytest.mark.parametrize(("verb", "args", "kwargs", "details"), SETTLEMENTS)
async def test_a_settlement_is_a_client_span_in_the_conventions(conventions, recorder, verb, args, kwargs, details):
    assert await conventions.by(lambda message: getattr(message, verb)(*args, **kwargs)) is None
    name = conventions.queue.name
    (span,) = recorder.spans(f"{verb} {name}")
    (processed, *_) = await until(lambda: recorder.spans(f"process {name}"))
    assert shape(span) == {
        "name": f"{verb} {name}",
        "kind": "CLIENT",
        "parent": span_id(processed),
        "links": [],
        "status": ("UNSET", None),
        "attributes": {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": verb,
            "messaging.operation.type": "settle",
            "messaging.destination.name": name,
            "messaging.rabbitmq.destination.routing_key": name,
            "messaging.rabbitmq.message.delivery_tag": 1,
            **conventions.driver._server(),
            **conventions.driver.peer(),
            **({} if "messaging.settle.multiple" in details else IDS),
            **details,
        },
        "events": [],
    }
    assert shape(processed)["events"] == []


@closed_is_closed
async def test_a_settlement_that_fails_says_so_on_the_event(handled, recorder):
    outcome = await settled_too_late(handled)
    assert isinstance(outcome, ChannelInvalidStateError)
    assert events(recorder, handled) == [("ack", {"error.type": "aiormq.exceptions.ChannelInvalidStateError"})]


@closed_is_closed
async def test_a_settlement_that_fails_is_an_error_of_its_span(conventions, recorder):
    outcome = await settled_too_late(conventions)
    span = recorder.span(f"ack {conventions.queue.name}")
    assert shape(span)["status"] == ("ERROR", str(outcome))
    assert span.attributes["error.type"] == "aiormq.exceptions.ChannelInvalidStateError"


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("way", ["callback", "iterator", "get"])
async def test_a_message_that_is_settled_later_is_named_as_what_is_handled(conventions, recorder, way, exclusive):
    driver, kept = conventions.driver, []
    exchange = await driver.channel.declare_exchange(driver.name(), auto_delete=True)
    queue = await driver.channel.declare_queue(driver.name(), exclusive=exclusive)
    await queue.bind(exchange, "new")
    await exchange.publish(Message(b"", message_id="m-0", correlation_id="c-1"), "new")
    if way == "callback":
        await queue.consume(keep_in(kept))
        await until(lambda: kept)
        await until(lambda: recorder.consumers(1))
    elif way == "iterator":
        iterator = queue.iterator()
        async for message in iterator:
            kept.append(message)
            break
    else:
        kept.append(await queue.get())
        await queue.get(fail=False)
    await kept[0].ack()
    composed = f"{exchange.name}:new" if way == "get" else f"{exchange.name}:new:{queue.name}"
    hidden = exclusive and way != "get"  # nobody tells of the queue then
    found = shape(recorder.span("ack" if hidden else f"ack {composed}"))
    assert found["kind"] == "CLIENT"
    assert found["status"] == ("UNSET", None)
    assert found["attributes"] == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "ack",
        "messaging.operation.type": "settle",
        "messaging.destination.name": composed,
        "messaging.rabbitmq.destination.routing_key": "new",
        "messaging.rabbitmq.message.delivery_tag": 1,
        **({"messaging.destination.temporary": True} if hidden else {}),
        **IDS,
        **driver._server(),
        **driver.peer(),
    }
    if way == "iterator":
        await iterator.close()
    await queue.delete(if_unused=False)


def keep_in(kept):
    async def handle(message):
        kept.append(message)

    return handle


async def settled_too_late(handled):
    """What acknowledging a message raises when its channel is closed."""
    channel = await handled.driver.connection.channel()
    handled.queue = await handled.driver.queue(handled.driver.name())
    await handled.driver.channel.default_exchange.publish(Message(b""), handled.queue.name)
    messages = (await channel.get_queue(handled.queue.name)).iterator()
    async for message in messages:
        await channel.close()
        try:
            await message.ack()
        except Exception as error:
            return error
    return None


async def test_settling_twice_is_the_librarys_error_and_no_second_event(handled, recorder):
    async def twice(message):
        await message.ack()
        await message.reject()

    outcome = await handled.by(twice)
    assert isinstance(outcome, MessageProcessError)
    assert outcome.args[0] == "Message already processed"
    assert events(recorder, handled) == [("ack", {})]


async def test_settling_what_needs_none_is_the_librarys_error_and_no_event(handled, recorder):
    outcome = await handled.by(lambda message: message.ack(), no_ack=True)
    assert isinstance(outcome, TypeError)
    assert events(recorder, handled) == []


@pytest.mark.parametrize("verb", ["ack", "nack", "reject"])
async def test_wrong_arguments_raise_what_the_library_raises(handled, recorder, verb):
    outcome = await handled.by(lambda message: getattr(message, verb)(unknown=1))
    assert isinstance(outcome, TypeError)
    assert str(outcome) == f"IncomingMessage.{verb}() got an unexpected keyword argument 'unknown'"
    assert events(recorder, handled) == []


async def test_acknowledging_several_acknowledges_them_all(handled):
    bodies = []

    async def last(message):
        bodies.append(message.body)
        if len(bodies) == 3:
            await message.ack(multiple=True)

    await handled.by(last, messages=3)
    await until(lambda: len(bodies) == 3)
    await asyncio.sleep(0.02)
    await handled.driver.channel.close()  # what is not acknowledged goes back
    again = await (await handled.driver.connection.channel()).declare_queue(handled.queue.name, passive=True)
    assert again.declaration_result.message_count == 0


async def test_a_message_of_another_is_settled_without_an_event_on_this_one(handled, recorder):
    first = []

    async def settle(message):
        first.append(message)
        if len(first) == 2:
            await first[0].ack()
            await first[1].ack()

    await handled.by(settle, messages=2)
    await until(lambda: len(recorder.spans(f"receive {handled.queue.name}")) == 2)
    found = [shape(span)["events"] for span in recorder.spans(f"receive {handled.queue.name}")]
    assert found == [[], [("ack", {})]]


async def test_a_message_that_nobody_handles_here_is_settled_by_a_span(conventions, recorder):
    kept = []

    async def keep(message):
        kept.append(message)

    await conventions.by(keep)
    await until(lambda: recorder.spans(f"process {conventions.queue.name}"))
    await kept[0].ack()
    span = recorder.span(f"ack {conventions.queue.name}")
    assert shape(span)["parent"] is None
    assert span.attributes["messaging.rabbitmq.message.delivery_tag"] == 1


async def test_settlements_name_the_server_that_each_message_came_from(conventions, recorder):
    driver, kept, ports = conventions.driver, asyncio.Queue(), []
    queue = await driver.queue(driver.name())
    async with Proxy(driver.address) as wire:
        for address in (driver.address, wire.address):
            ports.append(urlsplit(address).port)
            async with await aio_pika.connect(address) as connection:
                await (await (await connection.channel()).get_queue(queue.name)).consume(kept.put)
                await driver.channel.default_exchange.publish(Message(b""), queue.name)
                message = await asyncio.wait_for(kept.get(), 5)
                await until(lambda: len(recorder.spans(f"process {queue.name}")) == len(ports))
                await message.ack()
    assert [span.attributes["server.port"] for span in recorder.spans(f"ack {queue.name}", count=2)] == ports


async def test_a_temporary_queue_is_in_no_name_of_a_settlement(conventions, recorder):
    kept = asyncio.Queue()
    driver = conventions.driver
    queue = await driver.channel.declare_queue(exclusive=True)
    await queue.consume(kept.put)
    await driver.channel.default_exchange.publish(Message(b""), queue.name)
    message = await asyncio.wait_for(kept.get(), 5)
    await until(lambda: recorder.spans("process"))
    await message.ack()
    recorder.span("ack")


# The context manager.


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({}, None, ("ack", {})),
        ({}, ValueError, ("reject", {"messaging.settle.requeue": False})),
        ({"requeue": True}, ValueError, ("reject", {"messaging.settle.requeue": True})),
        ({"requeue": True, "reject_on_redelivered": True}, ValueError, ("reject", {"messaging.settle.requeue": True})),
        ({"ignore_processed": True}, None, ("ack", {})),
        ({"ignore_processed": True}, ValueError, ("reject", {"messaging.settle.requeue": False})),
    ],
)
async def test_process_settles_as_it_is_told(handled, recorder, options, error, expected):
    async def handle(message):
        async with message.process(**options) as entered:
            assert entered is message
            if error:
                raise error("no good")

    outcome = await handled.by(handle)
    assert error is None if outcome is None else type(outcome) is error
    await until(lambda: recorder.spans(f"receive {handled.queue.name}"))
    span = shape(recorder.spans(f"receive {handled.queue.name}")[0])
    assert span["events"][0] == expected
    # The application has caught it, yet handling the message failed.
    assert span["status"] == (("ERROR", "no good") if error else ("OK", None))
    assert [name for name, _ in span["events"][1:]] == (["exception"] if error else [])


async def test_process_leaves_alone_what_is_settled_already(handled, recorder):
    async def handle(message):
        async with message.process(ignore_processed=True):
            await message.reject()

    assert await handled.by(handle) is None
    assert events(recorder, handled) == [("reject", {"messaging.settle.requeue": False})]


async def test_process_of_a_settled_message_is_the_librarys_error(handled, recorder):
    async def handle(message):
        async with message.process():
            await message.ack()

    assert isinstance(await handled.by(handle), MessageProcessError)
    assert events(recorder, handled) == [("ack", {})]


async def test_a_message_that_was_redelivered_is_rejected_for_good(handled, recorder):
    async def handle(message):
        async with message.process(requeue=True, reject_on_redelivered=True):
            raise ValueError(message.redelivered)

    queue = await handled.driver.queue(handled.driver.name())
    handled.driver.errors.clear()
    await queue.consume(handle)
    await handled.driver.channel.default_exchange.publish(Message(b""), queue.name)
    spans = await until(lambda: len(found := recorder.spans(f"receive {queue.name}")) == 2 and found)
    assert [shape(span)["events"][0] for span in spans] == [
        ("reject", {"messaging.settle.requeue": True}),
        ("reject", {"messaging.settle.requeue": False}),
    ]
    assert [shape(span)["status"] for span in spans] == [("ERROR", "False"), ("ERROR", "True")]


async def test_an_exception_of_processing_passes_unchanged(handled):
    raised = ValueError("no good")

    async def handle(message):
        async with message.process():
            raise raised

    outcome = await handled.by(handle)
    assert outcome is raised
    assert outcome.__context__ is None
    assert outcome.__cause__ is None


async def test_a_generator_that_is_left_in_a_process_block_has_not_failed(handled, recorder):
    queue = await handled.driver.queue(handled.driver.name())
    await handled.driver.channel.default_exchange.publish(Message(b""), queue.name)

    async def messages():
        async with queue.iterator() as iterator:
            async for message in iterator:
                async with message.process():
                    yield message

    async with contextlib.aclosing(messages()) as generator:
        async for _ in generator:
            break
    span = shape(recorder.span(f"receive {queue.name}"))
    assert span["status"] == ("OK", None)
    assert span["events"] == [("reject", {"messaging.settle.requeue": False})], "so does the library"


@pytest.mark.parametrize("vocabulary", ["guide", "semconv"], indirect=True)
async def test_process_swallows_that_there_is_no_channel_to_reject_by(connect, recorder, vocabulary):
    driver, outcomes = await connect(), []
    queue = await driver.queue(driver.name())
    channel = await driver.connection.channel()

    async def broken(message):
        try:
            async with message.process(requeue=True):
                await channel.close()
                raise ValueError("no good")
        except Exception as error:
            outcomes.append(type(error))

    await driver.channel.default_exchange.publish(Message(b""), queue.name)
    await (await channel.get_queue(queue.name)).consume(broken)
    await until(lambda: outcomes and len(recorder.spans()) == 2)
    word = "receive" if vocabulary == "guide" else "process"
    assert {span.name for span in recorder.spans()} == {f"publish {queue.name}", f"{word} {queue.name}"}
    span = shape(recorder.span(f"{word} {queue.name}"))
    assert outcomes[0] in (ValueError, ChannelInvalidStateError)  # not all versions swallow it
    assert span["status"] == ("ERROR", "no good")
    assert [name for name, _ in span["events"]] == ["exception"]


async def test_settlements_may_be_switched_off(connect, recorder):
    handled = Handled(await connect(settle="off"))
    assert await handled.by(lambda message: message.ack()) is None
    assert events(recorder, handled) == []
