"""Two consumers of a group, one of which comes and goes while the other handles records, on Apache Kafka."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import threading
import time

import pytest
from opentelemetry import trace

from tests.support.kafka_python import QUIET, application, on_apache, plain, stack  # noqa: F401
from tests.support.recorder import span_id

pytestmark = [*QUIET, on_apache]
PARTITIONS, EACH = 4, 3
LAG = "messaging.consumer.lag"
OFFSET, PARTITION = "messaging.kafka.message.offset", "messaging.kafka.destination.partition"


def loop(consumer, saw):
    for record in consumer:
        if saw(record):
            break


def poll(consumer, saw):
    for records in consumer.poll(timeout_ms=200).values():
        for record in records:
            if saw(record):
                return


class Member:
    """A member of the group, which never commits: whoever has a partition anew is given all of its records."""

    def __init__(self, application, way):
        from kafka import KafkaConsumer

        self.way = way
        self.handled = []
        self.consumer = KafkaConsumer(
            application.topic,
            bootstrap_servers=application.address,
            group_id=application.topic,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            heartbeat_interval_ms=100,
            session_timeout_ms=6_000,
            consumer_timeout_ms=200,
            max_poll_records=2,
            metadata_max_age_ms=1_000,  # who leads the group may know nothing of the topic yet, and assigns nothing
        )

    def work(self, enough):
        """Handle records until there is enough."""

        def saw(record):
            self.handled.append((record.partition, record.offset, span_id(trace.get_current_span())))
            return enough()

        end = time.monotonic() + 30
        while not enough():
            assert time.monotonic() < end, (self.consumer.assignment(), self.handled)
            self.way(self.consumer, saw)
            assert trace.get_current_span() is trace.INVALID_SPAN

    def has(self, partitions, records):
        """Whether it has so many partitions, and has handled so many records."""
        return len(self.consumer.assignment()) == partitions and len(self.handled) >= records


def lags(recorder):
    """The partitions whose lag is told of."""
    return sorted(labels[PARTITION] for labels, _ in recorder.metrics().get(LAG, []))


@pytest.mark.parametrize("way", [loop, poll])
def test_members_that_come_and_go_cost_no_record_and_no_span(application, recorder, way):
    application.create(partitions=PARTITIONS)
    application.fill(*[b"v"] * EACH, partitions=range(PARTITIONS))
    first, second = Member(application, way), Member(application, way)
    first.work(lambda: first.has(PARTITIONS, PARTITIONS * EACH))
    assert lags(recorder) == [0, 1, 2, 3]

    go = threading.Event()
    thread = threading.Thread(target=second.work, args=(lambda: go.is_set() and len(second.handled) > EACH,))
    thread.start()
    first.work(lambda: first.has(PARTITIONS // 2, 0) and second.has(PARTITIONS // 2, 1))
    go.set()
    thread.join()
    second.consumer.close()
    assert lags(recorder) == sorted(partition for _, partition in first.consumer.assignment())

    before = len(first.handled)
    first.work(lambda: first.has(PARTITIONS, before + 2 * EACH))
    first.consumer.close()
    assert lags(recorder) == []

    verb = "receive" if way is loop else "process"
    handled = first.handled + second.handled
    spans = {span_id(span): span for span in recorder.spans(f"{verb} {application.topic}", count=len(handled))}
    assert sorted(spans) == sorted(span for _, _, span in handled)
    for partition, offset, span in handled:
        assert (spans[span].attributes[PARTITION], spans[span].attributes[OFFSET]) == (partition, offset)
    assert len({(partition, offset) for partition, offset, _ in handled}) == PARTITIONS * EACH < len(handled)
