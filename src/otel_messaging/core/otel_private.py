"""All that reaches into the private parts of OpenTelemetry. Nothing else in this package does.

Where such a part is missing, because OpenTelemetry has changed, what is here takes the public way, or gives the answer
that costs time and not telemetry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import context as runtime
from opentelemetry import trace
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.metrics import _internal as meters
from opentelemetry.propagators.composite import CompositePropagator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter
    from opentelemetry.propagators.textmap import TextMapPropagator

# What the API's own functions call: two calls less, several times per message.
_runtime = getattr(runtime, "_RUNTIME_CONTEXT", runtime)
_variable = getattr(_runtime, "_current_context", None) if type(_runtime) is ContextVarsRuntimeContext else None
get_current: Callable[[], Context] = _runtime.get_current if _variable is None else _variable.get
"""The current context."""
attach: Callable[[Context], Any] = _runtime.attach if _variable is None else _variable.set
"""Make a context current. Returns a token, of the task or thread that it was done in."""
reset_variable: Callable[[Any], None] | None = None if _variable is None else _variable.reset
"""Give a token back, which raises in any other task or thread; None where there is no such variable."""


METERS, METER_PROVIDER = vars(meters), "_METER_PROVIDER"
"""Where the API keeps its meter provider: what is called per message looks itself, without a call."""


def has_meter_provider() -> bool:
    """Return whether the program has set a meter provider."""
    return METERS.get(METER_PROVIDER, 0) is not None


def parts_of(propagator: TextMapPropagator) -> Sequence[TextMapPropagator]:
    """Return the propagators that a composite one consists of; none if it is no such, or does not tell."""
    return getattr(propagator, "_propagators", None) or () if type(propagator) is CompositePropagator else ()


def stands_for(proxy: Meter, meter: Meter) -> bool:
    """Return whether a meter was made before there was a provider, and now passes everything on to this one."""
    return getattr(proxy, "_real_meter", None) is meter


def has_no_sdk() -> bool:
    """Return whether nothing that is recorded goes anywhere, unless somebody gives us providers."""
    return getattr(trace, "_TRACER_PROVIDER", 0) is None and getattr(meters, "_METER_PROVIDER", 0) is None
