"""The doctor: what a person without spans needs to know, and what to do about it.

It changes nothing, and shows no credentials.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import brokers, configured, installed, trial
from .report import Row, Section

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def examine(
    addresses: list[brokers.Broker], environ: Mapping[str, str], seconds: float, in_code: bool = False
) -> list[Section]:
    """Look at everything.

    Args:
        addresses: the brokers to ask.
        environ: the environment variables of the application.
        seconds: how long to wait for the receivers of telemetry, and for the brokers.
        in_code: whether the application sets OpenTelemetry up by itself, without `opentelemetry-instrument`.
    """
    looks: dict[str, Callable[[], Section | None]] = {
        "This interpreter": installed.interpreter,
        "Packages of OpenTelemetry": installed.packages,
        "Clients": lambda: installed.clients(environ),
        "Settings": lambda: configured.own(environ),
        "SDK": lambda: configured.sdk(environ, seconds, in_code),
        trial.TITLE: lambda: None if in_code else trial.section(environ),
        "Brokers": lambda: brokers.section(addresses, seconds),
    }
    return [section for title, look in looks.items() if (section := _looked(title, look)) is not None]


def _looked(title: str, look: Callable[[], Section | None]) -> Section | None:
    """What a look has found, and where it has failed: the other ones are worth as much."""
    try:
        return look()
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        line = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place is not None else "?"
        row = Row("the doctor", f"failed by {type(error).__name__} in {line}", "report this as a bug of otel-messaging")
        return Section(title, (row,))
