"""What is the same for all messages of a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import Cache

from .readers import consumed_from, describe, fold, identify, time_waited

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.operations import Moment, Operation, Pull
    from otel_messaging.core.telemetry import Telemetry


class Source:
    """What is kept for the consumers of a queue.

    Args:
        telemetry: the telemetry in force.
        queue: its name.
        facts: what is known of its server.
        temporary: whether it does not last.
    """

    def __init__(self, telemetry: Telemetry, queue: str, facts: v.Facts, temporary: bool = False) -> None:
        self.telemetry = telemetry
        self._queue = queue
        self._facts = facts
        self._temporary = temporary
        self._operations: Cache[tuple[Any, Any], Operation] = Cache()
        self._pulls: Cache[tuple[Any, Any], Pull] = Cache()

    def operation(self, exchange: Any, routing_key: Any) -> Operation:
        """What is the same for all messages with a routing key."""
        operation = self._operations.get((exchange, routing_key))
        if operation is None:
            operation = self.telemetry.operation(v.DELIVER, "process", *self._routed(exchange, routing_key))
            self._operations.put((exchange, routing_key), operation)
        return operation

    def hand_out(self, message: Any, properties: Any, body: bytes, identity: Any) -> Delivery | None:
        """The application has a message.

        Args:
            message: where it was routed: the transport's message, or the library's.
            properties: what has its headers and ids: the transport's properties, or the library's message.
            body: its body.
            identity: what tells it from others.
        """
        context = self.telemetry.active_context()
        if context is None:
            return None
        headers = fold(properties.headers)
        known = describe(message, properties, body, headers)
        operation = self.operation(message.exchange, message.routing_key)
        waited = None if properties.timestamp is None else time_waited(properties.timestamp)
        delivery = self.telemetry.deliver(operation, known, headers, identity, context, waited)
        if delivery is not None and properties.reply_to:
            delivery.reply_to = properties.reply_to
        return delivery

    def pull(self, message: Any, context: Context, began: Moment) -> Delivery | None:
        """The application has a message that it has asked for.

        Args:
            message: the library's.
            context: the current context.
            began: when it was asked for.
        """
        pull = self._pull(message.exchange, message.routing_key)
        headers = fold(message.headers)
        known = describe(message, message, message.body, headers)
        if pull.receive is not None:
            self.telemetry.receive(pull.receive, known, [((), headers)], context, began)
        waited = None if message.timestamp is None else time_waited(message.timestamp)
        delivery = self.telemetry.deliver(pull.handle, known, headers, identify(message), context, waited)
        if delivery is not None and message.reply_to:
            delivery.reply_to = message.reply_to
        return delivery

    def asking(self, verb: str) -> Operation:
        """To ask for a message that never comes, of which one knows nothing but the queue.

        Args:
            verb: the library's own word for it.
        """
        destination = consumed_from("", "", self._queue, self.telemetry.vocabulary.semconv, self._temporary)
        return self.telemetry.operation(v.RECEIVE, verb, destination, self._facts)

    def _pull(self, exchange: Any, routing_key: Any) -> Pull:
        pull = self._pulls.get((exchange, routing_key))
        if pull is None:
            pull = self.telemetry.pull("get", *self._routed(exchange, routing_key))
            self._pulls.put((exchange, routing_key), pull)
        return pull

    def _routed(self, exchange: Any, routing_key: Any) -> tuple[v.Destination, v.Facts]:
        """The destination of messages that were routed so, and what is known of all of them."""
        composed = self.telemetry.vocabulary.semconv
        destination = consumed_from(exchange or "", routing_key or "", self._queue, composed, self._temporary)
        return destination, (*self._facts, (v.RABBITMQ_ROUTING_KEY, routing_key or None))
