"""`nats.micro`: how a service tells that it has failed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from otel_messaging.core.operations import Failure
from otel_messaging.instrumentation.wrapping import around

if TYPE_CHECKING:
    from otel_messaging.instrumentation.adapter import Adapter


def fails(nats: Adapter, request: Any, code: Any, description: Any) -> None:
    """`Request.respond_error` answers that a service has failed, also by an exception that its endpoint has raised."""
    context = nats.telemetry.active_context()
    delivery = nats.telemetry.current_delivery(context) if context is not None else None
    if delivery is not None and delivery.message is request._msg:
        delivery.fail(sys.exc_info()[1] or Failure(str(code), str(description)))


wrap_respond_error = around(fails)
