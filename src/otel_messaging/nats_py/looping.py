"""`async for`, over the messages of a subscription and over the updates of a store's watcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from otel_messaging.instrumentation.state import find, keep
from otel_messaging.instrumentation.wrapping import around

from .nested_calls import here, telling

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.adapter import Adapter
    from otel_messaging.instrumentation.loops import Held, Shared

    Wrap = Callable[[Any, Callable[..., Any]], Callable[..., Any]]


class Iterated(Protocol):
    """What is kept for an iterator."""

    telemetry: Telemetry
    shared: Shared
    """What it has handed out."""

    def hand_out(self, message: Any) -> Delivery | None:
        """The application has a message, or an update."""


def loops(make: Callable[[Telemetry, Any], Iterated]) -> Wrap:
    """The replacement of `__aiter__`: a loop gets an iterator of its own, which it lets go of when it is left.

    The library's own loops do not, as where a store gets an object or lists its keys.

    Args:
        make: makes what is kept for the iterator.
    """

    def before(nats: Adapter, owner: Any) -> tuple[Telemetry, Any] | None:
        return (nats.telemetry, owner) if nats.telemetry.enabled and here() is None else None

    def after(token: tuple[Telemetry, Any], iterator: Any) -> Any:
        telemetry, owner = token
        return keep(owner, telemetry, make).shared.loop(owner) if iterator is owner else iterator

    return around(before, after)


def steps(make: Callable[[Telemetry, Any], Iterated]) -> Wrap:
    """The replacement of a step of a loop: what it hands out is handled until the next is asked for.

    The library's own steps hand out nothing: `keys` of a store and its like watch, too.

    Args:
        make: makes what is kept for the iterator.
    """

    def before(nats: Adapter, owner: Any) -> tuple[Telemetry, Any, Held | None] | None:
        if telling.get() is not None and here() is not None:
            return None
        state = find(owner)
        return nats.telemetry, owner, None if state is None else state.shared.asked()

    def after(token: tuple[Telemetry, Any, Held | None], message: Any) -> Any:
        telemetry, owner, held = token
        if telemetry.enabled:
            state = keep(owner, telemetry, make)
            (held or state.shared.asked()).hold(state.hand_out(message))
        return message

    return around(before, after)
