"""The tests with the clients from the oldest supported to the newest, on every supported Python: `make test-matrix`.

A cell is a set of clients, which is a dependency group of pyproject.toml, on a Python. `make test-matrix
ARGS="-t oldest -p 3.12"` runs one, `ARGS="-l"` lists them, and what comes after `--` goes to pytest.
"""

from __future__ import annotations

import collections
import os
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
CLIENTS = [name for name, group in PROJECT["dependency-groups"].items() if {"include-group": "tools"} in group]
INSTALLED = """
import importlib.metadata as metadata
found = {one.name: one.version for one in metadata.distributions()}
print(*(f"{name} {found[name]}" for name in sorted(found) if name.startswith(("aio-pika", "kafka-python", "nats-py"))))
"""
RESULTS = ("passed", "failed", "skipped")

nox.options.default_venv_backend = "uv"
# pyenv shows the Pythons that it has only where it is told to.
pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
if pyenv.is_dir():
    os.environ.setdefault("PYENV_VERSION", ":".join(sorted(path.name for path in pyenv.iterdir())))


@dataclass
class Cell:
    """What came out of one cell.

    Attributes:
        clients: the versions that were installed.
        count: of tests, by result.
        skipped: of tests that were skipped, by reason.
    """

    clients: str = "not installed"
    count: collections.Counter[str] = field(default_factory=collections.Counter)
    skipped: collections.Counter[str] = field(default_factory=collections.Counter)

    def read(self, report: Path) -> None:
        """Read pytest's report in the format of JUnit."""
        for case in ET.parse(report).iter("testcase"):
            skipped = case.find("skipped")
            broken = case.find("failure") is not None or case.find("error") is not None
            self.count["failed" if broken else "passed" if skipped is None else "skipped"] += 1
            if skipped is not None and not broken:
                self.skipped[why(skipped)] += 1


def why(skipped: ET.Element) -> str:
    """The reason why a test was skipped, or a whole file."""
    message = skipped.get("message", "")
    if message != "collection skipped":
        return message
    return (skipped.text or message).rpartition("Skipped: ")[2].strip("'\")")


CELLS: dict[str, Cell] = {}


@nox.session(python=PYTHONS)
@nox.parametrize("clients", [nox.param(name, id=name, tags=[name]) for name in CLIENTS])
def tests(session: nox.Session, clients: str) -> None:
    """Run the tests with a set of clients."""
    session.notify("summary")
    cell = CELLS[f"{session.python} {clients}"] = Cell()
    session.install("--editable", ".", "--group", clients, "uv")
    cell.clients = str(session.run("python", "-c", INSTALLED, silent=True)).strip()
    report = Path(session.virtualenv.location, "report.xml")
    report.unlink(missing_ok=True)
    try:
        session.run("python", "-m", "pytest", f"--junit-xml={report}", *session.posargs)
    finally:
        if report.exists():  # not if it was killed
            cell.read(report)


@nox.session(python=False, default=False)
def summary(_session: nox.Session) -> None:
    """Print what came out of each cell, and why tests were skipped."""
    width = max(map(len, CELLS), default=0)
    for name, cell in CELLS.items():
        counts = " ".join(f"{cell.count[result]:5} {result}" for result in RESULTS)
        print(f"{name:{width}} {counts}   {cell.clients}")
    for reason in sorted({reason for cell in CELLS.values() for reason in cell.skipped}):
        cells = [f"{name} ({cell.skipped[reason]})" for name, cell in CELLS.items() if reason in cell.skipped]
        print(f"skipped: {reason}: {', '.join(cells)}")
