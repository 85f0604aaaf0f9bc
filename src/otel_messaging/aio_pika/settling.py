"""Acknowledgements, and `message.process()`."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.safety import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .adapter import AioPika

giving_back: ContextVar[object] = ContextVar("otel_messaging_aio_pika_giving_back", default=None)
"""Set while an iterator is being closed here, and gives back what nobody has handled: that is the library's doing."""

leaving: ContextVar[object] = ContextVar("otel_messaging_aio_pika_leaving", default=None)
"""Set while an exception leaves a `message.process()` here: that there is no channel to reject by is swallowed then."""


@contextmanager
def marked(variable: ContextVar[object]) -> Iterator[None]:
    """Set a variable for as long as a block lasts.

    By value, and only what was set here: a coroutine may be closed in another context than it ran in.
    """
    mark, before = object(), variable.get()
    variable.set(mark)
    try:
        yield
    finally:
        if variable.get() is mark:
            variable.set(before)


def wrap_process_exit(pika: AioPika, leave: Callable[..., Any]) -> Callable[..., Any]:
    """`message.process()` sees what handling a message raised, even if the application catches it later."""

    async def wrapper(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        try:
            context = pika.telemetry.active_context() if error is not None else None
            delivery = pika.delivery(self.message, context) if context is not None else None
            if delivery is not None:
                delivery.fail(error)
        except Exception as failure:
            report("ProcessContext.__aexit__", failure)
        if error is None:
            return await leave(self, kind, error, trace)
        with marked(leaving):
            return await leave(self, kind, error, trace)

    return wrapper


def acked(multiple: bool = False) -> v.Attributes:
    """What `ack` tells."""
    return {v.SETTLE_MULTIPLE: True} if multiple else {}


def nacked(multiple: bool = False, requeue: bool = True) -> v.Attributes:
    """What `nack` tells."""
    return {**acked(multiple), v.SETTLE_REQUEUE: bool(requeue)}


def rejected(requeue: bool = False) -> v.Attributes:
    """What `reject` tells."""
    return {v.SETTLE_REQUEUE: bool(requeue)}
