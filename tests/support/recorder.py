"""What telemetry an instrumentor has given, as plain values that a test can compare whole."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind


class Open(SpanProcessor):
    """Counts the spans that have begun and not ended."""

    def __init__(self):
        self.spans: dict[int, Any] = {}

    def on_start(self, span, parent_context=None):
        self.spans[span.get_span_context().span_id] = span

    def on_end(self, span):
        self.spans.pop(span.context.span_id, None)


class Recorder:
    """A tracer and a meter provider that keep everything in memory."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.open = Open()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(self.open)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader])
        self.tracer = self.tracer_provider.get_tracer("test")

    @property
    def providers(self) -> dict[str, Any]:
        """Keyword arguments of `instrument()`."""
        return {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}

    def spans(self, name: str | None = None, *, count: int | None = None, timeout: float = 5.0) -> list[ReadableSpan]:
        """The spans that have ended, of one name or of all; waits until there are `count` of them."""
        end = time.monotonic() + timeout
        while True:
            found = [span for span in self.exporter.get_finished_spans() if name is None or span.name == name]
            if count is None or len(found) >= count or time.monotonic() > end:
                break
            time.sleep(0.01)
        if count is not None:
            assert len(found) == count, [shape(span) for span in self.exporter.get_finished_spans()]
        return found

    def span(self, name: str) -> ReadableSpan:
        """The one span of a name."""
        return self.spans(name, count=1)[0]

    def producers(self, count: int) -> list[ReadableSpan]:
        """The spans of published messages: exactly `count`, in the order of their ends."""
        return self._of_kind(SpanKind.PRODUCER, count)

    def consumers(self, count: int) -> list[ReadableSpan]:
        """The spans of consumed messages: exactly `count`, in the order of their ends."""
        return self._of_kind(SpanKind.CONSUMER, count)

    def _of_kind(self, kind: SpanKind, count: int) -> list[ReadableSpan]:
        end = time.monotonic() + 5.0
        while True:
            found = [span for span in self.exporter.get_finished_spans() if span.kind is kind]
            if len(found) >= count or time.monotonic() > end:
                assert len(found) == count, [shape(span) for span in self.exporter.get_finished_spans()]
                return found
            time.sleep(0.01)

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """By metric: the attributes and the value of each point; of a histogram the count."""
        found: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        for metric in self._collected():
            points = metric.data.data_points
            values = [(dict(p.attributes), p.count if hasattr(p, "count") else p.value) for p in points]
            found.setdefault(metric.name, []).extend(values)
        return found

    def instruments(self) -> list[tuple[str, str, str, tuple[float, ...]]]:
        """Of each metric: its name, kind and unit, and the bounds of a histogram."""
        return [
            (
                metric.name,
                type(metric.data).__name__,
                metric.unit,
                tuple(getattr(metric.data.data_points[0], "explicit_bounds", ())),
            )
            for metric in self._collected()
        ]

    def sums(self) -> dict[str, float]:
        """Of each histogram: the sum of all that was recorded."""
        return {
            metric.name: sum(point.sum for point in metric.data.data_points)
            for metric in self._collected()
            if hasattr(metric.data.data_points[0], "sum")
        }

    def _collected(self) -> list[Any]:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return [metric for scope in scopes for metric in scope.metrics if metric.data.data_points]


def shape(span: ReadableSpan) -> dict[str, Any]:
    """A whole span but for its times and ids; parents and links are ids of spans."""
    return {
        "name": span.name,
        "kind": span.kind.name,
        "parent": span.parent.span_id if span.parent else None,
        "links": [link.context.span_id for link in span.links],
        "status": (span.status.status_code.name, span.status.description),
        "attributes": dict(span.attributes),
        "events": [(event.name, _plain(event.attributes)) for event in span.events],
    }


def links(span: ReadableSpan) -> list[tuple[int, dict[str, Any]]]:
    """Of each link the id of the span that it is to, and its attributes."""
    return [(link.context.span_id, dict(link.attributes or {})) for link in span.links]


def span_id(span: Any) -> int:
    """The id of a span, ended or not."""
    return span.get_span_context().span_id


def trace_id(span: Any) -> int:
    """The trace that a span is in."""
    return span.get_span_context().trace_id


def _plain(attributes: Any) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key != "exception.stacktrace"}
