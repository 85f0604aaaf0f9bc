"""Forked children: what was counted, begun or locked in the parent is the parent's."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from . import finalizers, safety


class Inherited(Protocol):
    """What a forked child has a copy of."""

    def disown(self) -> None:
        """Called in the child: leave to the parent what is the parent's."""


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def watch(inherited: Inherited) -> None:
    """Tell an object in every child that is forked from now on, for as long as somebody keeps it."""
    _inherited.add(inherited)


def _in_child() -> None:
    for inherited in (finalizers, *_inherited):
        _tell(inherited)


def _tell(inherited: Inherited) -> None:
    try:
        inherited.disown()
    except Exception as error:
        safety.report("forking", error)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
