"""The receiver reads what the SDK's own exporters send."""

import gzip
import urllib.error
import urllib.request

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode

from examples.demo.receiver import Metric, Receiver

RESOURCE = Resource.create({"service.name": "shop"})


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(params=[Compression.NoCompression, Compression.Gzip])
def tracer(receiver, request):
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{receiver.endpoint}/v1/traces", compression=request.param)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("the scope", schema_url="https://opentelemetry.io/schemas/1.44.0")
    provider.shutdown()


def test_a_span_arrives_as_it_was_recorded(receiver, tracer):
    attributes = {"text": "a", "number": 1, "ratio": 0.5, "yes": True, "list": ["a", "b"]}
    with tracer.start_as_current_span("publish orders", kind=SpanKind.PRODUCER, attributes=attributes) as parent:
        parent.add_event("retry_attempt", {"retry.count": 1})
    link = Link(parent.get_span_context(), {"batch": 0})
    with (
        pytest.raises(ValueError, match="no address"),
        tracer.start_as_current_span("receive orders", kind=SpanKind.CONSUMER, links=[link]),
    ):
        raise ValueError("no address")

    first, second = receiver.spans
    assert (first.service, first.scope, first.name, first.kind) == ("shop", "the scope", "publish orders", "PRODUCER")
    assert first.attributes == {**attributes, "list": ("a", "b")}
    assert first.schema_url == "https://opentelemetry.io/schemas/1.44.0"
    assert first.status == StatusCode.UNSET.name
    assert [(event.name, event.attributes) for event in first.events] == [("retry_attempt", {"retry.count": 1})]
    assert first.end - first.start == parent.end_time - parent.start_time
    assert first.parent_id == ""

    assert (second.kind, second.status) == ("CONSUMER", "ERROR")
    assert "no address" in second.status_message
    assert second.events[0].attributes["exception.message"] == "no address"
    assert [(linked.span_id, linked.attributes) for linked in second.links] == [(first.span_id, {"batch": 0})]
    assert second.trace_id != first.trace_id


def test_a_child_names_its_parent(receiver, tracer):
    with tracer.start_as_current_span("parent"), tracer.start_as_current_span("child"):
        pass
    parent, child = receiver.spans
    assert (child.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)


def test_metrics_are_the_latest_points(receiver):
    exporter = OTLPMetricExporter(endpoint=f"{receiver.endpoint}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)
    provider = MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)
    meter = provider.get_meter("the scope")
    counter = meter.create_counter("messages", unit="{message}")
    duration = meter.create_histogram("duration", unit="ms", explicit_bucket_boundaries_advisory=[1, 10])

    counter.add(1, {"destination": "orders"})
    provider.force_flush()
    counter.add(2, {"destination": "orders"})
    counter.add(1, {"destination": "parcels"})
    duration.record(4.0)
    duration.record(6.0)
    provider.shutdown()

    expected = [
        Metric("shop", "the scope", "messages", "{message}", "sum", {"destination": "orders"}, 3, 0),
        Metric("shop", "the scope", "messages", "{message}", "sum", {"destination": "parcels"}, 1, 0),
        Metric("shop", "the scope", "duration", "ms", "histogram", {}, 10.0, 2, (1.0, 10.0)),
    ]
    assert sorted(receiver.metrics, key=lambda metric: metric.key) == sorted(expected, key=lambda metric: metric.key)


def test_waiting_ends_with_the_condition_or_the_timeout(receiver, tracer):
    assert not receiver.wait_for(lambda receiver: receiver.spans, timeout=0.05)
    tracer.start_span("publish orders").end()
    assert receiver.wait_for(lambda receiver: len(receiver.spans) == 1, timeout=5)
    receiver.clear()
    assert receiver.spans == []


def test_what_is_not_otlp_is_refused(receiver):
    request = urllib.request.Request(f"{receiver.endpoint}/v1/logs", data=gzip.compress(b""))
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)
    assert caught.value.code == 404
    caught.value.close()
