"""What the patches of every library are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from otel_messaging.core.telemetry import Telemetry


class Adapter(Protocol):
    """What the instrumentor of a library does for all of its patches."""

    telemetry: Telemetry
