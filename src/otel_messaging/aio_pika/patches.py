"""Where aio-pika is patched, in one table. Imported when the library is."""

from __future__ import annotations

from otel_messaging.instrumentation.patching import Patch
from otel_messaging.instrumentation.settling import settles

from .adapter import AioPika
from .connections import wrap_queue_declare
from .consuming import wrap_basic_consume
from .iterating import wrap_aenter, wrap_aexit, wrap_aiter, wrap_anext, wrap_close
from .publishing import wrap_basic_publish, wrap_publish
from .pulling import wrap_get
from .rpc import wrap_answer, wrap_call, wrap_execute
from .settling import acked, nacked, rejected, wrap_process_exit

_RPC = ("aio_pika.patterns.rpc", "RPC")
_CHANNEL = ("aiormq.channel", "Channel")
_ITERATOR = ("aio_pika.queue", "QueueIterator")
_MESSAGE = ("aio_pika.message", "IncomingMessage")

adapter = AioPika
patches = (
    Patch("aio_pika.exchange", "Exchange", "publish", wrap_publish),
    Patch(*_CHANNEL, "basic_publish", wrap_basic_publish),
    Patch(*_CHANNEL, "basic_consume", wrap_basic_consume),
    Patch(*_CHANNEL, "queue_declare", wrap_queue_declare),
    Patch("aio_pika.queue", "Queue", "get", wrap_get),
    Patch("aio_pika.queue", "Queue", "__aiter__", wrap_aiter),
    Patch(*_ITERATOR, "__aiter__", wrap_aiter),
    Patch(*_ITERATOR, "__anext__", wrap_anext),
    Patch(*_ITERATOR, "__aenter__", wrap_aenter),
    Patch(*_ITERATOR, "__aexit__", wrap_aexit),
    Patch(*_ITERATOR, "close", wrap_close),
    Patch("aio_pika.robust_queue", "RobustQueueIterator", "__anext__", wrap_anext, since="9.6"),
    Patch(*_RPC, "call", wrap_call),
    Patch(*_RPC, "on_call_message", wrap_answer),
    Patch(*_RPC, "execute", wrap_execute),
    Patch("aio_pika.message", "ProcessContext", "__aexit__", wrap_process_exit),
    Patch(*_MESSAGE, "ack", settles("ack", acked)),
    Patch(*_MESSAGE, "nack", settles("nack", nacked)),
    Patch(*_MESSAGE, "reject", settles("reject", rejected)),
)
