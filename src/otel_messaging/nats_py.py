"""NATS through nats-py: where it is patched, and how its objects are read.

The library: https://nats-io.github.io/nats.py
"""

from __future__ import annotations

import inspect
import re
import sys
import time
import weakref
from asyncio import CancelledError, current_task
from asyncio import TimeoutError as AsyncioTimeoutError
from contextvars import Context as EmptyContext
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .core import vocabulary as v
from .core.batch import Batch
from .core.cache import Cache
from .core.instrumentor import MessagingInstrumentor
from .core.patching import Patch
from .core.propagation import as_text, fields
from .core.rivals import Rival
from .core.safety import report
from .core.scope import Shared, handle
from .core.settling import settles
from .core.state import find, keep
from .core.telemetry import Failure, Moment, PublishRequest

if TYPE_CHECKING:
    from asyncio import Future, Task
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context

    from .core.metrics import Lag
    from .core.scope import Held
    from .core.settling import Ends
    from .core.telemetry import Delivery, Operation, Publication, Settlement, Telemetry

_MESSAGE_ID = "nats-msg-id"
_HEADER_OVERHEAD = len("NATS/1.0\r\n\r\n")
_LINE_OVERHEAD = len(": \r\n")
_ACCEPTED_FROM_LIBRARY = ("_auto_ack_callback.<locals>.new_callback", "Endpoint._handle_request")

_INBOX = re.compile(r"\.[0-9A-Za-z]{22}(\.[0-9A-Za-z]+)?$")  # any client's, whatever its prefix is
_NUID = re.compile(r"[0-9A-Za-z]{22}$")  # a consumer's name, where the library makes it up
_NOTHING: dict[str, str] = {}
_UNANSWERED = Failure("nats.errors.ConnectionClosedError", "closed before the stream has acknowledged the message")
_Outcome = tuple[Failure | None, v.Facts]

_SERVICE_ERROR = "Nats-Service-Error"
_SERVICE_ERROR_CODE = "Nats-Service-Error-Code"

_DELIVERED = "$JS.ACK."  # what replies to messages of JetStream begin with
_SHORT, _LONG = 9, 11  # how many words such a reply has: without and with a domain and an account


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


_pulled: ContextVar[Delivery | None] = ContextVar("otel_messaging_nats_pulled", default=None)
"""The message that was pulled last here: another task may have settled it, which brings no context back."""


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

    def settlement(self, verb: str, message: Any, details: v.Attributes) -> Ends | None:
        """Begin to settle a message."""
        state = find(message._client)
        asked = state.pulled.get(id(message)) if state is not None else None
        settlement = self._settlement(verb, message, details, asked)
        return settlement if asked is None or verb == "in_progress" else _Last(settlement, asked, message)

    def _settlement(self, verb: str, message: Any, details: v.Attributes, asked: _Asked | None) -> Settlement | None:
        context = self.telemetry.context()
        if context is None or not message.reply:
            return None
        delivery = self.telemetry.current_delivery(context)
        while delivery is not None and delivery.message is not message:
            delivery = delivery.before()[1]  # one may be pulled while another is handled
        if delivery is None and asked is not None:
            delivery = asked.find(message)
        if delivery is not None:
            return self.telemetry.settle(verb, delivery.operation, delivery, (), details)
        operation = self.client(message._client).deliveries("", "").operation(message.subject)
        return self.telemetry.settle(verb, operation, None, (), details)

    def asks(self, subscription: Any) -> Moment | None:
        """A subscription is asked for one message: what it gave to the same task before is handled."""
        state, last = find(subscription), _pulled.get()
        if state is not None:
            state.asked()
        if last is not None and last.done:
            last.end()
            _pulled.set(None)
        return Moment.now() if self.telemetry.context() is not None else None

    def got(self, subscription: Any, message: Any, began: Moment) -> None:
        """A subscription has given one message."""
        context = self.telemetry.context()
        if context is not None:
            keep(subscription, self.telemetry, _Asked).hand_out(message, context, began)

    def fetches(self, pulling: Any) -> Moment | None:
        """A pull subscription is asked for messages: the one that it gave to the same task before is handled."""
        state = find(pulling._sub) if pulling._sub is not None else None
        if state is not None:
            state.fetches()
        return Moment.now() if self.telemetry.context() is not None else None

    def fetched(self, pulling: Any, messages: list[Any], began: Moment) -> list[Any]:
        """A pull subscription has given messages. Returns what the application gets instead of the list."""
        context = self.telemetry.context()
        if context is None or not messages:
            return messages
        state = keep(pulling._sub, self.telemetry, _Asked)
        state.bind(pulling, None)
        return state.list(messages, context, began)

    def failed(self, pulling: Any, error: BaseException, began: Moment) -> None:
        """Asking for messages has raised an exception."""
        context = self.telemetry.context()
        if context is None or pulling._sub is None or isinstance(error, (AsyncioTimeoutError, ValueError, TypeError)):
            return  # nothing has come in time, or nobody was asked
        state = keep(pulling._sub, self.telemetry, _Asked)
        state.bind(pulling, None)
        self.telemetry.receive(state.failing(), (), (), context, began, error)


class _Client:
    """What is kept for a connection."""

    def __init__(self, telemetry: Telemetry, client: Any) -> None:
        self.telemetry = telemetry
        self._client = client
        self.consumers: dict[str, Any] = {}
        """Configurations of JetStream consumers that are being subscribed to, by the subject that they deliver to."""
        self.unanswered: dict[Future[Any], Publication] = {}
        """Messages that no stream has acknowledged yet, by what the application waits for."""
        self.pulled: dict[int, _Asked] = {}
        """What gave the messages that were pulled and are handled now, by their ids."""
        self._prefix: Any = None
        self._silent: tuple[str, ...] = ("$",)
        self._server: Any = None
        self._number: Any = None
        self._facts: v.Facts = ()
        self._publishes: Cache[tuple[str, str], Operation] = Cache()
        self._deliveries: Cache[tuple[str, str, v.Action], _Deliveries] = Cache()

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
                facts = _acknowledged(future.result())[1] if error is None else ()
        except Exception as failure:
            report("JetStreamContext.publish_async", failure)
        finally:
            publication.end(error, facts)

    def close(self) -> None:
        """The connection is closed: no stream will answer."""
        for future in tuple(self.unanswered):
            self.answered(future, _UNANSWERED)

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

    def deliveries(self, subject: str, queue: str, action: v.Action = v.DELIVER) -> _Deliveries:
        """What is the same for all messages of a subscription that come the same way."""
        found = self._deliveries.get((subject, queue, action))
        return found or self._deliveries.put((subject, queue, action), _Deliveries(self, subject, queue, action))

    def forget(self, subject: str, queue: str) -> None:
        """A subscription is over: nothing more is known of what waits for it."""
        for action in (v.DELIVER, v.PROCESS):
            found = self._deliveries.get((subject, queue, action))
            if found is not None:
                found.lags.clear()


class _Deliveries:
    """What is kept for a subscription, for messages that come one way."""

    def __init__(self, client: _Client, subject: str, queue: str, action: v.Action) -> None:
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
            context = self.telemetry.context()
            if context is None or self._client.is_silent(message.subject):
                return None
            headers = _fold(message.headers)
            facts, waited = _known(message.data, headers), None
            reply = message.reply
            if reply and reply.startswith(_DELIVERED):
                told, waited = self.stored(reply)
                facts += told
            operation = self.operation(message.subject)
            delivery = self.telemetry.deliver(operation, facts, headers, message, context, waited)
            if delivery is not None:
                self.telemetry.tell_consume_hook(delivery, message)
            return delivery
        except Exception as error:
            report("delivering a NATS message", error)
            return None

    def stored(self, reply: str) -> tuple[v.Facts, float | None]:
        """What JetStream tells of a message, and how long it has waited, in seconds."""
        words = _words(reply)
        if words is None:
            return (), None
        stream, consumer, attempt, sequence, _number, stamp, pending = words
        try:
            behind = int(pending) if self._tells_lag else None
            facts: v.Facts = (
                (v.NATS_STREAM, stream),
                (v.NATS_SEQUENCE, int(sequence)),
                (v.ATTEMPT, int(attempt)),
                (v.LAG, behind),
                (v.NATS_GROUP, None if self._group else consumer),
            )
            waited = time.time() - int(stamp) / 1e9
        except ValueError:
            return (), None
        if behind is not None:
            self._wait(stream, consumer, behind)
        return facts, waited

    def _wait(self, stream: str, consumer: str, behind: int) -> None:
        key = (stream, consumer)
        if key not in self.lags:
            facts = (
                (v.SYSTEM, "nats"),
                (v.DESTINATION, self._subject or None),
                (v.NATS_STREAM, stream),
                (v.NATS_GROUP, self._group),
            )
            self.lags.put(key, self.telemetry.lag(facts))
        lag = self.lags[key]
        if lag is not None:
            lag.value = behind

    def _refresh(self) -> None:
        facts = self._client.facts()
        if facts is not self._facts:
            self._facts = facts
            self._operations.clear()
            self._calls.clear()


class _Got(NamedTuple):
    """A message that was pulled, and by whom."""

    delivery: Delivery
    task: Callable[[], Task[Any] | None]


class _Asked:
    """What is kept for a subscription that is asked for messages."""

    def __init__(self, telemetry: Telemetry, subscription: Any) -> None:
        self.telemetry = telemetry
        self._client = keep(subscription._conn, telemetry, _Client)
        self._source = _subscribed(subscription)
        self._bound = False
        self._got: dict[int, _Got] = {}
        self._batches: weakref.WeakKeyDictionary[Any, Held] = weakref.WeakKeyDictionary()

    def bind(self, pulling: Any, filters: str | None) -> None:
        """It is that of a pull subscription, whose own subject is made up.

        Args:
            pulling: the pull subscription.
            filters: the subjects that it was made for, if that was seen.
        """
        if not self._bound or filters:
            consumer = pulling._consumer or ""
            self._bound = True
            self._source = (filters or "", "" if _NUID.match(consumer) else consumer)

    def call(self, verb: str, subject: str | None) -> Operation:
        """A call that pulls messages, and the subject that they have in common."""
        return self._deliveries(v.PROCESS).call(verb, subject)

    def failing(self) -> Operation:
        """A call that has failed to get messages, of the subject that all of them have, if there is just one."""
        subject = self._source[0]
        return self.call("fetch", subject if subject and not re.search("[*>,]", subject) else None)

    def hand_out(self, message: Any, context: Context, began: Moment) -> None:
        """The application has asked for one message, and got it."""
        subject = message.subject
        semconv = self.telemetry.vocabulary.semconv
        if semconv and not self._client.is_silent(subject):
            headers = _fold(message.headers)
            known = _known(message.data, headers)
            self.telemetry.receive(self.call("next_msg", subject), known, [headers], context, began)
        delivery = self._deliveries(v.PROCESS if semconv else v.DELIVER).hand_out(message)
        if delivery is not None and not delivery.done:
            self._got[id(message)] = _Got(delivery, weakref.ref(current_task()))
            self._client.pulled[id(message)] = self
            _pulled.set(delivery)

    def list(self, messages: list[Any], context: Context, began: Moment) -> list[Any]:
        """The application has asked for several messages, and got a list, which is replaced."""
        deliveries = self._deliveries(v.PROCESS)
        seen = [message for message in messages if not self._is_hidden(deliveries, message.subject)]
        if not seen:
            return messages
        subjects = {message.subject for message in seen}
        words = _words(seen[0].reply) if seen[0].reply else None
        facts = (
            (v.BATCH_COUNT, len(seen)),
            (v.BATCH_SIZE, sum(len(message.data) for message in seen)),
            (v.NATS_STREAM, words[0] if words is not None else None),
            (v.NATS_GROUP, words[1] if words is not None else None),
        )
        headers = [_fold(message.headers) for message in seen]
        call = deliveries.call("fetch", subjects.pop() if len(subjects) == 1 else None)
        self.telemetry.receive(call, facts, headers, context, began)
        batch = Batch(messages, deliveries.hand_out)
        task = current_task()
        if task is not None:
            self._batches[task] = batch.held
        return batch

    def asked(self) -> None:
        """It is asked for the next message: what it gave to the same task, or to tasks now over, is handled."""
        if self._got:
            current = current_task()
            for key, got in tuple(self._got.items()):
                task = got.task()
                if task is None or task is current or task.done():
                    self._end(key)

    def fetches(self) -> None:
        """It is asked for the next list: what the same task handles is handled."""
        task = current_task()
        held = self._batches.pop(task, None) if task is not None else None
        if held is not None:
            held.end()

    def find(self, message: Any) -> Delivery | None:
        """A message, while it is handled."""
        got = self._got.get(id(message))
        return None if got is None else got.delivery

    def settled(self, message: Any) -> None:
        """The broker was told what became of a message."""
        self._end(id(message))

    def close(self) -> None:
        """The subscription is closed, perhaps in another task."""
        for key in tuple(self._got):
            self._end(key)
        for held in tuple(self._batches.values()):
            held.close()
        self._batches.clear()
        self._client.forget(*self._source)

    def _deliveries(self, action: v.Action) -> _Deliveries:
        return self._client.deliveries(*self._source, action)

    def _is_hidden(self, deliveries: _Deliveries, subject: str) -> bool:
        return self._client.is_silent(subject) or deliveries.operation(subject).excluded

    def _end(self, key: int) -> None:
        self._client.pulled.pop(key, None)
        got = self._got.pop(key, None)
        if got is not None:
            got.delivery.end()


class _Last:
    """A settlement after which a pulled message is handled."""

    __slots__ = ("_asked", "_message", "_settlement")

    def __init__(self, settlement: Settlement | None, asked: _Asked, message: Any) -> None:
        self._settlement = settlement
        self._asked = asked
        self._message = message

    def end(self, error: BaseException | None = None) -> None:
        """It was told, or telling it failed."""
        if self._settlement is not None:
            self._settlement.end(error)
        try:
            self._asked.settled(self._message)
        except Exception as failure:
            report("settling a message that was pulled", failure)


class _Iterated:
    """What is kept for the iterator of a subscription."""

    def __init__(self, telemetry: Telemetry, iterator: Any) -> None:
        self.telemetry = telemetry
        self.shared = Shared()
        subscription = iterator._sub
        self.client = keep(subscription._conn, telemetry, _Client)
        self.deliveries = self.client.deliveries(*_subscribed(subscription))

    def close(self) -> None:
        """The subscription is closed, perhaps in another task."""
        self.shared.close()
        self.client.forget(*self.deliveries.source)


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


def _subscribed(subscription: Any) -> tuple[str, str]:
    """The source of a subscription without a callback."""
    jetstream = subscription._jsi
    consumer = jetstream._ccreq if jetstream is not None else None
    return _source(subscription._subject, subscription._queue, consumer)


def _words(reply: str) -> Sequence[str] | None:
    """The words of a reply subject that tell of a message of JetStream.

    ``$JS.ACK[.<domain>.<account>].<stream>.<consumer>.<deliveries>.<sequence>.<number>.<time>.<pending>[.<token>]``.
    `Msg.metadata` reads them too, but keeps what it has read in the message, which then equals no other.
    """
    words = reply.split(".", _LONG + 1)
    if len(words) == _SHORT:
        return words[2:]
    return words[4:_LONG] if len(words) >= _LONG else None


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
        return await _tell(publication, call, _replied)

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


def _replied(reply: Any) -> _Outcome:
    """A service tells in headers that it has failed; the library returns its reply as any other."""
    headers = reply.headers
    if not headers or _SERVICE_ERROR not in headers:
        return None, ()
    code, description = as_text(headers.get(_SERVICE_ERROR_CODE)), as_text(headers[_SERVICE_ERROR])
    return Failure(code or _SERVICE_ERROR, description or ""), ()


def _acknowledged(acknowledgement: Any) -> _Outcome:
    return None, (
        (v.NATS_STREAM, acknowledgement.stream),
        (v.NATS_SEQUENCE, acknowledgement.seq),
        (v.NATS_DUPLICATE, acknowledgement.duplicate or None),
    )


async def _tell(publication: Publication | None, call: Callable[[], Any], read: Callable[[Any], _Outcome]) -> Any:
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
    outcome: _Outcome = (None, ())
    try:
        outcome = read(answer)
    except Exception as error:
        report("reading an answer", error)
    finally:
        publication.end(*outcome)
    return answer


def _publish_async(nats: _Nats, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamContext.publish_async` returns a future of the acknowledgement."""

    async def wrapper(
        self: Any,
        subject: Any,
        payload: Any = b"",
        wait_stall: Any = None,
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
            report("JetStreamContext.publish_async", error)
        if publication is None:
            return await publish(self, subject, payload, wait_stall, stream, headers, *args, **kwargs)
        told = _Told(publication.carrier)
        try:
            future = await publish(self, subject, payload, wait_stall, stream, headers, *args, **kwargs)
        except BaseException as error:
            publication.end(error)
            raise
        finally:
            told.end()
        try:
            nats.client(self._nc).awaits(future, publication)
        except Exception as error:
            publication.end()
            report("JetStreamContext.publish_async", error)
        return future

    return wrapper


def _async_reply(_nats: _Nats, handle_reply: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamContext._handle_async_reply` raises what a stream refuses a message with; the future stays as it is."""

    async def wrapper(self: Any, msg: Any) -> Any:
        try:
            return await handle_reply(self, msg)
        except Exception as error:
            state = find(self._nc)
            future = self._publish_async_futures.get(msg.subject.rpartition(".")[2])
            if state is not None and future is not None:
                state.answered(future, error)
            raise

    return wrapper


def _close(_nats: _Nats, close: Callable[..., Any]) -> Callable[..., Any]:
    """`Client._close` is where a connection ends, in whatever way."""

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = find(self)
        if state is not None:
            state.close()
        return await close(self, *args, **kwargs)

    return wrapper


def _respond_error(nats: _Nats, respond: Callable[..., Any]) -> Callable[..., Any]:
    """`Request.respond_error` answers that a service has failed, also by an exception that its endpoint has raised."""

    async def wrapper(self: Any, code: Any, description: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            context = nats.telemetry.context()
            delivery = nats.telemetry.current_delivery(context) if context is not None else None
            if delivery is not None and delivery.message is self._msg:
                delivery.fail(sys.exc_info()[1] or Failure(str(code), str(description)))
        except Exception as error:
            report("Request.respond_error", error)
        return await respond(self, code, description, *args, **kwargs)

    return wrapper


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


def _fetch(nats: _Nats, fetch: Callable[..., Any]) -> Callable[..., Any]:
    """`PullSubscription.fetch` gives a list of messages. What it does for that inside is the library's own."""

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not nats.telemetry.enabled or _inherited() is not None:
            return await fetch(self, *args, **kwargs)
        began = None
        try:
            began = nats.fetches(self)
        except Exception as error:
            report("PullSubscription.fetch", error)
        told = _Told(_NOTHING)
        try:
            messages = await fetch(self, *args, **kwargs)
        except Exception as error:
            if began is not None:
                _report_failure(nats, self, error, began)
            raise
        finally:
            told.end()
        try:
            return messages if began is None else nats.fetched(self, messages, began)
        except Exception as error:
            report("PullSubscription.fetch", error)
            return messages

    return wrapper


def _report_failure(nats: _Nats, pulling: Any, error: BaseException, began: Moment) -> None:
    try:
        nats.failed(pulling, error, began)
    except Exception as failure:
        report("PullSubscription.fetch", failure)


def _pull_subscribe(nats: _Nats, subscribe: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamContext.pull_subscribe` knows the subjects; what it returns does not."""

    async def wrapper(self: Any, subject: Any, *args: Any, **kwargs: Any) -> Any:
        pulling = await subscribe(self, subject, *args, **kwargs)
        try:
            if nats.telemetry.enabled:
                state = keep(pulling._sub, nats.telemetry, _Asked)
                state.bind(pulling, _filters(subject, *args, **kwargs))
        except Exception as error:
            report("JetStreamContext.pull_subscribe", error)
        return pulling

    return wrapper


def _filters(subject: str, _durable: Any = None, _stream: Any = None, config: Any = None, *_: Any, **__: Any) -> str:
    return ",".join(getattr(config, "filter_subjects", None) or (subject,))


def _next_msg(nats: _Nats, advance: Callable[..., Any]) -> Callable[..., Any]:
    """`Subscription.next_msg` gives one message, also that of a push consumer. `fetch` calls it too."""

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not nats.telemetry.enabled or _inherited() is not None:
            return await advance(self, *args, **kwargs)
        began = None
        try:
            began = nats.asks(self)
        except Exception as error:
            report("Subscription.next_msg", error)
        message = await advance(self, *args, **kwargs)
        try:
            if began is not None:
                nats.got(self, message, began)
        except Exception as error:
            report("Subscription.next_msg", error)
        return message

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
        for state in (find(self), find(self._sub)):
            if state is not None:
                state.close()
        return cancel(self)

    return wrapper


def _delay(delay: float | None = None) -> v.Attributes:
    return {v.SETTLE_DELAY: float(delay)} if delay else {}


_CLIENT = ("nats.aio.client", "Client")
_JETSTREAM = ("nats.js.client", "JetStreamContext")
_PULL = ("nats.js.client", "JetStreamContext.PullSubscription")
_MANAGER = ("nats.js.manager", "JetStreamManager")
_REQUEST = ("nats.micro.request", "Request")
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
        Patch(*_CLIENT, "_close", _close),
        Patch(*_JETSTREAM, "publish", _jetstream_publish),
        Patch(*_JETSTREAM, "publish_async", _publish_async, since="2.8"),
        Patch(*_JETSTREAM, "_handle_async_reply", _async_reply, since="2.8"),
        Patch(*_JETSTREAM, "subscribe_bind", _subscribe_bind),
        Patch(*_MANAGER, "_api_request", _silently),
        Patch(*_MANAGER, "get_msg", _silently),
        Patch(*_JETSTREAM, "pull_subscribe", _pull_subscribe),
        Patch(*_PULL, "fetch", _fetch),
        Patch("nats.aio.subscription", "Subscription", "next_msg", _next_msg),
        Patch(*_ITERATOR, "__anext__", _anext),
        Patch(*_ITERATOR, "__aiter__", _aiter),
        Patch(*_ITERATOR, "_cancel", _cancel),
        Patch(*_MSG, "respond", _silently),
        Patch(*_REQUEST, "respond", _silently, since="2.9"),
        Patch(*_REQUEST, "respond_error", _respond_error, since="2.9"),
        Patch(*_MSG, "ack", settles("ack", dict)),
        Patch(*_MSG, "ack_sync", settles("ack", lambda timeout=None: {})),  # noqa: ARG005
        Patch(*_MSG, "nak", settles("nak", _delay)),
        Patch(*_MSG, "in_progress", settles("in_progress", dict)),
        Patch(*_MSG, "term", settles("term", dict)),
    )
    rivals = (Rival("otel_instrumentation_nats", "NatsInstrumentor", "otel-instrumentation-nats", "nats"),)
