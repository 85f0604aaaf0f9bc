"""`python -m benchmarks.startup`: what this package adds to the start of a program that uses no broker, or all of them.

Instructions are counted by callgrind where it is there; they differ by about a percent from run to run, and processor
time by more.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import opentelemetry.instrumentation.auto_instrumentation as loader
from rich.console import Console

from .report import Table

NAMES = ("messaging-kafka-python", "messaging-aio-pika", "messaging-nats-py")
PROGRAMS = {"uses no broker": "pass", "imports all clients": "import kafka, aio_pika, nats"}
LOADED = {"PYTHONPATH": str(Path(loader.__file__).parent)}
WITHOUT = {**LOADED, "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(NAMES)}
ARMS = {"plain": {}, "opentelemetry-instrument": WITHOUT, "and this package": LOADED}
ROUNDS = 9
NOTE = (
    "A program from its start to its end: alone, with OpenTelemetry loaded and this package switched off, and with it. "
    "`adds` is the difference of the last two; `of it imports` is what Python spends on our own modules."
)


def main() -> None:
    """Measure and print."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    with tempfile.TemporaryDirectory() as folder:
        common = {**_inherited(), "PYTHONPYCACHEPREFIX": folder, "PYTHONHASHSEED": "0"}
        for unit, measure in _measures():
            table = Table(f"Start of a program, {unit}", NOTE, ("program", *ARMS, "adds", "ratio", "of it imports"))
            for title, code in PROGRAMS.items():
                table.rows.append((title, *_row(code, common, measure, unit)))
            table.show(console)


def _measures():
    yield "milliseconds of processor time", _milliseconds
    if shutil.which("valgrind"):
        yield "millions of instructions", _instructions


def _row(code, common, measure, unit):
    found = {arm: [] for arm in ARMS}
    for number in range(ROUNDS + 1 if measure is _milliseconds else 2):
        for arm, variables in ARMS.items():
            value = measure(code, {**common, **variables})
            if number:  # the first compiles what it imports
                found[arm].append(value)
    plain, without, with_ours = (statistics.median(values) for values in found.values())
    imports = f"{_imports(code, {**common, **LOADED}):.1f} ms"
    return (
        *(f"{value:.1f}" for value in (plain, without, with_ours, with_ours - without)),
        f"{with_ours / without:.3f}",
        imports,
    )


def _milliseconds(code, environ):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], env=environ, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _instructions(code, environ):
    under = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    done = subprocess.run([*under, sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True)
    return int(re.search(r"Collected : (\d+)", done.stderr)[1]) / 1e6


def _imports(code, environ):
    """Milliseconds spent on our own modules, at the least of several times."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    runs = []
    for _ in range(5):
        said = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stderr
        runs.append(
            sum(map(int, re.findall(r"^import time: +(\d+) \| .*\| +otel_messaging[\w.]*$", said, re.MULTILINE)))
        )
    return min(runs) / 1000


def _inherited():
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))}
    return {**kept, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


if __name__ == "__main__":
    main()
