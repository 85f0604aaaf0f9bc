"""Where aio-pika is patched, in one table. Imported when the library is."""

from __future__ import annotations

from otel_messaging.instrumentation.patching import Patch
from otel_messaging.instrumentation.settling import settled, settles, settling_failed
from otel_messaging.instrumentation.wrapping import around

from .adapter import AioPika
from .consuming import consumes, declared, declares
from .iterating import (
    asks_iterator,
    enters,
    exits,
    if_enabled,
    iterator_failed,
    iterator_gave,
    loops_over,
    wrap_close,
)
from .publishing import publish_failed, published, publishes, sends
from .pulling import asks, got, got_none
from .rpc import answers, calls, executes, execution_failed
from .settling import acked, leaves_process, nacked, rejected

_RPC = ("aio_pika.patterns.rpc", "RPC")
_CHANNEL = ("aiormq.channel", "Channel")
_ITERATOR = ("aio_pika.queue", "QueueIterator")
_MESSAGE = ("aio_pika.message", "IncomingMessage")

_advances = around(asks_iterator, iterator_gave, iterator_failed)
_loops = around(if_enabled, loops_over)

adapter = AioPika
patches = (
    Patch("aio_pika.exchange", "Exchange", "publish", around(publishes, published, publish_failed)),
    Patch(*_CHANNEL, "basic_publish", around(sends)),
    Patch(*_CHANNEL, "basic_consume", around(consumes, replaces="consumer_callback")),
    Patch(*_CHANNEL, "queue_declare", around(declares, declared)),
    Patch("aio_pika.queue", "Queue", "get", around(asks, got, got_none)),
    Patch("aio_pika.queue", "Queue", "__aiter__", _loops),
    Patch(*_ITERATOR, "__aiter__", _loops),
    Patch(*_ITERATOR, "__anext__", _advances),
    Patch(*_ITERATOR, "__aenter__", around(if_enabled, enters)),
    Patch(*_ITERATOR, "__aexit__", around(exits)),
    Patch(*_ITERATOR, "close", wrap_close),
    Patch("aio_pika.robust_queue", "RobustQueueIterator", "__anext__", _advances, since="9.6"),
    Patch(*_RPC, "call", around(calls, settled, settling_failed)),
    Patch(*_RPC, "on_call_message", around(answers, settled, settling_failed)),
    Patch(*_RPC, "execute", around(executes, failed=execution_failed)),
    Patch("aio_pika.message", "ProcessContext", "__aexit__", around(leaves_process, settled, settling_failed)),
    Patch(*_MESSAGE, "ack", settles("ack", acked)),
    Patch(*_MESSAGE, "nack", settles("nack", nacked)),
    Patch(*_MESSAGE, "reject", settles("reject", rejected)),
)
