"""Two nodes of Apache Kafka: a leader moves, and a broker is away, while records are on their way."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import time

import pytest
from opentelemetry import trace

from examples import brokers
from tests.support.kafka_python import APACHE_VERSION, QUIET, Application, on_apache, stack  # noqa: F401

pytestmark = [*QUIET, on_apache]
RELIABLE = {"acks": "all", "retries": 1_000, "retry_backoff_ms": 50, "max_in_flight_requests_per_connection": 1}
PATIENT = {"consumer_timeout_ms": 30_000, "group_id": None}  # the coordinator of a group may be the node that is away


@pytest.fixture(scope="module")
def cluster(real_broker):
    """Both nodes. The first is the controller too."""
    try:
        first = brokers.ApacheKafka(APACHE_VERSION)
    except brokers.BrokerUnavailable as error:
        pytest.skip(str(error))
    with first, brokers.ApacheKafka(APACHE_VERSION, joins=first, number=2) as second:
        yield first, second


@pytest.fixture
def nodes(cluster):
    """Both nodes, running."""
    first, second = cluster
    if not second.is_running:
        second.start()
    return first, second


@pytest.fixture
def application(nodes, instrument, stack):
    made = Application(nodes[0].address, instrument, stack)
    made.instrument()
    return made


def ports(spans):
    return [span.attributes["server.port"] for span in spans]


def wait_for_leader(application):
    """Until the brokers agree on it: what is sent before may name a bootstrap broker."""
    producer = application.producer()
    end = time.monotonic() + 10
    while not producer.partitions_for(application.topic) and time.monotonic() < end:
        time.sleep(0.05)
    producer.close()


def test_a_broker_that_is_away_costs_neither_record_nor_span(application, nodes, recorder):
    _, second = nodes
    application.create(nodes=(2,))
    wait_for_leader(application)
    producer, poller = application.producer(**RELIABLE), application.consumer(**PATIENT)
    consumer = application.consumer(**PATIENT)
    producer.send(application.topic, b"0", partition=0).get(20)
    assert [len(records) for records in poller.poll(timeout_ms=20_000).values()] == [1]
    seen = []
    for record in consumer:
        seen.append((record.offset, trace.get_current_span().attributes["messaging.kafka.message.offset"]))
        if record.offset == 0:
            second.kill()
            futures = [producer.send(application.topic, b"v", partition=0) for _ in range(3)]
            assert poller.poll(timeout_ms=300) == {}
            assert len(recorder.spans()) == 2  # of the first record and of the poll before
            second.start()
        if record.offset == 3:
            break
    assert seen == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert [future.get(20).offset for future in futures] == [1, 2, 3]
    spans = recorder.spans(f"publish {application.topic}", count=4)
    assert [span.attributes["messaging.kafka.message.offset"] for span in spans] == [0, 1, 2, 3]
    assert ports(spans) == [second.port] * 4
    assert len(recorder.spans(f"receive {application.topic}")) == 5
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_the_server_is_the_new_leader_after_it_has_moved(application, nodes, recorder):
    first, second = nodes
    application.create(nodes=(2, 1))
    wait_for_leader(application)
    producer, consumer = application.producer(**RELIABLE), application.consumer(**PATIENT)
    records = iter(consumer)
    producer.send(application.topic, b"before", partition=0).get(20)
    assert next(records).value == b"before"
    second.stop()
    producer.send(application.topic, b"after", partition=0).get(20)
    assert next(records).value == b"after"
    del records
    assert ports(recorder.spans(f"publish {application.topic}", count=2)) == [second.port, first.port]
    assert ports(recorder.spans(f"receive {application.topic}", count=2)) == [second.port, first.port]
    assert {span.status.status_code.name for span in recorder.spans()} == {"OK"}
