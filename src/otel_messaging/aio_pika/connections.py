"""What is known of a connection of the transport: its server, and the queues that were declared for it alone."""

from __future__ import annotations

from contextvars import Context as EmptyContext
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import LIMIT, Cache
from otel_messaging.core.safety import guard, report
from otel_messaging.instrumentation.state import keep

from .consuming import Source
from .readers import server

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.telemetry import Telemetry

    from .adapter import AioPika
    from .publishing import Exchange


class Connection:
    """What is kept for a connection of the transport, which is another one after a reconnect.

    Attributes:
        facts: its server, and to what address of that it is.
        exchanges: those whose messages have these facts.
    """

    def __init__(self, telemetry: Telemetry, connection: Any) -> None:
        self.telemetry = telemetry
        peer = _peer(connection) if telemetry.vocabulary.semconv else ()
        self.facts: v.Facts = ((v.SYSTEM, "rabbitmq"), *server(connection.url), *peer)
        self.exchanges: WeakSet[Exchange] = WeakSet()
        self._temporary: dict[str, None] = {}
        self._sources: Cache[str, Source] = Cache()
        connection.closing.add_done_callback(self._closed, context=EmptyContext())

    def source(self, queue: str) -> Source:
        """What is kept for the consumers of a queue: some programs make a new one for each message."""
        source = self._sources.get(queue)
        return source or self._sources.put(queue, Source(self.telemetry, queue, self.facts, self.is_temporary(queue)))

    def is_temporary(self, queue: str) -> bool:
        """Whether a queue was declared to live no longer than the connection or, for the conventions, its consumers."""
        return queue in self._temporary

    def declared(self, queue: str, exclusive: bool, auto_delete: bool) -> None:
        """A queue was declared."""
        temporary = exclusive or (auto_delete and self.telemetry.vocabulary.semconv)
        if temporary == self.is_temporary(queue):
            return
        self._sources.pop(queue, None)
        self._forget(queue)
        if not temporary:
            del self._temporary[queue]
            return
        if len(self._temporary) >= LIMIT:
            del self._temporary[next(iter(self._temporary))]
        self._temporary[queue] = None

    def _closed(self, _closing: Any) -> None:
        self._forget()

    def _forget(self, queue: str | None = None) -> None:
        for exchange in tuple(self.exchanges):
            exchange.forget(queue)


def _peer(connection: Any) -> v.Facts:
    """To what address a connection is. Nothing but the task that writes to it holds its socket."""
    try:
        task = getattr(connection, "_writer_task", None)
        frame = getattr(task.get_coro(), "cr_frame", None) if task is not None else None
        writer = frame.f_locals.get("writer") if frame is not None else None
        return v.peer(writer.get_extra_info("peername")) if writer is not None else ()
    except Exception as error:
        report("the address that a connection is to", error)
        return ()


def wrap_queue_declare(pika: AioPika, declare: Callable[..., Any]) -> Callable[..., Any]:
    """`aiormq.Channel.queue_declare` tells which queues are the connection's own, also anew after a reconnect."""

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await declare(self, *args, **kwargs)
        if pika.telemetry.enabled:
            guard("Channel.queue_declare", partial(_declared, pika, self.connection, result, *args, **kwargs))
        return result

    return wrapper


def _declared(
    pika: AioPika,
    connection: Any,
    result: Any,
    queue: str = "",
    *,
    passive: bool = False,
    exclusive: bool = False,
    auto_delete: bool = False,
    **_: Any,
) -> None:
    if not passive:  # which only asks whether it is there
        name = getattr(result, "queue", None) or queue
        keep(connection, pika.telemetry, Connection).declared(name, bool(exclusive), bool(auto_delete))
