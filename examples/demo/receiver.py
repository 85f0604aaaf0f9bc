"""An OTLP receiver (HTTP, protobuf) that keeps what it is sent as plain objects.

It understands traces and metrics, in the form that `opentelemetry-exporter-otlp-proto-http` sends:
https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Event:
    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Link:
    trace_id: str
    span_id: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """One span as it arrived. Times are nanoseconds since 1970; ids are lower-case hexadecimal."""

    service: str
    scope: str
    name: str
    kind: str  # INTERNAL, SERVER, CLIENT, PRODUCER or CONSUMER
    trace_id: str
    span_id: str
    parent_id: str  # "" at the root
    start: int
    end: int
    status: str  # UNSET, OK or ERROR
    status_message: str
    attributes: dict[str, Any]
    events: tuple[Event, ...]
    links: tuple[Link, ...]
    resource: dict[str, Any] = field(repr=False)
    schema_url: str = ""

    @property
    def milliseconds(self) -> float:
        return (self.end - self.start) / 1e6


@dataclass(frozen=True)
class Metric:
    """The latest point of one time series: `total` is the value of a counter, the sum of a histogram."""

    service: str
    scope: str
    name: str
    unit: str
    kind: str  # sum, gauge or histogram
    attributes: dict[str, Any]
    total: float
    count: int  # what a histogram has recorded; 0 for the other kinds
    bounds: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.service, self.scope, self.name, repr(sorted(self.attributes.items()))


class Receiver:
    """Listens on a free loopback port from `with Receiver() as receiver:` on."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._spans: list[Span] = []
        self._metrics: dict[tuple[str, str, str, str], Metric] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        """The value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[Span]:
        """All spans so far, in the order of their start."""
        with self._changed:
            return sorted(self._spans, key=lambda span: span.start)

    @property
    def metrics(self) -> list[Metric]:
        """The latest point of every time series."""
        with self._changed:
            return list(self._metrics.values())

    def wait_for(self, predicate: Callable[[Receiver], bool], timeout: float) -> bool:
        """Wait until the predicate holds, at most `timeout` seconds; return whether it does."""
        with self._changed:
            return self._changed.wait_for(lambda: predicate(self), timeout)

    def clear(self) -> None:
        """Forget everything."""
        with self._changed:
            self._spans.clear()
            self._metrics.clear()

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        routes = {"/v1/traces": self._take_traces, "/v1/metrics": self._take_metrics}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                take = routes.get(self.path)
                if take:
                    take(body)
                self.send_response(200 if take else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass  # the access log would be noise between the lines of the demo

        return Handler

    def _take_traces(self, body: bytes) -> None:
        spans = list(_spans(ExportTraceServiceRequest.FromString(body)))
        with self._changed:
            self._spans += spans
            self._changed.notify_all()

    def _take_metrics(self, body: bytes) -> None:
        metrics = list(_metrics(ExportMetricsServiceRequest.FromString(body)))
        with self._changed:
            self._metrics.update((metric.key, metric) for metric in metrics)
            self._changed.notify_all()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for of_resource in request.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _span(span, resource, of_scope.scope.name, of_scope.schema_url)


def _span(span: trace_pb2.Span, resource: dict[str, Any], scope: str, schema_url: str) -> Span:
    return Span(
        service=str(resource.get("service.name", "")),
        scope=scope,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        status_message=span.status.message,
        attributes=_attributes(span.attributes),
        events=tuple(Event(event.name, _attributes(event.attributes)) for event in span.events),
        links=tuple(Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links),
        resource=resource,
        schema_url=schema_url,
    )


def _metrics(request: ExportMetricsServiceRequest) -> Iterator[Metric]:
    for of_resource in request.resource_metrics:
        service = str(_attributes(of_resource.resource.attributes).get("service.name", ""))
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                yield from _points(metric, service, of_scope.scope.name)


def _points(metric: Any, service: str, scope: str) -> Iterator[Metric]:
    kind = metric.WhichOneof("data")
    if kind not in ("sum", "gauge", "histogram"):
        return
    for point in getattr(metric, kind).data_points:
        if kind == "histogram":
            numbers = (point.sum, point.count, tuple(point.explicit_bounds))
        else:
            numbers = (getattr(point, point.WhichOneof("value")), 0, ())
        yield Metric(service, scope, metric.name, metric.unit, kind, _attributes(point.attributes), *numbers)


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    """Turn an AnyValue into the Python value that the application had set."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    content = getattr(value, kind)
    if kind == "array_value":
        return tuple(_value(item) for item in content.values)
    return _attributes(content.values) if kind == "kvlist_value" else content
