"""How large the headers of a message may be.

AMQP sends the properties of a message, its headers among them, in one frame, which cannot be split as a body can. A
larger one than the connection has agreed on is an error for which the broker closes the connection:
https://www.rabbitmq.com/amqp-0-9-1-reference#connection.tune.frame-max
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

FLAT = frozenset({bool, int, float, type(None), datetime, Decimal})
"""Types whose values have eight bytes at the most."""
PER_VALUE = 300
"""Bytes that a header takes at the most, beside those of a text: its name is cut at 128 characters."""
PER_CHARACTER = 4
"""In UTF-8."""
PER_MESSAGE: float = 2700
"""Bytes of all else: ten short strings, the other properties, what is fixed, and a `traceparent`."""
_FIXED = 12  # class, weight, and the body's size
_ASSIGNED_ID = 33  # a message without an id gets one from the transport


def fits(properties: Any, room: int) -> bool:
    """Whether the properties of a message can be sent in one frame. True also where they cannot be sent at all.

    Args:
        properties: the transport's.
        room: for how many bytes a frame has room; none or less where frames have no limit.
    """
    if room <= 0 or _most(properties.headers.values()) + PER_MESSAGE <= room:
        return True
    try:
        size = _FIXED + len(properties.marshal())
    except Exception:
        return True  # the library says so itself
    return bool(size + (0 if properties.message_id else _ASSIGNED_ID) <= room)


def _most(values: Collection[Any]) -> float:
    """How many bytes headers have at the most, which is known without encoding them."""
    size: float = PER_VALUE * len(values)
    for value in values:
        kind = type(value)
        if kind is str:
            size += PER_CHARACTER * len(value)
        elif kind is bytearray:
            size += len(value)
        elif kind is list or kind is dict:
            size += _most(value if kind is list else value.values())
        elif kind not in FLAT:
            return inf
    return size
