"""nats-py among tasks: no suspension is added, and no context goes where it does not belong."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

import pytest
from opentelemetry import context, trace

from tests.support.nats_py import flushed, fresh, twice
from tests.support.recorder import span_id
from tests.support.waiting import until


@pytest.fixture
def library():
    return "nats_py"


class Counted:
    """Awaits a coroutine, and counts how often that suspends the task."""

    def __init__(self, coroutine):
        self.coroutine = coroutine
        self.suspensions = 0

    def __await__(self):
        steps = self.coroutine.__await__()
        proceed = partial(steps.send, None)
        while True:
            try:
                step = proceed()
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            try:
                yield step
                proceed = partial(steps.send, None)
            except BaseException as error:  # a cancellation, for the coroutine to deal with
                proceed = partial(steps.throw, error)


def current_id():
    return span_id(trace.get_current_span())


async def waiting(connection, count=1):
    """A subscription whose messages are there already, and its subject."""
    subject = fresh()
    subscription = await connection.subscribe(subject)
    for _ in range(count):
        await connection.publish(subject, b"x")
    await flushed(connection)
    await until(lambda: subscription.pending_msgs == count)
    return subscription, subject


async def publishes(connection):
    return connection.publish(fresh(), b"x")


async def asks_for_one(connection):
    return (await waiting(connection))[0].next_msg(timeout=5)


async def advances(connection):
    return (await waiting(connection))[0].messages.__anext__()


async def fetches(connection):
    name, jetstream = fresh(), connection.jetstream()
    await jetstream.add_stream(name=name, subjects=[name], storage="memory")
    subscription = await jetstream.pull_subscribe(name)
    await connection.publish(subscription._nms, b'{"batch": 2}', subscription._deliver)
    for _ in range(2):
        await jetstream.publish(name, b"x")
    await until(lambda: subscription._sub.pending_msgs == 2)
    return subscription.fetch(2, timeout=0.5)


async def responds(connection):
    subscription, subject = await waiting(connection, 0)
    await connection.publish(subject, b"x", reply=connection.new_inbox())
    message = await subscription.next_msg(timeout=5)
    return message.respond(b"yes")


async def watches(connection):
    bucket = await connection.jetstream().create_key_value(bucket=fresh(), storage="memory")
    watcher = await bucket.watchall()
    await watcher.updates(timeout=5)
    await bucket.put("name", b"value")
    await until(lambda: not watcher._updates.empty())
    return watcher.__anext__()


@pytest.mark.parametrize("call", [publishes, asks_for_one, advances, fetches, responds, watches])
async def test_a_call_suspends_as_often_as_without_us(instrument, nats_address, call):
    async def scenario(connection):
        counted = Counted(await call(connection))
        await counted
        return counted.suspensions

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there is no TaskGroup before Python 3.11")
async def test_a_group_of_tasks_has_each_its_message(connect, recorder):
    driver = await connect()
    subscription, _ = await waiting(driver.client, 3)
    seen = []

    async def work():
        await subscription.next_msg(timeout=5)
        mine = current_id()
        await asyncio.sleep(0)
        assert current_id() == mine
        seen.append(mine)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(work())
    assert trace.get_current_span() is trace.INVALID_SPAN
    await subscription.unsubscribe()
    assert sorted(span_id(span) for span in recorder.consumers(3)) == sorted(seen)


async def test_messages_asked_for_at_once_all_end_with_the_subscription(connect, recorder):
    driver = await connect()
    subscription, _ = await waiting(driver.client, 3)
    await asyncio.gather(*(subscription.next_msg(timeout=5) for _ in range(3)))
    assert trace.get_current_span() is trace.INVALID_SPAN
    await subscription.unsubscribe()
    recorder.consumers(3)


async def test_asking_with_a_timeout_of_ones_own_leaves_nothing_behind(connect, recorder):
    driver = await connect()
    subscription, subject = await waiting(driver.client)
    before = context.get_current()
    await asyncio.wait_for(subscription.next_msg(timeout=5), 5)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(subscription.next_msg(timeout=5), 0.01)
    await driver.publish(subject)
    assert (await subscription.next_msg(timeout=5)).data == b"body"
    await subscription.unsubscribe()
    assert context.get_current() is before
    recorder.consumers(2)


async def test_a_task_that_is_cancelled_while_it_asks_says_nothing(connect, recorder):
    driver = await connect()
    subscription, _ = await waiting(driver.client, 0)
    task = asyncio.create_task(subscription.next_msg(timeout=5))
    await asyncio.sleep(0.01)  # until the library's own task, which old versions leave behind, has begun
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.spans() == []


async def test_a_task_that_is_cancelled_while_it_handles_ends_with_the_next_question(connect, recorder):
    driver = await connect()
    subscription, subject = await waiting(driver.client)
    running = asyncio.Event()

    async def work():
        await subscription.next_msg(timeout=5)
        running.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await driver.publish(subject)
    await subscription.next_msg(timeout=5)
    recorder.consumers(1)
    await subscription.unsubscribe()
    recorder.consumers(2)


async def test_what_a_task_publishes_hangs_below_the_message_that_started_it(connect, recorder):
    driver = await connect()
    subscription, _ = await waiting(driver.client)
    await subscription.next_msg(timeout=5)
    await asyncio.create_task(driver.publish(driver.name()))
    await subscription.unsubscribe()
    (handled,) = recorder.consumers(1)
    assert recorder.producers(2)[1].parent.span_id == span_id(handled)
