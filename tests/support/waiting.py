"""Waiting for what happens in other tasks and threads."""

from __future__ import annotations

import asyncio
import time


async def until(condition, timeout: float = 5.0):
    """Let other tasks run until a condition holds, and return its value."""
    end = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.005)
