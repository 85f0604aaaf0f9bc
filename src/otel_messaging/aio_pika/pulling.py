"""`Queue.get`: one message at a time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.operations import Moment
from otel_messaging.core.pulls import is_failure
from otel_messaging.instrumentation.state import find, keep

from .pulled import Pulled
from .readers import address, identify, is_closed, server, transport
from .sources import Source

if TYPE_CHECKING:
    from .adapter import AioPika

Asking = tuple["AioPika", Any, Moment]
"""The adapter, a queue, and when it was asked."""


def asks(pika: AioPika, queue: Any) -> Asking | None:
    """`Queue.get` gives one message, which is handled until it is settled or the next one is asked for.

    What the queue gave to the same task before is handled now.
    """
    state = find(queue.channel)
    if state is not None:
        state.asked(queue.name)
    return (pika, queue, Moment.now()) if pika.telemetry.active_context() is not None else None


def got(asking: Asking, message: Any) -> Any:
    """A queue has given one message, or None if it has none."""
    pika, queue, began = asking
    context = pika.telemetry.active_context()
    if context is None or message is None:
        return message
    source = pika.source(queue.name, message._IncomingMessage__channel.connection)
    delivery = source.pull(message, context, began)
    if delivery is None:
        return message
    if not delivery.done:
        pulled = keep(queue.channel, pika.telemetry, partial(Pulled, pika.pulled))
        pulled.hold(None if message.processed else queue.name, delivery, identify(message))
    pika.telemetry.tell_consume_hook(delivery, message)
    return message


def got_none(asking: Asking, error: BaseException) -> None:
    """Asking a queue has raised an exception."""
    pika, queue, began = asking
    tell_failure(pika, "get", queue, error, began)


def tell_failure(pika: AioPika, verb: str, queue: Any, error: BaseException, began: Moment) -> None:
    """Asking a queue for messages has raised an exception.

    Args:
        pika: the adapter.
        verb: the library's own word for it.
        queue: the queue.
        error: the exception.
        began: when it was asked.
    """
    context = pika.telemetry.active_context()
    if context is None or not is_failure(error, is_closed(queue)):
        return
    connection = transport(queue)
    if connection is not None:
        source = pika.source(queue.name, connection)
    else:
        source = Source(pika.telemetry, queue.name, ((v.SYSTEM, "rabbitmq"), *server(address(queue))))
    pika.telemetry.receive(source.asking(verb), (), (), context, began, error)
