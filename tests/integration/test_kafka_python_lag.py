"""How long a record has waited, and how many wait behind it."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import time

import pytest

from tests.support.kafka_python import QUIET, application, on_apache, plain, stack  # noqa: F401

pytestmark = QUIET
QUEUE_TIME = "messaging.message.queue_time"
LAG = "messaging.consumer.lag"


def loop(consumer, count):
    for number, _ in enumerate(consumer, 1):
        if number == count:
            break


def poll(consumer, count):
    seen = 0
    while seen < count:
        for records in consumer.poll(timeout_ms=500).values():
            for _ in records:
                seen += 1


ways = pytest.mark.parametrize("way", [loop, poll])


@ways
def test_a_record_tells_how_long_it_has_waited(application, recorder, way):
    application.fill(b"a", timestamp_ms=int(1000 * (time.time() - 60)))
    way(application.consumer(), 1)
    (span,) = [span for span in recorder.spans() if QUEUE_TIME in span.attributes]
    assert 60 <= span.attributes[QUEUE_TIME] < 75
    assert 60 <= recorder.sums()["messaging.queue.duration"] < 75


@on_apache
@pytest.mark.parametrize(("kind", "shortest", "longest"), [("CreateTime", 60, 75), ("LogAppendTime", 0, 15)])
def test_the_time_in_queue_is_counted_from_what_the_topic_has_for_a_timestamp(
    application, recorder, kind, shortest, longest
):
    application.create(message_timestamp_type=kind)
    application.fill(b"a", timestamp_ms=int(1000 * (time.time() - 60)))
    for record in application.consumer():
        assert record.timestamp_type == ("CreateTime", "LogAppendTime").index(kind)
        break
    (span,) = recorder.consumers(1)
    assert shortest <= span.attributes[QUEUE_TIME] < longest
    assert shortest <= recorder.sums()["messaging.queue.duration"] < longest


def test_a_record_of_the_future_has_not_waited(application, recorder):
    application.fill(b"a", timestamp_ms=int(1000 * (time.time() + 60)))
    loop(application.consumer(), 1)
    assert recorder.consumers(1)[0].attributes[QUEUE_TIME] == 0


@pytest.mark.parametrize("stamp", [-1, None])
def test_a_record_without_time_tells_nothing_of_it(application, recorder, stamp):
    application.fill(b"a")
    consumer = application.consumer()
    inner = consumer.poll
    consumer.poll = lambda **arguments: {
        tp: [record._replace(timestamp=stamp) for record in records] for tp, records in inner(**arguments).items()
    }
    loop(consumer, 1)
    assert QUEUE_TIME not in recorder.consumers(1)[0].attributes


@ways
def test_a_record_tells_how_many_are_behind_it(application, recorder, way):
    application.fill(b"a", b"b", b"c")
    consumer = application.consumer()
    way(consumer, 3)
    found = [span.attributes[LAG] for span in recorder.spans() if LAG in span.attributes]
    assert found == [2, 1, 0]


@ways
def test_the_gauge_tells_how_many_are_behind_the_record_delivered_last(application, recorder, way):
    application.fill(*[b"v"] * 5)
    consumer = application.consumer(max_poll_records=2)
    way(consumer, 2)
    labels = {
        "messaging.system": "kafka",
        "messaging.destination.name": application.topic,
        "messaging.kafka.consumer.group": "readers",
        "messaging.kafka.destination.partition": 0,
    }
    assert recorder.metrics()[LAG] == [(labels, 3)]


@pytest.mark.parametrize("lose", ["close", "unsubscribe"])
def test_the_gauge_is_gone_with_the_consumer(application, recorder, lose):
    application.fill(b"a")
    consumer = application.consumer()
    loop(consumer, 1)
    getattr(consumer, lose)()
    assert LAG not in recorder.metrics()


def test_the_gauge_of_a_partition_that_others_have_now_is_gone(application, recorder):
    from kafka import TopicPartition

    application.fill(b"a")
    consumer = application.consumer()
    loop(consumer, 1)
    assert LAG in recorder.metrics()
    consumer.assign([TopicPartition(application.topic, 1)])
    assert LAG not in recorder.metrics()


@ways
def test_both_can_be_switched_off(plain, recorder, way):
    plain.instrument(queue_time=False, lag=False)
    plain.fill(b"a")
    consumer = plain.consumer()
    way(consumer, 1)
    for span in recorder.spans():
        assert QUEUE_TIME not in span.attributes
        assert LAG not in span.attributes
    assert not {LAG, "messaging.queue.duration"} & set(recorder.metrics())
