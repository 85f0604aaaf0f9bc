"""What the tests of kafka-python share: clients that are closed after each test, and what an installed version does."""

from __future__ import annotations

import contextlib
import os
import traceback
import uuid
from importlib import metadata

import pytest

from otel_messaging import KafkaPythonInstrumentor
from tests.support.drivers import KafkaPythonDriver

APACHE = os.environ.get("OTEL_MESSAGING_TEST_KAFKA") == "apache"
"""Whether the tests run on Apache Kafka, and not on the broker that comes with the environment."""


def _version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in metadata.version("kafka-python").split(".")[:3])
    except metadata.PackageNotFoundError:
        metadata.version("kafka-python-ng")
        return (2, 0, 6)  # what kafka-python-ng 2.2.3 behaves like


VERSION = _version()

APACHE_VERSION = "4.1.1" if VERSION >= (2, 1) else "3.9.1"
"""Of Apache Kafka: the newest that the client speaks with."""

on_apache = pytest.mark.skipif(not APACHE, reason="only Apache Kafka itself does this: make test-kafka (Java, Maven)")

PERSISTENT = {"retries": 10} if VERSION < (3,) else {}
"""A topic that has just been made may have no leader yet: since 3.0 producers wait for it by themselves."""

# The library's own: of 2.0.2 when imported, of 3.x about serializers that are plain functions, and the sockets of
# connections that failed.
QUIET = [
    pytest.mark.filterwarnings("ignore:_SixMetaPathImporter:ImportWarning"),
    pytest.mark.filterwarnings("ignore:.*does not implement kafka.serializer:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


class Application:
    """An application of kafka-python, instrumented or not.

    Attributes:
        topic: a topic that nobody else uses.
    """

    def __init__(self, address: str, instrument, stack: contextlib.ExitStack):
        self.address = address
        self.topic = f"test-{uuid.uuid4().hex[:12]}"
        self._instrument = instrument
        self._stack = stack
        self._driver = KafkaPythonDriver(address)
        self._driver.consumers = []

    def instrument(self, **arguments):
        self._instrument(KafkaPythonInstrumentor, **arguments)

    def producer(self, **options):
        """A producer, closed after the test; its topic is known to it."""
        from kafka import KafkaProducer

        defaults = {"bootstrap_servers": self.address, "client_id": "sender", **PERSISTENT}
        producer = KafkaProducer(**{**defaults, **options})
        self._stack.callback(_close, producer)
        return producer

    def consumer(self, **options):
        """A consumer of partition 0 from its beginning, closed after the test."""
        consumer = self._driver.consumer(self.topic, **options)
        self._stack.callback(consumer.close)
        return consumer

    def create(self, nodes=(1,), partitions=1, **configs):
        """Make the topic before it is used, with its replicas on these nodes; the first of them leads."""
        from kafka.admin import KafkaAdminClient, NewTopic

        admin = KafkaAdminClient(bootstrap_servers=self.address)
        places = {partition: list(nodes) for partition in range(partitions)}
        settings = {name.replace("_", "."): value for name, value in configs.items()}
        admin.create_topics([NewTopic(self.topic, -1, -1, replica_assignments=places, topic_configs=settings)])
        admin.close()

    def fill(self, *values, partitions=(0,), **options):
        """Publish all values to each partition, unseen by the recorder."""
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        with suppress_instrumentation():
            producer = self.producer()
            for partition in partitions:
                for value in values:
                    producer.send(self.topic, value, partition=partition, **options)
            producer.flush(10)
            producer.close()


def _close(producer):
    with contextlib.suppress(Exception):
        producer.close(timeout=2)


@pytest.fixture
def stack():
    with contextlib.ExitStack() as opened:
        yield opened


@pytest.fixture
def plain(kafka_address, instrument, stack, caplog):
    """An application that is not instrumented yet."""
    yield Application(kafka_address, instrument, stack)
    # The library swallows what callbacks raise, ours too.
    assert [record.exc_text for record in caplog.get_records("call") if _is_ours(record)] == []


def _is_ours(record):
    """Whether what was logged was raised in our code."""
    trace = record.exc_info[2] if record.exc_info else None
    return record.name == "kafka.future" and any("otel_messaging" in entry[0] for entry in traceback.extract_tb(trace))


@pytest.fixture
def application(plain):
    """An instrumented application."""
    plain.instrument()
    return plain
