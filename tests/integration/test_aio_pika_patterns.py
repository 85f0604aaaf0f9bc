"""`aio_pika.patterns`: RPC as one operation from the call to the reply; tasks for workers as any message."""

from __future__ import annotations

import asyncio

import pytest
from aio_pika import Message
from aio_pika.exceptions import MessageProcessError
from aio_pika.patterns import RPC, JsonMaster, JsonRPC, Master, NackMessage, RejectMessage
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tests.support.recorder import shape, span_id, trace_id
from tests.support.waiting import until


@pytest.fixture
def library():
    return "aio_pika"


class Remote:
    """A function that is called through a broker, by a client on a connection of its own."""

    def __init__(self, driver, kind=RPC):
        self.driver, self.kind, self.name = driver, kind, driver.name()
        self.inside = []

    async def serve(self, function, **options):
        self.server = await self.kind.create(await self.driver.connection.channel(), **options)
        await self.server.register(self.name, function, auto_delete=True)
        self.client = await self.kind.create(await self.driver.connection.channel(), **options)
        return self.client

    async def double(self, *, number):
        self.inside.append(trace.get_current_span())
        return 2 * number

    async def fail(self, **_):
        raise ValueError("no good")


@pytest.mark.parametrize("kind", [RPC, JsonRPC])
async def test_a_call_is_one_operation_and_the_reply_no_message(connect, recorder, vocabulary, kind):
    driver = await connect(settle="off")
    remote = Remote(driver, kind)
    client = await remote.serve(remote.double)
    with recorder.tracer.start_as_current_span("around") as around:
        assert await client.call(remote.name, {"number": 4}) == 8
        assert trace.get_current_span() is around
    plain = vocabulary == "guide"
    called = recorder.span(f"publish {remote.name}" if plain else "call")  # the queue is deleted with its consumer
    (handled,) = await until(lambda: recorder.spans(f"receive {remote.name}" if plain else "process"))
    assert len(recorder.spans()) == 3
    assert [span.get_span_context() for span in remote.inside] == [handled.context]
    assert called.kind.name == "PRODUCER"
    assert called.parent.span_id == span_id(around)
    assert handled.parent.span_id == span_id(called)
    assert called.end_time > handled.start_time
    assert called.attributes.get("messaging.operation.name") == (None if plain else "call")
    assert shape(called)["status"] == shape(handled)["status"] == ("OK" if plain else "UNSET", None)


@pytest.mark.parametrize("kind", [RPC, JsonRPC])
async def test_an_error_is_recorded_on_both_sides(connect, recorder, kind):
    driver = await connect()
    remote = Remote(driver, kind)
    client = await remote.serve(remote.fail)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - JsonRPC has one of its own
        await client.call(remote.name)
    called = recorder.span(f"publish {remote.name}")
    (handled,) = await until(lambda: recorder.spans(f"receive {remote.name}"))
    assert shape(called)["status"] == ("ERROR", str(caught.value))
    assert shape(handled)["status"] == ("ERROR", "no good")
    assert handled.attributes["error.type"] == "ValueError"
    assert [event.name for event in handled.events] == ["ack", "exception"]


async def test_an_argument_that_cannot_be_read_is_an_error_too(connect, recorder):
    class Picky(RPC):
        def deserialize(self, data):
            if self is remote.server:
                raise ValueError("unreadable")
            return super().deserialize(data)

    driver = await connect()
    remote = Remote(driver, Picky)
    client = await remote.serve(remote.double)
    with pytest.raises(ValueError, match="unreadable"):
        await client.call(remote.name, {"number": 1})
    (handled,) = await until(lambda: recorder.spans(f"receive {remote.name}"))
    assert shape(handled)["status"] == ("ERROR", "answered with an error")


async def test_a_function_that_is_not_there_is_an_error(connect, recorder):
    driver = await connect()
    remote = Remote(driver)
    client = await remote.serve(remote.double)
    missing = driver.name()
    with pytest.raises(MessageProcessError):
        await client.call(missing)
    span = recorder.span(f"publish {missing}")
    assert span.attributes["error.type"] == "aio_pika.exceptions.MessageProcessError"
    assert len(recorder.spans()) == 1


async def test_a_call_that_expires_is_an_error(connect, recorder):
    driver = await connect()
    remote = Remote(driver)
    client = await remote.serve(remote.double)
    idle = await driver.channel.declare_queue(
        driver.name(), auto_delete=True, arguments={"x-dead-letter-exchange": RPC.DLX_NAME}
    )
    with pytest.raises(asyncio.TimeoutError):
        await client.call(idle.name, expiration=0.02)
    assert len(recorder.spans()) == 1
    assert recorder.span(f"publish {idle.name}").attributes["error.type"].endswith("TimeoutError")
    await idle.delete(if_empty=False, if_unused=False)


async def test_a_call_that_is_cancelled_ends(connect, recorder):
    driver = await connect()
    remote = Remote(driver)
    begun, never = asyncio.Event(), asyncio.Event()

    async def wait():
        begun.set()
        await never.wait()

    client = await remote.serve(wait)
    calling = asyncio.create_task(client.call(remote.name))
    await asyncio.wait_for(begun.wait(), 5)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert recorder.span(f"publish {remote.name}").attributes["error.type"].endswith("CancelledError")
    never.set()
    await until(lambda: recorder.spans(f"receive {remote.name}"))


async def test_a_function_may_call_and_publish_itself(connect, recorder):
    driver = await connect()
    inner, outer = Remote(driver), Remote(driver)
    await inner.serve(inner.double)
    elsewhere = await driver.queue(driver.name())

    async def function(*, number):
        await driver.channel.default_exchange.publish(Message(b"", correlation_id="own"), elsewhere.name)
        return 1 + await inner.client.call(inner.name, {"number": number})

    client = await outer.serve(function)
    assert await client.call(outer.name, {"number": 4}) == 9
    called = recorder.span(f"publish {outer.name}")
    (handled,) = await until(lambda: recorder.spans(f"receive {outer.name}"))
    for name in (inner.name, elsewhere.name):
        assert recorder.span(f"publish {name}").parent.span_id == span_id(handled)
    await until(lambda: len(recorder.spans()) == 5)
    assert {trace_id(span) for span in recorder.spans()} == {trace_id(called)}


async def test_many_calls_at_once_keep_to_themselves(connect, recorder):
    driver = await connect()
    remote = Remote(driver)
    client = await remote.serve(remote.double)

    async def call(number):
        with recorder.tracer.start_as_current_span(f"around {number}"):
            assert await client.call(remote.name, {"number": number}) == 2 * number

    await asyncio.gather(*(call(number) for number in range(20)))
    spans = await until(lambda: len(found := recorder.spans(f"receive {remote.name}")) == 20 and found)
    called = {span_id(span): span for span in recorder.spans(f"publish {remote.name}")}
    assert {span.parent.span_id for span in spans} == set(called)
    assert len({trace_id(span) for span in spans}) == 20


async def test_a_call_is_counted_once(connect, recorder):
    driver = await connect()
    remote = Remote(driver)
    client = await remote.serve(remote.double)
    for _ in range(3):
        await client.call(remote.name, {"number": 1})
    await until(lambda: len(recorder.spans()) == 6)
    found = recorder.metrics()
    assert [value for _, value in found["messaging.messages.produced"]] == [3]
    assert [value for _, value in found["messaging.messages.consumed"]] == [3]


async def test_calls_work_while_suppressed(connect, recorder):
    driver = await connect()
    remote = Remote(driver)
    client = await remote.serve(remote.double)
    with suppress_instrumentation():
        assert await client.call(remote.name, {"number": 4}) == 8
    await until(lambda: recorder.spans(f"receive {remote.name}"))
    assert len(recorder.spans()) == 1


async def test_calls_work_after_uninstrumenting(connect, recorder):
    driver = await connect()
    remote = Remote(driver)
    client = await remote.serve(remote.double)
    driver.instrumentor().uninstrument()
    assert await client.call(remote.name, {"number": 4}) == 8
    assert recorder.spans() == []
    driver.instrumentor().instrument(**recorder.providers)


async def test_an_excluded_call_still_passes_its_context_on(connect, recorder):
    driver = await connect(excluded_destinations="test-*")
    remote = Remote(driver)
    client = await remote.serve(remote.double)
    with recorder.tracer.start_as_current_span("around"):
        assert await client.call(remote.name, {"number": 4}) == 8
    assert [span.name for span in recorder.spans()] == ["around"]


# Tasks for workers.


async def worked(driver, function, kind=Master, **options):
    """What a worker makes of a task."""
    master = kind(driver.channel, **options)
    name = driver.name()
    worker = await master.create_worker(name, function, auto_delete=True)
    await master.create_task(name, {"number": 4})
    return name, worker


@pytest.mark.parametrize("kind", [Master, JsonMaster])
async def test_a_task_is_a_message(connect, recorder, kind):
    driver = await connect()
    seen = []

    async def work(*, number):
        seen.append((number, trace.get_current_span().get_span_context()))

    name, worker = await worked(driver, work, kind)
    (handled,) = await until(lambda: recorder.spans(f"receive {name}"))
    sent = recorder.span(f"publish {name}")
    assert len(recorder.spans()) == 2
    assert seen == [(4, handled.context)]
    task = kind(driver.channel).serialize({"number": 4})
    whole = {"links": [], "status": ("OK", None)}
    message_id = {"messaging.message.id": sent.attributes["messaging.message.id"]}
    assert shape(sent) == {
        "name": f"publish {name}",
        "kind": "PRODUCER",
        "parent": None,
        "attributes": {**driver.published("guide", name, task), **message_id},
        "events": [],
        **whole,
    }
    assert shape(handled) == {
        "name": f"receive {name}",
        "kind": "CONSUMER",
        "parent": span_id(sent),
        "attributes": {
            **driver.consumed("guide", name, task),
            **message_id,
            "messaging.rabbitmq.message.delivery_tag": 1,
        },
        "events": [("ack", {})],
        **whole,
    }
    await worker.close()


async def test_work_that_fails_is_an_error(connect, recorder):
    driver = await connect()

    async def work(**_):
        raise ValueError("no good")

    name, worker = await worked(driver, work, requeue=False)
    (handled,) = await until(lambda: recorder.spans(f"receive {name}"))
    assert shape(handled)["status"] == ("ERROR", "no good")
    assert shape(handled)["events"][0] == ("reject", {"messaging.settle.requeue": False})
    await worker.close()
    driver.errors.clear()


@pytest.mark.parametrize(("refusal", "verb"), [(RejectMessage, "reject"), (NackMessage, "nack")])
async def test_work_that_is_refused_says_how(connect, recorder, refusal, verb):
    driver = await connect()

    async def work(**_):
        raise refusal(requeue=False)

    name, worker = await worked(driver, work)
    (handled,) = await until(lambda: recorder.spans(f"receive {name}"))
    assert shape(handled)["events"] == [(verb, {"messaging.settle.requeue": False})]
    assert shape(handled)["status"] == ("OK", None)
    await worker.close()
