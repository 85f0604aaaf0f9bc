"""What the telemetry keeps for those who ask again."""

from __future__ import annotations

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from otel_messaging.core import safety
from otel_messaging.core import vocabulary as v
from otel_messaging.core.settings import Settings
from otel_messaging.core.telemetry import Telemetry


def test_an_operation_is_kept_for_each_action(recorder):
    telemetry = Telemetry("test", Settings(), **recorder.providers)
    orders, facts = v.Destination("orders"), ((v.SYSTEM, "test"),)
    kinds = (v.DELIVER, v.PROCESS, v.BATCH_PROCESS)
    found = [telemetry.prepared(action, "process", orders, facts) for action in kinds]
    assert [operation.name for operation in found] == ["receive orders", "process orders", "batch_process orders"]
    assert [telemetry.prepared(action, "process", orders, facts) for action in kinds] == found


class FalsyError(Exception):
    def __len__(self):
        return 0


class HostileError(Exception):
    def __bool__(self):
        raise RuntimeError("not to be asked")


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_an_exception_that_is_false_is_a_failure(desk, recorder):
    desk().deliver().end(FalsyError("of the application"))
    span = recorder.span("receive orders")
    assert (span.status.status_code.name, span.status.description) == ("ERROR", "of the application")
    assert span.attributes["error.type"].endswith("FalsyError")
    assert [event.name for event in span.events] == ["exception"]


@pytest.mark.parametrize(("error", "text"), [(HostileError("bad"), "bad"), (MuteError(), "")])
def test_an_exception_that_the_sdk_cannot_record_is_a_failure_all_the_same(desk, recorder, lenient, error, text):
    desk().deliver().end(error)
    span = recorder.span("receive orders")
    assert (span.status.status_code.name, span.status.description) == ("ERROR", text)
    assert span.attributes["error.type"].endswith(type(error).__name__)
    ((attributes, count),) = recorder.metrics()["messaging.messages.consumed"]
    assert (count, attributes["error.type"]) == (1, span.attributes["error.type"])


class FailingEnd(SpanProcessor):
    def on_end(self, span):
        raise RuntimeError("on_end is broken")


def test_what_fails_for_every_made_up_subject_is_logged_once(lenient, caplog):
    provider = TracerProvider()
    provider.add_span_processor(FailingEnd())
    telemetry = Telemetry("test", Settings(), tracer_provider=provider)
    for number in range(3):
        operation = telemetry.operation(v.PUBLISH, "publish", v.Destination(f"orders.{number}"), ())
        telemetry.publish(operation, (), None, Context()).end()
    assert len(caplog.records) == len(safety._reported) == 1
