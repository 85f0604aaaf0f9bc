"""What is known of a message outside of the subscription that it has come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.requests import Incoming
from otel_messaging.instrumentation.state import find, keep

from .client import Client
from .pulling import taking
from .readers import DELIVERED, describe, fold, split_reply, stored, subscribed

if TYPE_CHECKING:
    from otel_messaging.core.operations import Operation
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.adapter import Adapter


def is_message(value: Any) -> bool:
    """Whether one of the library's objects is a message: one of the client's, or a request to a service."""
    return hasattr(value, "subject") and hasattr(value, "data") and hasattr(value, "headers")


def read(nats: Adapter, message: Any) -> Incoming:
    """Read a message."""
    message = getattr(message, "_msg", message)  # a request to a service is one with a message in it
    operation = operation_of(nats.telemetry, message)
    headers = fold(message.headers)
    delivery = nats.telemetry.delivery_of(message)
    return Incoming(
        destination=operation.destination,
        common=operation.facts,
        facts=(*describe(message.data, headers), *_stored(message.reply, operation.facts)),
        headers=headers,
        size=len(message.data),
        identity=message,
        delivery=delivery,
        reply_to=message.reply or None,
        release=None if delivery is None else taking(message),
    )


def operation_of(telemetry: Telemetry, message: Any) -> Operation:
    """How a message is handled: its client knows the subscription, as long as that is there."""
    subscription = message._client._subs.get(message._sid)
    subject, queue = _source(subscription) if subscription is not None else ("", "")
    return keep(message._client, telemetry, Client).deliveries(subject, queue, v.PROCESS).operation(message.subject)


def _source(subscription: Any) -> tuple[str, str]:
    asked = find(subscription)  # where messages are asked for, it may know the consumer
    return subscribed(subscription) if asked is None else asked.source


def _stored(reply: Any, known: v.Facts) -> v.Facts:
    words = split_reply(reply) if reply and reply.startswith(DELIVERED) else None
    try:
        return () if words is None else stored(words, None, dict(known).get(v.NATS_GROUP))
    except ValueError:
        return ()  # not JetStream's
