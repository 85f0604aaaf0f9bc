"""What is measured: every path in every state, ours, the official package, and the floor."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from .environment import Callgrind, Worker, describe
from .paths import PATHS

STATES = ("recorded", "batch", "sampler off", "no SDK")
TITLES = {
    "recorded": "recorded",
    "batch": "recorded and batched",
    "sampler off": "sampler off",
    "no SDK": "no SDK",
}


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        path: where messages go.
        state: what the SDK does.
        metered: whether there is a meter provider.
    """

    path: str
    state: str
    metered: bool

    def job(self, arm: str) -> dict[str, Any]:
        """What a worker is told."""
        return {"path": self.path, "arm": arm, "state": self.state, "metrics": self.metered}


@dataclass(frozen=True)
class Figures:
    """What one case costs per message, in instructions or in nanoseconds; None where it was not measured.

    Attributes:
        plain: without instrumentation.
        floor: what a hand-written span adds.
        ours: what this package adds.
        official: what the official package adds.
        spread: the lowest and the highest of what ours adds, where it varies.
    """

    plain: float
    floor: float
    ours: float
    official: float | None = None
    spread: tuple[float, float] | None = None


def cases() -> Iterator[Case]:
    """All of them; metrics are there where spans are recorded, and where nothing is."""
    for path in PATHS:
        yield from (Case(path, state, metered=False) for state in STATES)
        yield from (Case(path, state, metered=True) for state in ("recorded", "no SDK"))


def describe_all() -> dict[tuple[str, str], dict[str, Any]]:
    """What one message makes, by path and arm."""
    keys = [(path, arm) for path in PATHS for arm in ("ours", "official")]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(keys, pool.map(lambda key: describe(*key), keys), strict=True))


def _imitated(told: dict[tuple[str, str], dict[str, Any]], case: Case) -> dict[str, Any]:
    """The span that the floor of a case has."""
    span = told[case.path, "ours"]
    return span if case.metered else {**span, "metrics": []}


def instructions(
    counter: Callgrind, told: dict[tuple[str, str], dict[str, Any]], count: int, done: Callable[[], Any]
) -> dict[Case, Figures]:
    """Instructions per message, each arm in a process of its own."""

    def plain(path: str) -> float:
        job = {"path": path, "arm": "plain", "state": "no SDK", "metrics": False}
        try:
            return counter.count(job, ["path"], count)["path"]
        finally:
            done()

    def one(case: Case) -> Figures:
        ours = counter.count({**case.job("ours"), "floor": _imitated(told, case)}, ["path", "floor", "empty"], count)
        official = None if case.metered else counter.count(case.job("official"), ["path"], count)["path"]
        base = bases[case.path]
        done()
        return Figures(
            base, ours["floor"] - ours["empty"], ours["path"] - base, None if official is None else official - base
        )

    every = list(cases())
    with ThreadPoolExecutor(2) as pool:
        bases = dict(zip(PATHS, pool.map(plain, PATHS), strict=True))
        return dict(zip(every, pool.map(one, every), strict=True))


def times(
    told: dict[tuple[str, str], dict[str, Any]], rounds: int, count: int, done: Callable[[], Any]
) -> dict[Case, Figures]:
    """Nanoseconds of processor time per message, the arms in turn, and each round's differences."""
    return {case: _timed(case, told, rounds, count, done) for case in cases() if not case.metered}


def _timed(
    case: Case, told: dict[tuple[str, str], dict[str, Any]], rounds: int, count: int, done: Callable[[], Any]
) -> Figures:
    with ExitStack() as stack:
        ours = stack.enter_context(Worker({**case.job("ours"), "floor": _imitated(told, case)}))
        turns = (
            (stack.enter_context(Worker(case.job("plain"))), "path"),
            (ours, "path"),
            (ours, "floor"),
            (stack.enter_context(Worker(case.job("official"))), "path"),
        )
        seen = [[worker.run(what, count) / count for worker, what in turns] for _ in range(rounds)]
    done()
    added = [round_[1] - round_[0] for round_ in seen]
    return Figures(
        plain=_middle(round_[0] for round_ in seen),
        floor=_middle(round_[2] for round_ in seen),
        ours=statistics.median(added),
        official=_middle(round_[3] - round_[0] for round_ in seen),
        spread=(min(added), max(added)),
    )


def _middle(values: Iterable[float]) -> float:
    return statistics.median(values)
