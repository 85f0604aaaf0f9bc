"""`process_batch`: several messages are handled at once."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import time

import pytest
from opentelemetry import trace

from otel_messaging import NatsPyInstrumentor
from otel_messaging.patterns import process_batch
from tests.support import nats_py
from tests.support.kafka_python import QUIET, application, plain, stack  # noqa: F401
from tests.support.recorder import links, shape, span_id

pytestmark = QUIET

SUCCESS = {"guide": ("OK", None), "semconv": ("UNSET", None), "both": ("UNSET", None)}
HEADERS = [{"traceparent": f"00-{number:032x}-{number:016x}-01"} for number in (1, 2, 3)]


class BrokenError(Exception):
    """What the application raises."""


def batch_shape(driver, vocabulary, destination, published, count, size, **changed):
    attributes = driver.consumed(vocabulary, destination, b"")
    attributes.pop("messaging.message.payload_size_bytes", None)
    attributes["messaging.batch.message_count"] = count
    if vocabulary != "semconv":
        attributes.update({"messaging.operation": "process", "messaging.batch.total_size_bytes": size})
    if vocabulary != "guide":
        attributes["messaging.operation.name"] = "batch_process"
    return {
        "name": f"batch_process {destination}",
        "kind": "CONSUMER",
        "parent": span_id(published[0]) if vocabulary == "guide" else None,
        "links": [span_id(span) for span in published],
        "status": SUCCESS[vocabulary],
        "attributes": attributes,
        "events": [],
        **changed,
    }


def batch(driver, recorder, destination):
    found = shape(recorder.span(f"batch_process {destination}"))
    return {**found, "attributes": {k: v for k, v in found["attributes"].items() if k not in driver.varying}}


async def test_messages_are_one_span_linked_to_each_of_them(receive, recorder, vocabulary):
    driver, destination, messages = await receive(b"one", b"three", b"")
    with process_batch(messages) as span:
        assert trace.get_current_span() is span
    published = sorted(recorder.producers(3), key=lambda span: span.start_time)
    assert batch(driver, recorder, destination) == batch_shape(driver, vocabulary, destination, published, 3, 8)
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_batch_that_fails_is_one_failure(receive, recorder):
    driver, destination, messages = await receive(b"one", b"two")
    with pytest.raises(BrokenError):
        async with process_batch(messages):
            raise BrokenError("out of stock")
    published = sorted(recorder.producers(2), key=lambda span: span.start_time)
    found = batch(driver, recorder, destination)
    assert [name for name, _ in found["events"]] == ["exception"]
    name = f"{BrokenError.__module__}.BrokenError"
    expected = batch_shape(driver, "guide", destination, published, 2, 6, events=found["events"])
    expected["attributes"]["error.type"] = name
    assert found == {**expected, "status": ("ERROR", "out of stock")}
    durations = recorder.metrics()["messaging.processing.duration"]
    assert [count for attributes, count in durations if attributes.get("error.type") == name] == [1]


async def test_messages_are_not_counted_again(receive, recorder):
    _, _, messages = await receive(b"one", b"two")
    with process_batch(messages):
        pass
    assert [count for _, count in recorder.metrics()["messaging.messages.consumed"]] == [2]


async def test_a_span_of_another_trace_around_it_is_linked(receive, recorder):
    _, destination, messages = await receive(b"one", b"two")
    with recorder.tracer.start_as_current_span("job") as job, process_batch(messages):
        pass
    published = sorted(recorder.producers(2), key=lambda span: span.start_time)
    span = recorder.span(f"batch_process {destination}")
    assert span.parent.span_id == span_id(published[0])
    assert [link.context.span_id for link in span.links] == [span_id(other) for other in (*published, job)]


async def test_in_the_conventions_the_span_around_it_is_its_parent(receive, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    _, destination, messages = await receive(b"one", b"two")
    with recorder.tracer.start_as_current_span("job") as job, process_batch(messages):
        pass
    published = sorted(recorder.producers(2), key=lambda span: span.start_time)
    span = recorder.span(f"batch_process {destination}")
    assert span.parent.span_id == span_id(job)
    assert [link.context.span_id for link in span.links] == [span_id(other) for other in published]


async def test_one_message_is_a_batch_of_one(receive, recorder):
    driver, destination, messages = await receive(b"four")
    with process_batch(tuple(messages)):
        pass
    expected = batch_shape(driver, "guide", destination, recorder.producers(1), 1, 4, links=[])
    assert batch(driver, recorder, destination) == expected


def test_nothing_is_told_of_an_empty_batch(recorder, instrument):
    instrument(NatsPyInstrumentor)
    for nothing in ([], {}, {"partition": []}):
        with process_batch(nothing) as span:
            span.set_attribute("any", 1)
    assert recorder.spans() == []


def test_headers_are_enough_with_destination_and_system(recorder, instrument):
    instrument(NatsPyInstrumentor)
    with process_batch([*HEADERS, None], destination="orders", system="nats"):
        pass
    span = shape(recorder.span("batch_process orders"))
    assert (span["parent"], span["links"]) == (1, [1, 2, 3])
    assert span["attributes"]["messaging.batch.message_count"] == 4


def test_messages_with_the_same_context_are_linked_once(recorder, instrument):
    instrument(NatsPyInstrumentor)
    with process_batch([HEADERS[0], HEADERS[0]], destination="orders", system="nats"):
        pass
    assert shape(recorder.span("batch_process orders"))["links"] == [1]


async def test_what_is_known_of_a_message_is_on_its_link(receive, recorder, vocabulary):
    driver, destination, messages = await receive(b"one", b"three")
    with process_batch(messages):
        pass
    found = links(recorder.span(f"batch_process {destination}"))
    attributes = [driver.consumed(vocabulary, destination, body) for body in (b"one", b"three")]
    shared = attributes[0].items() & attributes[1].items()
    for (_, seen), known in zip(found, attributes, strict=True):
        assert known.items() - shared <= seen.items()
        assert seen.keys().isdisjoint(name for name, _ in shared - seen.items())


@pytest.mark.parametrize("wrong", [["text"], [None], (message for message in ()), 5, [HEADERS[0], 7]])
def test_what_are_no_messages_is_refused_at_the_call(wrong):
    with pytest.raises(TypeError, match="process_batch"):
        process_batch(wrong)


@pytest.mark.parametrize("library", ["aio_pika", "nats_py"])
async def test_messages_of_two_libraries_are_refused(receive):
    from kafka.consumer.fetcher import ConsumerRecord

    record = ConsumerRecord._make([None] * len(ConsumerRecord._fields))
    _, _, messages = await receive()
    with pytest.raises(TypeError, match="of several kinds"):
        process_batch([*messages, record])


async def test_subjects_that_differ_leave_the_wildcard_in_the_name(nats_address, recorder, instrument):
    instrument(NatsPyInstrumentor)
    prefix = nats_py.fresh()
    async with nats_py.client(nats_address) as client:
        subscription = await client.subscribe(f"{prefix}.*")
        for name in ("a", "b"):
            await client.publish(f"{prefix}.{name}", b"x")
        messages = [await subscription.next_msg(timeout=5) for _ in range(2)]
        with process_batch(messages):
            pass
    span = recorder.span(f"batch_process {prefix}.*")
    assert "messaging.destination.name" not in span.attributes
    assert "messaging.nats.subject" not in span.attributes
    assert span.attributes["messaging.batch.message_count"] == 2
    assert [attributes for _, attributes in links(span)] == [
        {
            "messaging.destination.name": f"{prefix}.{name}",
            "messaging.nats.subject": f"{prefix}.{name}",
            "messaging.message.payload_size_bytes": 1,
        }
        for name in ("a", "b")
    ] + [{}]  # the second message is being handled, in another trace than the first


@pytest.fixture
def consumer(application):
    return application.consumer()


@pytest.fixture
def polled(application, consumer):
    headers = [(name, value.encode()) for name, value in HEADERS[0].items()]
    application.fill(b"one", b"two", headers=headers)
    end = time.monotonic() + 8
    records = {}
    while not records and time.monotonic() < end:
        records = consumer.poll(timeout_ms=500)
    return records


def test_what_kafka_polls_is_a_batch(application, polled, recorder):
    with process_batch(polled):
        pass
    span = recorder.span(f"batch_process {application.topic}")
    assert span.attributes["messaging.batch.message_count"] == 2
    assert span.attributes["messaging.kafka.destination.partition"] == 0
    assert [attributes for _, attributes in links(span)] == [
        {
            "messaging.kafka.destination.partition": 0,
            "messaging.kafka.message.offset": offset,
            "messaging.message.payload_size_bytes": 3,
        }
        for offset in range(2)
    ]


def test_records_of_a_list_are_not_being_handled_by_a_batch(polled, recorder):
    with process_batch(polled):
        assert len(recorder.open.spans) == 1
    (records,) = polled.values()
    with process_batch(records):
        assert len(recorder.open.spans) == 1
    assert [span.name.split()[0] for span in recorder.spans()] == ["receive", "batch_process", "batch_process"]


def test_records_that_are_looped_over_inside_have_no_spans_of_their_own(polled, recorder):
    with process_batch(polled) as span:
        for records in polled.values():
            for _ in records:
                assert trace.get_current_span() is span
    assert [span.name.split()[0] for span in recorder.spans()] == ["receive", "batch_process"]


def test_a_commit_is_an_event_of_the_batch(application, consumer, polled, recorder):
    with process_batch(polled):
        consumer.commit()
    assert [name for name, _ in shape(recorder.span(f"batch_process {application.topic}"))["events"]] == ["commit"]


@pytest.mark.parametrize("library", ["aio_pika"])
async def test_acknowledgements_are_events_of_the_batch(connect, recorder):
    driver = await connect()
    destination = driver.name()
    queue = await driver.listen(destination)
    for _ in range(3):
        await driver.publish(destination)
    messages = [await queue.get(timeout=5) for _ in range(3)]
    with process_batch(messages[:2]):
        for message in messages:
            await message.ack()
    events = shape(recorder.span(f"batch_process {destination}"))["events"]
    assert [name for name, _ in events] == ["ack", "ack"]


async def test_what_jetstream_is_told_is_an_event_of_the_batch(nats_address, recorder, instrument):
    instrument(NatsPyInstrumentor)
    subject = nats_py.fresh()
    async with nats_py.client(nats_address) as client:
        jetstream = client.jetstream()
        await jetstream.add_stream(name=subject, subjects=[subject])
        for _ in range(2):
            await jetstream.publish(subject, b"x")
        subscription = await jetstream.pull_subscribe(subject, "readers")
        messages = await subscription.fetch(2, timeout=5)
        with process_batch(messages):
            for message in messages:
                await message.ack()
        await jetstream.delete_stream(subject)
    assert [name for name, _ in shape(recorder.span(f"batch_process {subject}"))["events"]] == ["ack", "ack"]
