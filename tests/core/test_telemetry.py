"""What the telemetry keeps for those who ask again."""

from __future__ import annotations

import builtins
import contextvars
import sys

import pytest
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from otel_messaging.core import safety
from otel_messaging.core import vocabulary as v
from otel_messaging.core.settings import Settings
from otel_messaging.core.telemetry import Telemetry
from tests.support.recorder import shape


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


def test_of_what_an_exception_says_the_beginning_is_kept(desk, recorder):
    desk().deliver().end(ValueError("no such book: " + "b" * 900_000))
    span, beginning = recorder.span("receive orders"), "no such book: " + "b" * 1010
    (event,) = span.events
    assert span.status.description == beginning
    assert event.attributes["exception.message"] == beginning
    assert event.attributes["exception.stacktrace"].endswith(f"ValueError: {beginning}\n")
    assert event.attributes["exception.type"] == "ValueError"


def test_what_an_exception_says_can_be_encoded(desk, recorder):
    desk().deliver().end(ValueError("no \u00e9\udcff"))
    assert recorder.span("receive orders").status.description == "no \u00e9?"
    assert encode_spans(recorder.spans()).SerializeToString()


def raised(text):
    """An exception that was raised from another one, with all that a traceback shows."""
    try:
        try:
            raise ValueError(text)
        except ValueError as cause:
            raise RuntimeError("short") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("text", ["b" * 900_000, "\udcff", "b" * 900_000 + "\udcff"])
@pytest.mark.parametrize("where", ["cause", "note", "group"])
def test_of_what_exceptions_say_that_are_told_with_another_the_beginning_is_kept(desk, recorder, caplog, text, where):
    if where != "cause" and sys.version_info < (3, 11):
        pytest.skip("notes and groups came with Python 3.11")
    if where == "cause":
        error = raised(text)
    elif where == "group":
        error = builtins.ExceptionGroup("short", [ValueError(text)])
    else:
        error = RuntimeError("short")
        error.add_note(text)
    desk().deliver().end(error)
    span = recorder.span("receive orders")
    stacktrace = span.events[0].attributes["exception.stacktrace"]
    assert v.cut(text) in stacktrace
    assert len(stacktrace) < 5000
    assert encode_spans([span]).SerializeToString()
    assert caplog.records == []


def test_exceptions_that_go_round_in_a_circle_are_recorded(desk, recorder):
    error = raised("short")
    error.__cause__.__cause__ = error
    desk().deliver().end(error)
    assert "RuntimeError: short" in recorder.span("receive orders").events[0].attributes["exception.stacktrace"]


@pytest.mark.parametrize("length", [0, 1, 1024])
def test_of_a_short_text_nothing_is_missing(desk, recorder, length):
    desk().deliver().end(ValueError("b" * length))
    span = recorder.span("receive orders")
    assert span.status.description == span.events[0].attributes["exception.message"] == "b" * length


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


@pytest.mark.parametrize("mode", ["guide", "semconv"])
def test_the_address_of_a_reply_is_made_up_for_it_whatever_its_form(desk, recorder, mode):
    office = desk(mode)
    delivery = office.deliver("questions")
    delivery.reply_to = "answers.of.client-7"
    for name in ("orders", "answers.of.client-7"):
        office.publish(name).end()
    delivery.end()
    office.publish("answers.of.client-7").end()
    assert [span.name for span in recorder.producers(3)] == ["publish orders", "publish", "publish answers.of.client-7"]
    reply = shape(recorder.producers(3)[1])["attributes"]
    assert reply["messaging.destination.name"] == "answers.of.client-7"
    assert reply.get("messaging.destination.temporary") == (True if mode == "semconv" else None)


def test_the_address_of_a_reply_is_known_where_names_are_composed(desk, recorder):
    office = desk("semconv")
    delivery = office.deliver("questions")
    delivery.reply_to = "answers.7"
    office.publish("rpc", semconv="rpc:answers.7").end()
    office.publish("rpc", semconv="rpc:orders.7").end()
    delivery.end()
    assert [span.name for span in recorder.producers(2)] == ["publish", "publish rpc:orders.7"]


def test_a_message_may_be_answered_while_another_is_handled(desk, recorder):
    office = desk()
    outer, inner = office.deliver("questions"), office.deliver("helpers")
    outer.reply_to, inner.reply_to = "answers.7", "answers.8"
    office.publish("answers.7").end()
    inner.end()
    outer.end()
    assert [span.name for span in recorder.producers(1)] == ["publish"]


def test_a_task_that_a_handler_has_started_may_answer_when_the_handler_is_over(desk, recorder):
    office = desk()
    delivery = office.deliver("questions")
    delivery.reply_to = "answers.7"
    later = contextvars.copy_context()
    delivery.end()
    later.run(lambda: office.publish("answers.7").end())
    assert [span.name for span in recorder.producers(1)] == ["publish"]


def test_a_settlement_that_outlives_the_handling_is_told_to_nobody(desk, recorder, caplog):
    """A consumer may be closed while a message of it is being acknowledged."""
    office = desk()
    delivery = office.deliver()
    settlement = office.telemetry.settle("ack", delivery.operation, delivery, (), {})
    delivery.end()
    settlement.end()
    assert recorder.span("receive orders").events == ()
    assert caplog.records == []
