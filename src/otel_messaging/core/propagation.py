"""Contexts in and out of messages, through the global propagator only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import propagate
from opentelemetry.propagators.textmap import Getter

from . import safety

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator

_fields: tuple[TextMapPropagator | None, frozenset[str]] = (None, frozenset())


def as_text(value: Any) -> str | None:
    """A header's value as text: of a list the last, of bytes what they say in UTF-8, None where that is no text."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, (list, tuple)) and value:
        last = value[-1]
        return None if isinstance(last, (list, tuple)) else as_text(last)
    return None


class _HeaderGetter(Getter["Mapping[str, Any]"]):
    """Reads headers whose names were folded to lower case, whatever their values are."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        if value is None:
            value = carrier.get(key.lower())
        text = as_text(value)
        return None if text is None else [text]

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


_getter = _HeaderGetter()


def fields() -> frozenset[str]:
    """The names of the headers that the global propagator writes, in lower case."""
    global _fields
    propagator = propagate.get_global_textmap()
    if _fields[0] is not propagator:
        _fields = (propagator, frozenset(name.lower() for name in propagator.fields))
    return _fields[1]


def inject(context: Context) -> dict[str, str]:
    """The headers that carry a context; none when there is nothing to carry, or the propagator fails."""
    carrier: dict[str, str] = {}
    try:
        propagate.get_global_textmap().inject(carrier, context)
    except Exception as error:
        safety.report("injecting a context", error)
        return {}
    return carrier


def extract(headers: Mapping[str, Any], context: Context) -> Context:
    """The context that headers carry.

    Args:
        headers: a message's headers, names in lower case, values as they came.
        context: what to add it to.

    Returns:
        The context with it, or ``context`` itself when the headers carry none.
    """
    try:
        # A propagator may answer None: the no-op one of OTEL_PROPAGATORS=none does.
        return propagate.get_global_textmap().extract(headers, context, _getter) or context
    except Exception as error:
        safety.report("extracting a context", error)
        return context
