"""One process that measures one path in one state: `python -m benchmarks.worker '{...}'`.

It reads lines of two words, what to run (`path`, `floor` or `empty`) and how often, and answers each with the
nanoseconds of processor time that it took. Under callgrind the instructions of each are dumped too.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import json
import os
import sys
import time
from typing import Any

from opentelemetry import metrics, trace

from .floor import empty, floor, receiving, sending
from .paths import PATHS, TRACEPARENT

CARRIER = {"traceparent": TRACEPARENT}
INSTRUMENTORS = {
    ("ours", "kafka_python"): ("otel_messaging", "KafkaPythonInstrumentor"),
    ("ours", "aio_pika"): ("otel_messaging", "AioPikaInstrumentor"),
    ("ours", "nats_py"): ("otel_messaging", "NatsPyInstrumentor"),
    ("official", "kafka_python"): ("opentelemetry.instrumentation.kafka", "KafkaInstrumentor"),
    ("official", "aio_pika"): ("opentelemetry.instrumentation.aio_pika", "AioPikaInstrumentor"),
    ("official", "nats_py"): ("otel_instrumentation_nats", "NatsInstrumentor"),
}
LIBRARIES = {"kafka_python": "kafka", "aio_pika": "aio_pika", "nats_py": "nats"}


def main() -> None:
    """Do what the first argument says."""
    job = json.loads(sys.argv[1])
    asyncio.run(describe(job) if job["state"] == "describe" else serve(job))
    sys.stdout.flush()
    os._exit(0)  # the clients believe that they are connected


async def serve(job: dict[str, Any]) -> None:
    """Measure on demand."""
    flush = provide(job["state"], job["metrics"])
    path = await opened(job)
    counter = ctypes.CDLL(job["counter"]) if job.get("counter") else None
    by_hand = floor(job["floor"], pairs=path.library == "kafka_python") if job.get("floor") else empty
    runs = {"path": path.run, "floor": by_hand, "empty": empty, "sending": sending, "receiving": receiving}
    await path.run(200)
    for by_itself in (by_hand, sending, receiving):
        by_itself(200)
    flush()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        what, count = line.split()
        run = runs[what]
        if counter is not None:
            counter.start()
        begun = time.process_time_ns()
        done = run(int(count))
        if done is not None:
            await done
        flush()
        spent = time.process_time_ns() - begun
        if counter is not None:
            counter.stop(what.encode())
        print(spent, flush=True)


async def opened(job: dict[str, Any], **providers: Any) -> Any:
    """The path, its library instrumented."""
    path = PATHS[job["path"]]()
    if job.get("carrying"):
        path.headers = [("traceparent", TRACEPARENT.encode())] if path.library == "kafka_python" else dict(CARRIER)
    importlib.import_module(LIBRARIES[path.library])
    if job["arm"] != "plain":
        module, name = INSTRUMENTORS[job["arm"], path.library]
        getattr(importlib.import_module(module), name)().instrument(**providers)
    await path.open()
    return path


def provide(state: str, metered: bool) -> Any:
    """Set up the SDK as a program would, and return what waits for its exporter."""
    if metered:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    if state == "no SDK":
        return lambda: None
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    class Null(SpanExporter):
        def export(self, spans):
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ALWAYS_OFF) if state == "sampler off" else TracerProvider()
    if state != "sampler off":
        provider.add_span_processor(BatchSpanProcessor(Null()) if state == "batch" else SpanProcessor())
    trace.set_tracer_provider(provider)
    return provider.force_flush if state == "batch" else lambda: None


async def describe(job: dict[str, Any]) -> None:
    """Print what one message makes: its span, what the span has from its start, and its metrics."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    class Seen(SpanProcessor):
        def on_start(self, span, parent_context=None):
            self.attributes = dict(span.attributes)

        def on_end(self, span):
            self.span = span

    seen, reader = Seen(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(seen)
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    path = await opened(job)
    await path.run(2)
    span = seen.span
    late = {name: value for name, value in span.attributes.items() if name not in seen.attributes}
    told = {
        "name": span.name,
        "kind": span.kind.name,
        "attributes": seen.attributes,
        "late": late,
        "ok": span.status.status_code.name == "OK",
        "metrics": list(_points(reader.get_metrics_data())),
    }
    print(json.dumps(told))


def _points(data: Any) -> Any:
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics if scope.scope.name.startswith("otel_messaging") else ():
                for point in metric.data.data_points:
                    histogram = hasattr(point, "bucket_counts")
                    yield {"name": metric.name, "histogram": histogram, "attributes": dict(point.attributes)}


if __name__ == "__main__":
    main()
