"""What the cyclic collector ends: nothing at once, since it runs in the middle of anybody's work."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time

import pytest
from opentelemetry import baggage, context
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanProcessor

from otel_messaging.core import finalizers, safety
from otel_messaging.core import vocabulary as v
from otel_messaging.core.publish_batch import PublishBatch
from otel_messaging.instrumentation.loops import AsyncLoop, Held, Loop, handle
from otel_messaging.instrumentation.message_list import Batch
from tests.programs import FOLDER, ROOT, run
from tests.support.recorder import shape


class Watch(SpanProcessor):
    """Notes the spans that begin or end while the collector is at work in their thread."""

    def __init__(self):
        self.collecting, self.seen = None, []

    def on_start(self, span, parent_context=None):
        self.note(span)

    def on_end(self, span):
        self.note(span)

    def note(self, span):
        if self.collecting == threading.get_ident():
            self.seen.append(span.name)

    def __call__(self, phase, info):
        self.collecting = threading.get_ident() if phase == "start" else None


@pytest.fixture
def watch(recorder):
    made = Watch()
    recorder.tracer_provider.add_span_processor(made)
    gc.callbacks.append(made)
    yield made
    gc.callbacks.remove(made)
    assert made.seen == []


@pytest.fixture(autouse=True)
def collector():
    """The collector runs when a test says so, and finds nothing that was there before."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    assert not finalizers.aside
    assert not finalizers.finalizing


class Knot:
    """What only the collector lets go of."""

    def __init__(self, *parts):
        self.parts, self.self = parts, self


class Source:
    """Stands for a consumer of a library."""

    def __init__(self, office):
        self.office, self.held = office, Held()

    def __iter__(self):
        return Loop(self, self.held)

    def __next__(self):
        self.held.end()
        self.held.hold(self.office.deliver())
        return "message"

    def __aiter__(self):
        return AsyncLoop(self, self.held)

    async def __anext__(self):
        return next(self)


def generator(messages):
    yield from messages


async def asynchronous(messages):
    async for message in messages:
        yield message


def advance(awaitable):
    with contextlib.suppress(StopIteration):
        awaitable.send(None)


def loop_over_a_list(office):
    messages = generator(Batch(["a", "b"], lambda _message: office.deliver()))
    next(messages)
    return messages


def loop_over_a_consumer(office):
    messages = generator(Source(office))
    next(messages)
    return messages


def asynchronous_loop(office):
    iterator = Source(office).__aiter__()
    advance(iterator.__anext__())
    return iterator


def callback(office):
    async def waiting(_message):
        await asyncio.sleep(0)

    handling = handle(lambda _message: office.deliver(), waiting, "message")
    handling.send(None)
    return handling


def let_go_by_a_finalizer(office):
    delivery = office.deliver()

    class Owner:
        @finalizers.finalizer
        def __del__(self):
            delivery.end()

    return Owner()


WAYS = [loop_over_a_list, loop_over_a_consumer, asynchronous_loop, callback, let_go_by_a_finalizer]


@pytest.mark.parametrize("way", WAYS)
def test_what_the_collector_lets_go_of_ends_with_its_own_time_at_the_next_ordinary_call(desk, recorder, watch, way):
    office = desk()
    began = time.perf_counter()
    Knot(way(office))
    assert recorder.spans() == []
    before = time.time_ns()
    gc.collect()
    after, collected = time.time_ns(), time.perf_counter()
    assert recorder.spans() == []
    time.sleep(0.01)
    assert office.telemetry.active_context() is get_current()
    assert get_current() == {}
    span = recorder.span("receive orders")
    assert before <= span.end_time <= after
    assert 0 < recorder.sums()["messaging.processing.duration"] <= (collected - began) * 1e3


@pytest.mark.parametrize("way", WAYS)
def test_it_ends_when_metrics_are_collected_too(desk, recorder, watch, way):
    Knot(way(desk()))
    gc.collect()
    assert [value for _, value in recorder.metrics()["messaging.messages.consumed"]] == [1]
    recorder.span("receive orders")
    assert get_current() == {}


def test_a_collection_within_a_finalizer_does_not_end_it(desk, recorder, watch):
    office = desk()
    delivery = office.deliver()

    class Owner:
        @finalizers.finalizer
        def __del__(self):
            gc.collect()
            delivery.end()

    Owner()
    assert recorder.spans() == []
    assert not finalizers.is_finalizing()
    office.telemetry.active_context()
    recorder.span("receive orders")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_what_a_signal_raises_while_the_collector_is_at_work_is_not_lost():
    class Interrupted(BaseException):
        pass

    def handle(_signal, _frame):
        raise Interrupted

    many = [[number, [number]] for number in range(300_000)]  # more than 2 ms of work
    before = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(Interrupted):  # noqa: PT012 (where it is raised does not matter)
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            gc.collect()
            time.sleep(5)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(many) == 300_000
    assert not finalizers.is_finalizing()


def test_it_ends_when_instrumentation_is_switched_off(desk, recorder, watch):
    office = desk()
    Knot(loop_over_a_list(office))
    gc.collect()
    office.telemetry.close()
    recorder.span("receive orders")
    context.attach(context.Context())


def test_it_does_not_end_inside_an_exporter(desk, recorder, watch):
    office = desk()
    Knot(loop_over_a_list(office))
    gc.collect()
    with suppress_instrumentation():
        assert office.telemetry.active_context() is None
        assert office.telemetry.outgoing() is None
    assert recorder.spans() == []
    office.telemetry.outgoing()
    recorder.span("receive orders")
    assert get_current() == {}


def test_the_context_in_whose_middle_the_collector_runs_is_left_alone(desk, recorder, watch):
    office = desk()
    Knot(loop_over_a_list(office))
    here = get_current()
    gc.collect()
    assert get_current() is here
    assert recorder.metrics()
    assert get_current() == {}


def test_a_loop_that_is_left_in_the_applications_own_line_ends_there(desk, recorder):
    office = desk()
    for _ in Source(office):
        break
    assert get_current() == {}
    recorder.spans("receive orders", count=1)
    messages = loop_over_a_list(office)
    del messages
    assert get_current() == {}
    recorder.spans("receive orders", count=2)


def test_a_collector_in_another_thread_is_none_of_ours(desk, recorder):
    inside, done = threading.Event(), threading.Event()

    class Slow:
        def __del__(self):
            inside.set()
            done.wait(5)

    Knot(Slow())
    collecting = threading.Thread(target=gc.collect)
    collecting.start()
    inside.wait(5)
    for _ in Source(desk()):
        break
    recorder.span("receive orders")
    done.set()
    collecting.join()


def test_nothing_begins_in_the_collector(desk, recorder, watch):
    office, seen = desk(), []

    class Talkative:
        def __del__(self):
            seen.append((office.telemetry.active_context(), office.telemetry.outgoing()))

    with baggage_of("user", "ada"):
        Knot(Talkative())
        gc.collect()
    assert seen == [(None, None)]


@contextlib.contextmanager
def baggage_of(name, value):
    token = context.attach(baggage.set_baggage(name, value))
    yield
    context.detach(token)


def test_a_message_that_failed_in_the_collector_says_so_and_keeps_nothing(desk, recorder, watch):
    office = desk()

    class Failing:
        def __init__(self):
            self.delivery = office.deliver()

        def __del__(self):
            self.delivery.end(ValueError("no address"))

    Knot(Failing())
    gc.collect()
    ((_end, arguments),) = [entry for entry in finalizers.aside if entry[1]]
    assert not any(isinstance(argument, BaseException) for argument in arguments)
    assert recorder.metrics()["messaging.messages.consumed"][0][0]["error.type"] == "ValueError"
    found = shape(recorder.span("receive orders"))
    assert found["status"] == ("ERROR", "no address")
    assert found["attributes"]["error.type"] == "ValueError"


def test_what_is_published_together_ends_later_too(desk, recorder, watch):
    office = desk()
    operation = office.operation(v.BATCH_PUBLISH, "batch_publish")

    def publishing():
        span = office.telemetry.start(operation, get_current())
        batch = PublishBatch(office.telemetry, operation, span, get_current())
        publication = office.publish()
        try:
            yield
        finally:
            publication.end(ValueError("refused"))
            batch.end()

    waiting = publishing()
    next(waiting)
    Knot(waiting)
    del waiting
    before = time.time_ns()
    gc.collect()
    after = time.time_ns()
    assert recorder.spans() == []
    time.sleep(0.01)
    office.telemetry.active_context()
    assert get_current() == {}
    together = recorder.span("batch_publish orders")
    assert before <= together.end_time <= after
    assert before <= together.events[0].timestamp <= after
    assert shape(together)["events"] == [("message_failed", {"message.index": 0, "error.type": "ValueError"})]
    assert before <= recorder.span("publish orders").end_time <= after


def test_a_settlement_in_the_collector_is_an_event_at_its_own_time(desk, recorder, watch):
    office = desk()
    delivery = office.deliver()
    settlement = office.telemetry.settle("ack", delivery.operation, delivery, (), {})

    class Settling:
        def __del__(self):
            settlement.end()

    Knot(Settling())
    before = time.time_ns()
    gc.collect()
    after = time.time_ns()
    office.telemetry.active_context()
    delivery.end()
    (event,) = recorder.span("receive orders").events
    assert (event.name, dict(event.attributes)) == ("ack", {})
    assert before <= event.timestamp <= after


def test_our_own_errors_are_logged_later(lenient, caplog):
    during = []

    class Handler(logging.Handler):
        def emit(self, record):
            during.append(finalizers.is_finalizing())

    class Broken:
        @finalizers.finalizer
        def __del__(self):
            safety.report("letting go", ValueError("ours"))

    handler = Handler()
    logging.getLogger("otel_messaging").addHandler(handler)
    try:
        Knot(Broken())
        gc.collect()
        assert during == []
        finalizers.end_aside()
        assert during == [False]
    finally:
        logging.getLogger("otel_messaging").removeHandler(handler)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_leaves_to_its_parent_what_was_put_aside(desk, recorder):
    office = desk()
    Knot(loop_over_a_list(office))
    gc.collect()
    child = os.fork()
    if not child:
        os._exit(len(finalizers.aside))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    office.telemetry.active_context()
    recorder.span("receive orders")


@pytest.mark.parametrize("case", ["lock", "reader", "exit", "end"])
def test_a_program_whose_loops_are_collected_neither_hangs_nor_complains(case):
    done = run(sys.executable, FOLDER / "abandoned.py", case, environ={"PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.stderr == ""
    assert done.stdout.split() == {"lock": ["1", "1"], "reader": ["500", "500"], "exit": ["1"], "end": []}[case]
