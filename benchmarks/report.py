"""The figures as tables: of rich on a terminal, of Markdown in a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from .environment import FOLDER, PACKAGES, machine
from .measure import TITLES, Case, Figures
from .paths import PATHS


@dataclass
class Table:
    """One table.

    Attributes:
        title: what it shows.
        note: how to read it.
        heads: the titles of the columns.
        rows: the cells.
    """

    title: str
    note: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Print it."""
        table = RichTable(title=self.title, caption=self.note)
        for index, head in enumerate(self.heads):
            table.add_column(head, justify="right" if index > 1 else "left", no_wrap=index < 2)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """Write it."""
        marks = ("---" if index < 2 else "--:" for index, _ in enumerate(self.heads))
        lines = (_line(self.heads), _line(marks), *map(_line, self.rows))
        return "\n".join((f"## {self.title}", "", self.note, "", *lines, ""))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def costs(title: str, note: str, figures: dict[Case, Figures]) -> Table:
    """What each case adds, in thousands of instructions or in microseconds."""
    spread = any(one.spread for one in figures.values())
    heads = ("path", "state", "plain", "floor", "ours", "official", "ours / floor", "ours / official")
    attributes = any(one.official_floor for one in figures.values())
    heads = (*heads, "official / its floor") if attributes else heads
    table = Table(title, note, (*heads, "ours, lowest to highest") if spread else heads)
    for case, one in figures.items():
        state = f"{TITLES[case.state]}, metrics" if case.metered else TITLES[case.state]
        official = "" if one.official is None else f"{one.official / 1000:.1f}"
        against = "" if one.official is None else f"{one.ours / one.official:.2f}"
        numbers = (f"{one.plain / 1000:.1f}", f"{one.floor / 1000:.1f}", f"{one.ours / 1000:.1f}", official)
        row = (PATHS[case.path].title, state, *numbers, f"{one.ours / one.floor:.2f}", against)
        if attributes:
            row = (*row, f"{one.official / one.official_floor:.2f}" if one.official and one.official_floor else "")
        between = f"{one.spread[0] / 1000:.1f} to {one.spread[1] / 1000:.1f}" if one.spread else ""
        table.rows.append((*row, between) if spread else row)
    return table


def write(tables: list[Table], target: Path) -> None:
    """Write the tables with the versions and the machine."""
    names = {package.split("==")[0] for package in PACKAGES} | {"opentelemetry-api", "aiormq"}
    found = {one.metadata["Name"]: one.version for one in distributions(path=_site())}
    versions = ", ".join(f"{name} {found[name]}" for name in sorted(names & found.keys()))
    head = f"# What is added to each message\n\nWritten by `make bench`. {machine()}. {versions}.\n"
    target.write_text("\n".join((head, *(table.markdown() for table in tables))))


def _site() -> list[str]:
    return [str(folder) for folder in FOLDER.glob("lib/python*/site-packages")]
