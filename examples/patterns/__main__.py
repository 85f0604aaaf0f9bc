"""Run programs of this folder on real brokers and draw their traces: `python -m examples.patterns [PROGRAM ...]`."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from examples import brokers
from examples.demo.receiver import Receiver
from examples.patterns.tree import draw

FOLDER = Path(__file__).parent
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*_*.py") if not path.stem.startswith("_"))
BROKERS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "kafka_python": brokers.kafka,
    "aio_pika": brokers.rabbitmq,
    "nats_py": brokers.nats,
}
DEADLINE = 60.0  # seconds for a program


class Failed(Exception):  # noqa: N818 (never seen outside of this folder and its tests)
    """A program did not run to its end; the message has all that it printed."""


def library(program: str) -> str:
    """The library that a program uses."""
    return next(name for name in BROKERS if program.startswith(name))


def run(program: str, address: str) -> str:
    """Run a program under `opentelemetry-instrument`, and draw what it has told of.

    Args:
        program: the file's name, without `.py`.
        address: of its broker.
    """
    destination = f"orders-{uuid.uuid4().hex[:8]}"
    with Receiver() as receiver:
        done = subprocess.run(
            [Path(sys.executable).with_name("opentelemetry-instrument"), sys.executable, FOLDER / f"{program}.py"]
            + [destination],
            env={**_environ(), **_telemetry(receiver.endpoint), _variable(program): address},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if done.returncode:
            raise Failed(f"{program} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return draw(receiver.spans).replace(destination, "orders")


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}


def _telemetry(endpoint: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }


def _variable(program: str) -> str:
    names = {"kafka_python": "KAFKA_BOOTSTRAP_SERVERS", "aio_pika": "RABBITMQ_URL", "nats_py": "NATS_URL"}
    return names[library(program)]


def main(chosen: list[str]) -> None:
    """Run the programs that were named, or all of them."""
    if unknown := [name for name in chosen if name not in PROGRAMS]:
        raise SystemExit(f"No such program: {', '.join(unknown)}. There are {', '.join(PROGRAMS)}")
    with ExitStack() as stack:
        addresses: dict[str, str] = {}
        for program in chosen or PROGRAMS:
            name = library(program)
            if name not in addresses:
                addresses[name] = stack.enter_context(BROKERS[name]())
            print(f"{program}\n{run(program, addresses[name])}\n", flush=True)


if __name__ == "__main__":
    brokers.exit_on_sigterm()
    main(sys.argv[1:])
