"""How large a message streams take, learnt from what they have refused.

A stream's ``max_msg_size`` counts headers, and nobody tells the client beforehand. A message that was refused is not
sent again: who subscribes to its subject beside the stream has got it. Its error is the application's, and the next
messages of that stream go without a context that would make them as large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import Cache

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOO_LARGE = 10054  # JetStream's code for a message that crosses the limit of its stream
_START = len("NATS/1.0\r\n\r\n")
_LINE = len(": \r\n")


def size_of(payload: Any, headers: Mapping[str, Any] | None) -> int:
    """How many bytes a message is to the server."""
    if not headers:
        return len(payload)
    return len(payload) + _START + sum(len(name) + len(str(value).encode()) + _LINE for name, value in headers.items())


def is_too_large(error: BaseException) -> bool:
    """Whether a stream has refused a message for its size, and not stored it."""
    return getattr(error, "err_code", None) == _TOO_LARGE


class Limits:
    """What the streams of one connection have refused, and what they have accepted since then.

    Attributes:
        sizes: of each stream that has refused a message: up to which size a context may make one, in bytes.
    """

    def __init__(self) -> None:
        self.sizes: Cache[str, int] = Cache()
        self._streams: Cache[str, str] = Cache()

    def refused(self, subject: str, size: int, stream: str | None = None) -> None:
        """A stream has refused a message for its size.

        If that was for our context, the message itself would have fitted. So a context is harmless if it makes no
        message larger than this one was itself: a stream refuses one message for our sake at the most.

        Args:
            subject: the message's.
            size: what it would have been without anything of ours, in bytes.
            stream: the stream's name, where it has told that.
        """
        stream = v.named(stream) or self._streams.get(subject, subject)
        self._note(subject, stream)
        self.sizes.put(stream, min(size, self.sizes.get(stream, size)))

    def accepted(self, subject: str, size: int, stream: str) -> None:
        """A stream has stored a message: it takes at least as large ones, perhaps since its limit was raised."""
        stream = v.named(stream) or subject
        self._note(subject, stream)
        if size > self.sizes.get(stream, size):
            self.sizes[stream] = size

    def lower(self, limit: int, subject: str, is_stored: bool) -> int:
        """Up to which size a context may make a message, in bytes.

        Args:
            limit: the same to the server.
            subject: the message's.
            is_stored: whether a stream will answer it. Then it may be any that has refused a message, until it answers.
        """
        stream = self._streams.get(subject)
        if stream is not None:
            return min(limit, self.sizes.get(stream, limit))
        return min((limit, *self.sizes.values())) if is_stored else limit

    def _note(self, subject: str, stream: str) -> None:
        if self._streams.get(subject) != stream:
            self._streams.put(subject, stream)


_known: WeakKeyDictionary[Any, Limits] = WeakKeyDictionary()


def limits_of(connection: Any) -> Limits:
    """What the streams of a connection have refused."""
    return _known.setdefault(connection, Limits())
