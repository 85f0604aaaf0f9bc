"""What keeps our mistakes away from the application: log them once per place and go on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from . import finalizers

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger("otel_messaging")
_reported: set[str] = set()

strict = False
"""Raise instead of logging. The test suite sets it, so that no bug hides behind the guard."""


def report(place: str, error: Exception) -> None:
    """Log an error of our own code, once per place.

    Args:
        place: where it happened, as a reader of the log would look for it, such as ``KafkaProducer.send``.
        error: what was raised.

    Raises:
        Exception: the error itself, in strict mode.
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


def _log(place: str, error: Exception) -> None:
    _logger.error(
        "%s: tracing this call failed, the call itself was not affected; more such errors here are not logged",
        place,
        exc_info=error,
    )


def guard(place: str, tell: Callable[..., None], *args: Any) -> None:
    """Call what is ours inside the application's call: what it raises is reported, and goes no further.

    Args:
        place: as for `report`.
        tell: what to call.
        *args: its arguments.

    Raises:
        Exception: what it has raised, in strict mode.
    """
    try:
        tell(*args)
    except Exception as error:
        report(place, error)
