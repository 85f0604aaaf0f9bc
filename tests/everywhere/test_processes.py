"""What children tell is their own: none of their spans and counts is missing, and none is their parent's."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.programs import FOLDER, environment_of, instrumented, run

OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
FORKING = """
import json, os, sys, warnings
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_messaging import KafkaPythonInstrumentor

warnings.simplefilter("ignore")  # since Python 3.12 a fork beside threads, such as kafka-python's, is warned of
address, topic = sys.argv[1:]
spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(spans))
KafkaPythonInstrumentor().instrument(tracer_provider=tracers, meter_provider=MeterProvider([reader]))


def send():
    producer = KafkaProducer(bootstrap_servers=address)
    producer.send(topic, b"hello", partition=0).get(10)
    producer.close()


def tell(who):
    data = reader.get_metrics_data()
    metrics = [metric for scope in data.resource_metrics[0].scope_metrics for metric in scope.metrics] if data else []
    values = {metric.name: [getattr(point, "value", None) for point in metric.data.data_points] for metric in metrics}
    names = [(span.name, f"{span.context.span_id:x}", span.parent and f"{span.parent.span_id:x}")
             for span in spans.get_finished_spans()]
    print(json.dumps([who, names, values]), flush=True)


send()
consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False)
consumer.assign([TopicPartition(topic, 0)])
for message in consumer:
    child = os.fork()
    if child == 0:
        spans.clear()
        send()
    break
if child:
    os.waitpid(child, 0)
tell("parent" if child else "child")
"""


@pytest.fixture
def work(python, program, destination, environ):
    """Run the program in two children of one parent, and end them after something else was done."""

    def worked(method, meanwhile=lambda: None, **variables):
        command = (*instrumented(python), FOLDER / "workers.py", method, FOLDER / program.file, destination)
        with subprocess.Popen(
            [str(part) for part in command],
            env=environment_of({**environ, **variables}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                meanwhile()
                out, err = process.communicate("", timeout=40)
            finally:
                process.kill()
        assert (process.returncode, out, err) == (0, "hello traceparent\n" * 2, "")

    return worked


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, work, destination, receiver):
    def arrive():
        receiver.wait_for(lambda receiver: len(receiver.spans) >= 4 and len(counts(receiver)) >= 4, 30)

    work(method, arrive, **OFTEN)
    expect_two_traces(receiver, destination)


@pytest.mark.parametrize("program", ["kafka_python"], indirect=True)
def test_forked_children_that_flush_at_their_end(work, destination, receiver):
    work("fork", FLUSH="1")
    expect_two_traces(receiver, destination)


@pytest.mark.parametrize("program", ["kafka_python"], indirect=True)
def test_spawned_children_flush_by_themselves(work, destination, receiver):
    work("spawn")
    expect_two_traces(receiver, destination)


def expect_two_traces(receiver, destination):
    destinations = [f"{destination}-{number}" for number in range(2)]
    names = sorted(span.name for span in receiver.spans)
    assert names == [f"{verb} {name}" for verb in ("publish", "receive") for name in destinations]
    for name in destinations:
        publish, receive = [span for span in receiver.spans if span.name.endswith(name)]
        assert (receive.trace_id, receive.parent_id) == (publish.trace_id, publish.span_id)
    verbs = ("messaging.messages.consumed", "messaging.messages.produced")
    assert counts(receiver) == {(verb, name): 1 for verb in verbs for name in destinations}


def counts(receiver):
    return {
        (metric.name, metric.attributes["messaging.destination.name"]): metric.total
        for metric in receiver.metrics
        if metric.name.startswith("messaging.messages.")
    }


def test_a_child_that_is_forked_while_a_message_is_handled(python, kafka_address, destination):
    done = run(python, "-c", FORKING, kafka_address, destination, environ={})
    (_, theirs, told), (_, spans, metrics) = sorted(json.loads(line) for line in done.stdout.splitlines())
    publish, receive = spans
    assert [publish[0], receive[0]] == [f"publish {destination}", f"receive {destination}"]
    assert receive[2] == publish[1]
    assert [(name, parent) for name, _, parent in theirs] == [(f"publish {destination}", receive[1])]
    assert metrics["messaging.messages.produced"] == metrics["messaging.messages.consumed"] == [1]
    counted = {name: values for name, values in told.items() if "duration" not in name}  # those the SDK has copied
    assert counted == {"messaging.messages.produced": [1]}
