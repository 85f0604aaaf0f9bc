"""What is current while messages are handled, in whichever order their handling ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import gc
import itertools
import pickle
import threading
import weakref

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.context import attach, detach, get_current

from otel_messaging.instrumentation import loops
from otel_messaging.instrumentation.loops import AsyncLoop, Held, Loop, handle
from tests.support.recorder import shape, span_id


def current():
    return trace.get_current_span()


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def test_a_message_is_current_until_it_is_handled(desk, recorder):
    before = get_current()
    delivery = desk().deliver()
    assert current() is delivery.span
    delivery.end()
    assert get_current() is before
    recorder.spans("receive orders", count=1)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_messages_of_several_consumers_end_in_any_order(desk, recorder, order):
    before = get_current()
    office = desk()
    deliveries = [office.deliver(f"queue-{number}") for number in range(3)]
    for number in order:
        deliveries[number].end()
        held = [delivery for delivery in deliveries if not delivery.done]
        assert current() is (held[-1].span if held else trace.INVALID_SPAN)
    assert get_current() is before
    recorder.spans(count=3)


class BrokenSpan(trace.NonRecordingSpan):
    def is_recording(self):
        raise RuntimeError("not the SDK's")


def test_a_span_of_the_applications_own_that_is_broken_stops_nothing(desk, recorder, lenient):
    before = get_current()
    delivery = desk().deliver()
    attach(trace.set_span_in_context(BrokenSpan(trace.INVALID_SPAN_CONTEXT)))
    delivery.end()
    attach(before)
    assert recorder.span("receive orders").status.status_code is trace.StatusCode.OK


def test_ending_twice_is_harmless(desk, recorder):
    delivery = desk().deliver()
    delivery.end()
    with recorder.tracer.start_as_current_span("next") as span:
        delivery.end(ValueError("late"))
        delivery.leave((None, 0))
        assert current() is span
    assert recorder.span("receive orders").status.status_code is trace.StatusCode.OK
    assert recorder.metrics()["messaging.messages.consumed"][0][1] == 1


def test_an_open_span_of_the_application_stays_current(desk, recorder):
    delivery = desk().deliver()
    span = recorder.tracer.start_span("mine")
    token = attach(trace.set_span_in_context(span))
    delivery.end()
    assert current() is span
    span.end()
    detach(token)
    assert current() is delivery.span, "the application's own token brings back what it had replaced"
    attach(context.Context())


def test_an_ended_span_of_the_application_does_not_stay(desk, recorder):
    before = get_current()
    delivery = desk().deliver()
    span = recorder.tracer.start_span("mine")
    attach(trace.set_span_in_context(span))
    span.end()
    delivery.end()
    assert get_current() is before


def test_what_the_application_had_attached_is_back(desk, recorder):
    token = attach(baggage.set_baggage("user", "ada"))
    delivery = desk().deliver()
    delivery.end()
    assert baggage.get_all() == {"user": "ada"}
    detach(token)


def test_the_end_in_another_thread_leaves_that_threads_context(desk, recorder):
    delivery = desk().deliver()
    seen = []

    def close():
        with recorder.tracer.start_as_current_span("closing") as span:
            delivery.end()
            seen.append(current() is span)

    in_thread(close)
    assert seen == [True]
    recorder.span("receive orders")
    attach(context.Context())


def test_the_end_in_another_context_leaves_that_context(desk, recorder):
    delivery = contextvars.copy_context().run(desk().deliver)
    assert current() is trace.INVALID_SPAN
    with recorder.tracer.start_as_current_span("mine") as span:
        delivery.end()
        assert current() is span
    recorder.span("receive orders")


def test_a_message_begun_below_one_that_ended_elsewhere_does_not_bring_it_back(desk, recorder, request):
    before = get_current()
    request.addfinalizer(lambda: attach(before))
    office = desk()
    first = office.deliver("first")
    in_thread(first.end)
    second = office.deliver("second")
    second.end()
    assert get_current() is before


def test_an_exception_that_passes_is_recorded(desk, recorder):
    delivery = desk().deliver()
    delivery.end(ValueError("no address"))
    found = shape(recorder.span("receive orders"))
    assert found["status"] == ("ERROR", "no address")
    assert found["attributes"]["error.type"] == "ValueError"
    assert found["events"] == [
        (
            "exception",
            {"exception.type": "ValueError", "exception.message": "no address", "exception.escaped": "False"},
        )
    ]


def test_an_exception_that_was_seen_inside_is_recorded_at_the_end(desk, recorder):
    delivery = desk().deliver()
    delivery.fail(KeyError("seen"))
    assert recorder.spans() == []
    delivery.end()
    assert recorder.span("receive orders").attributes["error.type"] == "KeyError"


def test_an_exception_is_kept_no_longer_than_its_message_is_handled(desk, recorder):
    class Local:
        pass

    def failing(delivery):
        local = Local()
        try:
            raise KeyError(local)
        except KeyError as error:
            delivery.fail(error)
        return weakref.ref(local)

    delivery = desk().deliver()
    local = failing(delivery)
    delivery.end()
    gc.collect()
    assert local() is None
    local = failing(delivery)  # the block around a message may see one after that was settled
    gc.collect()
    assert local() is None
    recorder.span("receive orders")


def test_no_span_outlasts_the_handing_over_if_so_set(desk, recorder):
    from otel_messaging.core.settings import Settings

    before = get_current()
    delivery = desk(Settings(process_spans=False)).deliver()
    assert get_current() is before
    recorder.span("receive orders")
    delivery.end()
    recorder.spans(count=1)


# Held: what one consumer has handed out


def test_a_consumer_that_is_asked_again_has_handled_the_last(desk, recorder):
    office, held = desk(), Held()
    held.hold(office.deliver("first"))
    held.end()
    held.hold(office.deliver("second"))
    held.end()
    held.end()
    assert [span.name for span in recorder.spans()] == ["receive first", "receive second"]
    assert [span.parent for span in recorder.spans()] == [None, None]


def test_a_consumer_keeps_no_handled_message(desk, recorder):
    held = Held()
    held.hold(desk().deliver())
    kept = weakref.ref(held.delivery.span)
    held.end()
    recorder.exporter.clear()
    gc.collect()
    assert held.delivery is None
    assert kept() is None


def test_a_telemetry_that_is_switched_off_ends_what_it_has_begun_and_nothing_else(desk, recorder):
    before, held = get_current(), [Held(), Held()]
    mine, other = desk(), desk()
    held[0].hold(mine.deliver("mine"))
    held[1].hold(other.deliver("other"))
    loops.switch_off(mine.telemetry)
    recorder.span("receive mine")
    assert current() is held[1].delivery.span
    loops.switch_off(other.telemetry)
    recorder.span("receive other")
    assert get_current() is before


def test_a_consumer_that_is_gone_is_not_kept_to_be_switched_off(desk):
    holders = len(loops._holders)
    held = Held()
    assert len(loops._holders) == holders + 1
    del held
    assert len(loops._holders) == holders


# Loops


class Consumer:
    """A consumer of nothing but numbers, as the adapters patch one."""

    def __init__(self, office, numbers):
        self.office, self.held, self.numbers = office, Held(), iter(numbers)
        self.closed = False

    def __iter__(self):
        return Loop(self, self.held)

    def __next__(self):
        self.held.end()
        number = next(self.numbers)
        self.held.hold(self.office.deliver(f"queue-{number}"))
        return number

    def __aiter__(self):
        return AsyncLoop(self, self.held)

    async def __anext__(self):
        self.held.end()
        await asyncio.sleep(0)
        try:
            number = next(self.numbers)
        except StopIteration:
            raise StopAsyncIteration from None
        self.held.hold(self.office.deliver(f"queue-{number}"))
        return number

    async def __aenter__(self):
        self.held.entered = True
        return self

    async def __aexit__(self, kind, error, trace):
        self.held.exit(error)

    def close(self):
        self.held.end()
        self.closed = True


@pytest.fixture
def consumer(desk):
    return Consumer(desk(), range(3))


def test_a_loop_to_the_end_handles_each_message_in_turn(consumer, recorder):
    before = get_current()
    seen = [span_id(current()) for _ in consumer]
    assert seen == [span_id(span) for span in recorder.spans(count=3)]
    assert get_current() is before


def test_a_break_ends_the_handling_at_once(consumer, recorder):
    before = get_current()
    for _ in consumer:
        break
    assert get_current() is before
    recorder.spans(count=1)


class KeepsErrors(Consumer):
    """It goes on after an error, which it keeps: with it the frames of its callers, as kafka-python does."""

    def __next__(self):
        try:
            raise OSError
        except OSError as error:
            self.error = error
        return super().__next__()


def test_an_error_that_a_consumer_keeps_keeps_no_loop_of_it(desk, recorder):
    before = get_current()
    for _ in KeepsErrors(desk(), range(3)):
        break
    assert get_current() is before
    recorder.spans(count=1)


def test_an_exception_ends_the_handling_when_it_has_left_the_loop(consumer, recorder):
    before = get_current()

    def body():
        for _ in consumer:
            raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        body()
    gc.collect()
    assert get_current() is before
    recorder.spans(count=1)


def test_a_return_from_a_generator_ends_the_handling(consumer, recorder):
    def numbers():
        yield from consumer

    generator = numbers()
    assert next(generator) == 0
    generator.close()
    recorder.spans(count=1)
    assert current() is trace.INVALID_SPAN


def test_a_loop_in_a_loop_over_the_same_consumer(consumer, recorder):
    for _ in consumer:
        for _ in consumer:
            break
        assert current() is trace.INVALID_SPAN, "the inner loop has asked for another message and was left"
        break
    assert [span.name for span in recorder.spans()] == ["receive queue-0", "receive queue-1"]


def test_a_second_loop_goes_on_where_the_first_was_left(consumer, recorder):
    for _ in consumer:
        break
    assert list(consumer) == [1, 2]
    recorder.spans(count=3)


def test_a_loop_that_is_left_elsewhere_does_not_touch_that_context(consumer, recorder):
    loop = iter(consumer)
    contextvars.copy_context().run(next, loop)
    with recorder.tracer.start_as_current_span("mine") as span:
        del loop
        assert current() is span
    recorder.span("receive queue-0")


def test_a_message_asked_for_without_the_loop_outlives_it(consumer, recorder):
    loop = iter(consumer)
    next(loop)
    next(consumer)
    del loop
    assert current() is consumer.held.delivery.span
    consumer.close()
    recorder.spans(count=2)


def test_a_loop_is_the_consumer_to_all_who_ask(consumer):
    loop = iter(consumer)
    assert isinstance(loop, Consumer)
    assert loop == consumer
    assert consumer == loop
    assert loop != object()
    assert hash(loop) == hash(consumer)
    assert repr(loop) == repr(consumer)
    assert iter(loop) is loop
    assert loop.numbers is consumer.numbers
    loop.closed = "yes"
    assert consumer.closed == "yes"
    del loop.closed
    assert not hasattr(consumer, "closed")
    loop.close()
    assert consumer.closed is True
    with pytest.raises(AttributeError, match="'Consumer' object has no attribute 'missing'"):
        loop.missing  # noqa: B018


def test_a_loop_over_what_is_a_block_is_a_block(consumer):
    seen = []

    class Block(Consumer):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            seen.append(error)

    block = Block.__new__(Block)
    block.__dict__.update(vars(consumer))
    with iter(block) as entered:
        assert entered is block
    assert seen == [(None, None, None)]


class Copied:
    """A consumer that can be copied."""

    def __init__(self):
        self.numbers = [1]


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda loop: pickle.loads(pickle.dumps(loop))}


@pytest.mark.parametrize("made", COPIES)
@pytest.mark.parametrize("kind", [Loop, AsyncLoop])
def test_a_copy_of_a_loop_is_one_of_its_consumer(kind, made):
    consumer = Copied()
    found = COPIES[made](kind(consumer, Held()))
    assert type(found) is Copied
    assert found is not consumer
    assert found.numbers == [1]


@pytest.mark.parametrize("made", COPIES)
def test_a_consumer_that_cannot_be_copied_says_so_itself(made):
    consumer = Copied()
    consumer.__class__ = type("Locked", (Copied,), {"__reduce_ex__": lambda self, protocol: 1 // 0})
    with pytest.raises(ZeroDivisionError):
        COPIES[made](Loop(consumer, Held()))


def test_a_loop_may_be_referred_to_weakly_and_is_gone_when_it_is_left(consumer):
    loop = iter(consumer)
    reference = weakref.ref(loop)
    assert reference() is loop
    next(loop)
    del loop
    assert reference() is None


def test_nothing_keeps_a_loop(consumer):
    loop = iter(consumer)
    assert gc.get_referrers(loop) == [] or all(found is not consumer for found in gc.get_referrers(loop))
    consumer_gone = weakref.ref(consumer)
    del consumer
    assert consumer_gone() is not None
    next(loop)
    loop.close()


async def test_an_asynchronous_loop_is_left_by_break(consumer, recorder):
    before = get_current()
    async for _ in consumer:
        assert current() is consumer.held.delivery.span
        break
    assert get_current() is before
    recorder.spans(count=1)


async def test_a_block_shows_the_exception_that_left_the_loop(consumer, recorder):
    before = get_current()

    async def body():
        async with consumer as entered:
            async for _ in entered:
                raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        await body()
    assert get_current() is before
    assert shape(recorder.span("receive queue-0"))["status"] == ("ERROR", "body")


async def test_leaving_a_generator_around_a_block_is_no_failure(consumer, recorder):
    async def numbers():
        async with consumer as entered:
            async for number in entered:
                yield number

    async with contextlib.aclosing(numbers()) as generator:
        async for _ in generator:
            break
    assert current() is trace.INVALID_SPAN
    assert shape(recorder.span("receive queue-0"))["status"] == ("OK", None)


async def test_leaving_a_generator_inside_a_block_of_the_library_is_no_failure(desk, recorder):
    delivery = desk().deliver()
    delivery.fail(GeneratorExit())
    assert not delivery.failed
    delivery.end()
    assert shape(recorder.span("receive orders"))["status"] == ("OK", None)


async def test_a_callback_that_is_closed_has_not_failed(desk, recorder):
    office = desk()

    async def callback(_):
        await asyncio.sleep(10)

    before = get_current()
    coroutine = handle(lambda _: office.deliver(), callback, None)
    coroutine.send(None)
    coroutine.close()
    assert get_current() is before
    assert shape(recorder.span("receive orders"))["status"] == ("OK", None)


async def test_an_exception_after_the_loop_is_not_the_messages(consumer, recorder):
    async def body():
        async with consumer as entered:
            async for _ in entered:
                break
            assert current() is trace.INVALID_SPAN
            raise ValueError("after")

    with pytest.raises(ValueError, match="after"):
        await body()
    assert shape(recorder.span("receive queue-0"))["status"] == ("OK", None)


async def test_a_span_whose_loop_was_left_does_not_last_until_the_block_ends(consumer, recorder):
    async with consumer as entered:
        async for _ in entered:
            break
        await asyncio.sleep(0.05)
    span = recorder.span("receive queue-0")
    assert span.end_time - span.start_time < 40_000_000


async def test_a_callback_gives_back_what_it_returned(desk, recorder):
    office = desk()

    async def callback(message):
        assert current() is not trace.INVALID_SPAN
        return message * 2

    assert await handle(lambda _: office.deliver(), callback, 21) == 42
    assert current() is trace.INVALID_SPAN
    recorder.span("receive orders")


@pytest.mark.parametrize("error", [ValueError("mine"), asyncio.CancelledError(), KeyboardInterrupt()])
async def test_a_callbacks_exception_is_the_same_object(desk, recorder, error):
    office = desk()

    async def callback(_):
        raise error

    with pytest.raises(type(error)) as caught:
        await handle(lambda _: office.deliver(), callback, None)
    assert caught.value is error
    assert recorder.span("receive orders").attributes["error.type"].endswith(type(error).__name__)
    assert current() is trace.INVALID_SPAN


async def test_a_callback_is_called_where_nothing_is_told():
    async def callback(message):
        return message

    assert await handle(lambda _: None, callback, 1) == 1


class Failing:
    """The handling of a message, whose end fails."""

    token = None

    def __init__(self, kind):
        self.kind = kind

    def end(self, error=None):
        raise self.kind("ours")


@pytest.mark.parametrize("kind", [ValueError, MemoryError, asyncio.CancelledError])
@pytest.mark.parametrize("where", ["begin", "end"])
async def test_a_mistake_of_ours_reaches_neither_a_callback_nor_who_calls_it(kind, where, lenient, caplog):
    failing, error = Failing(kind), OSError("theirs")

    def begin(_):
        return failing if where == "end" else failing.end()

    async def callback(message):
        if message is error:
            raise error
        return message

    assert await handle(begin, callback, 1) == 1
    with pytest.raises(OSError, match="theirs") as caught:
        await handle(begin, callback, error)
    assert caught.value is error
    assert [kind.__name__ in record.getMessage() for record in caplog.records] == [True]


async def test_callbacks_at_the_same_time_do_not_mix(desk, recorder):
    office = desk()

    async def callback(name):
        mine = current()
        for _ in range(3):
            await asyncio.sleep(0)
            assert current() is mine
        return mine

    tasks = [handle(lambda name: office.deliver(name), callback, f"queue-{number}") for number in range(5)]
    spans = await asyncio.gather(*tasks)
    assert len({span_id(span) for span in spans}) == 5
    recorder.spans(count=5)


def test_contexts_of_messages_that_ended_elsewhere_do_not_pile_up(desk, recorder, request):
    request.addfinalizer(lambda: attach(context.Context()))
    office = desk()
    first = office.deliver()
    kept = weakref.ref(first.span)
    in_thread(first.end)
    del first
    for _ in range(3):
        in_thread(office.deliver().end)
    recorder.exporter.clear()
    gc.collect()
    assert kept() is None


async def elsewhere(function, *arguments):
    """Call a function in another task."""

    async def call():
        return function(*arguments)

    return await asyncio.create_task(call())


CARRIED = {"traceparent": f"00-{1:032x}-{2:016x}-01", "baggage": "tenant=acme"}


async def test_a_message_whose_handling_ended_elsewhere_is_nobodys_parent_where_it_was_handled(desk, recorder):
    before, office = get_current(), desk()
    delivery = office.deliver(headers=CARRIED)
    await elsewhere(delivery.end)
    assert current() is delivery.span
    publication = office.publish()
    publication.end()
    assert get_current() is before
    assert recorder.span("publish orders").parent is None
    assert "baggage" not in publication.carrier


async def test_a_task_that_was_started_by_a_handler_goes_on_in_the_messages_trace(desk, recorder):
    office, over = desk(), asyncio.Event()

    async def later():
        await over.wait()
        publication = office.publish()
        publication.end()
        return publication

    delivery = office.deliver(headers=CARRIED)
    task = asyncio.create_task(later())
    await elsewhere(delivery.end)
    office.publish("mine").end()
    over.set()
    assert (await task).carrier["baggage"] == "tenant=acme"
    assert recorder.span("publish mine").parent is None
    assert recorder.span("publish orders").parent.span_id == span_id(delivery.span)


async def test_a_task_with_the_identity_of_an_older_one_is_another(desk, recorder):
    office = desk()

    async def handler():
        delivery = office.deliver(headers=CARRIED)
        await elsewhere(delivery.end)
        return contextvars.copy_context(), delivery

    inherited, delivery = await asyncio.create_task(handler())  # which is gone, and others may be where it was
    for _ in range(10):
        await inherited.run(asyncio.create_task, elsewhere(lambda: office.publish().end()))
    assert {span.parent.span_id for span in recorder.spans("publish orders", count=10)} == {span_id(delivery.span)}


def test_a_message_whose_handling_ended_in_another_thread_is_nobodys_parent_in_its_own(desk, recorder):
    before, office = get_current(), desk()
    in_thread(office.deliver(headers=CARRIED).end)
    office.publish().end()
    assert get_current() is before
    assert recorder.span("publish orders").parent is None


async def test_the_message_around_one_whose_handling_ended_elsewhere_is_the_parent(desk, recorder):
    office = desk()
    outer = office.deliver("outer")
    await elsewhere(office.deliver("inner", headers=CARRIED).end)
    office.publish().end()
    assert current() is outer.span
    outer.end()
    assert recorder.span("publish orders").parent.span_id == span_id(outer.span)


async def test_what_the_application_has_put_over_an_ended_message_stays(desk, recorder):
    office = desk()
    delivery = office.deliver(headers=CARRIED)
    await elsewhere(delivery.end)
    attach(context.set_value("mine", 7))
    with recorder.tracer.start_as_current_span("work") as span:
        office.publish("in work").end()
    office.publish("after").end()
    found = office.telemetry.active_context()
    assert recorder.span("publish in work").parent.span_id == span_id(span)
    assert recorder.span("publish after").parent is None
    assert found["mine"] == 7
    assert trace.get_current_span(found) is trace.INVALID_SPAN
    attach(context.Context())


async def test_an_ended_message_that_the_applications_own_token_brings_back_is_nobodys_parent(desk, recorder):
    office = desk()
    delivery = office.deliver(headers=CARRIED)
    token = attach(baggage.set_baggage("user", "ada"))
    await elsewhere(delivery.end)
    office.publish("first").end()
    detach(token)
    assert current() is delivery.span
    for _ in range(2):
        office.publish("second").end()
    assert [span.parent for span in recorder.spans(count=4) if span.kind is trace.SpanKind.PRODUCER] == [None] * 3
    assert current() is trace.INVALID_SPAN


def test_without_an_sdk_an_ended_message_is_nobodys_parent_either(desk):
    office = desk(tracer_provider=None, meter_provider=None)
    in_thread(office.deliver(headers=CARRIED).end)
    assert office.publish().carrier == {}
    assert current() is trace.INVALID_SPAN


def test_a_message_that_is_got_after_one_that_ended_elsewhere_has_no_link_to_it(desk, recorder):
    before, office = get_current(), desk("semconv")
    in_thread(office.deliver("first", headers=CARRIED).end)
    second = office.deliver("second")
    second.end()
    assert get_current() is before
    assert recorder.span("process second").parent is None
    assert shape(recorder.span("process second"))["links"] == []


def test_messages_of_two_consumers_by_turns_leave_no_cycles(desk, recorder):
    office, held = desk(), [Held(), Held()]
    for number in range(4):
        held[number % 2].end()
        held[number % 2].hold(office.deliver(headers=CARRIED))
        if number == 0:
            kept = weakref.ref(held[0].delivery.span)
    gc.disable()
    try:
        recorder.exporter.clear()
        assert kept() is None
    finally:
        gc.enable()
    for one in held:
        one.end()


def test_a_span_of_the_application_over_a_message_that_ended_elsewhere_stays(desk, recorder, request):
    request.addfinalizer(lambda: attach(context.Context()))
    office = desk()
    in_thread(office.deliver().end)
    with recorder.tracer.start_as_current_span("mine") as span:
        office.deliver().end()
        assert current() is span
