"""The command ``python -m otel_messaging doctor``."""

from __future__ import annotations

import argparse
import os
import sys

from . import doctor
from .doctor import brokers, report

_STATUS = "Exit status: 0 no problem, 1 problems found, 2 wrong usage."


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; those of the process if None.

    Returns:
        The exit status: 0, 1 if problems were found. Wrong usage exits with 2 by itself.
    """
    options = _parser().parse_args(arguments)
    environ = dict(os.environ)
    # A propagator that is not installed keeps OpenTelemetry from being imported: a row says so, and all else is seen.
    os.environ.pop("OTEL_PROPAGATORS", None)
    found = doctor.examine(options.broker, environ, options.timeout, options.in_code)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    _say(report.as_json(found) if options.json else report.as_table(found))
    return 1 if report.problems(found) else 0


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has read enough; the interpreter would flush again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m otel_messaging", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="command", required=True)
    command = commands.add_parser(
        "doctor",
        help="say why there are no spans, and what to do",
        description="Look at versions, clients, settings, exporters and brokers, and say what to do. Changes nothing.",
        epilog=_STATUS,
        allow_abbrev=False,
    )
    command.add_argument(
        "broker", nargs="*", type=_broker, help="a broker to ask: kafka://host:port, amqp://host, nats://host:port"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument(
        "--in-code",
        action="store_true",
        help="the program sets OpenTelemetry up itself, without opentelemetry-instrument",
    )
    command.add_argument("--timeout", type=_seconds, default=5.0, metavar="SECONDS", help="how long to wait (5)")
    return parser


def _broker(address: str) -> brokers.Broker:
    try:
        return brokers.parse(address)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 600:
        raise argparse.ArgumentTypeError("a number of seconds above 0, and up to 600")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
