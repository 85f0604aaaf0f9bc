"""Callbacks, and the queues that are declared for them."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.instrumentation.loops import handle
from otel_messaging.instrumentation.state import keep

from .connections import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.delivery import Delivery

    from .adapter import AioPika
    from .sources import Source


def consumes(pika: AioPika, channel: Any, queue: Any, consumer_callback: Any) -> tuple[None, Any]:
    """`aiormq.Channel.basic_consume` is given the queue's name and what will be called with each message.

    Here every kind of callback looks the same, and a consumer that is restored after a reconnect passes again.
    """
    if not pika.telemetry.enabled or not _is_application(consumer_callback):
        return None, consumer_callback
    source = pika.source(queue, channel.connection)
    return None, partial(handle, partial(_deliver, source, consumer_callback), consumer_callback)


def _is_application(callback: Any) -> bool:
    """Whether messages go to the application at once, and not to an iterator that keeps them for it."""
    module = sys.modules["aio_pika.queue"]
    if not isinstance(callback, partial) or callback.func is not module.consumer or not callback.args:
        return False
    owner = getattr(callback.args[0], "__self__", None)
    return not isinstance(owner, module.QueueIterator) and not _is_reply(owner, callback.args[0])


def _is_reply(owner: Any, method: Any) -> bool:
    """Whether what is consumed are the replies to calls of `RPC`, which are no messages of their own."""
    patterns = sys.modules.get("aio_pika.patterns.rpc")
    if patterns is None or not isinstance(owner, patterns.RPC):
        return False
    return bool(method == owner.on_result_message)


def _deliver(source: Source, consumer: Any, message: Any) -> Delivery | None:
    """The application is about to be called with a message."""
    routed = message.delivery  # its own properties ask each time what it is
    identity = (message.channel, routed.delivery_tag)
    delivery = source.hand_out(routed, message.header.properties, message.body, identity)
    if delivery is not None and source.telemetry.consume_hook is not None:
        incoming = sys.modules["aio_pika.message"].IncomingMessage(message, **consumer.keywords)
        source.telemetry.tell_consume_hook(delivery, incoming)
    return delivery


def declares(
    pika: AioPika, channel: Any, queue: str, passive: bool, exclusive: bool, auto_delete: bool
) -> Callable[[str], None] | None:
    """`aiormq.Channel.queue_declare` tells which queues are the connection's own, also anew after a reconnect."""
    if passive or not pika.telemetry.enabled:  # the former only asks whether it is there
        return None
    connection = keep(channel.connection, pika.telemetry, Connection)
    return lambda name: connection.declared(name or queue, bool(exclusive), bool(auto_delete))


def declared(tell: Callable[[str], None], result: Any) -> Any:
    """A queue was declared, which the broker may have named."""
    tell(getattr(result, "queue", ""))
    return result
