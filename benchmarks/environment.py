"""Where measured processes run: an environment with the official packages in it too, under callgrind or not."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-bench"
PACKAGES = (
    "kafka-python==3.0.12",
    "aio-pika==10.2.1",
    "nats-py==2.16.0",
    "opentelemetry-instrumentation-kafka-python==0.66b1",
    "opentelemetry-instrumentation-aio-pika==0.66b1",
    "otel-instrumentation-nats==0.1.5",
    "opentelemetry-sdk==1.45.1",
    "wrapt==2.5.2",
)


def prepare() -> Path:
    """Return the Python of the environment, which is made first where it is missing or another."""
    python, made = FOLDER / "bin" / "python", FOLDER / "made"
    wanted = "\n".join((sys.version, *PACKAGES))
    if not made.exists() or made.read_text() != wanted:
        beside = Path(sys.executable).with_name("uv")
        uv = [str(beside)] if beside.exists() else [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)], check=True)
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES], check=True)
        made.write_text(wanted)
    return python


class Worker(AbstractContextManager["Worker"]):
    """A process that measures one path in one state.

    Args:
        job: what `benchmarks.worker` is told.
        under: the command that runs it, if any.
    """

    def __init__(self, job: dict[str, Any], under: Iterable[str] = ()) -> None:
        command = (*under, str(FOLDER / "bin" / "python"), "-m", "benchmarks.worker", json.dumps(job))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_variables(), cwd=ROOT
        )

    def run(self, what: str, count: int) -> int:
        """Nanoseconds of processor time that something takes when it is done `count` times."""
        self._process.stdin.write(f"{what} {count}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker has ended: {' '.join(self._process.args)}")
        return int(line)

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def run_module(module: str, job: dict[str, Any], **options: Any) -> str:
    """What a module of this package prints for a job."""
    command = (str(FOLDER / "bin" / "python"), "-m", module, json.dumps(job))
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=_variables(), cwd=ROOT, **options)
    return done.stdout.decode()


def describe(path: str, arm: str) -> dict[str, Any]:
    """What one message makes."""
    return json.loads(run_module("benchmarks.worker", {"path": path, "arm": arm, "state": "describe"}))


class Callgrind(AbstractContextManager["Callgrind"]):
    """Counts instructions, where valgrind and a C compiler are there."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="callgrind-"))
        self.library = self.folder / "callgrind.so"

    @classmethod
    def find(cls) -> Callgrind | None:
        """The counter, or None."""
        if not shutil.which("valgrind") or not shutil.which("cc"):
            return None
        made = cls()
        source = Path(__file__).with_name("callgrind.c")
        built = subprocess.run(
            ("cc", "-O2", "-shared", "-fPIC", "-o", str(made.library), str(source)), capture_output=True, check=False
        )
        return made if built.returncode == 0 else None

    def count(self, job: dict[str, Any], runs: Iterable[str], count: int) -> dict[str, float]:
        """Instructions per operation of each thing that a worker can run."""
        output = Path(tempfile.mkdtemp(dir=self.folder)) / "out"
        under = (
            "valgrind",
            "-q",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={output}",
            f"--log-file={output}.log",
        )
        with Worker({**job, "counter": str(self.library)}, under) as worker:
            for what in runs:
                worker.run(what, count)
        return {what: total / count for what, total in _totals(output)}

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _totals(output: Path) -> Iterable[tuple[str, int]]:
    for dump in output.parent.glob(f"{output.name}.[0-9]*"):
        text = dump.read_text()
        label = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
        total = re.search(r"^summary: (\d+)$", text, re.MULTILINE)
        if label and total:
            if int(total[1]) >= 2**63:
                raise RuntimeError(f"callgrind counted less than nothing: {label[1]}")  # too short beside other threads
            yield label[1], int(total[1])


def _variables() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**kept, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))), "PYTHONHASHSEED": "0"}


def machine() -> str:
    """The processor and the Python, without names or paths of this machine."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists() and (found := re.search(r"^model name\s*: (.*)$", information.read_text(), re.MULTILINE)):
        model = found[1]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{os.cpu_count()} x {model}, {platform.system()}, {python}"
