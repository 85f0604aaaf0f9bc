"""`batch_publish`: several messages are published as one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import os
import sys
from unittest import mock

import pytest
from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_messaging import AioPikaInstrumentor, KafkaPythonInstrumentor, NatsPyInstrumentor
from otel_messaging.core.publish_batch import PublishBatch
from otel_messaging.patterns import batch_publish, libraries
from tests.support import nats_py
from tests.support.kafka_python import QUIET
from tests.support.recorder import shape, span_id, trace_id

pytestmark = QUIET

SUCCESS = {"guide": ("OK", None), "semconv": ("UNSET", None), "both": ("UNSET", None)}


class BrokenError(Exception):
    """What the application raises."""


def server(driver):
    attributes = driver.published("guide", "", b"")
    return {name: value for name, value in attributes.items() if name in ("server.address", "server.port")}


def batch_shape(driver, vocabulary, destination, count, size, **changed):
    guide = {"messaging.operation": "publish", "messaging.batch.total_size_bytes": size}
    semconv = {"messaging.operation.name": "batch_publish", "messaging.operation.type": "send"}
    return {
        "name": f"batch_publish {destination}",
        "kind": "PRODUCER" if vocabulary == "guide" else "CLIENT",
        "parent": None,
        "links": [],
        "status": SUCCESS[vocabulary],
        "attributes": {
            "messaging.system": driver.system,
            "messaging.destination.name": destination,
            "messaging.batch.message_count": count,
            **server(driver),
            **({} if vocabulary == "semconv" else guide),
            **({} if vocabulary == "guide" else semconv),
        },
        "events": [],
        **changed,
    }


@pytest.fixture
async def publisher(connect):
    """A connected driver, and a destination that takes its messages."""

    async def make(**arguments):
        driver = await connect(**arguments)
        destination = driver.name()
        await driver.listen(destination)
        return driver, destination

    return make


async def test_messages_that_are_published_inside_are_counted_and_below_it(publisher, recorder, vocabulary):
    driver, destination = await publisher()
    with batch_publish(destination) as span:
        assert trace.get_current_span() is span
        for body in (b"one", b"three"):
            await driver.publish(destination, body)
    found = recorder.span(f"batch_publish {destination}")
    assert shape(found) == batch_shape(driver, vocabulary, destination, 2, 8)
    published = recorder.producers(2 if vocabulary != "guide" else 3)
    below = [span for span in published if span.name != found.name]
    assert [span.parent.span_id for span in below] == [span_id(found)] * 2
    assert get_current() == {}


async def test_messages_are_counted_once_by_the_metrics(publisher, recorder):
    driver, destination = await publisher()
    async with batch_publish(destination):
        for _ in range(3):
            await driver.publish(destination)
    assert [count for _, count in recorder.metrics()["messaging.messages.produced"]] == [3]


@pytest.mark.parametrize("error", [None, BrokenError])
async def test_in_the_conventions_the_batch_has_a_duration_beside_those_of_its_messages(
    publisher, recorder, monkeypatch, error
):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    driver, destination = await publisher()
    for _ in range(2):  # the first time the server is not known beforehand
        with contextlib.suppress(BrokenError), batch_publish(destination):
            await driver.publish(destination)
            await driver.publish(destination)
            if error is not None:
                raise error
    durations = recorder.metrics()["messaging.client.operation.duration"]
    names = {attributes["messaging.operation.name"]: (attributes, count) for attributes, count in durations}
    assert {name: count for name, (_, count) in names.items()} == {driver.verb: 4, "batch_publish": 2}
    attributes, _ = names["batch_publish"]
    assert attributes == {
        "messaging.system": driver.system,
        "messaging.destination.name": destination,
        "messaging.operation.name": "batch_publish",
        "messaging.operation.type": "send",
        **server(driver),
        **({} if error is None else {"error.type": f"{__name__}.BrokenError"}),
    }
    assert [count for _, count in recorder.metrics()["messaging.client.sent.messages"]] == [4]


async def test_a_message_that_fails_is_an_event_with_its_index(publisher, recorder):
    driver, destination = await publisher()
    with batch_publish(destination):
        await driver.publish(destination)
        await driver.disconnect()
        (error,) = await asyncio.gather(driver.publish(destination), return_exceptions=True)
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    found = shape(recorder.span(f"batch_publish {destination}"))
    failed = ("message_failed", {"message.index": 1, "error.type": name})
    expected = batch_shape(driver, "guide", destination, 2, 8, events=[failed])
    expected["attributes"]["error.type"] = name
    assert found == {**expected, "status": ("ERROR", "1 of 2 messages failed")}


async def test_an_exception_that_leaves_the_block_is_recorded_and_goes_on(publisher, recorder):
    driver, destination = await publisher()
    error = BrokenError("out of stock")

    async def run():
        with batch_publish(destination):
            await driver.publish(destination)
            raise error

    assert await asyncio.gather(run(), return_exceptions=True) == [error]
    span = recorder.span(f"batch_publish {destination}")
    assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, "out of stock")
    assert [event.name for event in span.events] == ["exception"]
    assert span.attributes["messaging.batch.message_count"] == 1


async def test_tasks_inside_are_counted_once_each(publisher, recorder):
    driver, destination = await publisher()
    with batch_publish(destination):
        await asyncio.gather(*(driver.publish(destination, b"four") for _ in range(5)))
    assert shape(recorder.span(f"batch_publish {destination}")) == batch_shape(driver, "guide", destination, 5, 20)


async def test_a_task_that_goes_on_afterwards_is_not_counted(publisher, recorder):
    driver, destination = await publisher()
    over = asyncio.Event()

    async def work():
        await over.wait()
        await driver.publish(destination)

    with batch_publish(destination):
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
    over.set()
    await task
    assert recorder.span(f"batch_publish {destination}").attributes["messaging.batch.message_count"] == 0


@pytest.mark.parametrize("library", ["kafka_python"])
async def test_threads_that_are_given_the_context_are_counted_once_each(publisher, recorder):
    driver, destination = await publisher()

    def work():
        driver.producer.send(destination, b"four", partition=0)

    with batch_publish(destination), concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            pool.submit(contextvars.copy_context().run, work)
    driver.producer.flush(10)
    assert shape(recorder.span(f"batch_publish {destination}")) == batch_shape(driver, "guide", destination, 20, 80)


@pytest.mark.parametrize("library", ["kafka_python"])
async def test_it_lasts_until_the_broker_has_answered_for_all_and_delays_nothing(publisher, recorder):
    driver, destination = await publisher()
    with batch_publish(destination) as span:
        futures = [driver.producer.send(destination, b"four", partition=0) for _ in range(2)]
    assert get_current() == {}
    driver.producer.flush(10)
    ended = recorder.span(f"batch_publish {destination}")
    assert all(future.is_done for future in futures)
    assert span.end_time >= max(published.end_time for published in recorder.spans(f"publish {destination}"))
    assert ended.attributes["messaging.batch.message_count"] == 2


@pytest.mark.parametrize("library", ["kafka_python"])
async def test_the_size_of_what_a_serializer_makes_is_learned_from_the_answer(publisher, recorder, kafka_address):
    from kafka import KafkaProducer

    _, destination = await publisher()
    producer = KafkaProducer(bootstrap_servers=kafka_address, value_serializer=lambda value: value * 3)
    with batch_publish(destination):
        producer.send(destination, b"12", partition=0)
    producer.close(timeout=5)
    assert recorder.span(f"batch_publish {destination}").attributes["messaging.batch.total_size_bytes"] == 6


async def test_a_batch_in_a_batch_counts_its_own(publisher, recorder):
    driver, destination = await publisher()
    with batch_publish("outer"):
        await driver.publish(destination)
        with batch_publish("inner"):
            await driver.publish(destination)
        await driver.publish(destination)
    inner, outer = recorder.span("batch_publish inner"), recorder.span("batch_publish outer")
    assert [span.attributes["messaging.batch.message_count"] for span in (inner, outer)] == [1, 2]
    assert inner.parent.span_id == span_id(outer)


async def test_a_batch_is_in_the_trace_around_it(publisher, recorder):
    driver, destination = await publisher()
    with recorder.tracer.start_as_current_span("job") as job:
        with batch_publish(destination):
            await driver.publish(destination)
        assert trace.get_current_span() is job
    assert {trace_id(span) for span in recorder.spans()} == {trace_id(job)}


async def test_excluded_messages_are_not_counted(publisher, recorder):
    driver, destination = await publisher(excluded_destinations="test-*")
    with batch_publish("orders"):
        await driver.publish(destination)
    assert recorder.span("batch_publish orders").attributes["messaging.batch.message_count"] == 0


async def test_an_excluded_destination_has_no_batch(publisher, recorder):
    driver, destination = await publisher(excluded_destinations="orders")
    with batch_publish("orders") as span:
        span.set_attribute("any", 1)
        await driver.publish(destination)
    assert [span.name for span in recorder.spans()] == [f"publish {destination}"]


async def test_while_instrumentation_is_suppressed_there_is_no_span(publisher, recorder):
    driver, destination = await publisher()
    with suppress_instrumentation(), batch_publish(destination):
        await driver.publish(destination)
    assert recorder.spans() == []


@pytest.mark.parametrize("system", [None, *(library.system for library in libraries.libraries())])
def test_without_an_sdk_there_is_no_span_and_no_context(system):
    with batch_publish("orders", system=system) as span:
        span.set_attribute("any", 1)
        assert get_current() == {}


@pytest.mark.parametrize("before", [False, True], ids=["first", "later"])
async def test_a_sampler_knows_what_is_published(publisher, recorder, before):
    """And to which server, once messages were published to it and to no other."""
    driver, destination = await publisher()
    if before:
        await driver.publish(destination)
    seen = []
    recorder.open.on_start = lambda span, parent_context=None: seen.append((span.name, dict(span.attributes)))
    with batch_publish(destination, system=driver.system):
        pass
    recorder.open.spans.clear()
    ((name, attributes),) = seen
    assert name == f"batch_publish {destination}"
    assert attributes == {
        "messaging.system": driver.system,
        "messaging.destination.name": destination,
        "messaging.operation": "publish",
        **(server(driver) if before else {}),
    }


def test_a_library_can_be_named_for_its_system(recorder, instrument):
    instrument(NatsPyInstrumentor)
    with batch_publish("orders", system="nats_py"):
        pass
    assert recorder.span("batch_publish orders").attributes["messaging.system"] == "nats"


async def test_messages_of_two_systems_have_none_in_common(nats_address, rabbitmq_address, recorder, instrument):
    import aio_pika

    instrument(NatsPyInstrumentor)
    instrument(AioPikaInstrumentor)
    async with nats_py.client(nats_address) as client, await aio_pika.connect(rabbitmq_address) as connection:
        channel = await connection.channel()
        with batch_publish("orders"):
            await client.publish(nats_py.fresh(), b"x")
            await channel.default_exchange.publish(aio_pika.Message(b"yz"), nats_py.fresh())
    attributes = recorder.span("batch_publish orders").attributes
    assert (attributes["messaging.batch.message_count"], attributes["messaging.batch.total_size_bytes"]) == (2, 3)
    assert "messaging.system" not in attributes


def test_a_library_that_is_traced_goes_before_one_that_is_only_imported(recorder, instrument):
    instrument(KafkaPythonInstrumentor)
    import aio_pika  # noqa: F401
    import kafka  # noqa: F401

    with batch_publish("orders"):
        pass
    assert recorder.span("batch_publish orders").instrumentation_scope.name == "otel_messaging.kafka_python"


@pytest.mark.parametrize("imported", [["nats"], ["kafka"], ["kafka", "nats"], []])
def test_a_library_that_is_traced_goes_before_others_that_are_not(recorder, instrument, monkeypatch, imported):
    instrument(NatsPyInstrumentor)
    for package in ("kafka", "aio_pika", "nats"):
        monkeypatch.delitem(sys.modules, package, raising=False)
        if package in imported:
            monkeypatch.setitem(sys.modules, package, mock.Mock())
    with batch_publish("orders"):
        pass
    span = recorder.span("batch_publish orders")
    assert span.instrumentation_scope.name == "otel_messaging.nats_py"
    assert span.attributes.get("messaging.system") == ("nats" if imported == ["nats"] else None)


def test_what_is_no_destination_is_refused_at_the_call():
    with pytest.raises(TypeError, match="name of the destination"):
        batch_publish(["orders"])
    with pytest.raises(ValueError, match="pulsar"):
        batch_publish("orders", system="pulsar")


async def test_a_block_is_entered_once_at_a_time(publisher, recorder):
    await publisher()
    block = batch_publish("orders")
    with block, pytest.raises(RuntimeError, match="once for each"):
        block.__enter__()
    recorder.spans("batch_publish orders", count=1)


async def test_a_generator_that_is_left_has_not_failed(publisher, recorder):
    await publisher()

    def publishing():
        with batch_publish("orders"):
            yield

    batches = publishing()
    next(batches)
    batches.close()
    assert recorder.span("batch_publish orders").status.status_code is trace.StatusCode.OK


async def test_it_may_end_in_another_context_than_it_began_in(publisher, recorder):
    await publisher()
    block = batch_publish("orders")
    contextvars.copy_context().run(block.__enter__)
    with recorder.tracer.start_as_current_span("job") as job:
        block.__exit__(None, None, None)
        assert trace.get_current_span() is job
    recorder.spans("batch_publish orders", count=1)


async def test_telemetry_that_fails_does_not_reach_the_block(publisher, recorder, lenient, caplog, monkeypatch):
    driver, destination = await publisher()
    monkeypatch.setattr("otel_messaging.core.telemetry.Telemetry.start", mock.Mock(side_effect=OSError))
    with batch_publish(destination) as span:
        span.set_attribute("any", 1)
        await driver.publish(destination)
    assert [span.name for span in recorder.spans()] == [f"publish {destination}"]
    assert ["OSError" in record.getMessage() for record in caplog.records if record.name == "otel_messaging"] == [True]


@pytest.mark.parametrize("library", ["kafka_python", "aio_pika"])  # asyncio keeps the context of timers for a while
async def test_nothing_is_kept_of_a_batch_that_is_over(publisher, recorder):
    driver, destination = await publisher()
    with batch_publish(destination):
        await driver.publish(destination)
    recorder.spans(f"batch_publish {destination}", count=1)
    gc.collect()
    assert [found for found in gc.get_objects() if type(found) is PublishBatch] == []


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_leaves_the_batch_to_its_parent(recorder, instrument):
    instrument(NatsPyInstrumentor)
    block = batch_publish("orders")
    block.__enter__()
    child = os.fork()
    if not child:
        block.__exit__(None, None, None)
        os._exit(len(recorder.spans()))
    assert os.waitpid(child, 0)[1] == 0
    block.__exit__(None, None, None)
    recorder.spans("batch_publish orders", count=1)


async def test_a_block_in_a_generator_that_was_left_is_nobodys_parent(publisher, recorder):
    driver, destination = await publisher()

    async def publishing():
        async with batch_publish(destination):
            await driver.publish(destination)
            yield

    generator = publishing()
    await anext(generator)
    await asyncio.create_task(generator.aclose())
    batch = recorder.span(f"batch_publish {destination}")
    await driver.publish(destination)
    within, after = recorder.spans(f"publish {destination}", count=2)
    assert within.parent.span_id == span_id(batch)
    assert batch.attributes["messaging.batch.message_count"] == 1
    assert shape(batch)["status"] == ("OK", None)
    assert after.parent is None
    assert get_current() == {}
