"""Programs as users write them, and how to run them in a process of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent


@dataclass(frozen=True)
class Program:
    """A program that publishes one message and consumes it."""

    file: str
    library: str  # the adapter's module
    system: str  # the value of messaging.system
    broker: str  # the fixture that gives the broker's address
    variable: str  # where the program reads it
    entry_point: str
    verb: str = "publish"  # the library's word, in the conventions


PROGRAMS = {
    program.library: program
    for program in (
        Program(
            "kafka_program.py",
            "kafka_python",
            "kafka",
            "kafka_address",
            "KAFKA_BOOTSTRAP_SERVERS",
            "messaging-kafka-python",
            "send",
        ),
        Program(
            "rabbitmq_program.py", "aio_pika", "rabbitmq", "rabbitmq_address", "RABBITMQ_URL", "messaging-aio-pika"
        ),
        Program("nats_program.py", "nats_py", "nats", "nats_address", "NATS_URL", "messaging-nats-py"),
    )
}


def environment_of(variables):
    """The environment of a command: ours without its settings, and with those given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))}
    return {**inherited, **variables}


def run(*command, environ, timeout=60.0):
    """Run a command with no setting but those given; return what it printed, or fail with all it said."""
    done = subprocess.run(
        [str(part) for part in command],
        env=environment_of(environ),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def instrumented(python=sys.executable):
    """The command `opentelemetry-instrument` beside an interpreter, followed by that interpreter."""
    return Path(python).parent / "opentelemetry-instrument", python


def make_environment(folder, *requirements, interpreter=sys.executable):
    """Make a virtual environment with some packages in it; return its interpreter."""
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv, which the environment of `make test` has")
    python = folder / "bin" / "python"
    run(uv, "venv", "--quiet", "--python", interpreter, folder, environ={})
    run(uv, "pip", "install", "--quiet", "--python", python, *requirements, environ={}, timeout=300)
    return python
