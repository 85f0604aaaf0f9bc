"""Messages are counted once and timed, under the names, units and buckets of each vocabulary."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
from opentelemetry.trace import INVALID_SPAN

from otel_messaging.core import vocabulary as v
from otel_messaging.core.settings import Settings

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
MILLISECONDS = (5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000)
GUIDE = {
    "messaging.messages.produced": ("{message}", None),
    "messaging.messages.consumed": ("{message}", None),
    "messaging.processing.duration": ("ms", MILLISECONDS),
}
SEMCONV = {
    "messaging.client.sent.messages": ("{message}", None),
    "messaging.client.consumed.messages": ("{message}", None),
    "messaging.client.operation.duration": ("s", SECONDS),
    "messaging.process.duration": ("s", SECONDS),
}
FACTS = ((v.SYSTEM, "kafka"),)


def work(office):
    """Publish one message, pull it, handle it and settle it; have another one delivered."""
    for action, verb in ((v.PUBLISH, "send"), (v.RECEIVE, "poll"), (v.PROCESS, "process"), (v.SETTLE, "commit")):
        record(office, action, verb)
    record(office, v.DELIVER, "process")


def record(office, action, verb, name="orders", count=1, error=None, **destination):
    for metrics in office.operation(action, verb, name, FACTS, **destination).metrics:
        metrics.record(0.25, count, error, INVALID_SPAN)


def values(recorder, name):
    return {tuple(sorted(attributes.items())): value for attributes, value in recorder.metrics().get(name, ())}


def points(recorder):
    """By metric: the unit and the bounds."""
    data = recorder.reader.get_metrics_data()
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.scope.name == "otel_messaging.test"
    return {
        metric.name: (metric.unit, getattr(metric.data.data_points[0], "explicit_bounds", None))
        for metric in scope.metrics
    }


@pytest.mark.parametrize(("mode", "expected"), [("guide", GUIDE), ("semconv", SEMCONV), ("both", {**GUIDE, **SEMCONV})])
def test_a_vocabulary_has_its_instruments(desk, recorder, mode, expected):
    work(desk(mode))
    assert points(recorder) == expected


def test_the_guide_counts_each_message_once(desk, recorder):
    work(desk())
    counted = {name: [value for _, value in recorder_points] for name, recorder_points in recorder.metrics().items()}
    assert counted == {
        "messaging.messages.produced": [1],
        "messaging.messages.consumed": [2],
        "messaging.processing.duration": [2],
    }


def test_the_conventions_count_each_message_once_and_time_each_operation(desk, recorder):
    work(desk("semconv"))
    metrics = recorder.metrics()
    by_verb = {
        name: sorted((attributes["messaging.operation.name"], value) for attributes, value in found)
        for name, found in metrics.items()
    }
    assert by_verb == {
        "messaging.client.sent.messages": [("send", 1)],
        "messaging.client.consumed.messages": [("poll", 1), ("process", 1)],
        "messaging.client.operation.duration": [("commit", 1), ("poll", 1), ("send", 1)],
        "messaging.process.duration": [("process", 2)],
    }


def test_a_batch_counts_all_its_messages(desk, recorder):
    record(desk(), v.RECEIVE, "poll", count=5)
    assert [value for _, value in recorder.metrics()["messaging.messages.consumed"]] == [5]


def test_a_failure_has_its_type(desk, recorder):
    office = desk()
    record(office, v.PUBLISH, "send")
    record(office, v.PUBLISH, "send", error="TimeoutError")
    base = (("messaging.destination.name", "orders"), ("messaging.system", "kafka"))
    assert values(recorder, "messaging.messages.produced") == {base: 1, (("error.type", "TimeoutError"), *base): 1}


def test_a_message_that_could_not_be_published_has_the_type_of_its_exception(desk, recorder):
    desk().publish().end(TimeoutError("late"))
    ((attributes, value),) = recorder.metrics()["messaging.messages.produced"]
    assert (attributes["error.type"], value) == ("TimeoutError", 1)


def test_counting_goes_on_between_collections(desk, recorder):
    office = desk()
    for expected in (1, 2, 3):
        record(office, v.PUBLISH, "send")
        assert [value for _, value in recorder.metrics()["messaging.messages.produced"]] == [expected]


def test_what_a_forgotten_operation_has_counted_is_not_lost(desk, recorder):
    office = desk()
    for number in range(3):
        record(office, v.PUBLISH, "send", f"queue-{number}")
    gc.collect()
    assert sorted(values(recorder, "messaging.messages.produced").values()) == [1, 1, 1]


def test_threads_lose_no_count(desk, recorder):
    office = desk()
    operation = office.operation(v.PUBLISH, "send")
    (metrics,) = operation.metrics

    def count():
        for _ in range(2000):
            metrics.record(0.0, 1, None, INVALID_SPAN)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    recorder.metrics()
    for thread in threads:
        thread.join()
    assert [value for _, value in recorder.metrics()["messaging.messages.produced"]] == [8000]


def test_threads_may_make_operations_while_metrics_are_collected(desk, recorder, caplog):
    office = desk()
    kept = []

    def make():
        kept.extend(
            (office.operation(v.PUBLISH, "send"), office.telemetry.lag(v.Destination("orders"), FACTS))
            for _ in range(2000)
        )

    thread = threading.Thread(target=make)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        while thread.is_alive():
            recorder.metrics()
    finally:
        sys.setswitchinterval(before)
        thread.join()
    assert caplog.records == []


def test_the_duration_is_in_the_vocabularys_unit(desk, recorder):
    record(desk("both"), v.DELIVER, "process")
    data = recorder.reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    sums = {metric.name: metric.data.data_points[0].sum for metric in data if "duration" in metric.name}
    assert sums == {"messaging.processing.duration": 250.0, "messaging.process.duration": 0.25}


def test_a_name_that_is_made_up_is_not_in_a_metric(desk, recorder):
    office = desk()
    record(office, v.PUBLISH, "send", "amq.gen-1", temporary=True)
    record(office, v.PUBLISH, "send", "orders.eu", template="orders.*")
    assert set(values(recorder, "messaging.messages.produced")) == {
        (("messaging.system", "kafka"),),
        (("messaging.destination.name", "orders.*"), ("messaging.system", "kafka")),
    }


def test_no_metrics_if_so_set(desk, recorder):
    work(desk(Settings(metrics=False)))
    assert recorder.metrics() == {}


def test_an_excluded_destination_is_not_counted(desk, recorder):
    office = desk(Settings(excluded_destinations=("orders",)))
    office.publish().end()
    assert office.deliver() is None
    assert recorder.metrics() == {}
    assert recorder.spans() == []


def test_what_was_counted_before_switching_off_is_not_lost(desk, recorder):
    office = desk()
    record(office, v.PUBLISH, "send")
    office.telemetry.close()
    assert [value for _, value in recorder.metrics()["messaging.messages.produced"]] == [1]
