"""What is current while a message is handled, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import subprocess
import sys
import threading

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tests.support.drivers import CALLBACKS
from tests.support.recorder import span_id, trace_id
from tests.support.waiting import until

with_callbacks = pytest.mark.parametrize("library", CALLBACKS)
mark = contextvars.ContextVar("mark", default=None)


class BrokenError(Exception):
    """What the application raises."""


@pytest.fixture(params=[False, True], ids=["alone", "in a span"])
def around(request, recorder):
    """What is current around a loop: nothing, or a span of the application."""
    return recorder.tracer.start_as_current_span("job") if request.param else contextlib.nullcontext()


async def prepared(driver, count=1):
    """A listener to a destination with some messages."""
    destination = driver.name()
    listener = await driver.listen(destination)
    for number in range(count):
        await driver.publish(destination, str(number).encode())
    return listener


def current_id():
    return span_id(trace.get_current_span())


async def test_what_a_loop_body_does_hangs_below_its_message(connect, recorder, vocabulary):
    driver = await connect()
    listener = await prepared(driver)
    elsewhere = driver.name()

    async def body(_message):
        with recorder.tracer.start_as_current_span("work"):
            pass
        await driver.publish(elsewhere)

    await driver.loop(listener, 1, body)
    first, second = recorder.producers(2)
    (consumed,) = recorder.consumers(1)
    assert recorder.span("work").parent.span_id == span_id(consumed)
    assert second.parent.span_id == span_id(consumed)
    if vocabulary == "guide":
        assert {trace_id(span) for span in recorder.spans()} == {trace_id(first)}


@with_callbacks
async def test_what_a_callback_does_hangs_below_its_message(connect, recorder):
    driver = await connect()
    destination, elsewhere = driver.name(), driver.name()

    async def handler(_message):
        with recorder.tracer.start_as_current_span("work"):
            await asyncio.sleep(0)
        await driver.publish(elsewhere)

    await driver.subscribe(destination, handler)
    await driver.publish(destination)
    await until(lambda: len(recorder.spans()) == 4)
    (consumed,) = recorder.consumers(1)
    _, second = recorder.producers(2)
    assert recorder.span("work").parent.span_id == span_id(consumed)
    assert second.parent.span_id == span_id(consumed)


async def test_a_loop_left_by_break_is_over_at_once(connect, recorder, around):
    driver = await connect()
    listener = await prepared(driver)
    seen = []
    gc.disable()
    try:
        with around:
            before = context.get_current()
            await driver.loop(listener, 1, lambda _: None, after=lambda: seen.append(context.get_current()))
            assert len([span for span in recorder.spans() if span.kind is trace.SpanKind.CONSUMER]) == 1
            assert context.get_current() is before
    finally:
        gc.enable()
    assert seen == [before]


async def test_a_loop_left_by_return_is_over_at_once(connect, recorder, around):
    driver = await connect()
    listener = await prepared(driver)
    gc.disable()
    try:
        with around:
            before = context.get_current()
            assert driver.body(await driver.first(listener)) == b"0"
            assert len([span for span in recorder.spans() if span.kind is trace.SpanKind.CONSUMER]) == 1
            assert context.get_current() is before
    finally:
        gc.enable()


async def test_a_loop_left_by_an_exception_is_over_at_once(connect, recorder, around):
    driver = await connect()
    listener = await prepared(driver)

    def body(_message):
        raise BrokenError

    with around:
        before = context.get_current()
        with pytest.raises(BrokenError):
            await driver.loop(listener, 1, body)
        assert context.get_current() is before
        recorder.consumers(1)


async def test_a_loop_that_ends_by_itself_leaves_nothing_behind(connect, recorder, around):
    driver = await connect()
    listener = await prepared(driver, 2)
    bodies, seen = [], []
    with around:
        before = context.get_current()
        await driver.drain(
            listener,
            2,
            lambda message: bodies.append((driver.body(message), current_id())),
            after=lambda: seen.append(context.get_current()),
        )
        assert context.get_current() is before
    first, second = recorder.consumers(2)
    assert bodies == [(b"0", span_id(first)), (b"1", span_id(second))]
    assert seen == [before]


async def test_a_span_ends_when_the_next_message_is_asked_for(connect, recorder):
    driver = await connect()
    listener = await prepared(driver, 3)
    ended = []
    await driver.loop(
        listener,
        3,
        lambda _: ended.append(sum(span.kind is trace.SpanKind.CONSUMER for span in recorder.spans())),
    )
    assert ended == [0, 1, 2]


async def test_a_loop_in_a_loop_gives_the_outer_message_back(connect, recorder):
    driver = await connect()
    outer, inner = await prepared(driver), await prepared(driver)
    seen = []

    async def body(_message):
        seen.append(current_id())
        await driver.loop(inner, 1, lambda _: seen.append(current_id()))
        seen.append(current_id())

    await driver.loop(outer, 1, body)
    within, around = recorder.consumers(2)
    assert seen == [span_id(around), span_id(within), span_id(around)]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_two_consumers_by_turns_have_each_their_own_span(connect, recorder):
    driver = await connect()
    left, right = await prepared(driver, 2), await prepared(driver, 2)
    before = context.get_current()
    iterators = [driver.iterate(left), driver.iterate(right)]
    seen = []
    for iterator in iterators * 2:
        await driver.advance(iterator)
        seen.append(current_id())
    await driver.stop(left, iterators[0])
    await driver.stop(right, iterators[1])
    assert sorted(seen) == sorted(span_id(span) for span in recorder.consumers(4))
    assert len(set(seen)) == 4
    assert context.get_current() is before


async def test_consumers_closed_in_the_order_of_their_messages_leave_nothing_behind(connect, recorder):
    driver = await connect()
    listeners = [await prepared(driver) for _ in range(3)]
    before = context.get_current()
    iterators = [driver.iterate(listener) for listener in listeners]
    for iterator in iterators:
        await driver.advance(iterator)
    for listener, iterator in zip(listeners, iterators, strict=True):
        await driver.stop(listener, iterator)
    recorder.consumers(3)
    assert context.get_current() is before


async def test_a_closed_consumer_ends_its_span(connect, recorder):
    driver = await connect()
    listener = await prepared(driver)
    before = context.get_current()
    iterator = driver.iterate(listener)
    await driver.advance(iterator)
    await driver.stop(listener, iterator)
    recorder.consumers(1)
    assert context.get_current() is before


async def test_a_consumer_may_move_to_another_task(connect, recorder, caplog):
    driver = await connect()
    listener = await prepared(driver, 3)
    iterator = driver.iterate(listener)
    seen = []

    async def one():
        await driver.advance(iterator)
        seen.append(current_id())

    await one()
    await asyncio.create_task(one())
    await one()
    await driver.stop(listener, iterator)
    assert seen == [span_id(span) for span in recorder.consumers(3)]
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == []


@pytest.mark.parametrize("library", ["kafka_python"])
async def test_a_consumer_may_move_to_another_thread(connect, recorder, caplog):
    driver = await connect()
    listener = await prepared(driver, 3)
    iterator = driver.iterate(listener)
    seen = []

    def one():
        next(iterator)
        seen.append(current_id())

    one()
    thread = threading.Thread(target=one)
    thread.start()
    thread.join(10)
    one()
    await driver.stop(listener, iterator)
    assert seen == [span_id(span) for span in recorder.consumers(3)]
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == []


CARRIED = {"traceparent": f"00-{7:032x}-{8:016x}-01", "baggage": "tenant=acme"}


async def carrying(driver):
    """A listener to a destination with one message, which carries a context from elsewhere."""
    destination = driver.name()
    listener = await driver.listen(destination)
    with suppress_instrumentation():
        await driver.publish(destination, b"hello", driver.native(CARRIED))
    return listener


async def headers_of_one(driver):
    """Publish a message; its headers on the wire."""
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    wire = []
    with suppress_instrumentation():
        await driver.loop(listener, 1, lambda message: wire.append(dict(driver.headers(message))))
    return wire[0]


async def leave_by_break(messages):
    async for _ in messages:
        break


async def leave_by_an_exception(messages):
    with contextlib.suppress(BrokenError):
        async for _ in messages:
            raise BrokenError


async def close_in_another_task(messages):
    await anext(messages)
    await asyncio.create_task(messages.aclose())


LEAVING = pytest.mark.parametrize("leave", [leave_by_break, leave_by_an_exception, close_in_another_task])


@LEAVING
async def test_a_message_whose_generator_was_left_is_nobodys_parent(connect, recorder, vocabulary, around, leave):
    driver = await connect()
    listener = await carrying(driver)
    with around:
        before = context.get_current()
        await leave(driver.generator(listener))
        await until(lambda: any(span.kind is trace.SpanKind.CONSUMER for span in recorder.spans()))
        wire = await headers_of_one(driver)
        assert context.get_current() is before
    (published,) = recorder.producers(1)
    job = [span for span in recorder.spans() if span.name == "job"]
    assert published.parent == (job[0].context if job else None)
    assert published.links == ()
    assert "baggage" not in wire


@LEAVING
async def test_a_message_is_not_below_one_whose_generator_was_left(connect, recorder, vocabulary, leave):
    driver = await connect()
    listener, other = await carrying(driver), await prepared(driver)
    await leave(driver.generator(listener))
    await until(lambda: any(span.kind is trace.SpanKind.CONSUMER for span in recorder.spans()))
    await driver.loop(other, 1, lambda _: None)
    assert context.get_current() == {}
    _, consumed = recorder.consumers(2)
    (published,) = recorder.producers(1)
    assert consumed.parent.span_id == span_id(published)
    assert [link.context.span_id for link in consumed.links] == ([] if vocabulary == "guide" else [span_id(published)])


@LEAVING
async def test_a_task_that_was_started_in_a_generators_loop_stays_in_its_trace(connect, recorder, leave):
    driver = await connect()
    elsewhere, over, tasks = driver.name(), asyncio.Event(), []

    async def later():
        await over.wait()
        await driver.publish(elsewhere)

    async def messages(listener):
        async for message in driver.generator(listener):
            tasks.append(asyncio.create_task(later()))
            yield message

    await leave(messages(await carrying(driver)))
    await until(lambda: any(span.kind is trace.SpanKind.CONSUMER for span in recorder.spans()))
    await driver.publish(elsewhere)
    over.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    (consumed,) = recorder.consumers(1)
    mine, later_one = recorder.producers(2)
    assert mine.parent is None
    assert later_one.parent.span_id == span_id(consumed)


@pytest.mark.parametrize("provider", [None, trace.NoOpTracerProvider()], ids=["no provider", "no-op provider"])
async def test_without_an_sdk_a_message_whose_generator_was_left_is_not_passed_on(connect, provider):
    driver = await connect(tracer_provider=provider, meter_provider=None)
    messages = driver.generator(await carrying(driver))
    await close_in_another_task(messages)
    assert await headers_of_one(driver) == {}
    assert context.get_current() == {}


@with_callbacks
async def test_a_task_started_in_a_callback_stays_in_its_trace(connect, recorder):
    driver = await connect()
    destination, elsewhere = driver.name(), driver.name()
    over, tasks = asyncio.Event(), []

    async def later():
        await over.wait()
        with recorder.tracer.start_as_current_span("later"):
            await driver.publish(elsewhere)

    async def handler(_message):
        tasks.append(asyncio.create_task(later()))

    await driver.subscribe(destination, handler)
    await driver.publish(destination)
    await until(lambda: len(recorder.spans()) == 2)
    (consumed,) = recorder.consumers(1)
    over.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    await until(lambda: len(recorder.spans()) == 4)
    work = recorder.span("later")
    assert work.parent.span_id == span_id(consumed)
    assert recorder.producers(2)[1].parent.span_id == span_id(work)


@with_callbacks
async def test_a_task_that_outlives_its_callback_can_handle_other_messages(connect, recorder):
    driver = await connect()
    destination, elsewhere = driver.name(), driver.name()
    listener = await driver.listen(elsewhere)
    over, tasks, seen = asyncio.Event(), [], []

    async def later():
        await over.wait()
        await driver.loop(listener, 1, lambda _: seen.append(current_id()))

    async def handler(_message):
        seen.append(current_id())
        tasks.append(asyncio.create_task(later()))

    await driver.subscribe(destination, handler)
    await driver.publish(destination)
    await until(lambda: len(recorder.spans()) == 2)
    await driver.publish(elsewhere)
    over.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    first, second = recorder.consumers(2)
    assert seen == [span_id(first), span_id(second)]
    assert second.parent.span_id == span_id(recorder.producers(2)[1])


@with_callbacks
async def test_callbacks_of_two_subscriptions_run_at_once_in_their_own_spans(connect, recorder):
    driver = await connect()
    both, seen = [asyncio.Event(), asyncio.Event()], []

    def handler_of(number):
        async def handler(_message):
            before = current_id()
            both[number].set()
            await asyncio.wait_for(both[1 - number].wait(), 5)
            seen.append((before, current_id()))

        return handler

    for number in range(2):
        destination = driver.name()
        await driver.subscribe(destination, handler_of(number))
        await driver.publish(destination)
    await until(lambda: len(recorder.spans()) == 4)
    assert sorted(seen) == sorted((span_id(span), span_id(span)) for span in recorder.consumers(2))


@with_callbacks
async def test_a_callback_that_leaves_a_context_attached_does_not_hold_up_the_next(connect, recorder):
    driver = await connect()
    destination = driver.name()
    seen = []

    async def handler(_message):
        seen.append((current_id(), baggage.get_baggage("left")))
        context.attach(baggage.set_baggage("left", "behind"))

    await driver.subscribe(destination, handler)
    for _ in range(2):
        await driver.publish(destination)
    await until(lambda: len(recorder.spans()) == 4)
    assert seen == [(span_id(span), None) for span in recorder.consumers(2)]


async def test_variables_that_a_loop_body_sets_stay_set(connect, recorder):
    driver = await connect()
    listener = await prepared(driver, 2)
    seen = []

    def body(message):
        seen.append(mark.get())
        mark.set(driver.body(message))

    await driver.loop(listener, 2, body)
    assert seen == [None, b"0"]
    assert mark.get() == b"1"


async def test_a_span_that_the_application_keeps_open_stays_current(connect, recorder):
    driver = await connect()
    listener = await prepared(driver)
    spans = []

    def body(_message):
        spans.append(recorder.tracer.start_span("session"))
        spans.append(context.attach(trace.set_span_in_context(spans[0])))

    await driver.loop(listener, 1, body)
    session, token = spans
    assert trace.get_current_span() is session
    context.detach(token)
    session.end()
    recorder.consumers(1)


async def test_messages_asked_for_inside_a_span_each_leave_nothing_behind(connect, recorder):
    driver = await connect()
    listener = await prepared(driver, 2)
    before = context.get_current()
    iterator = driver.iterate(listener)
    for _ in range(2):
        with recorder.tracer.start_as_current_span("work"):
            await driver.advance(iterator)
            assert trace.get_current_span().kind is trace.SpanKind.CONSUMER
        assert context.get_current() is before
    await driver.stop(listener, iterator)
    recorder.consumers(2)
    assert context.get_current() is before


def test_a_loop_that_lasts_until_the_interpreter_exits_says_nothing():
    program = """
import logging
from otel_messaging.instrumentation import loops
logging.basicConfig()
loop = loops.Loop(iter(()), loops.Held())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stderr == ""
