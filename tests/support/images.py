"""Follows a Dockerfile step by step in a folder, with virtual environments for the images of Python it begins with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

from tests.programs import ROOT


@dataclass
class Stage:
    """One image, as a folder.

    Attributes:
        root: what is `/` in the image.
        name: what later stages call it.
        workdir: where commands run, below the root.
        command: what the image runs.
    """

    root: Path
    name: str
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    @property
    def environ(self):
        """The variables of commands: its own programs come first."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON", "PIP_"))}
        return {
            **kept,
            "PATH": f"{self.root / 'venv' / 'bin'}:{os.environ['PATH']}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def at(self, path):
        """A path in the image, as one on this machine."""
        return self.root / str(Path(self.workdir, path)).lstrip("/")


def follow(dockerfile, folder):
    """Make what a Dockerfile of this repository makes; return its last stage."""
    stages = []
    for step in DockerfileParser(path=str(dockerfile), cache_content=True).structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "FROM":
            image, _, name = re.split(r"(\s+AS\s+|$)", value, maxsplit=1, flags=re.IGNORECASE)
            stages.append(_begin(image, Stage(folder / f"stage-{len(stages)}", name)))
        elif instruction != "COMMENT":
            _STEPS[instruction](stages[-1], value, {stage.name: stage for stage in stages})
    return stages[-1]


def _begin(image, stage):
    stage.root.mkdir(parents=True)
    if image.startswith("python:"):
        subprocess.run([sys.executable, "-m", "venv", stage.root / "venv"], check=True)
    return stage


def _workdir(stage, value, _stages):
    stage.workdir = value
    stage.at(".").mkdir(parents=True, exist_ok=True)


def _copy(stage, value, stages):
    *sources, target = value.split()
    origin = ROOT
    if sources[0].startswith("--from="):
        origin = stages[sources.pop(0).partition("=")[2]].root
    for source in sources:
        found, end = origin / source.lstrip("/"), stage.at(target)
        if found.is_dir():
            shutil.copytree(found, end, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            end.mkdir(parents=True, exist_ok=True)
            shutil.copy(found, end)


def _run(stage, value, _stages):
    command = re.sub(r"(?<=\s)/(?=\w)", f"{stage.root}/", value)
    done = subprocess.run(
        command, shell=True, cwd=stage.at("."), env=stage.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{value}\n{done.stdout}\n{done.stderr}"


def _entrypoint(stage, value, _stages):
    stage.entrypoint = _words(value)


def _command(stage, value, _stages):
    stage.command = _words(value)


def _words(value):
    """The words of an instruction in its form of a list."""
    return re.findall(r'"([^"]*)"', value)


_STEPS = {
    "WORKDIR": _workdir,
    "COPY": _copy,
    "RUN": _run,
    "ENTRYPOINT": _entrypoint,
    "CMD": _command,
    "USER": lambda *_: None,  # the test's own
}
