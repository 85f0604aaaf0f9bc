"""Kafka through kafka-python: where it is patched, and how its objects are read.

The library: https://kafka-python.readthedocs.io
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_messaging.instrumentation.conflicts import Rival
from otel_messaging.instrumentation.instrumentor import MessagingInstrumentor
from otel_messaging.instrumentation.lazy_imports import exports

if TYPE_CHECKING:
    from .dead_letters import dead_letter

__all__ = ["KafkaPythonInstrumentor", "dead_letter"]
__getattr__ = exports(__name__, dead_letter="dead_letters")


class KafkaPythonInstrumentor(MessagingInstrumentor):
    """Instruments `kafka-python <https://kafka-python.readthedocs.io>`_: `KafkaProducer` and `KafkaConsumer`."""

    library = "kafka_python"
    system = "kafka"
    entry_point = "messaging-kafka-python"
    requirements = ("kafka-python >= 2.0.2, < 4", "kafka-python-ng >= 2.2.3, < 4")
    package = "kafka"
    rivals = (
        Rival(
            "opentelemetry.instrumentation.kafka",
            "KafkaInstrumentor",
            "opentelemetry-instrumentation-kafka-python",
            "kafka",
        ),
    )
