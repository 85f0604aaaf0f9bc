"""`process`: the application says itself when it handles a message, wherever that is."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import inspect
import multiprocessing
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_messaging.patterns import process
from tests.support import elsewhere
from tests.support.recorder import shape, span_id, trace_id

SUCCESS = {"guide": ("OK", None), "semconv": ("UNSET", None), "both": ("UNSET", None)}
HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
REMOTE = (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
# What a consumer alone knows, and tells of once.
OF_DELIVERY = {"messaging.message.queue_time", "messaging.consumer.lag"}


class BrokenError(Exception):
    """What the application raises."""


def process_shape(driver, vocabulary, destination, published, **changed):
    attributes = driver.consumed(vocabulary, destination, b"hello")
    operation = {} if vocabulary == "semconv" else {"messaging.operation": "process"}
    return {
        "name": f"process {destination}",
        "kind": "CONSUMER",
        "parent": span_id(published),
        "links": [] if vocabulary == "guide" else [span_id(published)],
        "status": SUCCESS[vocabulary],
        "attributes": {**attributes, **operation},
        "events": [],
        **changed,
    }


def processed(driver, recorder, destination):
    """The shape of the span that ended last."""
    spans = recorder.spans(f"process {destination}")
    found = shape(spans[-1])
    assert OF_DELIVERY.isdisjoint(found["attributes"])
    return {**found, "attributes": {k: v for k, v in found["attributes"].items() if k not in driver.varying}}


async def test_a_message_that_was_handed_on_has_a_span_of_its_own_in_its_trace(receive, recorder, vocabulary):
    driver, destination, (message,) = await receive()
    with process(message) as span:
        assert trace.get_current_span() is span
    (published,) = recorder.producers(1)
    assert processed(driver, recorder, destination) == process_shape(driver, vocabulary, destination, published)
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_what_varies_is_told_of_too(receive, recorder, vocabulary):
    driver, _, (message,) = await receive()
    with process(message) as span:
        pass
    types = {key: type(value).__name__ for key, value in span.attributes.items() if key in driver.varying}
    expected = {key: name for key, name in driver.varying_types(vocabulary).items() if key not in OF_DELIVERY}
    assert types == expected


async def test_work_is_below_the_process_span(receive, recorder):
    _, destination, (message,) = await receive()
    async with process(message):
        with recorder.tracer.start_as_current_span("work"):
            pass
    assert recorder.span("work").parent.span_id == span_id(recorder.span(f"process {destination}"))


async def test_inside_its_receive_span_it_is_beside_it_and_timed_once(receive, recorder):
    async def body(message):
        with process(message):
            pass

    _, destination, _ = await receive(body=body)
    received, inside = recorder.span(f"receive {destination}"), recorder.span(f"process {destination}")
    assert inside.parent == received.parent
    assert inside.links == ()
    counted = {name: sum(value for _, value in points) for name, points in recorder.metrics().items()}
    assert counted["messaging.messages.consumed"] == 1
    assert counted["messaging.processing.duration"] == 1


async def test_in_the_conventions_it_is_below_the_span_around_it(receive, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")

    async def body(message):
        with process(message):
            pass

    _, destination, _ = await receive(body=body)
    inside, around = recorder.spans(f"process {destination}", count=2)
    (published,) = recorder.producers(1)
    assert inside.parent.span_id == span_id(around)
    assert [link.context.span_id for link in inside.links] == [span_id(published)]
    counted = {name: sum(value for _, value in points) for name, points in recorder.metrics().items()}
    assert (counted["messaging.client.consumed.messages"], counted["messaging.process.duration"]) == (1, 1)


@pytest.mark.parametrize("parent", ["message", "ambient"])
async def test_a_span_of_another_trace_around_it_is_linked_or_its_parent(receive, recorder, parent):
    _, _, (message,) = await receive(consumer_parent=parent)
    with recorder.tracer.start_as_current_span("job") as job, process(message) as span:
        pass
    (published,) = recorder.producers(1)
    expected = {"message": (published, job), "ambient": (job, published)}
    above, linked = expected[parent]
    assert span.parent.span_id == span_id(above)
    assert [link.context.span_id for link in span.links] == [span_id(linked)]


async def test_an_exception_is_recorded_and_goes_on(receive, recorder):
    driver, destination, (message,) = await receive()
    error = BrokenError("out of stock")
    with pytest.raises(BrokenError) as raised, process(message):
        raise error
    assert raised.value is error
    (published,) = recorder.producers(1)
    name = f"{BrokenError.__module__}.BrokenError"
    found = processed(driver, recorder, destination)
    ((event, details),) = found.pop("events")
    assert (event, details["exception.type"], details["exception.message"]) == ("exception", name, "out of stock")
    expected = process_shape(driver, "guide", destination, published, status=("ERROR", "out of stock"))
    expected["attributes"]["error.type"] = name
    expected.pop("events")
    assert found == expected
    durations = recorder.metrics()["messaging.processing.duration"]
    assert [count for attributes, count in durations if attributes.get("error.type") == name] == [1]


async def test_a_message_is_counted_once(receive, recorder):
    _, destination, (message,) = await receive()
    with process(message):
        pass
    ((attributes, count),) = recorder.metrics()["messaging.messages.consumed"]
    assert (attributes["messaging.destination.name"], count) == (destination, 1)


async def test_threads_handle_messages_at_the_same_time(receive, recorder):
    _, destination, messages = await receive(b"one", b"two", b"three")
    together = threading.Barrier(3, timeout=5)
    left = []

    def work(message):
        with process(message):
            together.wait()
        left.append(get_current())

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(work, messages))
    published = recorder.producers(3)
    spans = recorder.spans(f"process {destination}", count=3)
    assert {span.parent.span_id for span in spans} == {span_id(span) for span in published}
    assert left == [{}, {}, {}]


async def test_a_bounded_pool_of_tasks_gives_each_message_both_spans_with_true_durations(receive, recorder):
    free, tasks, running, most = asyncio.Semaphore(2), [], set(), []

    async def work(message):
        try:
            async with process(message):
                running.add(id(message))
                most.append(len(running))
                await asyncio.sleep(0.05)
        finally:
            running.discard(id(message))
            free.release()

    async def hand_on(message):
        await free.acquire()
        tasks.append(asyncio.create_task(work(message)))

    _, destination, _ = await receive(*(b"%d" % number for number in range(5)), body=hand_on)
    await asyncio.gather(*tasks)
    assert max(most) == 2
    for published in recorder.producers(5):
        siblings = [span for span in recorder.spans() if span.parent and span.parent.span_id == span_id(published)]
        assert sorted(span.name for span in siblings) == [f"process {destination}", f"receive {destination}"]
        (handled,) = [span for span in siblings if span.name == f"process {destination}"]
        assert 0.045 < (handled.end_time - handled.start_time) / 1e9 < 10


async def test_a_handler_is_decorated(receive, recorder):
    _, destination, (message,) = await receive()

    @process
    def handle(given, more):
        """Handle it."""
        return given, more, trace.get_current_span()

    @process
    async def handle_async(more, *, given):
        await asyncio.sleep(0)
        return given, more, trace.get_current_span()

    answers = [handle(message, 1), await handle_async(1, given=message)]
    spans = recorder.spans(f"process {destination}", count=2)
    assert [(given is message, more, span_id(span)) for given, more, span in answers] == [
        (True, 1, span_id(span)) for span in spans
    ]
    assert (handle.__doc__, inspect.iscoroutinefunction(handle_async)) == ("Handle it.", True)


async def test_a_method_is_decorated(receive, recorder):
    _, destination, (message,) = await receive()

    class Desk:
        @process
        def handle(self, given):
            return self, given

    desk = Desk()
    assert desk.handle(message) == (desk, message)
    recorder.spans(f"process {destination}", count=1)


def test_generators_are_not_decorated():
    with pytest.raises(TypeError, match="with process"):

        @process
        def handle(message):
            yield message


def test_a_decorated_handler_runs_without_a_message_and_one_line_says_so(lenient, caplog):
    @process
    def handle(*_args):
        return "done"

    assert [handle(), handle("no message")] == ["done", "done"]
    (record,) = caplog.records
    assert "handle() is decorated by process(), and was called without a message" in record.getMessage()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: process("text"),
        lambda: process(None),
        lambda: process({"traceparent": "x"}),
        lambda: process({"traceparent": "x"}, destination="orders"),
        lambda: process({"traceparent": "x"}, system="kafka"),
        lambda: process([1, 2], destination="orders", system="kafka"),
        lambda: process(5, destination="orders", system="kafka"),
    ],
)
def test_what_is_no_message_is_refused_at_the_call(wrong):
    with pytest.raises(TypeError, match="destination= and system="):
        wrong()


def test_a_system_that_is_not_known_is_refused_at_the_call():
    with pytest.raises(ValueError, match="'kafka', 'nats', 'rabbitmq', not 'pulsar'"):
        process({}, destination="orders", system="pulsar")


@pytest.mark.parametrize(
    "headers",
    [HEADERS, [("traceparent", HEADERS["traceparent"].encode())], {"Traceparent": HEADERS["traceparent"].encode()}],
)
async def test_headers_are_enough_with_destination_and_system(connect, recorder, headers):
    driver = await connect()
    with process(headers, destination="orders", system=driver.system):
        pass
    assert shape(recorder.span("process orders")) == {
        "name": "process orders",
        "kind": "CONSUMER",
        "parent": REMOTE[1],
        "links": [],
        "status": ("OK", None),
        "attributes": {
            "messaging.system": driver.system,
            "messaging.destination.name": "orders",
            "messaging.operation": "process",
        },
        "events": [],
    }


@pytest.mark.parametrize("headers", [None, {}, [], {"traceparent": b"\xff"}, [("traceparent", None)], {7: object()}])
async def test_a_message_without_a_context_begins_a_trace(connect, recorder, headers):
    driver = await connect()
    with process(headers, destination="orders", system=driver.system):
        pass
    assert recorder.span("process orders").parent is None


async def test_a_destination_can_be_given(receive, recorder):
    _, _, (message,) = await receive()
    with process(message, destination="orders"):
        pass
    assert recorder.span("process orders").attributes["messaging.destination.name"] == "orders"


async def test_baggage_of_the_message_is_current(connect, recorder):
    driver = await connect()
    with process({**HEADERS, "baggage": "tenant=acme"}, destination="orders", system=driver.system):
        assert baggage.get_baggage("tenant") == "acme"
    assert baggage.get_baggage("tenant") is None


async def test_chosen_headers_are_recorded(connect, recorder):
    driver = await connect(capture_headers="x-*")
    with process({**HEADERS, "X-Tenant": "acme"}, destination="orders", system=driver.system):
        pass
    assert recorder.span("process orders").attributes["messaging.header.x-tenant"] == "acme"


async def test_an_excluded_destination_has_no_span(connect, recorder):
    driver = await connect(excluded_destinations="orders")
    with process(HEADERS, destination="orders", system=driver.system) as span:
        span.set_attribute("any", 1)
    assert recorder.spans() == []


async def test_while_instrumentation_is_suppressed_there_is_no_span(connect, recorder):
    driver = await connect()
    with suppress_instrumentation(), process(HEADERS, destination="orders", system=driver.system):
        pass
    assert recorder.spans() == []


async def test_it_lasts_where_the_spans_of_consumers_do_not(receive, recorder):
    _, destination, (message,) = await receive(process_spans=False)
    with process(message) as span:
        assert span.is_recording()
        assert trace.get_current_span() is span
    recorder.spans(f"process {destination}", count=1)


async def test_without_an_sdk_the_context_of_the_message_is_passed_on(receive, recorder):
    driver, _, (message,) = await receive()
    driver.instrumentor().uninstrument()
    (published,) = recorder.producers(1)
    with process(message) as span:
        span.set_attribute("any", 1)
        around = trace.get_current_span().get_span_context()
    assert (around.trace_id, around.span_id, around.is_remote) == (trace_id(published), span_id(published), True)
    assert recorder.spans("process") == []


async def test_a_block_is_entered_once_at_a_time(receive, recorder):
    _, destination, (message,) = await receive()
    block = process(message)
    with block, pytest.raises(RuntimeError, match="once for each"):
        block.__enter__()
    with block:
        pass
    recorder.spans(f"process {destination}", count=2)


async def test_it_may_end_in_another_context_than_it_began_in(receive, recorder):
    _, destination, (message,) = await receive()
    block = process(message)
    elsewhere = contextvars.copy_context()
    elsewhere.run(block.__enter__)
    with recorder.tracer.start_as_current_span("job") as job:
        block.__exit__(None, None, None)
        assert trace.get_current_span() is job
    recorder.spans(f"process {destination}", count=1)


async def test_a_generator_that_is_left_has_not_failed(receive, recorder):
    _, destination, messages = await receive()

    def handled():
        for message in messages:
            with process(message):
                yield message

    handling = handled()
    next(handling)
    handling.close()
    assert recorder.span(f"process {destination}").status.status_code is trace.StatusCode.OK


async def test_telemetry_that_fails_does_not_reach_the_block(receive, lenient, caplog, monkeypatch):
    driver, _, (message,) = await receive()
    monkeypatch.setattr(f"otel_messaging.{driver.library}.messages.read", mock.Mock(side_effect=OSError))
    done = []
    with process(message) as span:
        span.set_attribute("any", 1)
        done.append(1)
    assert done == [1]
    assert ["OSError" in record.getMessage() for record in caplog.records if record.name == "otel_messaging"] == [True]


async def test_a_stand_in_for_a_message_does_no_harm(receive, lenient):
    _, _, (message,) = await receive()
    with process(mock.MagicMock(spec=type(message))):
        pass


async def test_nothing_is_kept_of_a_message_that_was_handled(receive):
    _, _, (message,) = await receive()
    before = sys.getrefcount(message)
    for _ in range(3):
        with process(message):
            pass
    assert sys.getrefcount(message) == before


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_another_process_handles_a_message_or_its_headers(receive, recorder, method):
    driver, destination, (message,) = await receive()
    given, named = message, {}
    if driver.library != "kafka_python":  # the others hold on to their connection
        given, named = dict(message.headers), {"destination": destination, "system": driver.system}
    start = multiprocessing.get_context(method)
    prepare = elsewhere.set_up_sdk if method == "spawn" else None
    with concurrent.futures.ProcessPoolExecutor(1, start, prepare) as pool:
        told = pool.submit(elsewhere.handle, given, named).result(timeout=60)
    (published,) = recorder.producers(1)
    attributes = told.pop("attributes")
    assert told == {
        "name": f"process {destination}",
        "trace": trace_id(published),
        "parent": span_id(published),
        "after": False,
    }
    expected = {"messaging.system", "messaging.destination.name", "messaging.operation"}
    if driver.library == "kafka_python":
        expected |= {f"messaging.kafka.{name}" for name in ("destination.partition", "message.offset")}
        expected.add("messaging.message.payload_size_bytes")
        if method == "fork":  # the consumer is there, too
            expected |= {"messaging.kafka.consumer.group", "messaging.client.id", "server.address", "server.port"}
    assert set(attributes) == expected


async def test_an_acknowledgement_is_told_of_where_the_message_is_handled(connect, recorder, library):
    if library != "aio_pika":
        pytest.skip("kafka-python's offsets are of its consumer; core NATS has no acknowledgements")
    driver = await connect()
    destination = driver.name()
    queue = await driver.listen(destination)
    await driver.publish(destination)
    messages = []
    async with queue.iterator(timeout=8) as iterator:
        async for message in iterator:
            messages.append(message)
            break

        async def work(message):
            async with process(message):
                await message.ack()

        await asyncio.create_task(work(messages[0]))
    assert [event.name for event in recorder.span(f"process {destination}").events] == ["ack"]


def test_durations_are_of_the_handling(recorder, nats_address, instrument):
    from otel_messaging import NatsPyInstrumentor

    instrument(NatsPyInstrumentor)
    with process(HEADERS, destination="orders", system="nats"):
        time.sleep(0.02)
    assert 20 <= recorder.sums()["messaging.processing.duration"] < 10_000


def test_blocks_of_several_messages_may_be_left_in_any_order(recorder, instrument):
    from otel_messaging import NatsPyInstrumentor

    instrument(NatsPyInstrumentor)
    with contextlib.ExitStack() as later:
        first = process(HEADERS, destination="first", system="nats")
        first.__enter__()
        later.enter_context(process(HEADERS, destination="second", system="nats"))
        first.__exit__(None, None, None)
        assert trace.get_current_span().name == "process second"
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_no_client_library_is_imported():
    program = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from otel_messaging.patterns import batch_publish, process, process_batch

trace.set_tracer_provider(TracerProvider())
for system in ("kafka", "rabbitmq", "nats"):
    named = {"destination": "orders", "system": system}
    for block in process({}, **named), process_batch([{}], **named), batch_publish("orders", system=system):
        with block as span:
            assert span.is_recording()
assert {"kafka", "aio_pika", "aiormq", "nats"}.isdisjoint(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


async def test_a_block_in_a_generator_that_was_left_is_nobodys_parent(receive, recorder, vocabulary):
    driver, destination, (message,) = await receive()
    recorder.exporter.clear()

    async def handled():
        async with process(message):
            yield

    generator = handled()
    await anext(generator)
    await asyncio.create_task(generator.aclose())
    assert shape(recorder.span(f"process {destination}"))["status"] == SUCCESS[vocabulary]
    await driver.publish(driver.name())
    (published,) = recorder.producers(1)
    assert published.parent is None
    assert get_current() == {}
