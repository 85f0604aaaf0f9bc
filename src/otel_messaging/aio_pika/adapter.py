"""What the instrumentor of aio-pika keeps: exchanges, queues, and messages that can be settled."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.operations import Failure, Moment
from otel_messaging.core.pulls import is_failure
from otel_messaging.instrumentation.settling import Last
from otel_messaging.instrumentation.state import find, keep

from .connections import Connection
from .consuming import Source
from .messages import source_of
from .publishing import Exchange
from .pulling import Pulled
from .readers import Identity, address, identify, is_closed, server, transport
from .rpc import Call, Reply
from .settling import giving_back, leaving

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.operations import Publication, Settlement
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.settling import Ends


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

    def pattern(
        self, pattern: Call | Reply, exchange: Any, message: Any, routing_key: str, context: Context
    ) -> Publication | None:
        """A pattern of the library publishes a message: a call, which it ends itself, or a reply."""
        if isinstance(pattern, Reply):
            if message.type == "error":
                pattern.fail(Failure("error", "answered with an error"), unless_failed=True)
            return None
        pattern.publication = keep(exchange, self.telemetry, Exchange).publish(message, routing_key, context, "call")
        return pattern.publication

    def asks(self, queue: Any) -> Moment | None:
        """A queue is asked for one message: what it gave to the same task before is handled."""
        state = find(queue.channel)
        if state is not None:
            state.asked(queue.name)
        return Moment.now() if self.telemetry.active_context() is not None else None

    def got(self, queue: Any, message: Any, began: Moment) -> None:
        """A queue has given one message."""
        context = self.telemetry.active_context()
        if context is None:
            return
        source = self.source(queue.name, message._IncomingMessage__channel.connection)
        delivery = source.pull(message, context, began)
        if delivery is None:
            return
        if not delivery.done:
            pulled = keep(queue.channel, self.telemetry, partial(Pulled, self))
            pulled.hold(None if message.processed else queue.name, delivery, identify(message))
        self.telemetry.tell_consume_hook(delivery, message)

    def failed(self, verb: str, queue: Any, error: BaseException, began: Moment) -> None:
        """Asking a queue for messages has raised an exception.

        Args:
            verb: the library's own word for it.
            queue: the queue.
            error: the exception.
            began: when it was asked.
        """
        context = self.telemetry.active_context()
        if context is not None and is_failure(error, is_closed(queue)):
            connection = transport(queue)
            if connection is not None:
                source = self.source(queue.name, connection)
            else:
                source = Source(self.telemetry, queue.name, ((v.SYSTEM, "rabbitmq"), *server(address(queue))))
            self.telemetry.receive(source.asking(verb), (), (), context, began, error)

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
            operation = source_of(self, message).operation(message.exchange, message.routing_key)
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
