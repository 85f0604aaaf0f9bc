"""Methods that tell the broker what became of a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from otel_messaging.core.safety import guard, report

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.operations import Failure
    from otel_messaging.core.vocabulary import Attributes


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
    """An adapter whose messages can be settled."""

    def settlement(self, verb: str, message: Any, details: Attributes) -> Ends | None:
        """Begin to settle a message of the library."""


def settles(
    verb: str, details: Callable[..., Attributes]
) -> Callable[[Settles, Callable[..., Any]], Callable[..., Any]]:
    """The replacement of a method that settles its message.

    Args:
        verb: the library's own word for it.
        details: reads what is told from the method's arguments; it has the method's own signature, without ``self``.
    """

    def wrap(adapter: Settles, method: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            settlement = _begin(adapter, verb, self, _read(details, args, kwargs))
            try:
                result = await method(self, *args, **kwargs)
            except BaseException as error:
                if settlement is not None:
                    settlement.end(error)
                raise
            if settlement is not None:
                settlement.end()
            return result

        return wrapper

    return wrap


def _read(details: Callable[..., Attributes], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attributes | None:
    try:
        return details(*args, **kwargs)
    except Exception:
        return None  # wrong arguments: the library says so itself


def _begin(adapter: Settles, verb: str, message: Any, details: Attributes | None) -> Ends | None:
    try:
        return None if details is None else adapter.settlement(verb, message, details)
    except Exception as error:
        report(f"settling a message by {verb}", error)
        return None
