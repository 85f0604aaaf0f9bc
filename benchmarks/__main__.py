"""`python -m benchmarks [--quick]`: measure, print, and write results.md beside this file."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from examples import brokers as real

from . import brokers, calls, measure, report
from .environment import Callgrind, prepare, run_module
from .paths import PATHS

INSTRUCTIONS = (
    "Thousands of instructions per message, counted by callgrind. `plain` is the call without instrumentation; the "
    "other columns are what is added to it. The floor is a span written by hand, with the same attributes, in the same "
    "process; where it injects a context, it includes what the library itself spends on one more header. The official "
    "packages set fewer attributes, and an attribute costs the SDK five thousand instructions or more: so the last "
    "column compares each of them with a span written by hand with just its attributes."
)
SPAN = (
    "Thousands of instructions of a span with eight attributes around the sending of a message, with its context put "
    "into a dictionary, and around the receiving of one, with its context from a dictionary and current meanwhile: "
    "written by hand, by somebody who does not count instructions. The floor above is written more tightly (a bound "
    "`start_span`, the kind looked up once, contexts handed on), has more attributes, and sets the status."
)
TIME = (
    "Microseconds of processor time per message, arms in turn, median of the rounds. On a busy machine single ratios "
    "move by 15 %; the instructions do not."
)
CALLS = (
    "Calls of Python functions per message where spans are recorded: what ours adds over the floor is spent in its few "
    "functions, and in no single one of them. Functions of the official packages are counted with the API and the SDK."
)
BROKERS = "Through brokers on this machine, BatchSpanProcessor with a null exporter, median of the rounds."


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="recorded spans only and no brokers; nothing is written")
    quick = parser.parse_args().quick
    console = Console(width=None if sys.stdout.isatty() else 132)
    with console.status("Making the environment with the official packages"):
        prepare()
    tables = []
    with console.status("Counting") as status:
        told = measure.describe_all()
        for table in _tables(told, quick, status.update):
            table.show(console)
            tables.append(table)
    if not quick:
        target = Path(__file__).with_name("results.md")
        report.write(tables, target)
        console.print(f"Written to {target.name}")


def _tables(told, quick, say):
    counter = Callgrind.find()
    if counter is not None:
        with counter:
            say("Counting instructions")
            figures = measure.instructions(counter, told, measure.cases(quick), 100 if quick else 300)
            spans = [] if quick else measure.spans(counter, 300)
        yield report.costs("Instructions", INSTRUCTIONS, figures)
        if spans:
            rows = [(what, state, f"{cost / 1000:.1f}") for what, state, cost in spans]
            yield report.Table("One span", SPAN, ("around", "state", "instructions"), rows)
    if counter is None or not quick:
        say("Measuring processor time")
        figures = measure.times(told, measure.cases(quick), rounds=9, count=100 if quick else 300)
        yield report.costs("Processor time", TIME, figures)
    if not quick:
        say("Counting calls")
        yield _calls()
        say("Sending through brokers")
        yield _through_brokers(rounds=5)


def _calls() -> report.Table:
    owners = (calls.OURS, calls.SDK, calls.LIBRARY, calls.REST)
    table = report.Table("Calls", CALLS, ("path", "arm", *owners))
    for path, kind in PATHS.items():
        for arm in ("plain", "ours", "official"):
            seen = json.loads(run_module("benchmarks.calls", {"path": path, "arm": arm, "state": "recorded"}))
            table.rows.append((kind.title, arm, *(f"{seen[owner]:.0f}" for owner in owners)))
    return table


def _through_brokers(rounds: int) -> report.Table:
    table = report.Table("Through brokers", BROKERS, ("broker", "direction", *_COLUMNS))
    starts = {"kafka_python": real.kafka, "aio_pika": real.rabbitmq, "nats_py": real.nats}
    for library, start in starts.items():
        with ExitStack() as stack:
            address = real.enter_if_available(stack, start())
            if address:
                table.rows.extend(_rows(library, address, rounds, brokers.COUNTS[library]))
    return table


_COLUMNS = ("plain, messages/s", "instrumented, messages/s", "plain, CPU us/message", "instrumented, CPU us/message")


def _rows(library: str, address: str, rounds: int, count: int):
    job = {"library": library, "address": address, "count": count}
    seen = [[_run({**job, "instrumented": arm}) for arm in (False, True)] for _ in range(rounds)]
    for direction in seen[0][0]:
        rates = [statistics.median(round_[arm][direction][0] for round_ in seen) for arm in (0, 1)]
        spent = [statistics.median(round_[arm][direction][1] for round_ in seen) for arm in (0, 1)]
        numbers = (*(f"{rate:,.0f}" for rate in rates), *(f"{one:.0f}" for one in spent))
        yield (brokers.TITLES[library], direction, *numbers)


def _run(job):
    return json.loads(run_module("benchmarks.brokers", job, stderr=subprocess.DEVNULL))


if __name__ == "__main__":
    main()
