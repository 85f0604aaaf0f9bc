"""What is known of a connection of the transport: its server, and the queues that were declared for it alone."""

from __future__ import annotations

from contextvars import Context as EmptyContext
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import LIMIT, Cache
from otel_messaging.core.safety import report

from .readers import server
from .sources import Source

if TYPE_CHECKING:
    from otel_messaging.core.telemetry import Telemetry


class Publisher(Protocol):
    """What publishes to exchanges, and has read where to from the connection."""

    def forget(self, queue: str | None = None) -> None:
        """The connection is closed, and the next one may be to another address; or a queue has become another one."""


class Connection:
    """What is kept for a connection of the transport, which is another one after a reconnect.

    Attributes:
        facts: its server, and to what address of that it is.
        publishers: those whose messages have these facts.
    """

    def __init__(self, telemetry: Telemetry, connection: Any) -> None:
        self.telemetry = telemetry
        peer = _peer(connection) if telemetry.vocabulary.semconv else ()
        self.facts: v.Facts = ((v.SYSTEM, "rabbitmq"), *server(connection.url), *peer)
        self.publishers: WeakSet[Publisher] = WeakSet()
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
        for publisher in tuple(self.publishers):
            publisher.forget(queue)


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
