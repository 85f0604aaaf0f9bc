"""Methods that close what messages come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .state import find
from .wrapping import around

if TYPE_CHECKING:
    from .adapter import Adapter


def _close(_adapter: Adapter, owner: Any) -> None:
    state = find(owner)
    if state is not None:
        state.close()


closes = around(_close)
"""The replacement of a method that closes an object: what is kept for it is closed before."""
