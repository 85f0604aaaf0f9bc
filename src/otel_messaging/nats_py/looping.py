"""`async for`, over the messages of a subscription and over the updates of a store's watcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core.safety import report
from otel_messaging.instrumentation.state import keep

from .nested_calls import inherited

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.telemetry import Telemetry

    from .adapter import Nats


def loops(make: Callable[[Telemetry, Any], Any]) -> Callable[[Nats, Callable[..., Any]], Callable[..., Any]]:
    """The replacement of `__aiter__`: a loop gets an iterator of its own, which it lets go of when it is left.

    The library's own loops do not, as where a store gets an object or lists its keys.

    Args:
        make: makes what is kept for the iterator, whose attribute `shared` is what it has handed out.
    """

    def wrap(nats: Nats, iterate: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any) -> Any:
            iterator = iterate(self)
            try:
                if nats.telemetry.enabled and iterator is self and inherited() is None:
                    return keep(self, nats.telemetry, make).shared.loop(self)
            except Exception as error:
                report("async for", error)
            return iterator

        return wrapper

    return wrap
