"""The application says itself when it handles a message, or several at once: in any task, thread or process."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sized
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from opentelemetry.trace import INVALID_SPAN

from otel_messaging.core import safety
from otel_messaging.core import vocabulary as v
from otel_messaging.instrumentation.message_list import Batch

from .blocks import Block
from .libraries import is_headers, library_named, library_of, read_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from contextlib import AbstractContextManager

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.requests import Incoming
    from otel_messaging.core.telemetry import Telemetry

    from .libraries import Library

P = ParamSpec("P")
R = TypeVar("R")

_REMEDY = (
    "takes a message of kafka-python, aio-pika or nats-py. Of any other, or where only its headers are at hand, give"
    " these, with destination= and system= ('kafka', 'rabbitmq' or 'nats')"
)


class _Source:
    """What the application wants to handle.

    Attributes:
        library: whose messages they are.
        lists: the library's own lists that they are from.
        messages: the messages, or their headers.
        destination: where they came from, if the application says so.
        bare: whether there are only headers.
    """

    __slots__ = ("bare", "destination", "library", "lists", "messages")

    def __init__(self, call: str, messages: Sequence[Any], destination: str | None, system: str | None) -> None:
        library = library_of(messages[0])
        self.bare = library is None
        if library is None:
            if destination is None or system is None or not all(map(is_headers, messages)):
                raise TypeError(f"{call}() was given {type(messages[0]).__name__!r}: it {_REMEDY}")
            library = library_named(system)
        elif any(library_of(message) is not library for message in messages[1:]):
            raise TypeError(f"{call}() was given messages of several kinds: it {_REMEDY}")
        self.library: Library = library
        self.messages = messages
        self.destination = destination
        self.lists: list[Batch] = []

    def read(self, adapter: Any) -> list[Incoming]:
        """What is known of each message."""
        if self.bare:
            return [read_headers(headers, self.destination or "", self.library.system) for headers in self.messages]
        read = self.library.messages.read
        known = [read(adapter, message) for message in self.messages]
        if self.destination is None:
            return known
        return [incoming._replace(destination=v.Destination(self.destination)) for incoming in known]


@overload
def process(message: Callable[P, R], /) -> Callable[P, R]: ...  # type: ignore[overload-overlap]


@overload
def process(message: object, /, *, destination: str | None = None, system: str | None = None) -> Block: ...


def process(message: Any, /, *, destination: str | None = None, system: str | None = None) -> Any:
    """Handle a message here, wherever it was received: a span ``process D`` in the message's trace.

    For a message that was handed to another task, thread or process::

        def work(record):
            with process(record):
                ...

    As a decorator it does this for whatever message the function, or coroutine function, is called with::

        @process
        async def handle(message): ...

    The message's own context is the span's parent, so that the span is beside the ``receive`` span and not below it;
    in the OpenTelemetry conventions the span around it is, as everywhere. Nothing is counted but how long it took. This
    is the guide's chapter 7.1, and the "process" span of
    https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/.

    Args:
        message: a ``ConsumerRecord`` of kafka-python, an ``IncomingMessage`` of aio-pika, a ``Msg`` of nats-py; its
            headers, where it can not be had; or the function to decorate.
        destination: where the message came from: topic, queue or subject. Needed with headers, else read from it.
        system: ``kafka``, ``rabbitmq`` or ``nats``; where several libraries for it are instrumented, the name of the
            adapter, such as ``kafka_python``. Needed with headers.

    Returns:
        A block to enter by ``with`` or ``async with``, which gives the span; or the decorated function.

    Raises:
        TypeError: it is no message of these libraries, and not headers with destination and system.
        ValueError: there is no such system.
    """
    if destination is None and callable(message) and library_of(message) is None:
        return _decorate(message)
    return Block("process", functools.partial(_start, _Source("process", [message], destination, system)))


def process_batch(messages: Collection[Any], /, *, destination: str | None = None, system: str | None = None) -> Block:
    """Handle several messages at once: a span ``batch_process D``, linked to each of them.

    The first message's context is its parent; in the OpenTelemetry conventions that is the span around it, if any. The
    span has the number of messages, their total size, and what else they have in common. A list that ``poll`` or
    ``fetch`` has returned can be looped over inside: its messages have no spans of their own then. This is the guide's
    chapter 8.

    Args:
        messages: of one library, as `process` takes them: a list, or what ``KafkaConsumer.poll`` returns. Of an empty
            one nobody is told.
        destination: where all of them came from. Needed with headers, else read from the messages.
        system: ``kafka``, ``rabbitmq`` or ``nats``; where several libraries for it are instrumented, the name of the
            adapter, such as ``kafka_python``. Needed with headers.

    Returns:
        A block to enter by ``with`` or ``async with``, which gives the span.

    Raises:
        TypeError: these are no messages of these libraries, or it is an iterator, which would be used up.
        ValueError: there is no such system.
    """
    if not isinstance(messages, Sized):
        raise TypeError(f"process_batch() was given {type(messages).__name__!r}: it takes a list of messages")
    lists = list(messages.values()) if isinstance(messages, Mapping) else [messages]
    # By slices: a loop over a list that a client has returned would say that its messages are being handled.
    found = [message for some in lists for message in (some[:] if isinstance(some, list) else list(some))]
    if not found:
        return nullcontext(INVALID_SPAN)  # type: ignore[return-value]
    source = _Source("process_batch", found, destination, system)
    source.lists = [some for some in lists if isinstance(some, Batch)]
    return Block("process_batch", functools.partial(_start_batch, source))


def _start(source: _Source) -> Delivery | None:
    adapter = source.library.instrumentor.reader()
    telemetry: Telemetry = adapter.telemetry
    context = telemetry.active_context()
    if context is None:
        return None
    (incoming,) = source.read(adapter)
    if incoming.release is not None and source.destination is None:
        incoming.release()  # it was taken out of a list a moment ago, and is handled once
        return incoming.delivery
    operation = telemetry.prepared(v.PROCESS, "process", incoming.destination, incoming.common)
    delivery = telemetry.handle(operation, incoming.facts, [((), incoming.headers)], incoming.identity, context)
    if delivery is not None:
        delivery.reply_to = incoming.reply_to
        if incoming.delivery is not None:
            incoming.delivery.untime()
    return delivery


def _start_batch(source: _Source) -> Delivery | None:
    adapter = source.library.instrumentor.reader()
    telemetry: Telemetry = adapter.telemetry
    context = telemetry.active_context()
    if context is None:
        return None
    messages = source.read(adapter)
    shared = _in_common(messages, telemetry.vocabulary)
    operation = telemetry.prepared(v.BATCH_PROCESS, "batch_process", *shared)
    facts = ((v.BATCH_COUNT, len(messages)), (v.BATCH_SIZE, sum(message.size for message in messages)))
    every = [(_alone(one, shared, telemetry.vocabulary), one.headers) for one in messages]
    delivery = telemetry.handle(operation, facts, every, [one.identity for one in messages], context)
    if delivery is not None:
        for some in source.lists:
            some.claim()
    return delivery


def _in_common(messages: list[Incoming], names: v.Vocabulary) -> tuple[v.Destination, v.Facts]:
    """The destination of all messages, and the facts that are the same for all of them."""
    first = messages[0]
    destinations = {message.destination for message in messages}
    if len(destinations) == 1:
        destination = first.destination
    else:
        templates = {names.template(destination) for destination in destinations}
        destination = v.Destination("", template=templates.pop() if len(templates) == 1 else None)
    every = {message.common for message in messages}
    return destination, tuple(fact for fact in first.common if all(fact in common for common in every))


def _alone(message: Incoming, shared: tuple[v.Destination, v.Facts], names: v.Vocabulary) -> v.Facts:
    """What is known of one message, beside what is the same for all."""
    destination, common = shared
    own = tuple(fact for fact in message.common if fact not in common)
    if message.destination != destination:
        own = ((v.DESTINATION, names.destination(message.destination)), *own)
    return own + message.facts


def _decorate(handler: Callable[P, R]) -> Callable[P, R]:
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise TypeError("process() decorates no generators: use `with process(message):` inside")
    if _is_async(handler):

        @functools.wraps(handler)
        async def handle_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            with _processing(handler, args, kwargs):
                return await handler(*args, **kwargs)  # type: ignore[misc]

        return handle_async  # type: ignore[return-value]

    @functools.wraps(handler)
    def handle(*args: P.args, **kwargs: P.kwargs) -> R:
        with _processing(handler, args, kwargs):
            return handler(*args, **kwargs)

    return handle


def _is_async(handler: Any) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def _processing(handler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[Any]:
    """The handling of the message among a function's arguments: a method has another one in front of it."""
    try:
        for value in (*args, *kwargs.values()):
            if library_of(value) is not None:
                return Block("process", functools.partial(_start, _Source("process", [value], None, None)))
        name = getattr(handler, "__qualname__", repr(handler))
        remark = f"{name}() is decorated by process(), and was called without a message: process() {_REMEDY}"
        raise safety.PlainError(remark)
    except Exception as error:
        safety.report("process", error)
        return nullcontext()
