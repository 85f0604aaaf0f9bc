"""Run a program with two instrumentations of its library: `python rivalry.py PROGRAM DESTINATION STEP...`.

A step is `+ours`, `+theirs` (instrument), `-ours`, `-theirs` (uninstrument) or `run`, which runs the program. What was
printed, warned of and recorded meanwhile comes out as JSON, one object for each `run`.
"""

import contextlib
import importlib
import io
import json
import logging
import runpy
import sys
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

INSTRUMENTORS = {
    "kafka_program.py": (
        ("otel_messaging", "KafkaPythonInstrumentor"),
        ("opentelemetry.instrumentation.kafka", "KafkaInstrumentor"),
    ),
    "rabbitmq_program.py": (
        ("otel_messaging", "AioPikaInstrumentor"),
        ("opentelemetry.instrumentation.aio_pika", "AioPikaInstrumentor"),
    ),
    "nats_program.py": (("otel_messaging", "NatsPyInstrumentor"), ("otel_instrumentation_nats", "NatsInstrumentor")),
}


def main(program, destination, *steps):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    log = io.StringIO()
    logging.basicConfig(stream=log, level=logging.WARNING, format="%(name)s: %(message)s")

    found = []
    for number, step in enumerate(steps):
        if step != "run":
            switch(Path(program).name, step)
            continue
        printed = io.StringIO()
        sys.argv = [program, f"{destination}-{number}"]
        with contextlib.redirect_stdout(printed):
            runpy.run_path(program, run_name="__main__")
        spans = [(span.instrumentation_scope.name, span.name) for span in exporter.get_finished_spans()]
        found.append({"printed": printed.getvalue(), "spans": spans})
        exporter.clear()
    print(json.dumps({"runs": found, "log": log.getvalue()}))


def switch(program, step):
    module, kind = INSTRUMENTORS[program][step[1:] == "theirs"]
    instrumentor = getattr(importlib.import_module(module), kind)()
    if step[0] == "+":
        instrumentor.instrument()
    else:
        instrumentor.uninstrument()


if __name__ == "__main__":
    main(*sys.argv[1:])
