"""Lists of messages as the library returns them, whose messages are handled one by one as they are looped over."""

from __future__ import annotations

import opcode
import sys
from threading import get_ident
from typing import TYPE_CHECKING, Any

from otel_messaging.core import safety

from .loops import HeldByThread, caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType
    from typing import SupportsIndex

    from otel_messaging.core.delivery import Delivery

    from .loops import Held

_LOOPS = frozenset({"FOR_ITER", "SEND", "YIELD_FROM"})
_UNPACKINGS = frozenset({"UNPACK_SEQUENCE", "UNPACK_EX"})
_POOLS = ("concurrent.futures.", "multiprocessing.")


class Batch(list[Any]):
    """A list of messages, in all but its loops a plain list: equal to one, and copied and pickled as one.

    A ``for`` loop or a comprehension over it, also through ``enumerate``, ``chain`` or a generator, handles each
    message while its body runs. What takes the list at once (``list``, ``sorted``, a pool's ``map``) handles nothing.
    No message is handled twice, and none while another loop over the same list is in its body in the same thread.

    Args:
        messages: what the library has returned.
        begin: starts to handle one of them. It never raises.
    """

    __slots__ = ("_begin", "_begun", "held")

    def __init__(self, messages: list[Any], begin: Callable[[Any], Delivery | None]) -> None:
        super().__init__(messages)
        self.held = HeldByThread()
        self._begin = begin
        self._begun: dict[int, object] = {}

    def __iter__(self) -> Iterator[Any]:
        return _BatchLoop(self, super().__iter__())

    def __reduce_ex__(self, _protocol: Any) -> tuple[type, tuple[list[Any]]]:
        return list, (self[:],)

    def claim(self) -> None:
        """The application handles all messages at once, and none of them by itself."""
        for message in self[:]:
            self._begun.setdefault(id(message), self)

    def take(self, _message: Any) -> None:
        """The list is unpacked, which tells nothing of where the handling of each of several messages begins."""

    def begin(self, message: Any, held: Held) -> None:
        """A loop has a message of the batch, perhaps not for the first time.

        Args:
            message: the message.
            held: what the loop's thread has.
        """
        mark = object()
        if self._begun.setdefault(id(message), mark) is mark:  # atomic: two threads may loop over one list
            held.hold(self._begin(message))


class Single(Batch):
    """A batch of one message, which is also handled from the moment that it is taken out: by index, `pop` or unpacking.

    Args:
        messages: what the library has returned.
        begin: starts to handle the message in a loop. It never raises.
        take: starts to handle it otherwise, until whatever ends the handling of a pulled message.
    """

    __slots__ = ("_take",)

    def __init__(
        self, messages: list[Any], begin: Callable[[Any], Delivery | None], take: Callable[[Any], None]
    ) -> None:
        super().__init__(messages, begin)
        self._take = take

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if not isinstance(index, slice):
            self.take(found)
        return found

    def pop(self, index: SupportsIndex = -1, /) -> Any:
        """Remove the message and return it."""
        message = super().pop(index)
        self.take(message)
        return message

    def take(self, message: Any) -> None:
        """The application has the message, perhaps not for the first time, and perhaps in a loop."""
        mark = object()
        if self._begun.setdefault(id(message), mark) is mark:
            safety.guard("taking a message out of a list", self._take, message)


class _BatchLoop:
    """A loop over a batch, which the interpreter lets go of the moment that the loop is left."""

    __slots__ = ("_asked", "_batch", "_plain", "_token")

    def __init__(self, batch: Batch, plain: Iterator[Any]) -> None:
        self._batch = batch
        self._plain = plain
        self._token = object()
        self._asked: tuple[CodeType | None, int, str] = (None, -1, "")

    def __iter__(self) -> _BatchLoop:
        return self

    def __next__(self) -> Any:
        batch = self._batch
        held = batch.held.parts.get(get_ident()) or batch.held.part()
        handles = held.ask(self._token)
        message = next(self._plain)
        try:
            if handles:
                asks = self._asks(sys._getframe(1))
                if asks in _LOOPS:
                    batch.begin(message, held)
                elif asks in _UNPACKINGS:
                    batch.take(message)
        except Exception as error:
            safety.report("looping over a batch", error)
        return message

    def _asks(self, frame: FrameType) -> str:
        """The instruction that a frame is at: a loop, or what takes all at once. The same frame asks many times."""
        code, at, name = self._asked
        if frame.f_code is not code or frame.f_lasti != at:
            code, at = frame.f_code, frame.f_lasti
            name = "" if _is_pool(frame) else _instruction(code.co_code, at)
            self._asked = (code, at, name)  # at one stroke: threads may share an iterator, too
        return name

    def __length_hint__(self) -> int:
        return self._plain.__length_hint__()  # type: ignore[attr-defined, no-any-return]

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self._plain.__reduce__()

    def __setstate__(self, index: Any) -> None:
        self._plain.__setstate__(index)  # type: ignore[attr-defined]

    def __del__(self, is_exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_exiting():
            return
        try:
            self._batch.held.leave(self._token, caller())
        except Exception as error:
            safety.report("leaving a loop", error)


def _instruction(code: bytes, at: int) -> str:
    """The name of the instruction at an index. Until Python 3.10 that may be of the prefixes of a long argument."""
    while code[at] == opcode.EXTENDED_ARG:
        at += 2
    return opcode.opname[code[at]]


def _is_pool(frame: FrameType) -> bool:
    """Whether a loop is that of a pool, which hands all messages to its workers."""
    return str(frame.f_globals.get("__name__")).startswith(_POOLS)
