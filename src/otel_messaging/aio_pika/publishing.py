"""`Exchange.publish`, and the transport below it."""

from __future__ import annotations

from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, Any
from weakref import ref

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import Cache
from otel_messaging.core.operations import Failure
from otel_messaging.core.propagation import fields
from otel_messaging.core.requests import PublishRequest
from otel_messaging.instrumentation.state import ATTRIBUTE, keep

from .connections import Connection
from .limits import FLAT, PER_CHARACTER, PER_MESSAGE, PER_VALUE, fits
from .readers import address, assigned_id, fold, published_to, server, transport, wishes
from .rpc import Reply, at_work

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from otel_messaging.core.operations import Operation, Publication
    from otel_messaging.core.telemetry import Telemetry

    from .adapter import AioPika
    from .rpc import Call

_DIRECT_REPLY = "amq.rabbitmq.reply-to."
_UNROUTABLE = "returned by the broker: {text}"
sending: ContextVar[Publication | None] = ContextVar("otel_messaging_aio_pika_sending", default=None)
"""The message that `Exchange.publish` is sending, for `Channel.basic_publish` below it."""


class Exchange:
    """What is kept for an exchange."""

    def __init__(self, telemetry: Telemetry, exchange: Any) -> None:
        self.telemetry = telemetry
        self._exchange = ref(exchange)
        self._name = exchange.name
        self._operations: Cache[tuple[str, str], Operation] = Cache()

    def publish(self, message: Any, routing_key: str, context: Context, verb: str = "publish") -> Publication:
        """Begin to publish a message.

        Args:
            message: the library's.
            routing_key: its routing key.
            context: the current context.
            verb: what the application does with it: ``publish``, or ``call`` to wait for a reply.
        """
        operation = self._operations.get((verb, routing_key)) or self._operation(verb, routing_key)
        known: v.Facts = ((v.BODY_SIZE, len(message.body)),)
        if message.message_id or message.correlation_id:
            known += ((v.MESSAGE_ID, message.message_id), (v.CONVERSATION_ID, message.correlation_id))
        if message.priority or message.expiration:
            known += wishes(message)
        headers = message.headers
        return self.telemetry.publish(operation, known, fold(headers) if headers else None, context)

    def forget(self, queue: str | None = None) -> None:
        """The connection is closed, and the next one may be to another address; or a queue has become another one."""
        for verb, routing_key in tuple(self._operations):
            if queue is None or routing_key == queue:
                self._operations.pop((verb, routing_key), None)

    def _operation(self, verb: str, routing_key: str) -> Operation:
        named = str.__str__(routing_key)  # an enumeration's value
        exchange = self._exchange()
        connection, temporary = transport(exchange), False
        if connection is not None:
            state = keep(connection, self.telemetry, Connection)
            state.publishers.add(self)
            common, temporary = state.facts, state.is_temporary(named)
        else:
            common = ((v.SYSTEM, "rabbitmq"), *server(address(exchange)))
        facts = (*common, (v.RABBITMQ_ROUTING_KEY, named or None))
        destination = published_to(self._name, named, self.telemetry.vocabulary.semconv, temporary)
        operation = self.telemetry.operation(v.PUBLISH, verb, destination, facts)
        return self._operations.put((verb, routing_key), operation)


Sending = tuple["Publication | None", Any, str]
"""A message that is to be ended, its exchange, and its routing key."""


def publishes(
    pika: AioPika, exchange: Any, message: Any, routing_key: Any, mandatory: Any, immediate: Any, timeout: Any
) -> Sending | None:
    """`Exchange.publish` is where every message leaves, those of the patterns too."""
    telemetry = pika.telemetry
    context = telemetry.outgoing()
    if context is None or not isinstance(routing_key, str):
        return None
    state = exchange.__dict__.get(ATTRIBUTE)
    if state is None or state.telemetry is not telemetry:
        state = keep(exchange, telemetry, Exchange)
    begun: Publication | None
    pattern = at_work.get()
    if pattern is None or not pattern.concerns(message, routing_key):
        begun = own = state.publish(message, routing_key, context)
    else:
        begun, own = _of_pattern(pattern, state, message, routing_key, context), None
    if begun is not None and telemetry.publish_hook is not None:
        arguments = {
            "message": message,
            "routing_key": routing_key,
            "mandatory": mandatory,
            "immediate": immediate,
            "timeout": timeout,
        }
        telemetry.tell_publish_hook(begun, PublishRequest(exchange, exchange.name, arguments))
    sending.set(begun)
    return own, exchange, routing_key


def _of_pattern(
    pattern: Call | Reply, exchange: Exchange, message: Any, routing_key: str, context: Context
) -> Publication | None:
    """A pattern of the library publishes a message: a call, which it ends itself, or a reply."""
    if isinstance(pattern, Reply):
        if message.type == "error":
            pattern.fail(Failure("error", "answered with an error"), unless_failed=True)
        return None
    pattern.publication = exchange.publish(message, routing_key, context, "call")
    return pattern.publication


def published(sent: Sending, result: Any) -> Any:
    """The broker has the message, or has returned it."""
    own, exchange, routing_key = sent
    if sending.get() is not None:  # the transport was not reached
        sending.set(None)
    if own is not None:
        own.end(_returned(result, exchange, routing_key), assigned_id(own.sent))
    return result


def publish_failed(sent: Sending, error: BaseException) -> None:
    """The message may not have been sent."""
    from aiormq.exceptions import PublishError

    own, exchange, routing_key = sent
    if sending.get() is not None:  # as above
        sending.set(None)
    if own is not None:
        is_sent = isinstance(error, PublishError) and _is_direct_reply(exchange, routing_key)
        own.end(None if is_sent else error, assigned_id(own.sent))


def _returned(result: Any, exchange: Any, routing_key: str) -> Failure | None:
    """A message that the broker could not route comes back as the result, and nothing is raised."""
    delivery = getattr(result, "delivery", None)
    if delivery is None or _is_direct_reply(exchange, routing_key):
        return None
    text = str(getattr(delivery, "reply_text", None) or "unroutable")
    return Failure(text, _UNROUTABLE.format(text=text))


def _is_direct_reply(exchange: Any, routing_key: str) -> bool:
    """Whether a message is a direct reply: the broker returns it for want of a queue, and delivers it nevertheless.

    See https://www.rabbitmq.com/docs/direct-reply-to#limitations.
    """
    return not exchange.name and routing_key.startswith(_DIRECT_REPLY)


def sends(_pika: AioPika, channel: Any, properties: Any) -> None:
    """`aiormq.Channel.basic_publish` has properties made for this one message, which may be changed."""
    publication = sending.get()
    if publication is not None:
        sending.set(None)
        _complete(publication, properties, channel.max_content_size)


def _complete(publication: Publication, properties: Any, room: int) -> None:
    """Put a context into the properties of a message, unless they would be too large for a frame then.

    Args:
        publication: the message.
        properties: the transport's.
        room: as for `fits`.
    """
    if properties is None:
        return
    carrier = publication.carrier
    if carrier:
        headers = properties.headers
        properties.headers, size = _add(headers, carrier) if headers else (carrier, PER_MESSAGE)
        usual = size <= room and len(carrier) == 1 and "traceparent" in carrier  # `fits` without a call
        if not usual and not fits(properties, room):
            properties.headers = headers
    if not properties.message_id:
        publication.sent = properties


def _add(headers: Any, carrier: dict[str, str]) -> tuple[Any, float]:
    """New headers, with a context in them instead of any that was there; the same ones where a name is no text.

    And how many bytes they have at the most, beside the context, where that is known at once.
    """
    ours, added, size = fields(), {}, PER_MESSAGE
    for name, value in headers.items():
        if not isinstance(name, str):
            return headers, inf  # the library says so itself
        if name.lower() not in ours:
            added[name] = value
            kind = type(value)
            if kind is str:
                size += PER_VALUE + PER_CHARACTER * len(value)
            else:
                size += PER_VALUE if kind in FLAT else inf
    added.update(carrier)
    return added, size
