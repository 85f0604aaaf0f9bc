"""RabbitMQ through aio-pika: where it is patched, and how its objects are read.

The library: https://docs.aio-pika.com
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
import weakref
from contextvars import Context as EmptyContext
from contextvars import ContextVar
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import wrapt

from .core import vocabulary as v
from .core.cache import Cache
from .core.instrumentor import MessagingInstrumentor
from .core.patching import Patch
from .core.propagation import as_text, fields
from .core.rivals import Rival
from .core.safety import report
from .core.scope import AsyncLoop, Shared, handle
from .core.settling import settles
from .core.state import find, keep
from .core.telemetry import Failure, Moment, PublishRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context

    from .core.scope import Held
    from .core.settling import Ends
    from .core.telemetry import Delivery, Operation, Publication, Pull, Settlement, Telemetry

_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
# Queues that the broker names, that stand for direct replies, and that a robust queue names.
_TEMPORARY = re.compile(r"amq\.gen-|amq\.rabbitmq\.reply-to|amq_(0x)?[0-9a-f]{24,32}$")
_UNROUTABLE = "returned by the broker: {text}"
# Headers in which the broker counts: deliveries from a quorum queue, and the times a message was dead-lettered.
_COUNTS = frozenset({"x-delivery-count", "x-death"})

_Identity = tuple[Any, Any]

_publishing: ContextVar[Publication | None] = ContextVar("otel_messaging_aio_pika_publishing", default=None)
"""The message that `Exchange.publish` is sending, for `Channel.basic_publish` below it."""

_gotten: ContextVar[Delivery | None] = ContextVar("otel_messaging_aio_pika_gotten", default=None)
"""The message that was pulled last here: another task may have settled it, which brings no context back."""


class _Call:
    """A call of `RPC` on its way: the message that it publishes lasts until the reply."""

    __slots__ = ("publication",)

    def __init__(self) -> None:
        self.publication: Publication | None = None

    def concerns(self, message: Any, _routing_key: str) -> bool:
        """Whether a message that is published is the call."""
        return self.publication is None and message.type == "call" and bool(message.reply_to)


class _Reply:
    """A call of `RPC` that is being answered: the reply is no message of its own."""

    __slots__ = ("_pika", "call")

    def __init__(self, pika: _AioPika, call: Any) -> None:
        self._pika = pika
        self.call = call

    def concerns(self, message: Any, routing_key: str) -> bool:
        """Whether a message that is published is the reply."""
        call = self.call
        if message.type not in ("result", "error") or routing_key != call.reply_to:
            return False
        return bool(message.correlation_id == call.correlation_id)

    def fail(self, error: BaseException | Failure, unless_failed: bool = False) -> None:
        """Answering has failed, and the caller will be told."""
        context = self._pika.telemetry.context()
        delivery = self._pika.delivery(self.call, context) if context is not None else None
        if delivery is not None and not (unless_failed and delivery.failed):
            delivery.fail(error)


_pattern: ContextVar[_Call | _Reply | None] = ContextVar("otel_messaging_aio_pika_pattern", default=None)
"""The pattern of the library that is at work here, for `Exchange.publish` below it."""


class _AioPika:
    """Reads aio-pika's objects for the telemetry of one instrumentor."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.pulled: dict[_Identity, _Pulled] = {}
        self._settled: Cache[tuple[str, str], Operation] = Cache()
        self._sources: Cache[tuple[Any, ...], _Source] = Cache()

    def source(self, queue: str, url: Any) -> _Source:
        """What is kept for the consumers of a queue: some programs make a new one for each message."""
        key = (queue, url.scheme, url.host, url.port)
        source = self._sources.get(key)
        return source or self._sources.put(key, _Source(self.telemetry, queue, url))

    def exchange(self, exchange: Any) -> _Exchange:
        """What is kept for an exchange."""
        return keep(exchange, self.telemetry, _Exchange)

    def pattern(
        self, pattern: _Call | _Reply, exchange: Any, message: Any, routing_key: str, context: Context
    ) -> Publication | None:
        """A pattern of the library publishes a message: a call, which it ends itself, or a reply."""
        if isinstance(pattern, _Reply):
            if message.type == "error":
                pattern.fail(Failure("error", "answered with an error"), unless_failed=True)
            return None
        pattern.publication = self.exchange(exchange).call(message, routing_key, context)
        return pattern.publication

    def asks(self, queue: Any) -> Moment | None:
        """A queue is asked for one message: what it gave to the same task before is handled."""
        state, last = find(queue.channel), _gotten.get()
        if state is not None:
            state.asked(queue.name)
        if last is not None and last.done:
            last.end()
            _gotten.set(None)
        return Moment.now() if self.telemetry.context() is not None else None

    def got(self, queue: Any, message: Any, began: Moment) -> None:
        """A queue has given one message."""
        context = self.telemetry.context()
        if context is None:
            return
        source = self.source(queue.name, message._IncomingMessage__channel.connection.url)
        delivery = source.pull(message, context, began)
        if delivery is None:
            return
        if not delivery.done:
            _gotten.set(delivery)
            keep(queue.channel, self.telemetry, partial(_Pulled, self)).hold(queue.name, delivery, _identity(message))
        self.telemetry.tell_consume_hook(delivery, message)

    def got_none(self, queue: Any, error: BaseException, began: Moment) -> None:
        """Asking a queue for one message has failed."""
        context, url = self.telemetry.context(), _url(queue)
        if context is not None and url is not None and not isinstance(error, asyncio.QueueEmpty):
            operation = self.source(queue.name, url).asking()
            self.telemetry.receive(operation, (), (), context, began, error)

    def settlement(self, verb: str, message: Any, details: v.Attributes) -> Ends | None:
        """Begin to settle a message."""
        pulled = self.pulled.get(_identity(message)) if self.pulled else None
        settlement = self._settlement(verb, message, details)
        if pulled is None or message.processed:
            return settlement
        return _Last(settlement, pulled, _identity(message), v.SETTLE_MULTIPLE in details)

    def _settlement(self, verb: str, message: Any, details: v.Attributes) -> Settlement | None:
        context = self.telemetry.context()
        if context is None or message.processed:
            return None  # a message is settled once: the library says so itself
        facts = ((v.RABBITMQ_DELIVERY_TAG, message.delivery_tag),)
        delivery = self.delivery(message, context)
        operation = self._settled_operation(message) if delivery is None else delivery.operation
        return self.telemetry.settle(verb, operation, delivery, facts, details)

    def delivery(self, message: Any, context: Context) -> Delivery | None:
        """The span of a message, while it is handled here."""
        identity = _identity(message)
        delivery = self.telemetry.current_delivery(context)
        while delivery is not None and delivery.message != identity:
            delivery = delivery.before()[1]  # one may be pulled while another is handled
        if delivery is None and self.pulled:
            pulled = self.pulled.get(identity)
            return pulled.find(identity) if pulled is not None else None
        return delivery

    def _settled_operation(self, message: Any) -> Operation:
        key = (message.exchange or "", message.routing_key or "")
        operation = self._settled.get(key)
        if operation is None:
            facts = ((v.SYSTEM, "rabbitmq"), *_server(message._IncomingMessage__channel.connection.url))
            destination = _source(*key, "", self.telemetry.vocabulary.semconv)
            operation = self.telemetry.operation(v.DELIVER, "process", destination, facts)
            self._settled.put(key, operation)
        return operation


class _Exchange:
    """What is kept for an exchange."""

    def __init__(self, telemetry: Telemetry, exchange: Any) -> None:
        self.telemetry = telemetry
        self._name = exchange.name
        self._facts = ((v.SYSTEM, "rabbitmq"), *_server(_url(exchange)))
        self._operations: Cache[str, Operation] = Cache()
        self._calls: Cache[str, Operation] = Cache()

    def call(self, message: Any, routing_key: str, context: Context) -> Publication:
        """Begin to publish a message that is a call, and to wait for the reply."""
        operation = self._calls.get(routing_key)
        if operation is None:
            operation = self._calls.put(routing_key, self._operation("call", routing_key))
        return self._begin(operation, message, context)

    def publish(self, message: Any, routing_key: str, context: Context) -> Publication:
        """Begin to publish a message."""
        operation = self._operations.get(routing_key)
        if operation is None:
            operation = self._operations.put(routing_key, self._operation("publish", routing_key))
        return self._begin(operation, message, context)

    def _operation(self, verb: str, routing_key: str) -> Operation:
        routing_key = str.__str__(routing_key)  # an enumeration's value
        facts = (*self._facts, (v.RABBITMQ_ROUTING_KEY, routing_key or None))
        destination = _target(self._name, routing_key, self.telemetry.vocabulary.semconv)
        return self.telemetry.operation(v.PUBLISH, verb, destination, facts)

    def _begin(self, operation: Operation, message: Any, context: Context) -> Publication:
        known: v.Facts = (
            (v.MESSAGE_ID, message.message_id),
            (v.CONVERSATION_ID, message.correlation_id),
            (v.BODY_SIZE, len(message.body)),
        )
        if message.priority or message.expiration:
            known += _wishes(message)
        return self.telemetry.publish(operation, known, _fold(message.headers), context)


class _Source:
    """What is kept for the consumers of a queue."""

    def __init__(self, telemetry: Telemetry, queue: str, url: Any) -> None:
        self.telemetry = telemetry
        self._queue = queue
        self._facts = ((v.SYSTEM, "rabbitmq"), *_server(url))
        self._operations: Cache[tuple[Any, Any], Operation] = Cache()
        self._pulls: Cache[tuple[Any, Any], Pull] = Cache()

    def operation(self, exchange: Any, routing_key: Any) -> Operation:
        """What is the same for all messages with a routing key."""
        operation = self._operations.get((exchange, routing_key))
        if operation is None:
            facts = (*self._facts, (v.RABBITMQ_ROUTING_KEY, routing_key or None))
            destination = _source(exchange or "", routing_key or "", self._queue, self.telemetry.vocabulary.semconv)
            operation = self.telemetry.operation(v.DELIVER, "process", destination, facts)
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
        context = self.telemetry.context()
        if context is None:
            return None
        headers = _fold(properties.headers)
        known = _known(message, properties, body, headers)
        operation = self.operation(message.exchange, message.routing_key)
        waited = None if properties.timestamp is None else _waited(properties.timestamp)
        return self.telemetry.deliver(operation, known, headers, identity, context, waited)

    def pull(self, message: Any, context: Context, began: Moment) -> Delivery | None:
        """The application has a message that it has asked for.

        Args:
            message: the library's.
            context: the current context.
            began: when it was asked for.
        """
        pull = self._pull(message.exchange, message.routing_key)
        headers = _fold(message.headers)
        known = _known(message, message, message.body, headers)
        if pull.receive is not None:
            self.telemetry.receive(pull.receive, known, (headers,), context, began)
        waited = None if message.timestamp is None else _waited(message.timestamp)
        return self.telemetry.deliver(pull.handle, known, headers, _identity(message), context, waited)

    def asking(self) -> Operation:
        """To ask for a message that never comes, of which one knows nothing but the queue."""
        destination = _source("", "", self._queue, self.telemetry.vocabulary.semconv)
        return self.telemetry.operation(v.RECEIVE, "get", destination, self._facts)

    def _pull(self, exchange: Any, routing_key: Any) -> Pull:
        pull = self._pulls.get((exchange, routing_key))
        if pull is None:
            facts = (*self._facts, (v.RABBITMQ_ROUTING_KEY, routing_key or None))
            destination = _source(exchange or "", routing_key or "", self._queue, self.telemetry.vocabulary.semconv)
            pull = self._pulls.put((exchange, routing_key), self.telemetry.pull("get", destination, facts))
        return pull


class _Got(NamedTuple):
    """A message that was pulled, and by whom."""

    delivery: Delivery
    queue: str
    task: Callable[[], asyncio.Task[Any] | None]


class _Pulled:
    """The messages that were pulled through a channel and are handled now."""

    def __init__(self, pika: _AioPika, telemetry: Telemetry, _channel: Any) -> None:
        self.telemetry = telemetry
        self._pika = pika
        self._got: dict[_Identity, _Got] = {}
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()

    def hold(self, queue: str, delivery: Delivery, identity: _Identity) -> None:
        """The application has a message."""
        self._got[identity] = _Got(delivery, queue, weakref.ref(asyncio.current_task()))
        self._pika.pulled[identity] = self
        channel = identity[0]
        if channel not in self._watched:  # one of the transport, which is another after a reconnect
            self._watched.add(channel)
            channel.closing.add_done_callback(partial(self._closed, weakref.ref(channel)), context=EmptyContext())

    def find(self, identity: _Identity) -> Delivery | None:
        """A message, while it is handled."""
        got = self._got.get(identity)
        return None if got is None else got.delivery

    def asked(self, queue: str) -> None:
        """A queue is asked for the next message: what it gave to the same task, or to tasks now over, is handled."""
        current = asyncio.current_task()
        for identity, got in tuple(self._got.items()):
            task = got.task()
            if got.queue == queue and (task is None or task is current or task.done()):
                self._end(identity)

    def settled(self, identity: _Identity, multiple: bool) -> None:
        """The broker was told what became of a message, or of all up to it."""
        self._end(identity)
        if multiple:
            channel, tag = identity
            for other in tuple(self._got):
                if other[0] is channel and other[1] <= tag:
                    self._end(other)

    def _closed(self, channel: Callable[[], Any], _closing: Any) -> None:
        gone = channel()
        for identity in tuple(self._got):
            if identity[0] is gone or gone is None:
                self._end(identity)

    def _end(self, identity: _Identity) -> None:
        self._pika.pulled.pop(identity, None)
        got = self._got.pop(identity, None)
        if got is not None:
            got.delivery.end()


class _Last:
    """A settlement after which a pulled message is handled."""

    __slots__ = ("_identity", "_multiple", "_pulled", "_settlement")

    def __init__(self, settlement: Settlement | None, pulled: _Pulled, identity: _Identity, multiple: bool) -> None:
        self._settlement = settlement
        self._pulled = pulled
        self._identity = identity
        self._multiple = multiple

    def end(self, error: BaseException | None = None) -> None:
        """It was told, or telling it failed."""
        if self._settlement is not None:
            self._settlement.end(error)
        try:
            self._pulled.settled(self._identity, self._multiple)
        except Exception as failure:
            report("settling a message that was pulled", failure)


class _Iterated:
    """What is kept for an iterator over a queue."""

    def __init__(self, telemetry: Telemetry, iterator: Any) -> None:
        self.telemetry = telemetry
        self.shared = Shared()
        self._queue = iterator._amqp_queue
        self._source: _Source | None = None

    def hand_out(self, pika: _AioPika, message: Any, held: Held | None) -> None:
        """The application has a message.

        Args:
            pika: the adapter.
            message: the library's.
            held: where it was asked for, if that was seen.
        """
        channel = message._IncomingMessage__channel
        if self._source is None:
            self._source = pika.source(self._queue.name, channel.connection.url)
        delivery = self._source.hand_out(message, message, message.body, _identity(message))
        (held or self.shared.asked()).hold(delivery)
        if delivery is not None:
            self.telemetry.tell_consume_hook(delivery, message)

    def __del__(self) -> None:
        """The iterator is collected, and cannot be asked for the next message any more."""
        self.shared.close()


def _identity(message: Any) -> _Identity:
    """What tells a message from others: it can hold no mark, and no weak reference."""
    return (message._IncomingMessage__channel, message.delivery_tag)


def _known(message: Any, properties: Any, body: bytes, headers: dict[str, Any] | None) -> v.Facts:
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
        known += _wishes(properties)
    if headers and not _COUNTS.isdisjoint(headers):
        known += _counted(headers)
    return known


def _wishes(properties: Any) -> v.Facts:
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


def _counted(headers: dict[str, Any]) -> v.Facts:
    """What the broker has counted. A quorum queue counts the deliveries before this one."""
    before, deaths = headers.get("x-delivery-count"), headers.get("x-death")
    facts: v.Facts = ((v.ATTEMPT, before + 1),) if isinstance(before, int) else ()
    if not isinstance(deaths, list) or not all(isinstance(death, dict) for death in deaths):
        return facts
    first = deaths[-1] if deaths else {}  # the latest is in front
    return (
        *facts,
        (v.RABBITMQ_DEATH_QUEUE, as_text(headers.get("x-first-death-queue", first.get("queue")))),
        (v.RABBITMQ_DEATH_REASON, as_text(headers.get("x-first-death-reason", first.get("reason")))),
        (v.RABBITMQ_DEATH_COUNT, sum(count for death in deaths if isinstance(count := death.get("count"), int))),
    )


def _waited(sent: Any) -> float | None:
    """How long ago a message was sent, by the publisher's clock and to the second: AMQP has no finer timestamps."""
    if not isinstance(sent, datetime):
        return None
    if sent.tzinfo is None:
        sent = sent.replace(tzinfo=timezone.utc)
    return float(time.time() - sent.timestamp())


def _target(exchange: str, routing_key: str, composed: bool) -> v.Destination:
    temporary = bool(_TEMPORARY.match(routing_key)) and (composed or not exchange)
    named = ":".join(part for part in (exchange, routing_key) if part) or "amq.default"
    return v.Destination(exchange or routing_key or "amq.default", semconv=named, temporary=temporary)


def _source(exchange: str, routing_key: str, queue: str, composed: bool) -> v.Destination:
    parts = dict.fromkeys(part for part in (exchange, routing_key, queue) if part)
    name = queue or exchange or routing_key
    temporary = any(_TEMPORARY.match(part) for part in (parts if composed else (name,)))
    return v.Destination(name, semconv=":".join(parts), temporary=temporary)


def _server(url: Any) -> v.Facts:
    """Host and port; never the whole address, which holds the password."""
    if url is None:
        return ()
    return ((v.SERVER_ADDRESS, url.host), (v.SERVER_PORT, url.port or _DEFAULT_PORTS.get(url.scheme)))


def _url(owner: Any) -> Any:
    """The address that an exchange or a queue is behind."""
    channel = getattr(owner, "channel", None)  # gone when the exchange is deleted
    connection = getattr(channel, "_connection", None) or getattr(channel, "connection", None)  # the latter in 9.0
    return getattr(connection, "url", None)


def _fold(headers: Mapping[Any, Any] | None) -> dict[str, Any] | None:
    return {str(name).lower(): value for name, value in headers.items()} if headers else None


def _publish(pika: _AioPika, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`Exchange.publish` is where every message leaves, those of the patterns too."""

    async def wrapper(self: Any, message: Any, routing_key: Any, *args: Any, **kwargs: Any) -> Any:
        begun: Publication | None
        publication = None
        try:
            context = pika.telemetry.context()
            if context is not None and isinstance(routing_key, str):
                pattern = _pattern.get()
                if pattern is None or not pattern.concerns(message, routing_key):
                    begun = publication = pika.exchange(self).publish(message, routing_key, context)
                else:
                    begun = pika.pattern(pattern, self, message, routing_key, context)
                if begun is not None and pika.telemetry.publish_hook is not None:
                    arguments = {"message": message, "routing_key": routing_key, **kwargs}
                    pika.telemetry.tell_publish_hook(begun, PublishRequest(self, self.name, arguments))
                _publishing.set(begun)
        except Exception as error:
            report("Exchange.publish", error)
        try:
            result = await publish(self, message, routing_key, *args, **kwargs)
        except BaseException as error:
            if publication is not None:
                publication.end(error)
            raise
        finally:
            _publishing.set(None)
        if publication is not None:
            publication.end(_returned(result))
        return result

    return wrapper


def _returned(result: Any) -> Failure | None:
    """A message that the broker could not route comes back as the result, and nothing is raised."""
    delivery = getattr(result, "delivery", None)
    if delivery is None:
        return None
    text = str(getattr(delivery, "reply_text", None) or "unroutable")
    return Failure(text, _UNROUTABLE.format(text=text))


def _basic_publish(_pika: _AioPika, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`aiormq.Channel.basic_publish` has properties made for this one message, which may be changed."""

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        publication = _publishing.get()
        if publication is None:
            return await publish(self, *args, **kwargs)
        _publishing.set(None)
        properties = kwargs.get("properties")
        try:
            if properties is not None and publication.carrier:
                properties.headers = _add(properties.headers, publication.carrier)
        except Exception as error:
            report("Channel.basic_publish", error)
        unnamed = properties is not None and not properties.message_id
        try:
            return await publish(self, *args, **kwargs)
        finally:
            if properties is not None and unnamed and publication.span.is_recording():
                publication.learn(((v.MESSAGE_ID, properties.message_id),))

    return wrapper


def _add(headers: Any, carrier: dict[str, str]) -> Any:
    """New headers, with a context in them instead of any that was there; the same ones where a name is no text."""
    if not headers:
        return carrier
    ours, added = fields(), {}
    for name, value in headers.items():
        if not isinstance(name, str):
            return headers  # the library says so itself
        if name.lower() not in ours:
            added[name] = value
    added.update(carrier)
    return added


def _call(_pika: _AioPika, call: Callable[..., Any]) -> Callable[..., Any]:
    """`RPC.call` publishes and waits for the reply: one operation, which the reply ends."""

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        calling, before = _Call(), _pattern.get()
        _pattern.set(calling)
        try:
            result = await call(self, *args, **kwargs)
        except BaseException as error:
            if calling.publication is not None:
                calling.publication.end(error)
            raise
        finally:
            _pattern.set(before)
        if calling.publication is not None:
            calling.publication.end()
        return result

    return wrapper


def _answer(pika: _AioPika, answer: Callable[..., Any]) -> Callable[..., Any]:
    """`RPC.on_call_message` publishes the reply, which belongs to the call."""

    async def wrapper(self: Any, method_name: Any, message: Any) -> Any:
        before = _pattern.get()
        _pattern.set(_Reply(pika, message))
        try:
            return await answer(self, method_name, message)
        finally:
            _pattern.set(before)

    return wrapper


def _execute(_pika: _AioPika, execute: Callable[..., Any]) -> Callable[..., Any]:
    """`RPC.execute` sees what the called function raises, of which the caller is told instead."""

    async def wrapper(self: Any, func: Any, payload: Any) -> Any:
        try:
            return await execute(self, func, payload)
        except Exception as error:
            _report_to_caller(error)
            raise

    return wrapper


def _report_to_caller(error: Exception) -> None:
    try:
        pattern = _pattern.get()
        if isinstance(pattern, _Reply):
            pattern.fail(error)
    except Exception as failure:
        report("RPC.execute", failure)


def _basic_consume(pika: _AioPika, consume: Callable[..., Any]) -> Callable[..., Any]:
    """`aiormq.Channel.basic_consume` is given the queue's name and what will be called with each message.

    Here every kind of callback looks the same, and a consumer that is restored after a reconnect passes again.
    """

    async def wrapper(self: Any, queue: Any, consumer_callback: Any, *args: Any, **kwargs: Any) -> Any:
        callback = consumer_callback
        try:
            if pika.telemetry.enabled and _is_application(callback):
                source = pika.source(queue, self.connection.url)
                callback = partial(handle, partial(_deliver, source, callback), callback)
        except Exception as error:
            report("Channel.basic_consume", error)
        return await consume(self, queue, callback, *args, **kwargs)

    return wrapper


def _is_application(callback: Any) -> bool:
    """Whether messages go to the application at once, and not to an iterator that keeps them for it."""
    module = sys.modules["aio_pika.queue"]
    if not isinstance(callback, partial) or callback.func is not module.consumer or not callback.args:
        return False
    owner = getattr(callback.args[0], "__self__", None)
    return not isinstance(owner, module.QueueIterator) and not _is_reply(owner, callback.args[0])


def _is_reply(owner: Any, method: Any) -> bool:
    """Whether what is consumed are the replies to calls of `RPC`, which are no messages of their own."""
    patterns = sys.modules.get("aio_pika.patterns.rpc")
    if patterns is None or not isinstance(owner, patterns.RPC):
        return False
    return bool(method == owner.on_result_message)


def _deliver(source: _Source, consumer: Any, message: Any) -> Delivery | None:
    """The application is about to be called with a message."""
    try:
        identity = (message.channel, message.delivery_tag)
        delivery = source.hand_out(message, message.header.properties, message.body, identity)
        if delivery is not None and source.telemetry.consume_hook is not None:
            incoming = sys.modules["aio_pika.message"].IncomingMessage(message, **consumer.keywords)
            source.telemetry.tell_consume_hook(delivery, incoming)
        return delivery
    except Exception as error:
        report("delivering a RabbitMQ message", error)
        return None


def _get(pika: _AioPika, get: Callable[..., Any]) -> Callable[..., Any]:
    """`Queue.get` gives one message, which is handled until it is settled or the next one is asked for."""

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = None
        try:
            began = pika.asks(self)
        except Exception as error:
            report("Queue.get", error)
        try:
            message = await get(self, *args, **kwargs)
        except BaseException as error:
            if began is not None:
                _report_failure(pika, self, error, began)
            raise
        try:
            if began is not None and message is not None:
                pika.got(self, message, began)
        except Exception as error:
            report("Queue.get", error)
        return message

    return wrapper


def _report_failure(pika: _AioPika, queue: Any, error: BaseException, began: Moment) -> None:
    try:
        pika.got_none(queue, error, began)
    except Exception as failure:
        report("Queue.get", failure)


def _anext(pika: _AioPika, advance: Callable[..., Any]) -> Callable[..., Any]:
    """`QueueIterator.__anext__` hands out one message, which is handled until the next is asked for."""

    async def wrapper(self: Any) -> Any:
        state = find(self)
        held = state.shared.asked() if state is not None else None
        message = await advance(self)
        try:
            if pika.telemetry.enabled:
                keep(self, pika.telemetry, _Iterated).hand_out(pika, message, held)
        except Exception as error:
            report("QueueIterator.__anext__", error)
        return message

    return wrapper


def _aiter(pika: _AioPika, iterate: Callable[..., Any]) -> Callable[..., Any]:
    """`async for` gets an iterator of its own, which it lets go of when the loop is left."""

    def wrapper(self: Any) -> Any:
        iterator = iterate(self)
        try:
            if pika.telemetry.enabled and not isinstance(iterator, AsyncLoop) and hasattr(iterator, "_amqp_queue"):
                return keep(iterator, pika.telemetry, _Iterated).shared.loop(iterator)
        except Exception as error:
            report("QueueIterator.__aiter__", error)
        return iterator

    return wrapper


def _aenter(pika: _AioPika, enter: Callable[..., Any]) -> Callable[..., Any]:
    """`QueueIterator.__aenter__`: its block will show the exceptions that leave a loop in it."""

    async def wrapper(self: Any) -> Any:
        entered = await enter(self)
        try:
            if pika.telemetry.enabled:
                keep(self, pika.telemetry, _Iterated).shared.enter()
        except Exception as error:
            report("QueueIterator.__aenter__", error)
        return entered

    return wrapper


def _aexit(_pika: _AioPika, leave: Callable[..., Any]) -> Callable[..., Any]:
    """`QueueIterator.__aexit__`: the exception that passes is the one that handling a message raised."""

    async def wrapper(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        state = find(self)
        if state is not None:
            state.shared.exit(error)
        return await leave(self, kind, error, trace)

    return wrapper


def _close(_pika: _AioPika, close: Callable[..., Any]) -> Callable[..., Any]:
    """`QueueIterator.close` ends the handling of the last message.

    Up to 9.3 it is the queue's callback too, called with arguments when the channel closes, which is no end of a loop's
    body; and it is looked up among the callbacks by equality. So its replacement must equal the original.
    """

    async def closing(self: Any, args: Any, kwargs: Any) -> Any:
        state = find(self)
        if state is not None and not args:
            state.shared.close()
        return await close(self, *args, **kwargs)

    def wrapper(_wrapped: Any, self: Any, args: Any, kwargs: Any) -> Any:
        return closing(self, args, kwargs)

    return wrapt.FunctionWrapper(close, wrapper)


def _process_exit(pika: _AioPika, leave: Callable[..., Any]) -> Callable[..., Any]:
    """`message.process()` sees what handling a message raised, even if the application catches it later."""

    async def wrapper(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        try:
            context = pika.telemetry.context() if error is not None else None
            delivery = pika.delivery(self.message, context) if context is not None else None
            if delivery is not None:
                delivery.fail(error)
        except Exception as failure:
            report("ProcessContext.__aexit__", failure)
        return await leave(self, kind, error, trace)

    return wrapper


def _acked(multiple: bool = False) -> v.Attributes:
    return {v.SETTLE_MULTIPLE: True} if multiple else {}


def _nacked(multiple: bool = False, requeue: bool = True) -> v.Attributes:
    return {**_acked(multiple), v.SETTLE_REQUEUE: bool(requeue)}


def _rejected(requeue: bool = False) -> v.Attributes:
    return {v.SETTLE_REQUEUE: bool(requeue)}


_RPC = ("aio_pika.patterns.rpc", "RPC")
_CHANNEL = ("aiormq.channel", "Channel")
_ITERATOR = ("aio_pika.queue", "QueueIterator")
_MESSAGE = ("aio_pika.message", "IncomingMessage")


class AioPikaInstrumentor(MessagingInstrumentor):
    """Instruments `aio-pika <https://docs.aio-pika.com>`_: exchanges and queues of RabbitMQ."""

    library = "aio_pika"
    entry_point = "messaging-aio-pika"
    requirements = ("aio-pika >= 9.0, < 11",)
    adapter = _AioPika
    patches = (
        Patch("aio_pika.exchange", "Exchange", "publish", _publish),
        Patch(*_CHANNEL, "basic_publish", _basic_publish),
        Patch(*_CHANNEL, "basic_consume", _basic_consume),
        Patch("aio_pika.queue", "Queue", "get", _get),
        Patch("aio_pika.queue", "Queue", "__aiter__", _aiter),
        Patch(*_ITERATOR, "__aiter__", _aiter),
        Patch(*_ITERATOR, "__anext__", _anext),
        Patch(*_ITERATOR, "__aenter__", _aenter),
        Patch(*_ITERATOR, "__aexit__", _aexit),
        Patch(*_ITERATOR, "close", _close),
        Patch("aio_pika.robust_queue", "RobustQueueIterator", "__anext__", _anext, since="9.6"),
        Patch(*_RPC, "call", _call),
        Patch(*_RPC, "on_call_message", _answer),
        Patch(*_RPC, "execute", _execute),
        Patch("aio_pika.message", "ProcessContext", "__aexit__", _process_exit),
        Patch(*_MESSAGE, "ack", settles("ack", _acked)),
        Patch(*_MESSAGE, "nack", settles("nack", _nacked)),
        Patch(*_MESSAGE, "reject", settles("reject", _rejected)),
    )
    rivals = (
        Rival(
            "opentelemetry.instrumentation.aio_pika",
            "AioPikaInstrumentor",
            "opentelemetry-instrumentation-aio-pika",
            "aio-pika",
        ),
    )
