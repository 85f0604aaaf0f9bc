"""Loops over `Subscription.messages` of nats-py: who has which message, and until when."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import context, trace

from otel_messaging import NatsPyInstrumentor
from tests.support.nats_py import client, fresh, twice
from tests.support.recorder import span_id
from tests.support.waiting import until


@pytest.fixture
def library():
    return "nats_py"


async def prepared(driver, count):
    """A subscription with some messages, named by their numbers."""
    subject = driver.name()
    subscription = await driver.listen(subject)
    for number in range(count):
        await driver.publish(subject, b"%d" % number)
    return subscription


def current_id():
    return span_id(trace.get_current_span())


def by_body(recorder):
    """The spans of handled messages, in the order in which those were published."""
    order = [span_id(span) for span in recorder.producers(len(recorder.spans()) // 2)]
    return sorted(recorder.consumers(len(order)), key=lambda span: order.index(span.parent.span_id))


async def test_workers_that_share_a_subscription_have_each_their_own_message(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 4)
    seen, together = {}, [asyncio.Event() for _ in range(4)]

    async def worker():
        before = context.get_current()
        async for message in subscription.messages:
            number = int(message.data)
            first = current_id()
            together[number].set()
            await together[number ^ 1].wait()  # two are handled at a time
            seen[number] = (first, current_id())
            if number >= 2:
                break
        assert context.get_current() is before

    await asyncio.wait_for(asyncio.gather(worker(), worker()), 5)
    spans = by_body(recorder)
    assert [seen[number] for number in range(4)] == [(span_id(span), span_id(span)) for span in spans]


async def test_a_worker_that_asks_does_not_end_the_message_of_another(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 1)
    over = asyncio.Event()

    async def busy():
        async for _ in subscription.messages:
            await over.wait()
            break

    async def idle():
        async for _ in subscription.messages:
            pass

    tasks = [asyncio.create_task(busy()), asyncio.create_task(idle())]
    await asyncio.sleep(0.02)
    assert len(recorder.spans()) == 1
    over.set()
    await tasks[0]
    recorder.consumers(1)
    await subscription.unsubscribe()
    await tasks[1]


@pytest.mark.parametrize("how", ["unsubscribe", "drain", "close", "drain all"])
async def test_closing_in_the_body_ends_the_loop_and_its_span(connect, recorder, how):
    driver = await connect()
    subscription = await prepared(driver, 1)
    close = {
        "unsubscribe": subscription.unsubscribe,
        "drain": subscription.drain,
        "close": driver.client.close,
        "drain all": driver.client.drain,
    }[how]
    before, seen = context.get_current(), []
    async for message in subscription.messages:
        seen.append(message.data)
        await close()
    assert seen == [b"0"]
    assert context.get_current() is before
    recorder.consumers(1)


@pytest.mark.parametrize("how", ["unsubscribe", "drain", "close"])
async def test_closing_from_another_task_leaves_no_context_behind(connect, recorder, how):
    driver = await connect()
    subscription = await prepared(driver, 1)
    close = driver.client.close if how == "close" else getattr(subscription, how)
    running, over, seen = asyncio.Event(), asyncio.Event(), []

    async def loop():
        before = context.get_current()
        async for _ in subscription.messages:
            running.set()
            await over.wait()
            with recorder.tracer.start_as_current_span("late"):
                pass
        seen.append(context.get_current() is before)

    task = asyncio.create_task(loop())
    await running.wait()
    await close()
    (span,) = recorder.consumers(1)
    over.set()
    await asyncio.wait_for(task, 5)
    assert seen == [True]
    assert recorder.span("late").parent.span_id == span_id(span)


async def test_unsubscribing_at_a_limit_ends_the_loop_after_that_many(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 2)
    await subscription.unsubscribe(limit=2)
    bodies = [(message.data, current_id()) async for message in subscription.messages]
    first, second = recorder.consumers(2)
    assert bodies == [(b"0", span_id(first)), (b"1", span_id(second))]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_task_per_message_leaves_nothing_behind(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 3)
    iterator = subscription.messages.__aiter__()
    for number in range(3):
        message = await asyncio.create_task(iterator.__anext__())
        assert message.data == b"%d" % number
        assert len(recorder.spans()) == 3 + number  # the one before is handled
        assert trace.get_current_span() is trace.INVALID_SPAN
    await subscription.unsubscribe()
    recorder.consumers(3)


async def test_waiting_with_a_timeout_leaves_nothing_behind(connect, recorder):
    """Before Python 3.12 `wait_for` asks in a task of its own, since then it does not."""
    driver = await connect()
    subscription = await prepared(driver, 2)
    before = context.get_current()
    iterator = subscription.messages.__aiter__()
    for number in range(2):
        message = await asyncio.wait_for(iterator.__anext__(), 5)
        assert message.data == b"%d" % number
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(iterator.__anext__(), 0.01)
    recorder.consumers(2)
    assert context.get_current() is before


@pytest.mark.parametrize("loop", [True, False], ids=["of a loop", "of the subscription"])
async def test_messages_asked_for_at_once_all_end(connect, recorder, loop):
    driver = await connect()
    subscription = await prepared(driver, 3)
    iterator = subscription.messages.__aiter__() if loop else subscription.messages
    messages = await asyncio.gather(*(iterator.__anext__() for _ in range(3)))
    assert sorted(message.data for message in messages) == [b"0", b"1", b"2"]
    await subscription.unsubscribe()
    recorder.consumers(3)
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_messages_asked_for_without_a_loop_have_their_spans(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 2)
    seen = []
    for _ in range(2):
        await subscription.messages.__anext__()
        seen.append(current_id())
    await subscription.unsubscribe()
    assert seen == [span_id(span) for span in recorder.consumers(2)]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_loop_that_is_cancelled_while_it_waits_has_handled_its_message(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 1)
    seen = []

    async def loop():
        try:
            async for _ in subscription.messages:
                seen.append(current_id())  # noqa: PERF401 (each while it is handled)
        finally:
            seen.append(trace.get_current_span())

    task = asyncio.create_task(loop())
    await until(lambda: seen)
    await asyncio.sleep(0)
    (span,) = recorder.consumers(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [span_id(span), trace.INVALID_SPAN]


async def test_a_loop_that_is_cancelled_in_its_body_ends_its_span(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 1)
    running = asyncio.Event()

    async def loop():
        async for _ in subscription.messages:
            running.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(loop())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    recorder.consumers(1)


async def test_a_loop_in_a_generator_is_over_when_that_is_closed(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 2)
    before = context.get_current()

    async def bodies():
        async for message in subscription.messages:
            yield message.data

    generator = bodies()
    async for body in generator:
        assert body == b"0"
        break
    await generator.aclose()
    recorder.consumers(1)
    assert context.get_current() is before


async def test_a_loop_goes_on_when_tracing_is_switched_off(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 2)
    seen = []
    async for message in subscription.messages:
        seen.append((message.data, trace.get_current_span().get_span_context().is_valid))
        if len(seen) == 2:
            break
        NatsPyInstrumentor().uninstrument()
    assert seen == [(b"0", True), (b"1", False)]
    recorder.consumers(1)
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_subscription_from_before_is_traced_too(instrument, recorder, nats_address):
    async with client(nats_address) as connection:
        subject = fresh()
        subscription = await connection.subscribe(subject)
        instrument(NatsPyInstrumentor)
        await connection.publish(subject, b"x")
        seen = []
        async for message in subscription.messages:
            seen.append((message.data, current_id()))
            break
    assert seen == [(b"x", span_id(recorder.consumers(1)[0]))]


async def test_a_wildcard_is_in_the_name_of_a_loops_messages(connect, recorder, vocabulary):
    driver = await connect()
    subject = driver.name()
    subscription = await driver.client.subscribe(f"{subject}.*.eu", "workers")
    await driver.publish(f"{subject}.17.eu")
    async for _ in subscription.messages:
        break
    (span,) = recorder.consumers(1)
    assert span.name == f"{'receive' if vocabulary == 'guide' else 'process'} {subject}.*.eu"
    assert span.attributes["messaging.destination.name"] == f"{subject}.17.eu"
    if vocabulary != "guide":
        assert span.attributes["messaging.destination.template"] == f"{subject}.*.eu"
        assert span.attributes["messaging.consumer.group.name"] == "workers"


async def test_a_subscription_with_a_callback_has_no_messages_to_loop_over(instrument, nats_address):
    async def scenario(connection):
        async def callback(_message):
            pass

        subscription = await connection.subscribe(fresh(), cb=callback)
        try:
            return subscription.messages
        except Exception as error:
            return type(error), str(error)

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain


async def test_asking_from_another_task_ends_the_message_where_it_was_handled(connect, recorder):
    driver = await connect()
    subscription = await prepared(driver, 2)
    before = context.get_current()
    iterator = subscription.messages.__aiter__()
    await iterator.__anext__()
    task = asyncio.create_task(iterator.__anext__())
    assert context.get_current() is before
    await task
    await subscription.unsubscribe()
    recorder.consumers(2)
