"""What the instrumentor of aio-pika keeps: exchanges, queues, and messages that can be settled."""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.instrumentation.settling import Last
from otel_messaging.instrumentation.state import keep

from .connections import Connection
from .readers import Identity, identify
from .sources import Source

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.operations import Settlement
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.settling import Ends

    from .pulled import Pulled

giving_back: ContextVar[object] = ContextVar("otel_messaging_aio_pika_giving_back", default=None)
"""Set while an iterator is being closed here, and gives back what nobody has handled: that is the library's doing."""

leaving: ContextVar[object] = ContextVar("otel_messaging_aio_pika_leaving", default=None)
"""Set while an exception leaves a `message.process()` here: that there is no channel to reject by is swallowed then."""


class AioPika:
    """Reads aio-pika's objects for the telemetry of one instrumentor."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.pulled: dict[Identity, Pulled] = {}

    def source(self, queue: str, connection: Any) -> Source:
        """What is kept for the consumers of a queue.

        Args:
            queue: its name.
            connection: the transport's.
        """
        return keep(connection, self.telemetry, Connection).source(queue)

    def source_of(self, message: Any) -> Source:
        """Where a message has come from: our callbacks know it, and an iterator knows its queue.

        Through the default exchange the routing key is the queue's name.
        """
        channel = message._IncomingMessage__channel
        callback = channel.consumers.get(message.consumer_tag)
        callback = getattr(callback, "__wrapped__", callback)
        given = callback.args[0] if isinstance(callback, partial) and callback.args else None
        if isinstance(given, partial) and given.args and isinstance(given.args[0], Source):
            return given.args[0]
        queue = getattr(getattr(given, "__self__", None), "_amqp_queue", None)
        name = queue.name if queue is not None else "" if message.exchange else message.routing_key
        return self.source(name or "", channel.connection)

    def settlement(self, verb: str, message: Any, details: v.Attributes) -> Ends | None:
        """Begin to settle a message."""
        pulled = self.pulled.get(identify(message)) if self.pulled else None
        settlement = self._settlement(verb, message, details)
        if pulled is None or message.processed:
            return settlement
        return Last(settlement, partial(pulled.settled, identify(message), v.SETTLE_MULTIPLE in details))

    def _settlement(self, verb: str, message: Any, details: v.Attributes) -> Settlement | None:
        context = self.telemetry.active_context()
        if context is None or message.processed:
            return None  # a message is settled once: the library says so itself
        if leaving.get() and message._IncomingMessage__channel.is_closed:
            return None
        facts: v.Facts = ((v.RABBITMQ_DELIVERY_TAG, message.delivery_tag),)
        if v.SETTLE_MULTIPLE not in details:
            facts += ((v.MESSAGE_ID, message.message_id), (v.CONVERSATION_ID, message.correlation_id))
        delivery = self.delivery(message, context)
        if delivery is None and giving_back.get():
            return None
        if delivery is not None:
            operation = delivery.operation
        else:
            operation = self.source_of(message).operation(message.exchange, message.routing_key)
        return self.telemetry.settle(verb, operation, delivery, facts, details)

    def delivery(self, message: Any, context: Context) -> Delivery | None:
        """The span of a message, while it is handled here."""
        identity = identify(message)
        delivery = self.telemetry.current_delivery(context)
        while delivery is not None and not delivery.handles(identity):
            delivery = delivery.before()[1]  # one may be pulled while another is handled
        if delivery is None and self.pulled:
            pulled = self.pulled.get(identity)
            return pulled.find(identity) if pulled is not None else None
        return delivery

    def handled(self, message: Any) -> Delivery | None:
        """The span of a message, while it is handled here and instrumentation is on."""
        context = self.telemetry.active_context()
        return None if context is None else self.delivery(message, context)
