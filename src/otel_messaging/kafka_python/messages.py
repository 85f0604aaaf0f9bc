"""What is known of a record outside of the consumer that it has come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.requests import Incoming
from otel_messaging.systems.kafka import SYSTEM, describe, fold

if TYPE_CHECKING:
    from .adapter import Kafka


def is_message(value: Any) -> bool:
    """Whether one of the library's objects is a record."""
    return hasattr(value, "topic") and hasattr(value, "offset") and hasattr(value, "headers")


def read(kafka: Kafka, record: Any) -> Incoming:
    """Read a record. It does not tell of its consumer: that is known where just one here is assigned its partition."""
    telemetry = kafka.telemetry
    known = kafka.assigned(record.topic, record.partition)
    delivery = telemetry.delivery_of(record)
    facts = known.facts if known is not None else (*SYSTEM, (v.KAFKA_PARTITION, record.partition))
    return Incoming(
        destination=v.Destination(record.topic),
        common=facts,
        facts=((v.KAFKA_PARTITION, record.partition), *describe(record)),
        headers=fold(record.headers),
        size=max(0, record.serialized_value_size),
        identity=record,
        delivery=delivery,
        release=kafka.taking(delivery),
    )
