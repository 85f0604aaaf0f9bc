"""What a context variable holds while a call lasts, for the calls inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextvars import ContextVar

    from otel_messaging.core.operations import Failure


class EnclosingCall:
    """A call that others, inside it, are to know of: what a context variable holds for as long as it lasts.

    Args:
        variable: the variable, whose default is None.
    """

    __slots__ = ("_before", "_variable")

    def __init__(self, variable: ContextVar[Any]) -> None:
        self._variable = variable
        self._before = variable.get()
        variable.set(self)

    def end(self, error: BaseException | Failure | None = None) -> None:  # noqa: ARG002 (as all that ends)
        """The call has returned, or raised an error.

        The variable has its value from before by value, not by token, and only if this is what it holds: a coroutine
        may be closed in another context than it ran in.
        """
        if self._variable.get() is self:
            self._variable.set(self._before)
