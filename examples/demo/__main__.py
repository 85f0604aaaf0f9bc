"""Follow three orders through Kafka, RabbitMQ and NATS, and show their traces and metrics."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from examples.brokers import BrokerUnavailable, enter_if_available, exit_on_sigterm, kafka, nats, rabbitmq
from examples.demo import chain, render
from examples.demo.programs import Program
from examples.demo.receiver import Receiver

ORDERS = 3
DEADLINE = 60.0  # seconds for the programs, once the brokers are up


class Failed(Exception):  # noqa: N818 (never seen outside: main() turns it into the exit code)
    """The demo did not show what it has to; the message says why."""


def say(text: str) -> None:
    print(f"- {text}", flush=True)


@contextlib.contextmanager
def brokers() -> Iterator[dict[str, str]]:
    """Start the brokers; yield the environment variables that name them to the programs."""
    with contextlib.ExitStack() as stack:
        say("Starting a Kafka broker and a NATS server")
        names = {"KAFKA_BOOTSTRAP_SERVERS": stack.enter_context(kafka()), "NATS_URL": stack.enter_context(nats())}
        say("Starting RabbitMQ (about 10 seconds)")
        names["RABBITMQ_URL"] = enter_if_available(stack, rabbitmq(install=True))
        if not names["RABBITMQ_URL"]:
            say("Going on without RabbitMQ: billing publishes to NATS itself")
        yield names


def telemetry(receiver: Receiver) -> dict[str, str]:
    """Return the environment that sends each program's telemetry to the receiver."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


def run_pipeline(env: dict[str, str], folder: Path) -> None:
    """Run the four programs to their end, the last one of the chain first; raise Failed if one fails."""
    end = time.monotonic() + DEADLINE
    with contextlib.ExitStack() as stack:
        programs = []
        for name in ("mail", "shipping", "billing", "shop"):
            if name == "shipping" and not env["RABBITMQ_URL"]:
                continue
            say(f"Starting {name}: opentelemetry-instrument python examples/pipeline/{name}.py")
            program = Program(name, env, folder)
            stack.callback(program.stop)
            programs.append(program)
            if name in ("mail", "shipping") and not program.wait_until_ready(end - time.monotonic()):
                raise Failed(f"{name} did not get ready:\n{program.output}")
        say(f"Waiting for {ORDERS} orders to go through")
        while any(program.exit_code is None for program in programs) and time.monotonic() < end:
            if any(program.exit_code for program in programs):
                break
            time.sleep(0.05)
        if failures := [_failure(program) for program in programs if program.exit_code != 0]:
            raise Failed("\n".join(failures))


def _failure(program: Program) -> str:
    what = "is still running" if program.exit_code is None else f"ended with exit code {program.exit_code}"
    return f"{program.name} {what}. It printed:\n{program.output}"


def check(receiver: Receiver, *, with_rabbitmq: bool) -> None:
    """Raise Failed unless every order is one whole trace."""
    hops = chain.expected(with_rabbitmq=with_rabbitmq)
    names = not os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN")

    def problems(receiver: Receiver) -> list[str]:
        return chain.problems(receiver, hops, ORDERS, names=names)

    if not receiver.wait_for(lambda receiver: not problems(receiver), timeout=5):
        raise Failed("\n".join(["The traces are not whole:", *problems(receiver)]))


def run(console: Console) -> None:
    """Run the demo; raise Failed or BrokerUnavailable with the reason if it does not work out."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
        receiver = stack.enter_context(Receiver())
        say(f"Receiving OTLP at {receiver.endpoint}")
        env = stack.enter_context(brokers()) | telemetry(receiver) | {"ORDERS": str(ORDERS)}
        run_pipeline(env, folder)
        try:
            check(receiver, with_rabbitmq=bool(env["RABBITMQ_URL"]))
        finally:
            print(flush=True)
            render.show(console, receiver.spans, receiver.metrics)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--svg", metavar="PATH", type=Path, help="also write the traces and metrics to an SVG image")
    options = parser.parse_args()
    exit_on_sigterm()
    console = Console(record=True, width=render.WIDTH)
    try:
        run(console)
    except (Failed, BrokerUnavailable) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say("Each order is one trace, from the shop to the mail")
    if options.svg:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        console.save_svg(str(options.svg), title="python -m examples.demo", unique_id="demo")
        say(f"Wrote {options.svg}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
