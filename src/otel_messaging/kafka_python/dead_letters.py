"""`dead_letter`: a record that cannot be handled goes to another topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core.safety import report
from otel_messaging.instrumentation.dead_letters import ORIGINAL, PREFIX, DeadLetter, expect, reasons
from otel_messaging.systems.kafka import fold

from .limits import largest_record, largest_size
from .messages import is_message
from .producer import HEADERS_SINCE

if TYPE_CHECKING:
    from kafka import KafkaProducer
    from kafka.consumer.fetcher import ConsumerRecord
    from kafka.producer.future import FutureRecordMetadata

    from otel_messaging.core.delivery import Delivery


def dead_letter(
    record: ConsumerRecord, error: BaseException, producer: KafkaProducer, topic: str, **options: Any
) -> FutureRecordMetadata:
    """Send a record that cannot be handled to a topic for dead letters.

    Key, value and headers are the record's own; what a deserializer has made of them, the producer's serializers have
    to undo. Headers say where the record came from and why it is here: ``dead-letter-original-topic``,
    ``dead-letter-original-partition``, ``dead-letter-original-offset``, ``dead-letter-error-type`` and
    ``dead-letter-error``, in place of any that were there. A header without a value gets an empty one, since the
    producer takes no other. Brokers before 0.11 have no headers, and a record that would be too large with ours for the
    producer, by its size when it was received, goes without them.

    The record's span gets an event ``send_to_dead_letter``; the new one is its child and linked to the original.

    Args:
        record: the record.
        error: why it could not be handled.
        producer: what to send it with.
        topic: where to.
        **options: more arguments of `KafkaProducer.send
            <https://kafka-python.readthedocs.io/en/master/apidoc/KafkaProducer.html>`_, such as ``partition``.

    Returns:
        What ``KafkaProducer.send`` returns: a future, whose ``get()`` waits until the broker has the record.

    Raises:
        TypeError: this is no record, or nothing that sends one.
        Exception: whatever ``KafkaProducer.send`` raises.
    """
    expect(record, is_message(record), "a ConsumerRecord of kafka-python")
    expect(producer, hasattr(producer, "send"), "a KafkaProducer after record and error")
    headers = list(record.headers or ())
    sent = _headers(record, error, producer, headers)
    with DeadLetter("kafka_python", "kafka", record.topic, fold(headers), error, _concerns(record)) as letter:
        future = producer.send(topic, value=record.value, key=record.key, headers=sent, **options)
        if not (getattr(future, "is_done", False) is True and future.exception is not None):
            letter.sent()
    return future


def _headers(record: Any, error: BaseException, producer: Any, headers: list[Any]) -> list[Any]:
    """The headers to send: with those that say what happened, where the producer takes them."""
    config = getattr(producer, "config", None)
    config = config if isinstance(config, dict) else {}  # a producer may be one that a test has made up
    version = config.get("api_version")
    if isinstance(version, tuple) and version < HEADERS_SINCE:
        return []
    kept = [(name, b"" if value is None else value) for name, value in headers]
    try:
        told = {
            ORIGINAL + "topic": record.topic,
            ORIGINAL + "partition": str(record.partition),
            ORIGINAL + "offset": str(record.offset),
            **reasons(error),
        }
        letter = [item for item in kept if not item[0].startswith(PREFIX)]
        letter += [(name, text.encode()) for name, text in told.items()]
        return kept if config and largest_size(record, letter) > largest_record(config) else letter
    except Exception as failure:
        report("dead_letter", failure)
        return kept


def _concerns(record: Any) -> Any:
    def concerns(delivery: Delivery) -> bool:
        return bool(delivery.operation.destination.name == record.topic)

    return concerns
