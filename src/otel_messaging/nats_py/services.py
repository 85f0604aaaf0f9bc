"""`nats.micro`: how a service tells that it has failed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.operations import Failure
from otel_messaging.core.propagation import as_text
from otel_messaging.core.safety import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from .adapter import Nats
    from .nested_calls import Outcome

_SERVICE_ERROR = "Nats-Service-Error"
_SERVICE_ERROR_CODE = "Nats-Service-Error-Code"


def replied(reply: Any) -> Outcome:
    """A service tells in headers that it has failed; the library returns its reply as any other."""
    headers = reply.headers
    if not headers or _SERVICE_ERROR not in headers:
        return None, ()
    code, description = as_text(headers.get(_SERVICE_ERROR_CODE)), as_text(headers[_SERVICE_ERROR])
    return Failure(code or _SERVICE_ERROR, v.cut(description or "")), ()


def wrap_respond_error(nats: Nats, respond: Callable[..., Any]) -> Callable[..., Any]:
    """`Request.respond_error` answers that a service has failed, also by an exception that its endpoint has raised."""

    async def wrapper(self: Any, code: Any, description: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            context = nats.telemetry.active_context()
            delivery = nats.telemetry.current_delivery(context) if context is not None else None
            if delivery is not None and delivery.message is self._msg:
                delivery.fail(sys.exc_info()[1] or Failure(str(code), str(description)))
        except Exception as error:
            report("Request.respond_error", error)
        return await respond(self, code, description, *args, **kwargs)

    return wrapper
