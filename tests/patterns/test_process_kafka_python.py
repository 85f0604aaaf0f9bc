"""`process` and records of Kafka: consumers, lists of `poll`, and commits."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import trace

from otel_messaging.patterns import process
from tests.support.kafka_python import QUIET, application, plain, stack  # noqa: F401
from tests.support.recorder import shape

pytestmark = QUIET

GROUP = "messaging.kafka.consumer.group"


def work(record):
    with process(record) as span:
        return span


def first(consumer):
    for record in consumer:
        return record
    return None


def poll(consumer):
    for _ in range(20):
        polled = consumer.poll(timeout_ms=500)
        if polled:
            return polled
    return pytest.fail("nothing came")


def names(recorder):
    return sorted(span.name.split()[0] for span in recorder.spans())


def test_two_consumers_that_may_have_received_a_record_are_not_guessed_between(application):
    application.fill(b"one")
    record = first(application.consumer(group_id="mine"))
    assert work(record).attributes[GROUP] == "mine"
    other = application.consumer(group_id="other")
    first(other)
    assert GROUP not in work(record).attributes
    other.unsubscribe()
    assert work(record).attributes[GROUP] == "mine"


def test_what_was_taken_out_of_a_list_of_one_is_handled_once(application, recorder):
    application.fill(b"one")
    consumer = application.consumer()
    ((record,),) = poll(consumer).values()
    with process(record) as span:
        consumer.poll(timeout_ms=10)
        assert span.is_recording()
    assert trace.get_current_span() is trace.INVALID_SPAN
    consumer.poll(timeout_ms=10)
    assert names(recorder) == ["process", "receive"]
    assert [count for _, count in recorder.metrics()["messaging.processing.duration"]] == [1]


def known(span):
    """What a record's consumer tells of it."""
    names = (GROUP, "messaging.client.id", "server.address", "server.port")
    return {name: span.attributes.get(name) for name in names}


def test_a_consumer_that_was_closed_does_not_hide_the_one_that_is_open(application):
    application.fill(b"one")
    closed = application.consumer(group_id="before")
    expected = {**known(work(first(closed))), GROUP: "mine"}
    closed.close()
    assert None not in expected.values()
    assert known(work(first(application.consumer(group_id="mine")))) == expected


def test_what_was_received_before_the_consumer_was_closed_is_still_known(application):
    application.fill(b"one")
    consumer = application.consumer(group_id="mine")
    record = first(consumer)
    expected = known(work(record))
    consumer.close()
    assert known(work(record)) == expected
    assert expected[GROUP] == "mine"


def test_a_list_goes_to_a_pool_as_a_whole(application, recorder):
    application.fill(b"one", b"two", b"three")
    polled = poll(application.consumer())
    with ThreadPoolExecutor(2) as pool:
        for records in polled.values():
            list(pool.map(work, records))
    assert names(recorder) == ["process", "process", "process", "receive"]


def test_a_commit_is_told_of_by_the_consumer_s_own_span(application, recorder):
    application.fill(b"one")
    consumer = application.consumer()
    for record in consumer:
        with process(record):
            consumer.commit()
        break
    assert names(recorder) == ["process", "receive"]
    assert {span.name.split()[0]: [name for name, _ in shape(span)["events"]] for span in recorder.spans()} == {
        "receive": ["commit"],
        "process": [],
    }


def test_a_record_without_a_value_or_a_key_that_is_no_text(application, recorder):
    application.fill(None, key=b"\xff")
    work(first(application.consumer()))
    (span,) = recorder.spans(f"process {application.topic}")
    assert "messaging.kafka.message.key" not in span.attributes
    assert span.attributes["messaging.message.payload_size_bytes"] == 0
