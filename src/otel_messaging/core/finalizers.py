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
from functools import partial, wraps
from threading import get_ident, local
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Owner = TypeVar("Owner")

finalizing: dict[object, object] = {}
"""The threads in which a `finalizer` is at work, and what the collector does: nearly always nothing."""
aside: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
"""What is to be called in an ordinary call: nearly always nothing."""
_at_exit: list[object] = []


def is_finalizing() -> bool:
    """Whether the collector, or a `finalizer`, is at work in this thread."""
    doing = finalizing.get(_collector)
    return get_ident() in finalizing or (doing is not None and getattr(_own, "start", None) is doing)


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
        outermost = thread not in finalizing
        try:
            finalizing[thread] = True
            method(self)
        finally:
            if outermost:
                finalizing.pop(thread, None)

    return __del__


class _Collector:
    """Is told when the collector begins and ends, without a line of Python.

    A signal that arrives while the collector is at work is handled by the next line that runs. If that were one of
    ours, what the handler raises, such as Ctrl-C, would be lost: what is raised in such a call goes no further.
    """

    start = property(None, finalizing.__setitem__)
    stop = property(None, finalizing.pop)  # type: ignore[arg-type]


_collector = _Collector()


def _of_threads() -> Any:
    """Return an object with attributes for each thread: not for each of gevent's greenlets, which are gone at exit."""
    monkey = sys.modules.get("gevent.monkey")
    kind = local if monkey is None else monkey.get_original("threading", "local")
    return kind()


_own = _of_threads()
"""What the collector did last in each thread, by the object that describes it."""


def disown() -> None:
    """In a forked child: what was put aside is for the parent to end, and the collector's other threads are gone."""
    aside.clear()
    for at_work in list(finalizing):
        if at_work != get_ident() and not (at_work is _collector and is_finalizing()):
            finalizing.pop(at_work, None)


gc.callbacks.extend((partial(setattr, _own), partial(setattr, _collector)))
