"""Whose functions a message runs through: `python -m benchmarks.calls '{...}'` prints calls per message by owner."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from types import FrameType
from typing import Any

from .worker import LIBRARIES, opened, provide

COUNT = 100
OURS, SDK, LIBRARY, REST = "ours", "API and SDK", "the library", "standard library"


def main() -> None:
    """Do what the first argument says."""
    print(json.dumps(asyncio.run(count(json.loads(sys.argv[1])))))
    sys.stdout.flush()
    os._exit(0)  # the clients believe that they are connected


async def count(job: dict[str, Any]) -> dict[str, float]:
    """Calls of Python functions per message, by who has written them."""
    provide(job["state"], metered=False)
    path = await opened(job)
    await path.run(COUNT)
    made: Counter[str] = Counter()

    def see(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            made[_owner(frame.f_globals.get("__name__") or "")] += 1

    sys.setprofile(see)
    await path.run(COUNT)
    sys.setprofile(None)
    return {owner: made[owner] / COUNT for owner in (OURS, SDK, LIBRARY, REST)}


def _owner(module: str) -> str:
    top = module.partition(".")[0]
    if top == "otel_messaging":
        return OURS
    if top == "opentelemetry":
        return SDK
    return LIBRARY if top in {*LIBRARIES.values(), "aiormq", "pamqp"} else REST


if __name__ == "__main__":
    main()
