"""Kafka through kafka-python: where it is patched, and how its objects are read.

The library: https://kafka-python.readthedocs.io
"""

from __future__ import annotations

from otel_messaging.core.instrumentor import MessagingInstrumentor
from otel_messaging.core.patching import Patch
from otel_messaging.core.rivals import Rival

from .adapter import Kafka
from .consumer import (
    wrap_close_consumer,
    wrap_commit,
    wrap_commit_async,
    wrap_enter,
    wrap_exit,
    wrap_iter,
    wrap_next,
    wrap_poll,
    wrap_unsubscribe,
)
from .dead_letters import dead_letter
from .producer import transacts, wrap_close_producer, wrap_init, wrap_send

__all__ = ["KafkaPythonInstrumentor", "dead_letter"]

_TRANSACTION = ("begin_transaction", "send_offsets_to_transaction", "commit_transaction", "abort_transaction")
_PRODUCER = ("kafka.producer.kafka", "KafkaProducer")
_CONSUMER = ("kafka.consumer.group", "KafkaConsumer")


class KafkaPythonInstrumentor(MessagingInstrumentor):
    """Instruments `kafka-python <https://kafka-python.readthedocs.io>`_: `KafkaProducer` and `KafkaConsumer`."""

    library = "kafka_python"
    entry_point = "messaging-kafka-python"
    requirements = ("kafka-python >= 2.0.2, < 4", "kafka-python-ng >= 2.2.3, < 4")
    adapter = Kafka
    patches = (
        Patch(*_PRODUCER, "__init__", wrap_init),
        Patch(*_PRODUCER, "send", wrap_send),
        Patch(*_PRODUCER, "close", wrap_close_producer),
        *(Patch(*_PRODUCER, step, transacts(step), since="2.2") for step in _TRANSACTION),
        Patch(*_CONSUMER, "__next__", wrap_next),
        Patch(*_CONSUMER, "__iter__", wrap_iter),
        Patch(*_CONSUMER, "poll", wrap_poll),
        Patch(*_CONSUMER, "__enter__", wrap_enter, since="3.0"),
        Patch(*_CONSUMER, "__exit__", wrap_exit, since="3.0"),
        Patch(*_CONSUMER, "commit", wrap_commit),
        Patch(*_CONSUMER, "commit_async", wrap_commit_async),
        Patch(*_CONSUMER, "unsubscribe", wrap_unsubscribe),
        Patch(*_CONSUMER, "close", wrap_close_consumer),
    )
    rivals = (
        Rival(
            "opentelemetry.instrumentation.kafka",
            "KafkaInstrumentor",
            "opentelemetry-instrumentation-kafka-python",
            "kafka",
        ),
    )
