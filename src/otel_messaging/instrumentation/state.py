"""What is kept for an object of the client library, on that object, so that it lives as long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.telemetry import Telemetry

ATTRIBUTE = "_otel_messaging"
"""Where it is kept: what is called per message looks itself, which is cheaper than a call to here."""


class State(Protocol):
    """What is kept for an object: made for one telemetry, and of no use to another."""

    telemetry: Telemetry


Kept = TypeVar("Kept", bound=State)


def keep(owner: Any, telemetry: Telemetry, make: Callable[[Telemetry, Any], Kept]) -> Kept:
    """What is kept for an object, made when it is first asked for.

    Args:
        owner: the object.
        telemetry: the telemetry in force.
        make: makes what is kept from both.
    """
    state = owner.__dict__.get(ATTRIBUTE)
    if state is None or state.telemetry is not telemetry:
        state = owner.__dict__[ATTRIBUTE] = make(telemetry, owner)
    return state  # type: ignore[no-any-return]


def find(owner: Any) -> Any:
    """What is kept for an object, or None."""
    return owner.__dict__.get(ATTRIBUTE)
