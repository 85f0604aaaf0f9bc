"""What is kept for a connection, and for what is delivered through it."""

from __future__ import annotations

import time
from asyncio import CancelledError
from contextvars import Context as EmptyContext
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import Cache
from otel_messaging.core.operations import Failure
from otel_messaging.core.propagation import fields
from otel_messaging.core.safety import report
from otel_messaging.systems.nats_advisories import GIVEN_UP, given_up

from .limits import limits_of, size_of
from .readers import DELIVERED, acknowledged, describe, fold, number, peer, split_reply, stored

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Mapping

    from opentelemetry.context import Context

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.metrics import Lag
    from otel_messaging.core.operations import Operation, Publication
    from otel_messaging.core.telemetry import Telemetry


_PORTS = {"ws": 80, "wss": 443}  # where the address names none; to others the library adds one
_USUAL = {"traceparent"}
_ROOM = 100  # bytes that this alone takes, and some
_UNANSWERED = Failure("nats.errors.ConnectionClosedError", "closed before the stream has acknowledged the message")


class Closes(Protocol):
    """What ends with its connection."""

    def close(self) -> None:
        """Nothing is handled any more that it has handed out."""


class Client:
    """What is kept for a connection."""

    def __init__(self, telemetry: Telemetry, client: Any) -> None:
        self.telemetry = telemetry
        self._client = client
        self.consumers: dict[str, Any] = {}
        """Configurations of JetStream consumers that are being subscribed to, by the subject that they deliver to."""
        self.unanswered: dict[Future[Any], Publication] = {}
        """Messages that no stream has acknowledged yet, by what the application waits for."""
        self.pulled: dict[int, Any] = {}
        """What gave the messages that were pulled and are handled now, by their ids."""
        self.watched: WeakSet[Closes] = WeakSet()
        """Watchers of stores, each of which may be handling an update."""
        self.limits = limits_of(client)
        """What its streams have refused."""
        self._prefix: Any = None
        self._silent: tuple[str, ...] = ("$",)
        self._server: Any = None
        self._number: Any = None
        self._facts: v.Facts = ()
        self._publishes: Cache[tuple[str, str], Operation] = Cache()
        self._deliveries: Cache[tuple[str, str, v.Action], Deliveries] = Cache()

    def awaits(self, future: Future[Any], publication: Publication) -> None:
        """A message is published that a stream will acknowledge, or perhaps will not."""
        self.unanswered[future] = publication
        future.add_done_callback(self.answered, context=EmptyContext())

    def answered(self, future: Future[Any], error: BaseException | Failure | None = None) -> None:
        """A stream has acknowledged a message or refused it, or nobody waits for that any more."""
        publication = self.unanswered.pop(future, None)
        if publication is None:
            return
        facts: v.Facts = ()
        try:
            if error is None and future.done():
                # `exception()` would mark it as seen, and asyncio logs those that nobody has seen.
                error = CancelledError() if future.cancelled() else getattr(future, "_exception", None)
                if error is None:
                    acknowledgement = future.result()
                    facts = acknowledged(acknowledgement)[1]
                    if self.limits.sizes:
                        subject, size = publication.sent
                        self.limits.accepted(subject, size, acknowledgement.stream)
        except Exception as failure:
            report("JetStreamContext.publish_async", failure)
        finally:
            publication.end(error, facts)

    def close(self) -> None:
        """The connection is closed: no stream will answer, and no update is handled any more."""
        for future in tuple(self.unanswered):
            self.answered(future, _UNANSWERED)
        for watched in tuple(self.watched):
            watched.close()

    def is_silent(self, subject: str) -> bool:
        """Whether a subject is the system's own, or the inbox of a reply."""
        prefix = self._client._inbox_prefix
        if prefix is not self._prefix:  # connecting sets it
            self._prefix, self._silent = prefix, ("$", bytes(prefix).decode() + ".")
        return subject.startswith(self._silent)

    def is_hidden(self, subject: str) -> bool:
        """Whether a subject's messages are not the application's: it handles advisories of dead letters as any."""
        return self.is_silent(subject) and not subject.startswith(GIVEN_UP)

    def facts(self) -> v.Facts:
        """The server in use, which changes when the client reconnects."""
        server, number = self._client._current_server, self._client._client_id
        if server is not self._server or number != self._number:
            self._server, self._number = server, number
            self._publishes.clear()
            uri = getattr(server, "uri", None)
            self._facts = (
                (v.SYSTEM, "nats"),
                (v.SERVER_ADDRESS, uri.hostname if uri is not None else None),
                (v.SERVER_PORT, uri.port or _PORTS.get(uri.scheme) if uri is not None else None),
                (v.CLIENT_ID, None if number is None else str(number)),
                *peer(self._client),
            )
        return self._facts

    def publish(self, verb: str, subject: str, payload: Any, headers: Any, context: Context) -> Publication:
        """Begin to publish a message."""
        facts = self.facts()
        operation = self._publishes.get((verb, subject))
        if operation is None:
            facts = (*facts, (v.NATS_SUBJECT, subject))
            operation = self.telemetry.operation(v.PUBLISH, verb, v.Destination(subject), facts)
            self._publishes.put((verb, subject), operation)
        folded = None if headers is None else fold(headers)
        return self.telemetry.publish(operation, describe(payload, folded), folded, context)

    def add(self, subject: str, headers: Any, carrier: Mapping[str, str], payload: Any, is_stored: bool = False) -> Any:
        """The headers with a context in them, in a new dictionary; as they are where that would do harm.

        A server without headers closes the connection on any, and so does every server on a message that crosses its
        limit with its headers, which the client does not check.

        Args:
            subject: where to.
            headers: the application's.
            carrier: the context.
            payload: what.
            is_stored: whether a stream will answer.
        """
        if not self._client._server_info.get("headers"):
            return headers
        try:
            limit = self._client._max_payload
            if self.limits.sizes:
                limit = self.limits.lower(limit, subject, is_stored)
            if headers is None and carrier.keys() == _USUAL and len(payload) + _ROOM <= limit:
                return carrier
            ours = fields()
            others = () if headers is None else headers.items()
            sent = {name: value for name, value in others if name.lower() not in ours}
            sent.update(carrier)
            return sent if size_of(payload, sent) <= limit else headers
        except Exception:
            return headers  # the library says itself what is wrong with them

    def deliveries(self, subject: str, queue: str, action: v.Action = v.DELIVER) -> Deliveries:
        """What is the same for all messages of a subscription that come the same way."""
        found = self._deliveries.get((subject, queue, action))
        return found or self._deliveries.put((subject, queue, action), Deliveries(self, subject, queue, action))

    def forget(self, subject: str, queue: str) -> None:
        """A subscription is over: nothing more is known of what waits for it."""
        for action in (v.DELIVER, v.PROCESS):
            found = self._deliveries.get((subject, queue, action))
            if found is not None:
                found.lags.clear()


class Deliveries:
    """What is kept for a subscription, for messages that come one way."""

    def __init__(self, client: Client, subject: str, queue: str, action: v.Action) -> None:
        self.telemetry = client.telemetry
        self.source = (subject, queue)
        self.lags: Cache[tuple[str, str], Lag | None] = Cache()
        self._client = client
        self._subject = subject
        self._template = subject if "*" in subject or ">" in subject else None
        self._group = queue or None
        self._action = action
        self._tells_lag = client.telemetry.settings.lag
        self._facts: v.Facts = ()
        self._operations: Cache[str, Operation] = Cache()
        self._calls: Cache[tuple[str, str | None], Operation] = Cache()

    def operation(self, subject: str) -> Operation:
        """What is the same for all messages with a subject."""
        if self._client.facts() is not self._facts:
            self._refresh()
        operation = self._operations.get(subject)
        if operation is None:
            facts = (*self._facts, (v.NATS_SUBJECT, subject), (v.NATS_GROUP, self._group))
            destination = v.Destination(subject, template=self._template)
            operation = self.telemetry.operation(self._action, "process", destination, facts)
            self._operations.put(subject, operation)
        return operation

    def call(self, verb: str, subject: str | None) -> Operation:
        """A call that pulls messages, and the subject that they have in common."""
        if self._client.facts() is not self._facts:
            self._refresh()
        call = self._calls.get((verb, subject))
        if call is None:
            facts = (*self._facts, (v.NATS_SUBJECT, subject), (v.NATS_GROUP, self._group))
            destination = v.Destination(subject or "", template=self._template)
            call = self._calls.put((verb, subject), self.telemetry.operation(v.RECEIVE, verb, destination, facts))
        return call

    def hand_out(self, message: Any) -> Delivery | None:
        """The application has a message."""
        try:
            context = self.telemetry.active_context()
            silent = self._client.is_silent(message.subject)
            if context is None or (silent and not message.subject.startswith(GIVEN_UP)):
                return None
            headers = message.headers
            headers = fold(headers) if headers else None
            facts, waited = describe(message.data, headers), None
            if silent:
                facts += given_up(message.data)
            reply = message.reply
            if reply and reply.startswith(DELIVERED):
                told, waited = self.stored(reply)
                facts += told
                reply = ""  # an acknowledgement, and no answer
            operation = self.operation(message.subject)
            delivery = self.telemetry.deliver(operation, facts, headers, message, context, waited)
            if reply and delivery is not None:
                delivery.reply_to = reply
            if delivery is not None and self.telemetry.consume_hook is not None:
                self.telemetry.tell_consume_hook(delivery, message)
            return delivery
        except Exception as error:
            report("delivering a NATS message", error)
            return None

    def stored(self, reply: str) -> tuple[v.Facts, float | None]:
        """What JetStream tells of a message, and how long it has waited, in seconds."""
        words = split_reply(reply)
        if words is None:
            return (), None
        stamp, pending = words[5:7]
        try:
            behind = number(pending) if self._tells_lag else None
            facts = stored(words, behind, self._group)
            waited = time.time() - number(stamp) / 1e9
        except ValueError:
            return (), None
        if behind is not None:
            self._wait(words[0], words[1], behind)
        return facts, waited

    def _wait(self, stream: str, consumer: str, behind: int) -> None:
        key = (stream, consumer)
        if key not in self.lags:
            source = v.Destination(self._subject, template=self._template)
            facts = ((v.SYSTEM, "nats"), (v.NATS_STREAM, stream), (v.NATS_GROUP, self._group))
            self.lags.put(key, self.telemetry.lag(source, facts))
        lag = self.lags[key]
        if lag is not None:
            lag.value = behind

    def _refresh(self) -> None:
        self._facts = self._client.facts()
        self._operations.clear()
        self._calls.clear()
