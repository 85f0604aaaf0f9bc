"""What the instrumentor of nats-py does for all of its patches."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.core.contexts import DELIVERY
from otel_messaging.core.operations import Moment
from otel_messaging.core.pulls import is_failure
from otel_messaging.core.requests import PublishRequest
from otel_messaging.instrumentation.settling import Last
from otel_messaging.instrumentation.state import find, keep

from .client import Client
from .messages import operation_of
from .pulling import Asked
from .readers import is_reply, subscribed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_messaging.core import vocabulary as v
    from otel_messaging.core.operations import Publication, Settlement
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.settling import Ends


class Nats:
    """Reads nats-py's objects for the telemetry of one instrumentor."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry

    def client(self, client: Any) -> Client:
        """What is kept for a connection."""
        return keep(client, self.telemetry, Client)

    def begin(
        self, verb: str, owner: Any, client: Any, subject: Any, payload: Any, headers: Any, arguments: Mapping[str, Any]
    ) -> Publication | None:
        """Begin to publish.

        Args:
            verb: the library's own word for it.
            owner: what the application calls.
            client: the connection.
            subject: where to.
            payload: what.
            headers: the application's headers.
            arguments: all arguments of the application, for the hook.

        Returns:
            The message on its way, or None if it is not to be told of.
        """
        context = self.telemetry.outgoing()
        if context is None or not isinstance(subject, str):
            return None
        state = keep(client, self.telemetry, Client)
        delivery: Any = context.get(DELIVERY)  # a task that its handler has started may answer later
        if state.is_silent(subject) or (delivery is not None and is_reply(subject, delivery)):
            return None
        publication = state.publish(verb, subject, payload, headers, context)
        if self.telemetry.publish_hook is not None:
            self.telemetry.tell_publish_hook(publication, PublishRequest(owner, subject, arguments))
        return publication

    def settlement(self, verb: str, message: Any, details: v.Attributes) -> Ends | None:
        """Begin to settle a message."""
        state = find(message._client)
        asked = state.pulled.get(id(message)) if state is not None else None
        settlement = self._settlement(verb, message, details, asked)
        if asked is None or verb == "in_progress":
            return settlement
        return Last(settlement, partial(asked.settled, message))

    def _settlement(self, verb: str, message: Any, details: v.Attributes, asked: Asked | None) -> Settlement | None:
        context = self.telemetry.active_context()
        if context is None or not message.reply or (message._ackd and verb != "in_progress"):
            return None  # a message is settled once: the library says so itself, or swallows it after a callback
        delivery = self.telemetry.current_delivery(context)
        while delivery is not None and not delivery.handles(message):
            delivery = delivery.before()[1]  # one may be pulled while another is handled
        if delivery is None and asked is not None:
            delivery = asked.find(message)
        if delivery is not None:
            return self.telemetry.settle(verb, delivery.operation, delivery, (), details)
        return self.telemetry.settle(verb, operation_of(self, message), None, (), details)

    def asks(self, subscription: Any) -> Moment | None:
        """A subscription is asked for one message: what it gave to the same task before is handled.

        So is what another one to the same subjects gave: some programs subscribe anew for each message.
        """
        state, client = find(subscription), find(subscription._conn)
        if state is not None:
            state.asked()
        if client is not None and client.pulled:
            source = subscribed(subscription)
            for asked in set(client.pulled.values()):
                if asked.source == source:
                    asked.asked()
        return Moment.now() if self.telemetry.active_context() is not None else None

    def got(self, subscription: Any, message: Any, began: Moment) -> None:
        """A subscription has given one message."""
        context = self.telemetry.active_context()
        if context is not None:
            keep(subscription, self.telemetry, Asked).hand_out(message, context, began)

    def fetches(self, pulling: Any) -> Moment | None:
        """A pull subscription is asked for messages: what it gave to the same task before is handled."""
        subscription = pulling._sub
        if subscription is None:
            return None  # the library raises an error, since it is unsubscribed
        state = find(subscription)
        if state is not None:
            state.fetches()
        return self.asks(subscription)

    def taking(self, message: Any) -> Callable[[], None] | None:
        """What leaves the end of a message's handling to who calls it, if that was taken out of a list."""
        state = find(message._client)
        asked = state.pulled.get(id(message)) if state is not None else None
        return partial(asked.release, message) if asked is not None and asked.took(message) else None

    def fetched(self, pulling: Any, messages: list[Any], began: Moment) -> list[Any]:
        """A pull subscription has given messages. Returns what the application gets instead of the list."""
        context = self.telemetry.active_context()
        if context is None or not messages:
            return messages
        state = keep(pulling._sub, self.telemetry, Asked)
        state.bind(pulling, None)
        return state.list(messages, context, began)

    def failed(self, verb: str, subscription: Any, pulling: Any, error: BaseException, began: Moment) -> None:
        """Asking for messages has raised an exception.

        Args:
            verb: the library's own word for it.
            subscription: what was asked; None where the library has none any more.
            pulling: the pull subscription that it belongs to, if it does.
            error: the exception.
            began: when it was asked.
        """
        context = self.telemetry.active_context()
        if context is None or subscription is None:
            return
        if not is_failure(error, subscription._conn.is_closed or subscription._closed):
            return
        state = keep(subscription, self.telemetry, Asked)
        if pulling is not None:
            state.bind(pulling, None)
        operation = state.failing(verb)
        if operation is not None:
            self.telemetry.receive(operation, (), (), context, began, error)
