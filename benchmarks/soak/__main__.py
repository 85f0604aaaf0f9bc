"""`python -m benchmarks.soak kafka_python [--messages 200000]`: send and consume for minutes, and watch what stays.

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
    parser.add_argument("--messages", type=int, default=200_000, help="how many in all (default: %(default)s)")
    options = parser.parse_args()
    module = importlib.import_module(f"{__package__}.{options.library}")
    watch = Watch(options.messages)
    module.run(watch, options.messages)
    faults = watch.judge()
    for fault in faults:
        print(f"WRONG: {fault}")
    sys.exit(1 if faults else 0)


def _libraries() -> set[str]:
    """The modules beside this one that have a `run`."""
    found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return found - {"__main__", "watch"}


if __name__ == "__main__":
    main()
