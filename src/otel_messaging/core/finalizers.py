"""What ends in a finalizer: not there, since it may run in the middle of the SDK's own work, with a lock of it held.

The cyclic collector starts wherever a thread happens to be. It runs ``__del__`` methods, callbacks of weak references,
and what is left of suspended generators and coroutines, ours and the application's. A lock that is held at that place
would wait for itself for ever. So nothing of the SDK or the API is called there, no lock is taken, and the current
context, which is anybody's, is left alone. What would have ended is put aside with its time, and ends at the next
ordinary call.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections import deque
from functools import wraps
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Owner = TypeVar("Owner")

finalizing: set[int] = set()
"""The threads in which the collector is at work: nearly always none, which costs little to see."""
_letting_go: set[int] = set()
"""Those in which a `finalizer` is at work, also below the collector or around it."""
aside: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
"""What is to be called in an ordinary call: nearly always nothing."""
_at_exit: list[object] = []


def is_finalizing() -> bool:
    """Whether the collector, or a `finalizer`, is at work in this thread."""
    return get_ident() in finalizing


def put_aside(end: Callable[..., object], *args: Any) -> None:
    """Leave something to the next ordinary call.

    Args:
        end: what to call there. It guards itself.
        *args: its arguments. Nothing of the application's own that could be kept by them for long.
    """
    if not _at_exit:
        _at_exit.append(atexit.register(end_aside))  # now: what is to end is older, and its provider's own handler too
    aside.append((end, args))


def end_aside() -> None:
    """End what was put aside. Called at ordinary calls, when metrics are collected, and at exit."""
    if finalizing and is_finalizing():
        return
    while aside:
        try:
            end, args = aside.popleft()
        except IndexError:
            return  # another thread has taken it
        end(*args)


def finalizer(method: Callable[[Owner], None]) -> Callable[[Owner], None]:
    """Make a method that guards itself a ``__del__``: what it ends is put aside, whoever lets go of the object.

    While the interpreter exits it does nothing: nobody would end what is put aside then, and modules may be empty.
    """
    is_exiting = sys.is_finalizing

    @wraps(method)
    def __del__(self: Owner) -> None:  # noqa: N807 (it becomes one)
        if is_exiting():
            return
        thread = get_ident()
        collects, outermost = thread in finalizing, thread not in _letting_go
        try:
            _letting_go.add(thread)
            finalizing.add(thread)
            method(self)
        finally:
            if outermost:
                _letting_go.discard(thread)
            if not collects:
                finalizing.discard(thread)

    return __del__


def _watch_collector(phase: str, _info: dict[str, int]) -> None:
    thread = get_ident()
    if phase == "start":
        finalizing.add(thread)
    elif thread not in _letting_go:  # nothing else is asked: a signal may have cut off an earlier call of this
        finalizing.discard(thread)


def disown() -> None:
    """In a forked child: what was put aside is for the parent to end, and the collector's other threads are gone."""
    aside.clear()
    for threads in (finalizing, _letting_go):
        threads.intersection_update((get_ident(),))


gc.callbacks.append(_watch_collector)
