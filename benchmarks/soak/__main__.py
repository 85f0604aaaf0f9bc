"""`python -m benchmarks.soak aio_pika [--messages 120000] [--bare]`: send and consume for minutes, watch what stays.

The exit status tells whether memory stayed the same and every message had its spans.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

from .watch import Watch


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("library", choices=sorted(_libraries()))
    parser.add_argument("--bare", action="store_true", help="without instrumentation, to compare")
    parser.add_argument(
        "--messages", type=int, default=120_000, help="how many, a multiple of 240 (default: %(default)s)"
    )
    options = parser.parse_args()
    module = importlib.import_module(f"{__package__}.{options.library}")
    watch = getattr(module, "Watch", Watch)(options.messages)
    module.run(watch, options.messages, options.bare)
    faults = watch.judge(options.bare)
    for fault in faults:
        print(f"WRONG: {fault}")
    sys.exit(1 if faults else 0)


def _libraries() -> set[str]:
    """The modules beside this one that have a `run`."""
    found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return found - {"__main__", "watch"}


if __name__ == "__main__":
    main()
