"""Propagators that a program may have set, good and bad."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.propagators.textmap import TextMapPropagator, default_getter, default_setter


class SingleHeader(TextMapPropagator):
    """Another format than W3C's: one header of its own, as B3 has."""

    fields = frozenset({"X-Single"})

    def inject(self, carrier, context=None, setter=default_setter):
        span = trace.get_current_span(context).get_span_context()
        if span.is_valid:
            setter.set(carrier, "X-Single", f"{span.trace_id:032x}-{span.span_id:016x}")

    def extract(self, carrier, context=None, getter=default_getter):
        values = getter.get(carrier, "X-Single")
        if not values:
            return context
        trace_id, _, span_id = values[0].partition("-")
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        remote = trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=flags)
        return trace.set_span_in_context(trace.NonRecordingSpan(remote), context)


class Silent(TextMapPropagator):
    """Carries nothing, and answers None, as the propagator of OTEL_PROPAGATORS=none does."""

    fields = frozenset()

    def inject(self, carrier, context=None, setter=default_setter):
        return None

    def extract(self, carrier, context=None, getter=default_getter):
        return None


class Failing(TextMapPropagator):
    """Raises whatever it is asked."""

    fields = frozenset({"traceparent"})

    def __init__(self, error=RuntimeError):
        self.error = error

    def inject(self, carrier, context=None, setter=default_setter):
        raise self.error("inject is broken")

    def extract(self, carrier, context=None, getter=default_getter):
        raise self.error("extract is broken")


class Odd(TextMapPropagator):
    """Writes headers of which no library sends some: their names or values are no text, or end the line."""

    fields = frozenset({"X-Good", 7})

    odd = (
        (7, "number"),
        (b"X-Bytes", "bytes"),
        (None, "none"),
        ("", "empty"),
        ("X Blank", "blank"),
        ("X-Break\r\nX-More", "line"),
        ("X-" + "x" * 300, "long"),
        ("X-Number", 7),
        ("X-Bytes", b"bytes"),
        ("X-None", None),
        ("X-List", ["text"]),
        ("X-Surrogate", "\ud800"),
        ("X-Line", "one\r\nX-Two: two"),
    )

    def inject(self, carrier, context=None, setter=default_setter):
        setter.set(carrier, "X-Good", "good")
        for name, value in self.odd:
            setter.set(carrier, name, value)

    def extract(self, carrier, context=None, getter=default_getter):
        return context


class Telling(TextMapPropagator):
    """Tells one name, and writes another one, too, as Jaeger's propagator does for baggage."""

    fields = frozenset({"uber-trace-id"})

    def inject(self, carrier, context=None, setter=default_setter):
        setter.set(carrier, "uber-trace-id", "new")
        setter.set(carrier, "uberctx-user", "new")

    def extract(self, carrier, context=None, getter=default_getter):
        return context
