"""`Queue.get`: one message that the application asks for, handled until it is settled or the next one is asked for."""

from __future__ import annotations

import asyncio

import pytest
from aio_pika import Message
from aio_pika.exceptions import QueueEmpty
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tests.support.recorder import shape, span_id
from tests.support.waiting import until


@pytest.fixture
def library():
    return "aio_pika"


async def filled(driver, *bodies, **options):
    """A queue with messages in it."""
    queue = await driver.queue(driver.name())
    for body in bodies:
        await driver.channel.default_exchange.publish(Message(body, **options), queue.name)
    return queue


def current():
    return trace.get_current_span()


async def test_a_message_is_handled_until_it_is_settled(connect, recorder, vocabulary):
    driver = await connect(settle="off")
    queue = await filled(driver, b"body")
    message = await queue.get()
    handling = current()
    await message.ack()
    assert current() is trace.INVALID_SPAN
    (published,) = recorder.producers(1)
    (handled,) = recorder.consumers(1)
    assert handled.context == handling.get_span_context()
    found = driver.consumed(vocabulary, queue.name, b"body")
    ids = {"messaging.message.id": message.message_id, "messaging.rabbitmq.message.delivery_tag": 1}
    guide = vocabulary == "guide"
    assert shape(handled) == {
        "name": f"{'receive' if guide else 'process'} {queue.name}",
        "kind": "CONSUMER",
        "parent": span_id(published),
        "links": [] if guide else [span_id(published)],
        "status": ("OK" if guide else "UNSET", None),
        "attributes": {**found, **ids, **process_operation(vocabulary)},
        "events": [],
    }
    if guide:
        assert len(recorder.spans()) == 2
        return
    call = recorder.span(f"get {queue.name}")
    operation = {"messaging.operation.name": "get", "messaging.operation.type": "receive"}
    assert shape(call) == {
        "name": f"get {queue.name}",
        "kind": "CLIENT",
        "parent": None,
        "links": [span_id(published)],
        "status": ("UNSET", None),
        "attributes": {**found, **ids, **operation, **driver.peer()},
        "events": [],
    }
    assert call.end_time <= handled.start_time


def process_operation(vocabulary):
    return {"messaging.operation": "process"} if vocabulary == "both" else {}


@pytest.mark.parametrize("fail", [True, False])
async def test_an_empty_queue_makes_nothing(connect, recorder, vocabulary, fail):
    driver = await connect()
    queue = await filled(driver)
    if fail:
        with pytest.raises(QueueEmpty):
            await queue.get()
    else:
        assert await queue.get(fail=False) is None
    assert recorder.spans() == []
    assert recorder.metrics() == {}


async def test_the_next_get_ends_what_was_handled(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"1", b"2")
    await queue.get(no_ack=True)
    first = current()
    await queue.get(no_ack=True)
    assert current() is not first
    assert not first.is_recording()
    assert await queue.get(no_ack=True, fail=False) is None
    assert current() is trace.INVALID_SPAN
    assert len(recorder.consumers(2)) == 2


async def test_a_settlement_is_an_event_and_then_the_end(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"1")
    await (await queue.get()).reject(requeue=True)
    await (await queue.get()).nack(requeue=False)
    found = [shape(span)["events"] for span in recorder.consumers(2)]
    assert found == [
        [("reject", {"messaging.settle.requeue": True})],
        [("nack", {"messaging.settle.requeue": False})],
    ]


async def test_a_settlement_is_a_child_of_the_handling_in_the_conventions(connect, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    driver = await connect()
    queue = await filled(driver, b"1")
    await (await queue.get()).ack()
    (handled,) = recorder.consumers(1)
    assert recorder.span(f"ack {queue.name}").parent.span_id == span_id(handled)


async def test_processing_records_what_was_raised(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"1")
    with pytest.raises(ValueError, match="no good"):
        async with (await queue.get()).process():
            raise ValueError("no good")
    (span,) = recorder.consumers(1)
    assert shape(span)["status"] == ("ERROR", "no good")
    assert [event.name for event in span.events] == ["reject", "exception"]


async def test_another_task_may_settle(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"1")
    message = await queue.get()
    handling = current()
    await asyncio.create_task(message.ack())
    assert not handling.is_recording()
    assert shape(recorder.consumers(1)[0])["events"] == [("ack", {})]
    assert await queue.get(fail=False) is None  # and our own context is back
    assert current() is trace.INVALID_SPAN


async def test_tasks_that_share_a_queue_do_not_end_each_others_messages(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"1", b"2", b"3")

    async def handle(barrier):
        message = await queue.get()
        mine = current()
        barrier.append(mine)
        await until(lambda: len(barrier) == 3)
        assert mine.is_recording()
        await message.ack()
        assert not mine.is_recording()

    barrier = []
    await asyncio.gather(*(handle(barrier) for _ in range(3)))
    assert [shape(span)["events"] for span in recorder.consumers(3)] == [[("ack", {})]] * 3


async def test_a_message_asked_for_in_a_task_of_its_own_ends_with_the_next(connect, recorder):
    """As `asyncio.wait_for` does up to Python 3.11."""
    driver = await connect()
    queue = await filled(driver, b"1", b"2")
    await asyncio.create_task(queue.get(no_ack=True))
    await asyncio.create_task(queue.get(no_ack=True))
    assert len(recorder.consumers(1)) == 1
    await driver.channel.close()
    await until(lambda: len(recorder.spans(f"receive {queue.name}")) == 2)


async def test_acknowledging_several_ends_them_all(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"1", b"2", b"3")
    messages, done = [], asyncio.Event()

    async def hold():
        messages.append(await queue.get())
        await done.wait()

    tasks = [asyncio.create_task(hold()) for _ in range(3)]
    await until(lambda: len(messages) == 3)
    await max(messages, key=lambda message: message.delivery_tag).ack(multiple=True)
    assert len(recorder.consumers(3)) == 3
    done.set()
    await asyncio.gather(*tasks)


async def test_a_closed_channel_ends_what_was_pulled(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"1")
    await queue.get()
    handling = current()
    await driver.channel.close()
    await until(lambda: not handling.is_recording())
    assert len(recorder.consumers(1)) == 1
    with pytest.raises(Exception):  # noqa: B017, PT011 - of another class in each version
        await queue.get()
    assert current() is trace.INVALID_SPAN


async def test_a_failure_is_recorded(connect, recorder, vocabulary):
    driver = await connect()
    queue = await driver.channel.declare_queue(driver.name())
    await queue.delete()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of another class in each version
        await queue.get()
    (span,) = recorder.spans()
    found = shape(span)
    assert found["name"] == f"{'receive' if vocabulary == 'guide' else 'get'} {queue.name}"
    assert found["kind"] == ("CONSUMER" if vocabulary == "guide" else "CLIENT")
    assert found["status"] == ("ERROR", str(caught.value))
    assert [event.name for event in span.events] == ["exception"]


async def test_a_pulled_message_is_counted_once(connect, recorder, vocabulary):
    driver = await connect()
    queue = await filled(driver, b"1", b"2")
    await (await queue.get()).ack()
    await (await queue.get()).ack()
    found = recorder.metrics()
    for name in ("messaging.messages.consumed", "messaging.client.consumed.messages"):
        if name in found:
            assert [value for _, value in found[name]] == [2]
    assert "messaging.messages.consumed" in found or vocabulary == "semconv"


async def test_a_message_pulled_while_another_is_handled_leaves_it_be(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"pulled")
    done = asyncio.Event()

    async def handle(message):
        outer = current()
        pulled = await queue.get()
        assert current() is not outer
        await message.ack()
        await pulled.ack()
        assert current() is outer
        done.set()

    other = await driver.subscribe(driver.name(), handle)
    await driver.publish(other.name)
    await asyncio.wait_for(done.wait(), 5)
    spans = await until(lambda: len(found := recorder.spans(f"receive {queue.name}")) == 1 and found)
    spans += await until(lambda: recorder.spans(f"receive {other.name}"))
    assert [shape(span)["events"] for span in spans] == [[("ack", {})]] * 2


async def test_a_pulled_message_outlives_nothing_when_spans_end_at_once(connect, recorder):
    driver = await connect(process_spans=False)
    queue = await filled(driver, b"1")
    message = await queue.get()
    assert current() is trace.INVALID_SPAN
    assert len(recorder.consumers(1)) == 1
    await message.ack()


async def test_a_get_is_silent_while_suppressed(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"1")
    recorder.exporter.clear()
    with suppress_instrumentation():
        await (await queue.get()).ack()
    assert recorder.spans() == []


async def test_two_queues_asked_in_turn_keep_no_chain_of_contexts(connect, recorder):
    import gc

    from otel_messaging.core.delivery import Delivery

    driver = await connect()
    one = await filled(driver, *[b"1"] * 40)
    other = await filled(driver, *[b"2"] * 40)
    for _ in range(40):
        await one.get(no_ack=True)
        await other.get(no_ack=True)
    gc.collect()
    assert sum(isinstance(found, Delivery) for found in gc.get_objects()) < 30
    for queue in (one, other):
        assert await queue.get(fail=False) is None
    assert current() is trace.INVALID_SPAN


@pytest.mark.parametrize("names", ["one queue", "new queues"])
async def test_a_message_that_nobody_will_settle_is_handled_until_the_task_asks_again(
    connect, recorder, vocabulary, names
):
    driver = await connect()
    queue = await filled(driver, b"0", b"1", b"2")
    seen = []
    for number in range(3):
        if names == "new queues":
            queue = await filled(driver, b"%d" % number)
        message = await (await driver.channel.get_queue(queue.name)).get(no_ack=True)
        assert message.body == b"%d" % number
        seen.append((span_id(current()), message.message_id))
        assert len(recorder.open.spans) == 1
    await driver.channel.close()
    handled = recorder.consumers(3)
    assert [(span_id(span), span.attributes["messaging.message.id"]) for span in handled] == seen
    published = {span.attributes["messaging.message.id"]: span for span in recorder.spans() if is_producer(span)}
    guide = vocabulary == "guide"
    for span in handled:
        source = published[span.attributes["messaging.message.id"]]
        assert span.parent.span_id == span_id(source)
        assert shape(span)["links"] == ([] if guide else [span_id(source)])
        assert shape(span)["status"] == ("OK" if guide else "UNSET", None)


def is_producer(span):
    return span.kind is trace.SpanKind.PRODUCER


async def test_a_message_of_another_task_is_handled_while_this_one_asks(connect, recorder):
    driver = await connect()
    queue = await filled(driver, b"0", b"1")
    asked, over = asyncio.Event(), asyncio.Event()

    async def other():
        await queue.get(no_ack=True)
        asked.set()
        await over.wait()
        return span_id(current())

    task = asyncio.create_task(other())
    await asked.wait()
    await (await filled(driver, b"2")).get(no_ack=True)
    assert len(recorder.open.spans) == 2
    over.set()
    theirs = await task
    await queue.get(no_ack=True)
    assert theirs in [span_id(span) for span in recorder.consumers(2)], "the task is over, and so is its message"
    await driver.channel.close()
    recorder.consumers(3)
    context.attach(context.Context())


async def test_a_message_to_settle_is_handled_while_another_is_got_that_nobody_will_settle(connect, recorder):
    driver = await connect()
    queue, replies = await filled(driver, b"question"), await filled(driver, b"answer")
    message = await queue.get()
    outer = current()
    for _ in range(2):
        await replies.get(no_ack=True, fail=False)
    assert current() is outer
    await message.ack()
    recorder.consumers(2)
