"""What is measured: every path in every state, ours, the official package, and the floor."""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from .environment import Callgrind, Worker, describe
from .paths import PATHS

Told = dict[tuple[str, str], dict[str, Any]]
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
        official_floor: what a hand-written span with the attributes of the official package adds.
        spread: the lowest and the highest of what ours adds, where it varies.
    """

    plain: float
    floor: float
    ours: float
    official: float | None = None
    official_floor: float | None = None
    spread: tuple[float, float] | None = None


def cases(quick: bool) -> list[Case]:
    """All of them; metrics are there where spans are recorded, and where nothing is."""
    plain = [Case(path, state, metered=False) for path in PATHS for state in STATES]
    if quick:
        return [case for case in plain if case.state == "recorded"]
    return plain + [Case(path, state, metered=True) for path in PATHS for state in ("recorded", "no SDK")]


def describe_all() -> Told:
    """What one message makes, by path and arm."""
    keys = [(path, arm) for path in PATHS for arm in ("ours", "official")]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(keys, pool.map(lambda key: describe(*key), keys), strict=True))


def _imitated(told: Told, case: Case, arm: str = "ours") -> dict[str, Any]:
    """The span that the floor of a case has."""
    span = told[case.path, arm]
    return span if case.metered else {**span, "metrics": []}


def instructions(counter: Callgrind, told: Told, cases: list[Case], count: int) -> dict[Case, Figures]:
    """Instructions per message, each arm in a process of its own."""

    def plain(path: str, carrying: bool) -> dict[str, float]:
        job = {"path": path, "arm": "plain", "state": "no SDK", "metrics": False, "carrying": carrying}
        return counter.count(job, ["path", "empty"], count)

    def one(case: Case) -> Figures:
        job = {**case.job("ours"), "floor": _imitated(told, case)}
        ours = counter.count(job, ["path", "floor"], count)
        official = {}
        if not case.metered:
            job = {**case.job("official"), "floor": _imitated(told, case, "official")}
            official = counter.count(job, ["path", "floor"], count)
        base, empty = bases[case.path, False]["path"], bases[case.path, False]["empty"]
        carry = bases[case.path, _carries(case)]["path"] - base
        return Figures(
            plain=base,
            floor=ours["floor"] - empty + carry,
            ours=ours["path"] - base,
            official=official["path"] - base if official else None,
            official_floor=official["floor"] - empty + carry if official else None,
        )

    wanted = sorted({(case.path, carrying) for case in cases for carrying in (False, _carries(case))})
    with ThreadPoolExecutor(2) as pool:
        bases = dict(zip(wanted, pool.map(lambda key: plain(*key), wanted), strict=True))
        return dict(zip(cases, pool.map(one, cases), strict=True))


def spans(counter: Callgrind, count: int) -> list[tuple[str, str, float]]:
    """Instructions of a span that is written by hand without much care: what it is, in which state, how many."""
    found = []
    for state in ("recorded", "sampler off", "no SDK"):
        job = {"path": next(iter(PATHS)), "arm": "plain", "state": state, "metrics": False}
        seen = counter.count(job, ["sending", "receiving", "empty"], count)
        found += [(what, TITLES[state], seen[what] - seen["empty"]) for what in ("sending", "receiving")]
    return sorted(found, reverse=True)


def times(told: Told, cases: list[Case], rounds: int, count: int) -> dict[Case, Figures]:
    """Nanoseconds of processor time per message, the arms in turn, and each round's differences."""
    return {case: _timed(case, told, rounds, count) for case in cases if not case.metered}


def _timed(case: Case, told: Told, rounds: int, count: int) -> Figures:
    with ExitStack() as stack:
        plain = stack.enter_context(Worker(case.job("plain")))
        carrying = stack.enter_context(Worker({**case.job("plain"), "carrying": _carries(case)}))
        ours = stack.enter_context(Worker({**case.job("ours"), "floor": _imitated(told, case)}))
        official = stack.enter_context(Worker(case.job("official")))
        turns = ((plain, "path"), (carrying, "path"), (ours, "path"), (ours, "floor"), (official, "path"))
        seen = [[worker.run(what, count) / count for worker, what in turns] for _ in range(rounds)]
    added = [round_[2] - round_[0] for round_ in seen]
    return Figures(
        plain=statistics.median(round_[0] for round_ in seen),
        floor=statistics.median(round_[3] + round_[1] - round_[0] for round_ in seen),
        ours=statistics.median(added),
        official=statistics.median(round_[4] - round_[0] for round_ in seen),
        spread=(min(added), max(added)),
    )


def _carries(case: Case) -> bool:
    """Whether a message gets a header, which costs the library something too."""
    return not PATHS[case.path].consumes and case.state != "no SDK"
