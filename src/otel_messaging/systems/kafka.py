"""How records are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.propagation import as_text, fields

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM = ((v.SYSTEM, "kafka"),)
TOMBSTONE = ((v.BODY_SIZE, 0), (v.KAFKA_TOMBSTONE, True))
_NOTHING: dict[str, str] = {}
_HUGE = 10**100  # Python refuses to write the longest numbers out


def key_text(key: Any) -> str | None:
    """A key as text, if it has one that is beyond doubt."""
    if type(key) is bytes:  # the most usual first
        try:
            decoded = key.decode()
        except UnicodeDecodeError:
            return None
        return decoded if len(decoded) <= v.LONGEST else decoded[: v.LONGEST]
    if isinstance(key, float) or (isinstance(key, int) and abs(key) < _HUGE):
        return str(key)
    text = None if isinstance(key, (list, tuple)) else as_text(key)
    return None if text is None else v.cut(text)


def describe(record: Any, behind: int | None = None) -> v.Facts:
    """What is known of a record, and of how many were behind it."""
    key = record.key
    facts: v.Facts = ((v.KAFKA_OFFSET, record.offset), *sized(record.serialized_value_size))
    if key is not None:
        facts += ((v.KAFKA_KEY, key_text(key)),)
    if behind is not None:
        facts += ((v.LAG, behind),)
    return facts


def sized(size: int) -> v.Facts:
    """What the size of a serialized value tells: also whether there is one, whatever a deserializer makes of it."""
    return ((v.BODY_SIZE, size),) if size >= 0 else TOMBSTONE


def place(record: Any, topic: bool) -> v.Facts:
    """What tells a record from others that have come with it.

    Args:
        record: the record.
        topic: whether these are of several topics.
    """
    own = ((v.KAFKA_PARTITION, record.partition), (v.KAFKA_OFFSET, record.offset), (v.KAFKA_KEY, key_text(record.key)))
    return ((v.DESTINATION, record.topic), *own) if topic else own


def fold(headers: list[tuple[str, bytes | None]]) -> dict[str, bytes | None] | None:
    """Headers with their names in lower case, of repeated ones the last; None where there are none."""
    if not headers:
        return None
    folded = {}
    for name, value in headers:
        folded[name.lower()] = value
    return folded


def readable(headers: Any) -> dict[str, Any] | None:
    """The headers that an application sends, as `fold` has them; None where the library will not take them.

    The propagator's own fields may have any form, such as texts: they are replaced.
    """
    if well_formed(headers):
        return fold(headers)
    if not isinstance(headers, list) or not well_formed(without_fields(headers)):
        return None
    return {name: item[1] for item in headers if len(item) == 2 and (name := _name(item)) is not None}


def without_fields(headers: list[Any], carrier: Mapping[str, str] = _NOTHING) -> list[Any]:
    """Headers without those that the propagator writes, whatever form these have.

    Args:
        headers: the headers.
        carrier: what it has written now: baggage may have names that it does not tell beforehand.
    """
    own = fields()
    if not carrier.keys() <= own:
        own = own.union(name.lower() for name in carrier)
    return [item for item in headers if _name(item) not in own]


def _name(item: Any) -> str | None:
    """The name of a header in lower case, if it can have one."""
    name = item[0] if isinstance(item, (tuple, list)) and item else None
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return name.lower() if isinstance(name, str) else None


def well_formed(headers: Any) -> bool:
    """Whether the library will take these headers: if not, its own error must reach the application."""
    return isinstance(headers, list) and all(
        isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], bytes)
        for item in headers
    )
