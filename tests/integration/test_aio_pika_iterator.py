"""`Queue.iterator()`: a message is handled while the loop's body runs, and not a moment longer."""

from __future__ import annotations

import asyncio
import gc
import sys

import aio_pika
import pytest
from aio_pika import Message
from aio_pika.abc import AbstractQueueIterator
from aio_pika.queue import QueueIterator
from aio_pika.robust_queue import RobustQueueIterator
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tests.support.recorder import shape, span_id
from tests.support.waiting import until


@pytest.fixture
def library():
    return "aio_pika"


@pytest.fixture
async def driver(connect):
    return await connect()


@pytest.fixture
async def filled(driver):
    """A queue with messages in it."""

    async def fill(count=2):
        queue = await driver.queue(driver.name())
        for number in range(count):
            await driver.channel.default_exchange.publish(Message(b"%d" % number), queue.name)
        return queue

    return fill


def current():
    return trace.get_current_span()


def received(recorder, queue, count):
    return recorder.spans(f"receive {queue.name}", count=count)


async def left(queue):
    """How many messages the broker has kept."""
    with suppress_instrumentation():
        found = 0
        while await queue.get(fail=False, no_ack=True):
            found += 1
        return found


# The body of a loop.


async def test_each_body_runs_in_the_span_of_its_message(filled, recorder):
    queue = await filled(3)
    seen = []
    async with queue.iterator() as messages:
        async for message in messages:
            seen.append(span_id(current()))
            await message.ack()
            if len(seen) == 3:
                break
        assert current() is trace.INVALID_SPAN
    spans = received(recorder, queue, 3)
    assert seen == [span_id(span) for span in spans]
    assert [shape(span)["parent"] for span in spans] == [
        span_id(span) for span in recorder.spans(f"publish {queue.name}", count=3)
    ]
    assert [shape(span)["events"] for span in spans] == [[("ack", {})]] * 3
    assert [shape(span)["status"] for span in spans] == [("OK", None)] * 3


async def test_a_bare_loop_ends_its_message_at_the_break(filled, recorder):
    queue = await filled(1)
    gc.disable()
    try:
        async for message in queue.iterator(no_ack=True):
            assert message.body == b"0"
            assert current() is not trace.INVALID_SPAN
            break
        received(recorder, queue, 1)
        assert current() is trace.INVALID_SPAN
    finally:
        gc.enable()


async def test_a_loop_over_the_queue_itself_ends_its_message_at_the_break(filled, recorder):
    queue = await filled(1)
    async for message in queue:
        seen = current()
        await message.ack()
        break
    assert current() is trace.INVALID_SPAN
    (span,) = received(recorder, queue, 1)
    assert span_id(span) == span_id(seen)


async def test_a_return_from_the_body_ends_the_message(filled, recorder):
    queue = await filled(1)

    async def first():
        async for message in queue.iterator(no_ack=True):
            return message
        return None

    assert (await first()).body == b"0"
    received(recorder, queue, 1)
    assert current() is trace.INVALID_SPAN


async def test_the_time_after_a_break_is_not_the_messages(filled, recorder):
    queue = await filled(1)
    async with queue.iterator(no_ack=True) as messages:
        async for _ in messages:
            break
        await asyncio.sleep(0.1)
    (span,) = received(recorder, queue, 1)
    assert span.end_time - span.start_time < 80_000_000


async def test_loops_in_a_loop_keep_their_own_messages(filled, recorder):
    outer, inner = await filled(1), await filled(1)
    async for _ in outer.iterator(no_ack=True):
        around = current()
        async for _ in inner.iterator(no_ack=True):
            assert current() is not around
            break
        assert current() is around
        break
    (received_outside,), (received_inside,) = received(recorder, outer, 1), received(recorder, inner, 1)
    assert span_id(received_outside) == span_id(around)
    assert received_inside.end_time <= received_outside.end_time


async def test_loops_in_one_block_end_their_messages_one_by_one(filled, recorder):
    queue = await filled(3)
    async with queue.iterator(no_ack=True) as messages:
        for number in range(3):
            async for _ in messages:
                received(recorder, queue, number)
                break
    received(recorder, queue, 3)


async def test_a_loop_in_a_loop_over_the_same_iterator_keeps_its_own_message(filled, recorder):
    queue = await filled(2)
    messages = queue.iterator(no_ack=True)
    async for _ in messages:
        outer = current()
        async for _ in messages:
            assert current() is not outer
            break
        assert current() is outer
        assert outer.is_recording()
        break
    received(recorder, queue, 2)


# Exceptions.


async def test_an_exception_that_leaves_the_block_is_the_messages(filled, recorder):
    queue = await filled(1)

    async def loop():
        async with queue.iterator(no_ack=True) as messages:
            async for _ in messages:
                raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        await loop()
    (span,) = received(recorder, queue, 1)
    assert shape(span)["status"] == ("ERROR", "no good")
    assert [name for name, _ in shape(span)["events"]] == ["exception"]
    assert current() is trace.INVALID_SPAN


async def test_an_exception_after_the_loop_is_not_the_messages(filled, recorder):
    queue = await filled(1)

    async def loop():
        async with queue.iterator(no_ack=True) as messages:
            async for _ in messages:
                break
            raise ValueError("later")

    with pytest.raises(ValueError, match="later"):
        await loop()
    (span,) = received(recorder, queue, 1)
    assert shape(span)["status"] == ("OK", None)
    assert shape(span)["events"] == []


async def test_an_exception_that_passes_process_is_recorded_though_it_is_caught(filled, recorder):
    queue = await filled(2)
    bodies = []
    async with queue.iterator() as messages:
        async for message in messages:
            bodies.append(message.body)
            try:
                async with message.process():
                    if len(bodies) == 1:
                        raise ValueError("no good")
            except ValueError:
                continue
            break
    one, two = received(recorder, queue, 2)
    assert shape(one)["status"] == ("ERROR", "no good")
    assert [name for name, _ in shape(one)["events"]] == ["reject", "exception"]
    assert shape(two)["status"] == ("OK", None)


async def test_a_loop_whose_task_is_cancelled_ends_its_message(filled, recorder):
    queue = await filled(1)
    started = asyncio.Event()

    async def loop():
        async with queue.iterator(no_ack=True) as messages:
            async for _ in messages:
                started.set()
                await asyncio.sleep(60)

    task = asyncio.create_task(loop())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = received(recorder, queue, 1)
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"


# The end of an iterator.


async def test_a_timeout_leaves_the_loop_as_without_us(filled, recorder):
    queue = await filled(1)
    bodies = []

    async def loop():
        async with queue.iterator(timeout=0.1, no_ack=True) as messages:
            async for message in messages:
                bodies.append(message.body)  # noqa: PERF401

    with pytest.raises(asyncio.TimeoutError):
        await loop()
    assert bodies == [b"0"]
    (span,) = received(recorder, queue, 1)
    assert shape(span)["status"] == ("OK", None)
    assert span.end_time - span.start_time < 80_000_000


async def test_a_cancelled_wait_leaves_nothing_current(filled, recorder):
    queue = await filled(1)
    iterator = queue.iterator(no_ack=True)
    await iterator.__anext__()
    waiting = asyncio.create_task(iterator.__anext__())
    await asyncio.sleep(0.02)
    received(recorder, queue, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_messages_that_were_fetched_and_given_back_make_no_span(filled, recorder):
    queue = await filled(5)
    iterator = queue.iterator()
    async with iterator as messages:
        async for message in messages:
            await until(lambda: iterator._queue.qsize() == 4)
            await message.ack()
            break
    received(recorder, queue, 1)
    assert len(recorder.spans()) == 6
    assert await left(queue) == 4


async def test_messages_that_the_library_gives_back_are_settled_by_nobody(connect, recorder, vocabulary):
    """Not by the application, even where a settlement is a span."""
    driver = await connect()
    queue = await driver.queue(driver.name())
    for _ in range(3):
        await driver.publish(queue.name)
    recorder.exporter.clear()
    async with queue.iterator() as messages:
        async for message in messages:
            await until(lambda: messages._queue.qsize() == 2)
            await message.ack()
            break
    names = [span.name.split()[0] for span in recorder.spans()]
    assert sorted(names) == (["receive"] if vocabulary == "guide" else ["ack", "process"])
    assert await left(queue) == 2


async def test_an_iterator_that_is_closed_in_the_body_ends_its_message(filled, recorder):
    queue = await filled(1)
    messages = queue.iterator(no_ack=True)
    async for _ in messages:
        await messages.close()
        received(recorder, queue, 1)
        assert current() is trace.INVALID_SPAN
        break


async def test_an_iterator_that_another_task_closes_leaves_nothing_current(filled, recorder):
    queue = await filled(1)
    before = context.get_current()
    async with queue.iterator(no_ack=True) as messages:
        async for _ in messages:
            await asyncio.create_task(messages.close())
            received(recorder, queue, 1)
            break
        assert context.get_current() == before


async def test_a_message_pulled_by_hand_ends_when_the_next_is_asked_for(filled, recorder):
    queue = await filled(2)
    messages = queue.iterator(no_ack=True)
    await messages.__anext__()
    first = current()
    await messages.__anext__()
    assert span_id(received(recorder, queue, 1)[0]) == span_id(first)
    assert span_id(current()) not in (0, span_id(first))
    await messages.close()
    received(recorder, queue, 2)


async def test_a_message_pulled_by_hand_ends_with_its_iterator(driver, filled, recorder):
    queue = await filled(1)
    connection = await aio_pika.connect(driver.address)

    async def pull(connection):
        messages = (await (await connection.channel()).get_queue(queue.name)).iterator(no_ack=True)
        await messages.__anext__()

    await asyncio.create_task(pull(connection))
    await connection.close()
    del connection
    await until(lambda: (gc.collect(), recorder.metrics(), recorder.spans(f"receive {queue.name}"))[2])
    received(recorder, queue, 1)


async def test_a_message_that_is_waited_for_with_a_limit_is_one_span(filled, recorder):
    queue = await filled(2)
    async with queue.iterator(no_ack=True) as messages:
        for _ in range(2):
            await asyncio.wait_for(messages.__anext__(), 2)
            if sys.version_info >= (3, 12):
                assert current() is not trace.INVALID_SPAN
    received(recorder, queue, 2)
    assert current() is trace.INVALID_SPAN


async def test_two_tasks_that_share_an_iterator_have_a_span_per_message(filled, recorder):
    queue = await filled(20)
    before = context.get_current()
    done = []
    messages = queue.iterator(no_ack=True)

    async def work():
        async for message in messages:
            own = current()
            await asyncio.sleep(0.001)
            assert current() is own
            assert own.is_recording()
            done.append(message.body)
            if len(done) >= 19:
                break
        assert context.get_current() == before
        assert current() is trace.INVALID_SPAN

    await asyncio.gather(work(), work())
    await messages.close()
    assert sorted(done) == sorted(b"%d" % number for number in range(20))
    received(recorder, queue, 20)


# Iterators as objects.


async def test_what_a_loop_holds_is_an_iterator_of_the_library_still(filled):
    queue = await filled(1)
    loop = queue.__aiter__()
    kind = RobustQueueIterator
    assert isinstance(loop, AbstractQueueIterator)
    assert isinstance(loop, kind)
    assert loop.__class__ is kind
    assert loop.consumer_tag is None
    assert repr(loop).startswith(f"<{kind.__name__}: queue='{queue.name}'")
    async with loop as entered:
        assert type(entered) is kind
        assert entered == loop
        assert entered.consumer_tag == loop.consumer_tag is not None
        async for message in entered:
            assert message.body == b"0"
            await message.ack()
            break


async def test_iterator_gives_the_librarys_own_object(filled):
    queue = await filled(1)
    messages = queue.iterator(no_ack=True)
    assert type(messages).__module__.startswith("aio_pika.")
    async with messages as entered:
        assert entered is messages


async def test_a_plain_connection_iterates_too(driver, filled, recorder):
    queue = await filled(1)
    async with await aio_pika.connect(driver.address) as connection:
        plain = await (await connection.channel()).get_queue(queue.name)
        async with plain.iterator() as messages:
            assert type(messages) is QueueIterator
            async for message in messages:
                async with message.process():
                    assert current() is not trace.INVALID_SPAN
                break
    received(recorder, queue, 1)


@pytest.mark.parametrize("moment", ["before", "during"])
async def test_an_iterator_survives_that_instrumenting_changes_around_it(driver, filled, recorder, moment):
    queue = await filled(3)
    if moment == "before":
        driver.instrumentor().uninstrument()
    messages = queue.iterator()
    async with messages:
        async for message in messages:
            await message.ack()
            break
        if moment == "before":
            driver.instrumentor().instrument(**recorder.providers)
        else:
            driver.instrumentor().uninstrument()
        async for message in messages:
            await message.ack()
            break
    received(recorder, queue, 1)
    assert current() is trace.INVALID_SPAN
    assert await left(queue) == 1


async def test_a_loop_under_suppression_makes_no_span(filled, recorder):
    queue = await filled(1)
    with suppress_instrumentation():
        async for _ in queue.iterator(no_ack=True):
            assert current() is trace.INVALID_SPAN
            break
    received(recorder, queue, 0)
