"""NATS through nats-py: where it is patched, and how its objects are read.

The library: https://nats-io.github.io/nats.py
"""

from __future__ import annotations

import inspect
import re
from asyncio import current_task
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from .core import vocabulary as v
from .core.cache import Cache
from .core.instrumentor import MessagingInstrumentor
from .core.patching import Patch
from .core.propagation import as_text, fields
from .core.rivals import Rival
from .core.safety import report
from .core.scope import Shared, handle
from .core.settling import settles
from .core.state import find, keep
from .core.telemetry import PublishRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context

    from .core.telemetry import Delivery, Operation, Publication, Settlement, Telemetry

_MESSAGE_ID = "nats-msg-id"
_HEADER_OVERHEAD = len("NATS/1.0\r\n\r\n")
_LINE_OVERHEAD = len(": \r\n")
_ACCEPTED_FROM_LIBRARY = ("_auto_ack_callback.<locals>.new_callback", "Endpoint._handle_request")

_INBOX = re.compile(r"\.[0-9A-Za-z]{22}(\.[0-9A-Za-z]+)?$")  # any client's, whatever its prefix is
_NOTHING: dict[str, str] = {}


class _Told:
    """A call that publishes inside what is told of already, or is not told of at all.

    Attributes:
        carrier: the headers to add to what it publishes.
    """

    __slots__ = ("_task", "carrier")

    def __init__(self, carrier: Mapping[str, str]) -> None:
        self.carrier = carrier
        self._task: Any = current_task()
        _told.set(self)

    def end(self) -> None:
        """The call has returned."""
        self._task = None
        _told.set(None)  # by value: a coroutine may be closed in another context than it ran in

    def is_here(self) -> bool:
        """Whether it is this task's call. Tasks that are made meanwhile inherit the variable, and may keep it."""
        return self._task is not None and self._task is current_task()


_told: ContextVar[_Told | None] = ContextVar("otel_messaging_nats_told", default=None)


def _inherited() -> Mapping[str, str] | None:
    """The headers to add to what is published now, if a call around it is told of, or is not to be."""
    told = _told.get()
    return told.carrier if told is not None and told.is_here() else None


class _Nats:
    """Reads nats-py's objects for the telemetry of one instrumentor."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry

    def client(self, client: Any) -> _Client:
        """What is kept for a connection."""
        return keep(client, self.telemetry, _Client)

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
        context = self.telemetry.context()
        if context is None or not isinstance(subject, str):
            return None
        state = self.client(client)
        if state.is_silent(subject) or _is_reply(subject, self.telemetry.current_delivery(context)):
            return None
        publication = state.publish(verb, subject, payload, headers, context)
        if self.telemetry.publish_hook is not None:
            self.telemetry.tell_publish_hook(publication, PublishRequest(owner, subject, arguments))
        return publication

    def settlement(self, verb: str, message: Any, details: v.Attributes) -> Settlement | None:
        """Begin to settle a message."""
        context = self.telemetry.context()
        if context is None or not message.reply:
            return None
        delivery = self.telemetry.current_delivery(context)
        if delivery is not None and delivery.message is message:
            return self.telemetry.settle(verb, delivery.operation, delivery, (), details)
        operation = self.client(message._client).deliveries("", "").operation(message.subject)
        return self.telemetry.settle(verb, operation, None, (), details)


class _Client:
    """What is kept for a connection."""

    def __init__(self, telemetry: Telemetry, client: Any) -> None:
        self.telemetry = telemetry
        self._client = client
        self.consumers: dict[str, Any] = {}
        """Configurations of JetStream consumers that are being subscribed to, by the subject that they deliver to."""
        self._prefix: Any = None
        self._silent: tuple[str, ...] = ("$",)
        self._server: Any = None
        self._number: Any = None
        self._facts: v.Facts = ()
        self._publishes: Cache[tuple[str, str], Operation] = Cache()
        self._deliveries: Cache[tuple[str, str], _Deliveries] = Cache()

    def is_silent(self, subject: str) -> bool:
        """Whether a subject is the system's own, or the inbox of a reply."""
        prefix = self._client._inbox_prefix
        if prefix is not self._prefix:  # connecting sets it
            self._prefix, self._silent = prefix, ("$", bytes(prefix).decode() + ".")
        return subject.startswith(self._silent)

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
                (v.SERVER_PORT, uri.port if uri is not None else None),
                (v.CLIENT_ID, None if number is None else str(number)),
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
        folded = _fold(headers)
        return self.telemetry.publish(operation, _known(payload, folded), folded, context)

    def add(self, headers: Any, carrier: Mapping[str, str], payload: Any) -> Any:
        """The headers with a context in them, in a new dictionary; as they are where that would do harm.

        A server without headers closes the connection on any, and so does every server on a message that crosses its
        limit with its headers, which the client does not check.
        """
        if not self._client._server_info.get("headers"):
            return headers
        ours = fields()
        try:
            sent = {name: value for name, value in headers.items() if name.lower() not in ours} if headers else {}
            sent.update(carrier)
            size = len(payload) + _HEADER_OVERHEAD
            size += sum(len(name) + len(str(value).encode()) + _LINE_OVERHEAD for name, value in sent.items())
        except (AttributeError, TypeError, ValueError):
            return headers  # the library says itself what is wrong with them
        return sent if size <= self._client._max_payload else headers

    def deliveries(self, subject: str, queue: str) -> _Deliveries:
        """What is the same for all messages of a subscription."""
        found = self._deliveries.get((subject, queue))
        return found or self._deliveries.put((subject, queue), _Deliveries(self, subject, queue))


class _Deliveries:
    """What is kept for a subscription."""

    def __init__(self, client: _Client, subject: str, queue: str) -> None:
        self.telemetry = client.telemetry
        self._client = client
        self._template = subject if "*" in subject or ">" in subject else None
        self._group = queue or None
        self._facts: v.Facts = ()
        self._operations: Cache[str, Operation] = Cache()

    def operation(self, subject: str) -> Operation:
        """What is the same for all messages with a subject."""
        facts = self._client.facts()
        if facts is not self._facts:
            self._facts = facts
            self._operations.clear()
        operation = self._operations.get(subject)
        if operation is None:
            facts = (*facts, (v.NATS_SUBJECT, subject), (v.NATS_GROUP, self._group))
            destination = v.Destination(subject, template=self._template)
            operation = self.telemetry.operation(v.DELIVER, "process", destination, facts)
            self._operations.put(subject, operation)
        return operation

    def hand_out(self, message: Any) -> Delivery | None:
        """The application has a message."""
        try:
            context = self.telemetry.context()
            if context is None or self._client.is_silent(message.subject):
                return None
            headers = _fold(message.headers)
            facts = _known(message.data, headers)
            delivery = self.telemetry.deliver(self.operation(message.subject), facts, headers, message, context)
            if delivery is not None:
                self.telemetry.tell_consume_hook(delivery, message)
            return delivery
        except Exception as error:
            report("delivering a NATS message", error)
            return None


class _Iterated:
    """What is kept for the iterator of a subscription."""

    def __init__(self, telemetry: Telemetry, iterator: Any) -> None:
        self.telemetry = telemetry
        self.shared = Shared()
        subscription = iterator._sub
        client = keep(subscription._conn, telemetry, _Client)
        jetstream = subscription._jsi
        consumer = jetstream._ccreq if jetstream is not None else None
        self.deliveries = client.deliveries(*_source(subscription._subject, subscription._queue, consumer))


def _known(payload: Any, headers: dict[str, Any] | None) -> v.Facts:
    size = len(payload) if hasattr(payload, "__len__") else None
    return ((v.BODY_SIZE, size), (v.MESSAGE_ID, as_text(headers.get(_MESSAGE_ID)) if headers else None))


def _fold(headers: Any) -> dict[str, Any] | None:
    """Headers with their names in lower case; None where there are none, or they are not what the library takes."""
    if not headers:
        return None
    try:
        return {name.lower(): value for name, value in headers.items()}
    except (AttributeError, TypeError, ValueError):
        return None


def _is_reply(subject: str, delivery: Delivery | None) -> bool:
    """Whether a subject is the inbox that the message being handled asks to be answered at."""
    if delivery is None or getattr(delivery.message, "reply", None) != subject:  # perhaps another library's message
        return False
    return _INBOX.search(subject) is not None


def _source(subject: str, queue: Any, consumer: Any) -> tuple[str, str]:
    """What a subscription gets its messages from, perhaps with wildcards, and the group that shares them.

    A JetStream consumer delivers to a subject made up for it. Without a filter it gets all that its stream has.
    """
    if consumer is None:
        return subject, queue or ""
    filters = consumer.filter_subject or ",".join(getattr(consumer, "filter_subjects", None) or (">",))
    return filters, consumer.deliver_group or consumer.durable_name or ""


def _is_application(callback: Any) -> bool:
    """Whether a callback is the application's, and the library will take it: if not, its own error is raised."""
    function = callback
    if not inspect.iscoroutinefunction(callback):
        function = getattr(callback, "func", None)
        if not inspect.iscoroutinefunction(function):
            return False
    own = (getattr(function, "__module__", None) or "").startswith("nats.")
    return not own or getattr(function, "__qualname__", "").endswith(_ACCEPTED_FROM_LIBRARY)


def _publish(nats: _Nats, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`Client.publish` is where every message leaves, the library's own too."""

    async def wrapper(
        self: Any, subject: Any, payload: Any = b"", reply: Any = "", headers: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        publication, sent = None, headers
        try:
            carrier = _inherited()
            if carrier is None:
                arguments = {"subject": subject, "payload": payload, "reply": reply, "headers": headers}
                publication = nats.begin("publish", self, self, subject, payload, headers, arguments)
                carrier = publication.carrier if publication is not None else _NOTHING
            if carrier:
                sent = nats.client(self).add(headers, carrier, payload)
        except Exception as error:
            report("Client.publish", error)
        try:
            result = await publish(self, subject, payload, reply, sent, *args, **kwargs)
        except BaseException as error:
            if publication is not None:
                publication.end(error)
            raise
        if publication is not None:
            publication.end()
        return result

    return wrapper


def _request(nats: _Nats, request: Callable[..., Any]) -> Callable[..., Any]:
    """`Client.request` publishes and waits for the reply: one operation, which the reply ends."""

    async def wrapper(
        self: Any,
        subject: Any,
        payload: Any = b"",
        timeout: Any = 0.5,
        old_style: Any = False,
        headers: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        publication = None
        try:
            if _inherited() is None:
                arguments = {"subject": subject, "payload": payload, "headers": headers, "timeout": timeout}
                publication = nats.begin("request", self, self, subject, payload, headers, arguments)
        except Exception as error:
            report("Client.request", error)
        call = partial(request, self, subject, payload, timeout, old_style, headers, *args, **kwargs)
        return await _tell(publication, call, None)

    return wrapper


def _jetstream_publish(nats: _Nats, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamContext.publish` is a request that the stream answers with an acknowledgement."""

    async def wrapper(
        self: Any,
        subject: Any,
        payload: Any = b"",
        timeout: Any = None,
        stream: Any = None,
        headers: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        publication = None
        try:
            if _inherited() is None:
                arguments = {"subject": subject, "payload": payload, "stream": stream, "headers": headers, **kwargs}
                publication = nats.begin("publish", self, self._nc, subject, payload, headers, arguments)
        except Exception as error:
            report("JetStreamContext.publish", error)
        call = partial(publish, self, subject, payload, timeout, stream, headers, *args, **kwargs)
        return await _tell(publication, call, _acknowledged)

    return wrapper


def _acknowledged(acknowledgement: Any) -> v.Facts:
    return ((v.NATS_STREAM, acknowledgement.stream), (v.NATS_SEQUENCE, acknowledgement.seq))


async def _tell(publication: Publication | None, call: Callable[[], Any], read: Callable[[Any], v.Facts] | None) -> Any:
    """Make a call that publishes inside, and tell of it once. The headers are added inside, where they are complete."""
    if publication is None:
        return await call()
    told = _Told(publication.carrier)
    try:
        answer = await call()
    except BaseException as error:
        publication.end(error)
        raise
    finally:
        told.end()
    facts: v.Facts = ()
    try:
        facts = read(answer) if read is not None else ()
    except Exception as error:
        report("reading an answer", error)
    finally:
        publication.end(facts=facts)
    return answer


def _silently(nats: _Nats, method: Callable[..., Any]) -> Callable[..., Any]:
    """What is published inside is no message of the application's.

    `Msg.respond` publishes a reply, which belongs to the request. The others ask JetStream for something, under a
    prefix that the application may have chosen.
    """

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not nats.telemetry.enabled or _inherited() is not None:
            return await method(self, *args, **kwargs)
        told = _Told(_NOTHING)
        try:
            return await method(self, *args, **kwargs)
        finally:
            told.end()

    return wrapper


def _subscribe(nats: _Nats, subscribe: Callable[..., Any]) -> Callable[..., Any]:
    """`Client.subscribe` takes the callback that messages are handled by, JetStream's push consumers' too."""

    async def wrapper(self: Any, subject: Any, queue: Any = "", cb: Any = None, *args: Any, **kwargs: Any) -> Any:
        callback = cb
        try:
            if cb is not None and nats.telemetry.enabled and isinstance(subject, str) and _is_application(cb):
                client = nats.client(self)
                source = _source(subject, queue, client.consumers.get(subject))
                callback = partial(handle, client.deliveries(*source).hand_out, cb)
        except Exception as error:
            report("Client.subscribe", error)
        return await subscribe(self, subject, queue, callback, *args, **kwargs)

    return wrapper


def _subscribe_bind(nats: _Nats, bind: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamContext.subscribe_bind` knows the consumer; `Client.subscribe` inside sees only a made-up subject."""

    async def wrapper(self: Any, stream: Any, config: Any, consumer: Any, *args: Any, **kwargs: Any) -> Any:
        consumers: dict[Any, Any] = {}
        subject = None
        try:
            if nats.telemetry.enabled:
                consumers, subject = nats.client(self._nc).consumers, config.deliver_subject
                consumers[subject] = config
        except Exception as error:
            report("JetStreamContext.subscribe_bind", error)
        try:
            return await bind(self, stream, config, consumer, *args, **kwargs)
        finally:
            consumers.pop(subject, None)

    return wrapper


def _anext(nats: _Nats, advance: Callable[..., Any]) -> Callable[..., Any]:
    """`async for` over `Subscription.messages`: a message is handled until the next is asked for."""

    async def wrapper(self: Any) -> Any:
        state = find(self)
        held = state.shared.asked() if state is not None else None
        message = await advance(self)
        try:
            if nats.telemetry.enabled:
                state = keep(self, nats.telemetry, _Iterated)
                (held or state.shared.asked()).hold(state.deliveries.hand_out(message))
        except Exception as error:
            report("Subscription.messages", error)
        return message

    return wrapper


def _aiter(nats: _Nats, iterate: Callable[..., Any]) -> Callable[..., Any]:
    """`async for` gets an iterator of its own, which it lets go of when the loop is left."""

    def wrapper(self: Any) -> Any:
        iterator = iterate(self)
        try:
            if nats.telemetry.enabled and iterator is self:
                return keep(self, nats.telemetry, _Iterated).shared.loop(self)
        except Exception as error:
            report("Subscription.messages", error)
        return iterator

    return wrapper


def _cancel(_nats: _Nats, cancel: Callable[..., Any]) -> Callable[..., Any]:
    """The iterator of a subscription is cancelled when that is closed, drained or unsubscribed."""

    def wrapper(self: Any) -> Any:
        state = find(self)
        if state is not None:
            state.shared.close()
        return cancel(self)

    return wrapper


def _delay(delay: float | None = None) -> v.Attributes:
    return {v.SETTLE_DELAY: float(delay)} if delay else {}


_CLIENT = ("nats.aio.client", "Client")
_JETSTREAM = ("nats.js.client", "JetStreamContext")
_PULL = ("nats.js.client", "JetStreamContext.PullSubscription")
_MANAGER = ("nats.js.manager", "JetStreamManager")
_MSG = ("nats.aio.msg", "Msg")
_ITERATOR = ("nats.aio.subscription", "_SubscriptionMessageIterator")


class NatsPyInstrumentor(MessagingInstrumentor):
    """Instruments `nats-py <https://nats-io.github.io/nats.py>`_: core NATS and JetStream."""

    library = "nats_py"
    entry_point = "messaging-nats-py"
    requirements = ("nats-py >= 2.6, < 3",)
    adapter = _Nats
    patches = (
        Patch(*_CLIENT, "publish", _publish),
        Patch(*_CLIENT, "request", _request),
        Patch(*_CLIENT, "subscribe", _subscribe),
        Patch(*_JETSTREAM, "publish", _jetstream_publish),
        Patch(*_JETSTREAM, "subscribe_bind", _subscribe_bind),
        Patch(*_MANAGER, "_api_request", _silently),
        Patch(*_MANAGER, "get_msg", _silently),
        Patch(*_PULL, "_fetch_one", _silently),
        Patch(*_PULL, "_fetch_n", _silently),
        Patch(*_ITERATOR, "__anext__", _anext),
        Patch(*_ITERATOR, "__aiter__", _aiter),
        Patch(*_ITERATOR, "_cancel", _cancel),
        Patch(*_MSG, "respond", _silently),
        Patch(*_MSG, "ack", settles("ack", dict)),
        Patch(*_MSG, "ack_sync", settles("ack", lambda timeout=None: {})),  # noqa: ARG005
        Patch(*_MSG, "nak", settles("nak", _delay)),
        Patch(*_MSG, "in_progress", settles("in_progress", dict)),
        Patch(*_MSG, "term", settles("term", dict)),
    )
    rivals = (Rival("otel_instrumentation_nats", "NatsInstrumentor", "otel-instrumentation-nats", "nats"),)
