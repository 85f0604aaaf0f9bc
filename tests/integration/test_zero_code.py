"""`opentelemetry-instrument` and nothing else: plain programs, real brokers, what arrives over OTLP."""

from __future__ import annotations

import uuid

import pytest

from examples.demo.receiver import Receiver
from tests.programs import FOLDER, PROGRAMS, instrumented, run


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(params=list(PROGRAMS))
def program(request):
    return PROGRAMS[request.param]


@pytest.fixture
def start(program, receiver, request, real_broker):
    """Run the program under `opentelemetry-instrument`, and return its destination and what it did."""

    def started(**variables):
        destination = f"test-{uuid.uuid4().hex[:12]}"
        environ = {
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_LOGS_EXPORTER": "none",
            program.variable: request.getfixturevalue(program.broker),
            **variables,
        }
        return destination, run(*instrumented(), FOLDER / program.file, destination, environ=environ)

    return started


def test_a_plain_program_gives_one_trace_and_its_metrics(program, receiver, start):
    destination, done = start()
    assert (done.stdout, done.stderr) == ("hello traceparent\n", "")
    publish, receive = receiver.spans
    assert (publish.name, publish.kind, publish.status) == (f"publish {destination}", "PRODUCER", "OK")
    assert (receive.name, receive.kind, receive.status) == (f"receive {destination}", "CONSUMER", "OK")
    assert publish.parent_id == ""
    assert receive.parent_id == publish.span_id
    assert receive.trace_id == publish.trace_id
    for span in (publish, receive):
        assert (span.service, span.scope) == ("shop", f"otel_messaging.{program.library}")
        assert span.attributes["messaging.system"] == program.system
        assert span.attributes["messaging.destination.name"] == destination
        assert span.resource["telemetry.auto.version"]
        assert span.schema_url == ""
    counted = {metric.name: metric for metric in receiver.metrics}
    assert counted["messaging.messages.produced"].total == 1
    assert counted["messaging.messages.consumed"].total == 1
    assert counted["messaging.processing.duration"].count == 1
    assert {metric.service for metric in receiver.metrics} == {"shop"}
    assert {metric.scope for metric in receiver.metrics} == {f"otel_messaging.{program.library}"}


def test_the_conventions_by_their_variable(program, receiver, start):
    destination, _ = start(OTEL_SEMCONV_STABILITY_OPT_IN="messaging", OTEL_PYTHON_MESSAGING_SETTLE="off")
    publish, process = receiver.spans
    assert (publish.name, publish.kind) == (f"{program.verb} {destination}", "PRODUCER")
    assert (process.name, process.kind) == (f"process {destination}", "CONSUMER")
    assert process.parent_id == publish.span_id
    assert [link.span_id for link in process.links] == [publish.span_id]
    for span in (publish, process):
        assert span.schema_url == "https://opentelemetry.io/schemas/1.44.0"
        assert span.status == "UNSET"
        assert "messaging.operation" not in span.attributes
        assert "messaging.operation.type" in span.attributes
    names = {metric.name for metric in receiver.metrics}
    assert names >= {"messaging.client.sent.messages", "messaging.client.consumed.messages"}
    assert names.isdisjoint({"messaging.messages.produced", "messaging.messages.consumed"})


def test_one_library_can_be_switched_off(program, receiver, start):
    _, done = start(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=program.entry_point)
    assert done.stdout == "hello\n"
    assert receiver.spans == []
    assert receiver.metrics == []


def test_switching_off_one_library_leaves_the_others(program, receiver, start):
    others = ", ".join(other.entry_point for other in PROGRAMS.values() if other is not program)
    _, done = start(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=others)
    assert done.stdout == "hello traceparent\n"
    assert len(receiver.spans) == 2


def test_a_program_that_cannot_export_works_as_ever(program, start):
    _, done = start(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert done.stdout == "hello traceparent\n"


def test_no_sdk_no_headers(program, receiver, start):
    _, done = start(OTEL_SDK_DISABLED="true")
    assert (done.stdout, done.stderr) == ("hello\n", "")
    assert receiver.spans == []


def test_no_propagator_no_headers(program, receiver, start):
    _, done = start(OTEL_PROPAGATORS="none")
    assert (done.stdout, done.stderr) == ("hello\n", "")
    publish, receive = receiver.spans
    assert publish.trace_id != receive.trace_id


def test_a_bad_setting_is_a_warning_and_no_more(program, receiver, start):
    _, done = start(OTEL_PYTHON_MESSAGING_SETTLE="never")
    assert done.stdout == "hello traceparent\n"
    rest = "must be one of event, span, off; using 'event' until it is corrected"
    assert done.stderr == f"OTEL_PYTHON_MESSAGING_SETTLE='never': {rest}\n"
    assert len(receiver.spans) == 2
