"""How aio-pika's objects are read."""

from __future__ import annotations

import re
import time
from asyncio import CancelledError
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.propagation import as_text

if TYPE_CHECKING:
    from collections.abc import Mapping


_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
# Queues that the broker names, that stand for direct replies, and that a robust queue names.
_ANONYMOUS = re.compile(r"amq\.gen-|amq\.rabbitmq\.reply-to|amq_(0x)?[0-9a-f]{24,32}$")
# Headers in which the broker counts: deliveries from a quorum queue, and the times a message was dead-lettered.
_COUNTS = frozenset({"x-acquired-count", "x-delivery-count", "x-death"})
DEATHS = 32  # how many are told of one by one, the latest: before RabbitMQ 4 anybody can say that there were more
Identity = tuple[Any, Any]


def identify(message: Any) -> Identity:
    """What tells a message from others: it can hold no mark, and no weak reference."""
    return (message._IncomingMessage__channel, message.delivery_tag)


def describe(message: Any, properties: Any, body: bytes, headers: dict[str, Any] | None) -> v.Facts:
    """What is known of a message: of every message, and of those about which there is more to tell."""
    known: v.Facts = (
        (v.RABBITMQ_DELIVERY_TAG, message.delivery_tag),
        (v.MESSAGE_ID, properties.message_id),
        (v.CONVERSATION_ID, properties.correlation_id),
        (v.BODY_SIZE, len(body)),
    )
    if message.redelivered:
        known += ((v.REDELIVERED, True),)
    if properties.priority or properties.expiration:
        known += wishes(properties)
    if headers and not _COUNTS.isdisjoint(headers):
        known += _counted(headers, message.redelivered)
    return known


def assigned_id(properties: Any) -> v.Facts:
    """The id that the transport has made up for a message that had none.

    Args:
        properties: those of such a message; None for any other.
    """
    return () if properties is None else ((v.MESSAGE_ID, properties.message_id),)


def wishes(properties: Any) -> v.Facts:
    """What the publisher asks of the broker."""
    expiration = properties.expiration
    if isinstance(expiration, str):  # the transport's, in milliseconds
        expiration = int(expiration) / 1000 if expiration.isdigit() else None
    elif isinstance(expiration, timedelta):
        expiration = expiration.total_seconds()
    elif not isinstance(expiration, (int, float)):
        expiration = None  # a point in time
    return (
        (v.RABBITMQ_PRIORITY, properties.priority or None),
        (v.RABBITMQ_EXPIRATION, None if expiration is None else float(expiration)),
    )


def _counted(headers: dict[str, Any], redelivered: bool) -> v.Facts:
    """What the broker has counted. A quorum queue counts the deliveries before this one."""
    before, deaths = headers.get("x-delivery-count"), headers.get("x-death")
    if redelivered:  # RabbitMQ 4.3 has two counts; this one includes what was given back by the application
        before = headers.get("x-acquired-count", before)
    facts: v.Facts = ((v.ATTEMPT, before + 1),) if type(before) is int and 0 <= before < v.LARGEST else ()
    if not isinstance(deaths, list) or not all(isinstance(death, dict) for death in deaths):
        return facts
    first = deaths[-1] if deaths else {}  # the latest is in front
    told = list(reversed(deaths[:DEATHS]))
    return (
        *facts,
        (v.RABBITMQ_DEATH_QUEUES, [_named(death.get("queue")) or "" for death in told] or None),
        (v.RABBITMQ_DEATH_REASONS, [_named(death.get("reason")) or "" for death in told] or None),
        (v.RABBITMQ_DEATH_COUNTS, [_times(death) for death in told] or None),
        (v.RABBITMQ_DEATH_QUEUE, _named(headers.get("x-first-death-queue", first.get("queue")))),
        (v.RABBITMQ_DEATH_REASON, _named(headers.get("x-first-death-reason", first.get("reason")))),
        (v.RABBITMQ_DEATH_COUNT, min(sum(_times(death) for death in deaths), v.LARGEST)),
    )


def _named(value: Any) -> str | None:
    """A name that the broker has noted, or anybody: before RabbitMQ 4 any publisher can."""
    text = as_text(value)
    return None if text is None else v.cut(text)


def _times(death: dict[str, Any]) -> int:
    """How often a message died in one place for one reason."""
    count = death.get("count")
    return count if type(count) is int and 0 <= count <= v.LARGEST else 0


def time_waited(sent: Any) -> float | None:
    """How long ago a message was sent, by the publisher's clock and to the second: AMQP has no finer timestamps."""
    if not isinstance(sent, datetime):
        return None
    if sent.tzinfo is None:
        sent = sent.replace(tzinfo=timezone.utc)
    return float(time.time() - sent.timestamp())


def published_to(exchange: str, routing_key: str, composed: bool, temporary: bool = False) -> v.Destination:
    """Where a message is published to.

    Args:
        exchange: its name; empty for the default one.
        routing_key: that of the message.
        composed: whether the conventions' name, which has both parts, is in force.
        temporary: whether the routing key is the name of a queue that does not last.
    """
    anonymous = bool(_ANONYMOUS.match(routing_key)) and (composed or not exchange)
    named = ":".join(part for part in (exchange, routing_key) if part) or "amq.default"
    return v.Destination(
        exchange or routing_key or "amq.default",
        semconv=named,
        temporary=anonymous or (temporary and not exchange),
        anonymous=anonymous,
    )


def consumed_from(
    exchange: str, routing_key: str, queue: str, composed: bool, temporary: bool = False
) -> v.Destination:
    """Where a message is consumed from; of exchange, routing key and queue those that are not known are empty.

    Args:
        exchange: where it was published to.
        routing_key: with which key.
        queue: what it has come from.
        composed: as for `published_to`.
        temporary: whether that queue does not last.
    """
    parts = [part for part in (exchange, routing_key, "" if queue == routing_key else queue) if part]
    name = queue or exchange or routing_key
    anonymous = any(_ANONYMOUS.match(part) for part in (parts if composed else (name,)))
    return v.Destination(name, semconv=":".join(parts), temporary=anonymous or temporary, anonymous=anonymous)


def server(url: Any) -> v.Facts:
    """Host, port, and a virtual host that is not the default one; never the whole address, which holds the password."""
    if url is None:
        return ()
    known: v.Facts = ((v.SERVER_ADDRESS, url.host), (v.SERVER_PORT, url.port or _DEFAULT_PORTS.get(url.scheme)))
    virtual = str(url.path)[1:].replace("%2F", "/")  # as the transport reads it
    return known if virtual in ("", "/") else (*known, (v.RABBITMQ_VHOST, virtual))


def address(owner: Any) -> Any:
    """The address that an exchange or a queue is behind."""
    channel = getattr(owner, "channel", None)  # gone when the exchange is deleted
    connection = getattr(channel, "_connection", None) or getattr(channel, "connection", None)  # the latter in 9.0
    return getattr(connection, "url", None)


def transport(owner: Any) -> Any:
    """The connection of the transport that an exchange or a queue is behind; None while there is none."""
    channel = getattr(owner, "channel", None)
    connection = getattr(channel, "_connection", None)
    if connection is None:
        return getattr(channel, "connection", None)  # in 9.0
    return getattr(getattr(connection, "transport", None), "connection", None)


def is_closed(owner: Any) -> bool:
    """Whether the application has closed the connection that a queue is behind."""
    channel = getattr(owner, "channel", None)
    connection = getattr(channel, "_connection", None)
    if connection is not None:
        return bool(getattr(connection, "_close_called", False))
    # In 9.0 the transport's, which the client closes as if it cancelled it; `exception()` would mark that as seen.
    closing = getattr(getattr(channel, "connection", None), "closing", None)
    return isinstance(getattr(closing, "_exception", None), CancelledError)


def fold(headers: Mapping[Any, Any] | None) -> dict[str, Any] | None:
    """Headers with their names in lower case; None where there are none."""
    return {str(name).lower(): value for name, value in headers.items()} if headers else None
