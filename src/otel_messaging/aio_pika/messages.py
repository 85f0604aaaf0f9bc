"""What is known of a message outside of the consumer that it has come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core.contexts import get_current
from otel_messaging.core.requests import Incoming

from .readers import describe, fold, identify

if TYPE_CHECKING:
    from .adapter import AioPika


def is_message(value: Any) -> bool:
    """Whether one of the library's objects is a message that has come from a queue."""
    return hasattr(value, "delivery_tag") and hasattr(value, "headers")


def read(pika: AioPika, message: Any) -> Incoming:
    """Read a message. It does not tell of its queue, but its channel knows what consumes it."""
    delivery = pika.delivery(message, get_current())
    if delivery is not None and not delivery.several:
        operation = delivery.operation
    else:
        delivery = None
        operation = pika.source_of(message).operation(message.exchange, message.routing_key)
    headers = fold(message.headers)
    return Incoming(
        destination=operation.destination,
        common=operation.facts,
        facts=describe(message, message, message.body, headers),
        headers=headers,
        size=len(message.body),
        identity=identify(message),
        delivery=delivery,
        reply_to=message.reply_to or None,
    )
