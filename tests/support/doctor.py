"""Asks the doctor, as a person does: in a process of its own, with no variables but those given."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.programs import environment_of

COMMAND = ("-m", "otel_messaging", "doctor")


def doctor(*arguments, python=sys.executable, environ=None, cwd=None):
    """Run it; return what it printed, and its exit status."""
    return subprocess.run(
        [str(python), *COMMAND, *map(str, arguments)],
        env=environment_of(environ or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
    )


def rows(*arguments, **options):
    """What it found: the value and the remedy of each row, by section and name where a name is there twice."""
    done = doctor("--json", *arguments, **options)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert done.returncode == bool(found["problems"])
    assert done.stderr == ""
    return {row["name"]: (row["value"], row["remedy"]) for section in found["sections"] for row in section["rows"]}


def problems(found):
    """The rows where something is wrong."""
    return {name: row for name, row in found.items() if row[1]}
