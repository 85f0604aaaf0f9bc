"""What the tests run in other processes."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from otel_messaging.patterns import process


def set_up_sdk():
    """As a program does that is not instrumented."""
    trace.set_tracer_provider(TracerProvider())


def handle(message, named):
    """Handle a message; returns what is told of that."""
    with process(message, **named) as span:
        pass
    context = span.get_span_context()
    return {
        "name": span.name,
        "trace": context.trace_id,
        "parent": span.parent.span_id,
        "attributes": dict(span.attributes),
        "after": trace.get_current_span().get_span_context().is_valid,
    }
