"""Methods that tell the broker the outcome of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from otel_messaging.core.safety import guard

from .wrapping import around, reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.operations import Failure


class Ends(Protocol):
    """What lasts as long as settling a message does."""

    def end(self, error: BaseException | Failure | None = None) -> None:
        """It was told, or telling it failed."""


class Last:
    """A settlement after which a message that was pulled is handled.

    Args:
        settlement: the settlement; None where it is not to be seen.
        handled: called when it is over.
    """

    __slots__ = ("_handled", "_settlement")

    def __init__(self, settlement: Ends | None, handled: Callable[[], None]) -> None:
        self._settlement = settlement
        self._handled = handled

    def end(self, error: BaseException | Failure | None = None) -> None:
        """It was told, or telling it failed."""
        if self._settlement is not None:
            self._settlement.end(error)
        guard("settling a message that was pulled", self._handled)


class Settles(Protocol):
    """An adapter whose messages, or whose consumers, can settle."""

    def settlement(self, verb: str, owner: Any, details: Any) -> Ends | None:
        """Begin to settle a message: of the object whose method is called."""


def settles(verb: str, details: Callable[..., Any]) -> Callable[[Any, Callable[..., Any]], Callable[..., Any]]:
    """Make the replacement of a method that settles, and returns, or is awaited, when that is done.

    Args:
        verb: the library's own word for it.
        details: reads what the adapter's ``settlement`` is told of the method's arguments, by their names.

    Returns:
        The `Patch.wrap` of the method.
    """

    def before(adapter: Settles, owner: Any, *arguments: Any) -> Ends | None:
        return adapter.settlement(verb, owner, details(*arguments))

    return around(reading(before, details), settled, settling_failed)


def settled(settlement: Ends, result: Any) -> Any:
    """The call has returned.

    Args:
        settlement: what was begun before it.
        result: what it has returned, which is passed on.
    """
    settlement.end()
    return result


def settling_failed(settlement: Ends, error: BaseException) -> None:
    """The call has raised an exception."""
    settlement.end(error)
