"""Messages that were pulled, and are handled until they are settled or the next one is asked for."""

from __future__ import annotations

import asyncio
import weakref
from contextvars import Context as EmptyContext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_messaging.instrumentation.loops import watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.telemetry import Telemetry

    from .readers import Identity


class _Got(NamedTuple):
    """A message that was pulled, and by whom."""

    delivery: Delivery
    queue: str | None
    """What gave it; None where nobody will settle it, so that whatever is asked next shows that it is handled."""
    task: Callable[[], asyncio.Task[Any] | None]


class Pulled:
    """The messages that were pulled through a channel and are handled now.

    Args:
        by_identity: where it notes that it has a message, for all channels.
    """

    def __init__(self, by_identity: dict[Identity, Pulled], telemetry: Telemetry, _channel: Any) -> None:
        self.telemetry = telemetry
        self._by_identity = by_identity
        self._got: dict[Identity, _Got] = {}
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        watch(self)

    def hold(self, queue: str | None, delivery: Delivery, identity: Identity) -> None:
        """The application has a message.

        Args:
            queue: what has given it; None where nobody will settle it.
            delivery: its handling.
            identity: what tells it from others.
        """
        self._got[identity] = _Got(delivery, queue, weakref.ref(asyncio.current_task()))
        self._by_identity[identity] = self
        channel = identity[0]
        if channel not in self._watched:  # one of the transport, which is another after a reconnect
            self._watched.add(channel)
            channel.closing.add_done_callback(partial(self._closed, weakref.ref(channel)), context=EmptyContext())

    def find(self, identity: Identity) -> Delivery | None:
        """A message, while it is handled."""
        got = self._got.get(identity)
        return None if got is None else got.delivery

    def asked(self, queue: str) -> None:
        """A queue is asked for the next message: what it gave to the same task, or to tasks now over, is handled.

        So is what nobody will settle, whichever queue it is from: some programs ask a new queue each time.
        """
        current = asyncio.current_task()
        for identity, got in tuple(self._got.items()):
            task = got.task()
            if got.queue in (queue, None) and (task is None or task is current or task.done()):
                self._end(identity)

    def settled(self, identity: Identity, multiple: bool) -> None:
        """The broker was told what became of a message, or of all up to it."""
        self._end(identity)
        if multiple:
            channel, tag = identity
            for other in tuple(self._got):
                if other[0] is channel and other[1] <= tag:
                    self._end(other)

    def switch_off(self, telemetry: Telemetry) -> None:
        """Instrumentation is switched off, perhaps in another task."""
        if self.telemetry is telemetry:
            for identity in tuple(self._got):
                self._end(identity)

    def _closed(self, channel: Callable[[], Any], _closing: Any) -> None:
        gone = channel()
        for identity in tuple(self._got):
            if identity[0] is gone or gone is None:
                self._end(identity)

    def _end(self, identity: Identity) -> None:
        self._by_identity.pop(identity, None)
        got = self._got.pop(identity, None)
        if got is not None:
            got.delivery.end()
