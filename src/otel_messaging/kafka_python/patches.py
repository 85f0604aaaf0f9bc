"""Where kafka-python is patched, in one table. Imported when the library is."""

from __future__ import annotations

from otel_messaging.instrumentation.patching import Patch

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
from .limits import wrap_done, wrap_estimate
from .producer import transacts, wrap_cleanup, wrap_close_producer, wrap_send

_TRANSACTION = ("begin_transaction", "send_offsets_to_transaction", "commit_transaction", "abort_transaction")
_PRODUCER = ("kafka.producer.kafka", "KafkaProducer")
_CONSUMER = ("kafka.consumer.group", "KafkaConsumer")

adapter = Kafka
patches = (
    Patch(*_PRODUCER, "_cleanup_factory", wrap_cleanup),
    Patch(*_PRODUCER, "send", wrap_send),
    Patch(*_PRODUCER, "_estimate_size_in_bytes", wrap_estimate),
    Patch("kafka.producer.record_accumulator", "ProducerBatch", "done", wrap_done),
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
