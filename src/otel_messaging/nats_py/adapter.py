"""What the instrumentor of nats-py does for all of its patches."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.instrumentation.settling import Last

from .messages import operation_of
from .pulling import asked_for

if TYPE_CHECKING:
    from otel_messaging.core import vocabulary as v
    from otel_messaging.core.operations import Settlement
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.settling import Ends

    from .pulling import Asked


class Nats:
    """Reads nats-py's objects for the telemetry of one instrumentor."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry

    def settlement(self, verb: str, message: Any, details: v.Attributes) -> Ends | None:
        """Begin to settle a message."""
        asked = asked_for(message)
        settlement = self._settlement(verb, message, details, asked)
        if asked is None or verb == "in_progress":
            return settlement
        return Last(settlement, partial(asked.settled, message))

    def _settlement(self, verb: str, message: Any, details: v.Attributes, asked: Asked | None) -> Settlement | None:
        context = self.telemetry.active_context()
        if context is None or not message.reply or (message._ackd and verb != "in_progress"):
            return None  # a message is settled once: the library says so itself, or swallows it after a callback
        delivery = self.telemetry.current_delivery(context)
        while delivery is not None and not delivery.handles(message):
            delivery = delivery.before()[1]  # one may be pulled while another is handled
        if delivery is None and asked is not None:
            delivery = asked.find(message)
        if delivery is not None:
            return self.telemetry.settle(verb, delivery.operation, delivery, (), details)
        return self.telemetry.settle(verb, operation_of(self.telemetry, message), None, (), details)
