"""RabbitMQ through aio-pika: where it is patched, and how its objects are read.

The library: https://docs.aio-pika.com
"""

from __future__ import annotations

import re
import sys
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import wrapt

from .core import vocabulary as v
from .core.cache import Cache
from .core.instrumentor import MessagingInstrumentor
from .core.patching import Patch
from .core.propagation import fields
from .core.rivals import Rival
from .core.safety import report
from .core.scope import AsyncLoop, Shared, handle
from .core.settling import settles
from .core.state import find, keep
from .core.telemetry import Failure, PublishRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context

    from .core.scope import Held
    from .core.telemetry import Delivery, Operation, Publication, Settlement, Telemetry

_DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
# Queues that the broker names, that stand for direct replies, and that a robust queue names.
_TEMPORARY = re.compile(r"amq\.gen-|amq\.rabbitmq\.reply-to|amq_(0x)?[0-9a-f]{24,32}$")
_UNROUTABLE = "returned by the broker: {text}"

_publishing: ContextVar[Publication | None] = ContextVar("otel_messaging_aio_pika_publishing", default=None)
"""The message that `Exchange.publish` is sending, for `Channel.basic_publish` below it."""


class _AioPika:
    """Reads aio-pika's objects for the telemetry of one instrumentor."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
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

    def settlement(self, verb: str, message: Any, details: v.Attributes) -> Settlement | None:
        """Begin to settle a message."""
        context = self.telemetry.context()
        if context is None or message.processed:
            return None  # a message is settled once: the library says so itself
        facts = ((v.RABBITMQ_DELIVERY_TAG, message.delivery_tag),)
        delivery = self.delivery(message, context)
        operation = self._settled_operation(message) if delivery is None else delivery.operation
        return self.telemetry.settle(verb, operation, delivery, facts, details)

    def delivery(self, message: Any, context: Context) -> Delivery | None:
        """The span of a message, while it is handled here."""
        delivery = self.telemetry.current_delivery(context)
        return delivery if delivery is not None and delivery.message == _identity(message) else None

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
        self._facts = ((v.SYSTEM, "rabbitmq"), *_server(_exchange_url(exchange)))
        self._operations: Cache[str, Operation] = Cache()

    def publish(self, message: Any, routing_key: str, context: Context) -> Publication:
        """Begin to publish a message."""
        operation = self._operations.get(routing_key)
        if operation is None:
            routing_key = str.__str__(routing_key)  # an enumeration's value
            facts = (*self._facts, (v.RABBITMQ_ROUTING_KEY, routing_key or None))
            destination = _target(self._name, routing_key, self.telemetry.vocabulary.semconv)
            operation = self.telemetry.operation(v.PUBLISH, "publish", destination, facts)
            self._operations.put(routing_key, operation)
        known = (
            (v.MESSAGE_ID, message.message_id),
            (v.CONVERSATION_ID, message.correlation_id),
            (v.BODY_SIZE, len(message.body)),
        )
        return self.telemetry.publish(operation, known, _fold(message.headers), context)


class _Source:
    """What is kept for the consumers of a queue."""

    def __init__(self, telemetry: Telemetry, queue: str, url: Any) -> None:
        self.telemetry = telemetry
        self._queue = queue
        self._facts = ((v.SYSTEM, "rabbitmq"), *_server(url))
        self._operations: Cache[tuple[Any, Any], Operation] = Cache()

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
        known = (
            (v.RABBITMQ_DELIVERY_TAG, message.delivery_tag),
            (v.MESSAGE_ID, properties.message_id),
            (v.CONVERSATION_ID, properties.correlation_id),
            (v.BODY_SIZE, len(body)),
        )
        operation = self.operation(message.exchange, message.routing_key)
        return self.telemetry.deliver(operation, known, _fold(properties.headers), identity, context)


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


def _identity(message: Any) -> tuple[Any, Any]:
    """What tells a message from others: it can hold no mark, and no weak reference."""
    return (message._IncomingMessage__channel, message.delivery_tag)


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


def _exchange_url(exchange: Any) -> Any:
    channel = getattr(exchange, "channel", None)  # gone when the exchange is deleted
    connection = getattr(channel, "_connection", None) or getattr(channel, "connection", None)  # the latter in 9.0
    return getattr(connection, "url", None)


def _fold(headers: Mapping[Any, Any] | None) -> dict[str, Any] | None:
    return {str(name).lower(): value for name, value in headers.items()} if headers else None


def _publish(pika: _AioPika, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`Exchange.publish` is where every message leaves, those of the patterns too."""

    async def wrapper(self: Any, message: Any, routing_key: Any, *args: Any, **kwargs: Any) -> Any:
        publication = None
        try:
            context = pika.telemetry.context()
            if context is not None and isinstance(routing_key, str):
                publication = pika.exchange(self).publish(message, routing_key, context)
                if pika.telemetry.publish_hook is not None:
                    arguments = {"message": message, "routing_key": routing_key, **kwargs}
                    pika.telemetry.tell_publish_hook(publication, PublishRequest(self, self.name, arguments))
                _publishing.set(publication)
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
    return not isinstance(getattr(callback.args[0], "__self__", None), module.QueueIterator)


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
        Patch("aio_pika.queue", "Queue", "__aiter__", _aiter),
        Patch(*_ITERATOR, "__aiter__", _aiter),
        Patch(*_ITERATOR, "__anext__", _anext),
        Patch(*_ITERATOR, "__aenter__", _aenter),
        Patch(*_ITERATOR, "__aexit__", _aexit),
        Patch(*_ITERATOR, "close", _close),
        Patch("aio_pika.robust_queue", "RobustQueueIterator", "__anext__", _anext, since="9.6"),
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
