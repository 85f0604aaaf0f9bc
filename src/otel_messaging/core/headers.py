"""Headers that cannot hurt: what a sender has written, before a propagator reads it, and what a propagator has written.

Anybody can send a message. The propagators of the API take a time that grows with the square of a header's blanks, and
they log what they do not understand, a line for each part of it, in the sender's own words. So they are given only what
they understand: https://www.w3.org/TR/baggage and https://www.w3.org/TR/trace-context.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, unquote_plus

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 8192
"""How many bytes of a header a propagator is given."""
_GAP = " " * 64  # a run of blanks that nobody writes

# Both expressions match in a time that grows with the length alone: no two neighbours in them share a character.
_TOKEN = r"[!#-'*+\-.0-9A-Z^-z|~]"
_VALUE = r"[!#-+\--:<-\[\]-~]*"
_MEMBER = rf"{_TOKEN}+={_VALUE}(?:;{_TOKEN}+(?:={_VALUE})?)*"
_BAGGAGE_MEMBER = re.compile(_MEMBER)
_BAGGAGE = re.compile(rf"{_MEMBER}(?:,{_MEMBER})*")
_STATE_KEY = r"(?:[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13})"
_STATE_MEMBER = re.compile(rf"{_STATE_KEY}=[ -+\--<>-~]{{0,255}}[!-+\--<>-~]")

_BLANKS = re.compile(r"(?<! ) +(?=[,;=])|(?<=[,;=]) +")  # around delimiters; each run is looked at once
BAGGAGE_MEMBERS, BAGGAGE_MEMBER_LENGTH = 180, 4096
_GROWTH = 3  # times that baggage is as long at most, once it is decoded and encoded again
STATE_MEMBERS = 32
PARENT_LENGTH = 512

_NAME = re.compile(_TOKEN + "{1,255}")


def harmless(name: str, text: str) -> str | None:
    """What a propagator is given of a header.

    Args:
        name: the header's, in lower case.
        text: its value, of any length and content.

    Returns:
        The value without what could hurt: at most 8,192 bytes, no control characters, no long runs of blanks, and of
        W3C's headers only what is well formed. None where nothing is left.
    """
    text = text.replace("\t", " ").strip()
    if len(text) > LARGEST or not text.isprintable() or (not text.isascii() and len(text.encode()) > LARGEST):
        return None
    tidy = _TIDIED.get(name)
    if tidy is not None:
        text = tidy(text)
    return None if not text or _GAP in text else text


def is_sendable(name: Any, value: Any) -> bool:
    """Whether every library sends a header that a propagator has written: both are text, and end no line."""
    return (
        isinstance(name, str) and isinstance(value, str) and _NAME.fullmatch(name) is not None and value.isprintable()
    )


def _parent(text: str) -> str:
    return text if len(text) <= PARENT_LENGTH else ""


def _baggage(text: str) -> str:
    """The members that are well formed and can travel on, of the first 180: no propagator takes more."""
    if " " in text:
        text = _BLANKS.sub("", text)
    if len(text) <= BAGGAGE_MEMBER_LENGTH // _GROWTH and text.count(",") < BAGGAGE_MEMBERS and _BAGGAGE.fullmatch(text):
        return text  # as nearly all write it
    taken, room = [], LARGEST
    for member in [member for member in text.split(",") if member][:BAGGAGE_MEMBERS]:
        if _BAGGAGE_MEMBER.fullmatch(member):
            size = _encoded(member)
            if size <= min(room, BAGGAGE_MEMBER_LENGTH):
                taken.append(member)
                room -= size + 1
    return ",".join(taken)


def _encoded(member: str) -> int:
    """How long a member of baggage is when it is sent on. What is too long then is dropped and logged by the API."""
    return sum(len(quote_plus(unquote_plus(part))) for part in member.split("=", 1)) + 1


def _state(text: str) -> str:
    """All members, or none where one is malformed, as the specification wants it."""
    members = [member for member in (part.strip() for part in text.split(",")) if member]
    well_formed = len(members) <= STATE_MEMBERS and all(map(_STATE_MEMBER.fullmatch, members))
    return ",".join(members) if well_formed else ""


_TIDIED: dict[str, Callable[[str], str]] = {"traceparent": _parent, "baggage": _baggage, "tracestate": _state}
