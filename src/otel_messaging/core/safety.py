"""What keeps our mistakes away from the application: log them once per place and go on."""

from __future__ import annotations

import logging
from asyncio import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import finalizers

if TYPE_CHECKING:
    from collections.abc import Callable

MISTAKES = (Exception, CancelledError)
"""What our own code and code that it calls, such as hooks, may raise without harm to the application.

Nobody cancels what does not wait: a `CancelledError` out of it comes from a future that a hook has looked at. All else
that is no `Exception` is meant for the application (Ctrl-C, the end of the process, a time limit of gevent's) and
reaches it.
"""

_logger = logging.getLogger("otel_messaging")
_reported: set[str] = set()

strict = False
"""Raise instead of logging. The test suite sets it, so that no bug hides behind the guard."""


class PlainError(Exception):
    """An error whose words are ours and meant for the application: a report shows them."""


def report(place: str, error: BaseException) -> None:
    """Log an error of our own code, or of code that is called by us, once per place.

    In one line and without the error's own words, which may be those of a message. At level DEBUG follows all of it.

    Args:
        place: where it happened, as a reader of the log would look for it, such as ``KafkaProducer.send``.
        error: what was raised.

    Raises:
        BaseException: the error itself, in strict mode.
    """
    if strict:
        raise error
    if place in _reported:
        return
    _reported.add(place)
    if finalizers.finalizing and finalizers.is_finalizing():
        finalizers.put_aside(_log, place, error)  # handlers have locks
    else:
        _log(place, error)


def _log(place: str, error: BaseException) -> None:
    _logger.error(
        "%s: tracing this call failed (%s), the call itself was not affected; more such errors here are not logged",
        place,
        _origin(error),
    )
    _logger.debug("%s: in full", place, exc_info=error)


def guard(place: str, tell: Callable[..., None], *args: Any) -> None:
    """Call what is ours inside the application's call: what it raises is reported, and goes no further.

    Args:
        place: as for `report`.
        tell: what to call.
        *args: its arguments.

    Raises:
        BaseException: what it has raised, in strict mode.
    """
    try:
        tell(*args)
    except MISTAKES as error:
        report(place, error)


def _origin(error: BaseException) -> str:
    """What was raised, and the file and the line that has raised it."""
    entry = error.__traceback__
    while entry is not None and entry.tb_next is not None:
        entry = entry.tb_next
    if isinstance(error, PlainError):
        return str(error)
    kind = type(error).__qualname__
    return kind if entry is None else f"{kind} at {Path(entry.tb_frame.f_code.co_filename).name}:{entry.tb_lineno}"
