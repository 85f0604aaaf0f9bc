"""Kafka: a quarter of the messages in a loop, one by `poll`, one by loops in threads, one by lists given to threads.

It runs on Apache Kafka, which it starts, or on the broker that KAFKA_BOOTSTRAP_SERVERS names.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from examples.brokers import ApacheKafka
from otel_messaging import KafkaPythonInstrumentor
from tests.support.kafka_python import APACHE_VERSION

from .watch import ROUNDS, Watch

THREADS = 4  # as many as a topic has partitions

Way = Callable[[str, str, int, Callable[[], None]], None]


def run(watch: Watch, messages: int, bare: bool) -> None:
    """Send and consume.

    Args:
        watch: told of every message that was handled.
        messages: how many, a multiple of 80.
        bare: without instrumentation.
    """
    share = messages // len(WAYS) // ROUNDS
    with _broker() as address:
        if not bare:
            KafkaPythonInstrumentor().instrument(**watch.providers)
        for name, way in list(WAYS.items()) * ROUNDS:
            topic = f"soak-{uuid.uuid4().hex[:8]}"
            sender = threading.Thread(target=_send, args=(address, topic, share, watch.sends))
            sender.start()
            way(address, topic, share, watch.saw)
            sender.join()
            watch.look(name)
        if not bare:
            KafkaPythonInstrumentor().uninstrument()


@contextlib.contextmanager
def _broker() -> Iterator[str]:
    given = os.environ.get(ApacheKafka.variable)
    with contextlib.ExitStack() as stack:
        yield given or stack.enter_context(ApacheKafka(APACHE_VERSION)).address


def _send(address: str, topic: str, count: int, sends: Callable[[], None]) -> None:
    """From as many threads at once as there are partitions."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=address, linger_ms=5)
    producer.partitions_for(topic)

    def work(partition: int) -> None:
        for number in range(count // THREADS):
            sends()
            producer.send(topic, b"v" * 100, key=b"%d" % number, partition=partition)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    producer.flush(60)
    producer.close()


def _consumer(address: str, topic: str, *partitions: int):
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=address, group_id="soak", auto_offset_reset="earliest", enable_auto_commit=False
    )
    consumer.assign([TopicPartition(topic, partition) for partition in partitions])
    return consumer


def _loop(address: str, topic: str, count: int, saw: Callable[[], None]) -> None:
    consumer = _consumer(address, topic, *range(THREADS))
    for number, _ in enumerate(consumer, 1):
        saw()
        if number % 1_000 == 0:
            consumer.commit()
        if number == count:
            break
    consumer.close()


def _poll(address: str, topic: str, count: int, saw: Callable[[], None]) -> None:
    consumer = _consumer(address, topic, *range(THREADS))
    seen = 0
    while seen < count:
        for records in consumer.poll(timeout_ms=500).values():
            for _ in records:
                saw()
                seen += 1
        consumer.commit_async()
    consumer.close()


def _threads(address: str, topic: str, count: int, saw: Callable[[], None]) -> None:
    """Each thread has a consumer of its own."""

    def work(partition: int) -> None:
        consumer = _consumer(address, topic, partition)
        for number, _ in enumerate(consumer, 1):
            saw()
            if number == count // THREADS:
                break
        consumer.close()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


def _pool(address: str, topic: str, count: int, saw: Callable[[], None]) -> None:
    """One thread polls, others loop over the lists, and are not waited for before the next poll."""

    def work(records: list) -> int:
        for _ in records:
            saw()
        return len(records)

    consumer = _consumer(address, topic, *range(THREADS))
    taken, working = 0, set()
    with ThreadPoolExecutor(THREADS) as pool:
        while taken < count:
            for records in consumer.poll(timeout_ms=500).values():
                taken += len(records)
                working.add(pool.submit(work, records))
            if len(working) > 2 * THREADS:
                working = wait(working, return_when="FIRST_COMPLETED").not_done
    consumer.close()


WAYS: dict[str, Way] = {"loop": _loop, "poll": _poll, "threads": _threads, "pool": _pool}
