"""How records are read."""

from __future__ import annotations

from typing import Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.propagation import as_text

SYSTEM = ((v.SYSTEM, "kafka"),)


def key_text(key: Any) -> str | None:
    """A key as text, if it has one that is beyond doubt."""
    if type(key) is bytes:  # the most usual first
        try:
            return key.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(key, (int, float)):
        return str(key)
    return None if isinstance(key, (list, tuple)) else as_text(key)


def describe(record: Any, behind: int | None = None) -> v.Facts:
    """What is known of a record, and of how many were behind it."""
    size, key = record.serialized_value_size, record.key
    facts: v.Facts = (
        (v.KAFKA_OFFSET, record.offset),
        # The size tells whether there was a value: itself it is what a deserializer has made of it.
        (v.BODY_SIZE, size) if size >= 0 else (v.KAFKA_TOMBSTONE, True),
    )
    if key is not None:
        facts += ((v.KAFKA_KEY, key_text(key)),)
    if behind is not None:
        facts += ((v.LAG, behind),)
    return facts


def fold(headers: list[tuple[str, bytes | None]]) -> dict[str, bytes | None] | None:
    """Headers with their names in lower case, of repeated ones the last; None where there are none."""
    if not headers:
        return None
    folded = {}
    for name, value in headers:
        folded[name.lower()] = value
    return folded


def well_formed(headers: Any) -> bool:
    """Whether the library will take these headers: if not, its own error must reach the application."""
    return isinstance(headers, list) and all(
        isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], bytes)
        for item in headers
    )
