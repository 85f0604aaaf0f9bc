"""Which broker and cluster a span names, and that what is remembered of them stays bounded."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_messaging.core import cache, settings
from otel_messaging.core.telemetry import Telemetry
from otel_messaging.kafka_python.consumer import Consumer
from otel_messaging.kafka_python.producer import Producer
from tests.support.kafka_python import QUIET, VERSION, application, plain, stack  # noqa: F401

TopicPartition = pytest.importorskip("kafka").TopicPartition
pytestmark = QUIET


class Cluster:
    """The metadata of a client: a bootstrap broker, and leaders once they are known."""

    cluster_id = None

    def __init__(self):
        self._last_successful_refresh_ms = 0
        self._bootstrap_brokers = {"bootstrap-0": SimpleNamespace(host="bootstrap", port=1)}
        self.leaders = {}

    def refresh(self, leaders):
        self.leaders = leaders
        self._last_successful_refresh_ms += 1

    def leader_for_partition(self, partition):
        return self.leaders.get((partition.topic, partition.partition))

    def broker_metadata(self, node):
        return None if node is None or node < 0 else SimpleNamespace(host=f"broker-{node}", port=9092)


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def telemetry():
    return Telemetry("kafka_python", settings.load({}, {}), TracerProvider(shutdown_on_exit=False))


@pytest.fixture
def producer(cluster, telemetry):
    config = {"acks": 1, "api_version": (2, 0), "client_id": "c", "key_serializer": None, "value_serializer": None}
    config["max_request_size"] = 2**20
    return Producer(telemetry, SimpleNamespace(config=config, _metadata=cluster))


@pytest.fixture
def consumer(cluster, telemetry):
    config = {"client_id": "c", "group_id": "g"}
    client, subscription = SimpleNamespace(cluster=cluster), SimpleNamespace(assignment={})
    return Consumer(telemetry, SimpleNamespace(config=config, _client=client, _subscription=subscription))


def server(attributes):
    return attributes["server.address"], attributes["server.port"]


def test_a_consumed_record_names_the_bootstrap_broker_until_its_leader_is_known(consumer, cluster):
    assert server(consumer.looped("t", 0).operation.attributes) == ("bootstrap", 1)
    cluster.refresh({("t", 0): 7, ("t", 1): -1})
    assert server(consumer.looped("t", 0).operation.attributes) == ("broker-7", 9092)
    assert server(consumer.looped("t", 1).operation.attributes) == ("bootstrap", 1)  # no leader at the moment
    cluster.refresh({("t", 0): 8})
    assert server(consumer.looped("t", 0).operation.attributes) == ("broker-8", 9092)


def test_a_published_record_starts_with_the_bootstrap_broker_and_learns_its_leader(producer, cluster):
    assert server(producer.operation("t").attributes) == ("bootstrap", 1)
    cluster.refresh({("t", 0): 7})
    producer.operation("t")
    learned = producer.place(TopicPartition("t", 0), producer.operation("t"))
    assert dict(learned) == {"partition": 0, "server address": "broker-7", "server port": 9092, "cluster": None}
    assert dict(producer.place(TopicPartition("t", 1), producer.operation("t"))) == {"partition": 1}


def test_what_is_remembered_is_bounded(producer, consumer, cluster):
    cluster.refresh({(f"t{number}", 0): number for number in range(5_000)})
    for number in range(5_000):
        producer.place(TopicPartition(f"t{number}", 0), producer.operation(f"t{number}"))
        consumer.looped(f"t{number}", 0)
    sent = (producer._operations, producer.places, producer._cluster._leaders)
    for kept in (*sent, consumer._looped, consumer._cluster._leaders):
        assert 0 < len(kept) <= cache.LIMIT
    assert server(consumer.looped("t42", 0).operation.attributes) == ("broker-42", 9092)


def test_a_cluster_that_was_never_reached_has_no_server(cluster, consumer):
    cluster._bootstrap_brokers = {}
    assert "server.address" not in consumer.looped("t", 0).operation.attributes


def test_several_ways_to_name_the_bootstrap_servers(application, recorder):
    """An iterator is used up by the client: we must not ask it again."""
    host, _, port = application.address.rpartition(":")
    for servers in (application.address, [application.address], (application.address,), iter([application.address])):
        application.producer(bootstrap_servers=servers).send(application.topic, b"v").get(10)
    for span in recorder.spans(count=4):
        assert server(span.attributes) == (host, int(port))


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_the_answer_names_the_broker_as_it_advertises_itself(application, recorder, name):
    _, _, port = application.address.rpartition(":")
    application.producer(bootstrap_servers=f"{name}:{port}").send(application.topic, b"v").get(10)
    assert server(recorder.span(f"publish {application.topic}").attributes) == ("127.0.0.1", int(port))


@pytest.mark.skipif(VERSION < (2, 1), reason="before 2.1 the client does not know its cluster's id")
def test_the_cluster_is_named_where_the_client_knows_it(plain, recorder, monkeypatch):
    monkeypatch.setenv(settings.OPT_IN, "messaging")
    plain.instrument()
    producer = plain.producer()
    producer.send(plain.topic, b"v", partition=0).get(10)
    known = producer._metadata.cluster_id
    assert known
    consumer = plain.consumer()
    next(consumer)
    consumer.close()
    spans = recorder.spans(count=2)
    assert [span.attributes["messaging.kafka.cluster.id"] for span in spans] == [known] * 2
