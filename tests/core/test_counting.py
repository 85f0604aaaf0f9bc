"""Counts are exact at every export, and what is measured has the trace of its message."""

from __future__ import annotations

import gc
import sys
import threading
import time
import tracemalloc
from contextlib import nullcontext

import pytest
from opentelemetry import metrics as api
from opentelemetry.context import get_current
from opentelemetry.metrics import _internal as meters
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.util._once import Once

from otel_messaging.core import metrics as ours
from otel_messaging.core import vocabulary as v
from otel_messaging.core.settings import Settings
from otel_messaging.core.telemetry import Telemetry
from tests.support.recorder import span_id, trace_id

FACTS = ((v.SYSTEM, "kafka"),)
PRODUCED = "messaging.messages.produced"
DURATION = "messaging.processing.duration"


class Recording:
    """Two readers: one that is told the whole each time, and one that is told what is new."""

    def __init__(self):
        self.whole = InMemoryMetricReader()
        self.new = InMemoryMetricReader(preferred_temporality={Counter: AggregationTemporality.DELTA})
        self.provider = MeterProvider([self.whole, self.new], shutdown_on_exit=False)
        self.told = 0

    def telemetry(self, tracers=None, settings=None):
        return Telemetry("test", settings or Settings(), tracers or TracerProvider(), self.provider)

    def total(self):
        """What the first reader is told."""
        return sum(point.value for point in points(self.whole, PRODUCED))

    def more(self):
        """What the second one is, in all."""
        self.told += sum(point.value for point in points(self.new, PRODUCED))
        return self.told


def points(reader, name):
    data = reader.get_metrics_data()
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
    return [
        point
        for scope in scopes
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def publishing(telemetry, name="orders"):
    return telemetry.operation(v.PUBLISH, "send", v.Destination(name), FACTS)


def publish(telemetry, operation, error=None):
    publication = telemetry.publish(operation, (), None, get_current())
    publication.end(error)
    return publication.span


@pytest.fixture
def recording():
    made = Recording()
    yield made
    made.provider.shutdown()


@pytest.fixture
def hasty():
    """Threads are switched, and garbage is collected, as often as can be."""
    before, often = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(50, 2, 2)
    yield
    gc.set_threshold(*often)
    sys.setswitchinterval(before)


def test_counts_are_exact_whatever_counts_collects_and_is_let_go_meanwhile(recording, hasty, caplog):
    telemetry, threads, each = recording.telemetry(), 4, 15000
    errors, done = [], threading.Event()

    def guarded(work):
        try:
            work()
        except Exception as error:
            errors.append(error)

    def count():
        """Operations are let go in cycles, as those of a closed client are."""
        for number in range(each):
            operation = publishing(telemetry, f"queue-{number % 7}")
            (recorder,) = operation.metrics
            recorder.record(0.0, 1, None, None)
            cycle = [operation]
            cycle.append(cycle)

    def collect(read):
        seen = 0
        while not done.is_set():
            now = read()
            assert seen <= now <= threads * each
            seen = now

    counting = [threading.Thread(target=guarded, args=(count,)) for _ in range(threads)]
    reads = (recording.total, recording.more)
    collecting = [threading.Thread(target=guarded, args=(lambda read=read: collect(read),)) for read in reads]
    for thread in (*collecting, *counting):
        thread.start()
    for thread in counting:
        thread.join()
    assert recording.total() == threads * each
    done.set()
    for thread in collecting:
        thread.join()
    gc.collect()
    assert errors == []
    assert caplog.records == []  # the SDK logs what a callback raises
    assert (recording.total(), recording.more()) == (threads * each, threads * each)


def test_each_reader_is_told_all(recording):
    telemetry = recording.telemetry()
    operation = publishing(telemetry)
    for expected in (1, 2, 3):
        publish(telemetry, operation)
        assert recording.total() == expected
    assert recording.more() == 3
    publish(telemetry, operation)
    assert [point.value for point in points(recording.new, PRODUCED)] == [1]
    assert recording.total() == 4


def test_a_series_begins_at_its_first_message(recording):
    telemetry = recording.telemetry()
    operation, other = publishing(telemetry), publishing(telemetry, "never")
    assert other.metrics
    before = time.time_ns()
    publish(telemetry, operation)
    after = time.time_ns()
    time.sleep(0.02)
    for reader in (recording.whole, recording.new):
        (point,) = points(reader, PRODUCED)
        assert point.value == 1
        assert before <= point.start_time_unix_nano <= after < point.time_unix_nano
    time.sleep(0.02)
    publish(telemetry, operation)
    (next_one,) = points(recording.new, PRODUCED)
    assert (next_one.value, next_one.start_time_unix_nano) == (1, point.time_unix_nano)


def test_a_count_is_no_example_of_the_span_that_collects(recording):
    tracers = TracerProvider()
    telemetry = recording.telemetry(tracers)
    lag = telemetry.lag(v.Destination("orders"), FACTS)
    lag.value = 7
    publish(telemetry, publishing(telemetry))
    with tracers.get_tracer("job").start_as_current_span("unrelated job"):
        data = recording.whole.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    exemplars = {metric.name: metric.data.data_points[0].exemplars for metric in data}
    assert exemplars == {PRODUCED: [], "messaging.consumer.lag": []}


@pytest.mark.parametrize("around", [False, True], ids=["alone", "in another span"])
def test_a_duration_is_an_example_of_its_message(desk, recorder, around):
    office = desk()
    operation = office.operation(v.DELIVER, "process", facts=FACTS)
    with recorder.tracer.start_as_current_span("job") if around else nullcontext():
        delivery = office.telemetry.deliver(operation, (), None, None, get_current(), 1.5)
        delivery.end()
    data = recorder.reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    examples = {
        metric.name: [(one.trace_id, one.span_id) for one in metric.data.data_points[0].exemplars] for metric in data
    }
    its_own = [(trace_id(delivery.span), span_id(delivery.span))]
    assert examples == {DURATION: its_own, "messaging.queue.duration": its_own, "messaging.messages.consumed": []}


def test_a_failure_is_an_example_of_its_message(desk, recorder):
    publication = desk().publish()
    publication.end(TimeoutError("late"))
    ((exemplar,),) = [point.exemplars for point in points(recorder.reader, PRODUCED)]
    assert exemplar.span_id == span_id(publication.span)


def test_messages_that_are_counted_together_are_an_example_of_their_call(desk, recorder):
    from otel_messaging.core.operations import Moment

    office = desk()
    operation = office.operation(v.RECEIVE, "poll", facts=FACTS)
    office.telemetry.receive(operation, (), [((), None)] * 3, get_current(), Moment.now())
    (point,) = points(recorder.reader, "messaging.messages.consumed")
    assert (point.value, [exemplar.span_id for exemplar in point.exemplars]) == (3, [span_id(recorder.spans()[0])])


class Slow(SpanExporter):
    def export(self, spans):
        time.sleep(0.2)

    def shutdown(self):
        pass


def test_a_duration_does_not_contain_what_exporters_take(recording):
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(Slow()))
    telemetry = recording.telemetry(tracers)
    operation = telemetry.operation(v.DELIVER, "process", v.Destination("orders"), FACTS)
    telemetry.deliver(operation, (), None, None, get_current()).end()
    (point,) = points(recording.whole, DURATION)
    assert point.sum < 150  # milliseconds


def test_instrumenting_again_does_not_count_twice(recording):
    for _ in range(3):
        telemetry = recording.telemetry()
        publish(telemetry, publishing(telemetry))
        telemetry.close()
    assert (recording.total(), recording.more()) == (3, 3)


def test_what_is_on_its_way_when_instrumentation_ends_is_counted_when_it_ends(recording):
    telemetry = recording.telemetry()
    publication = telemetry.publish(publishing(telemetry), (), None, get_current())
    telemetry.close()
    publication.end()
    del telemetry, publication
    gc.collect()
    assert recording.total() == 1


def test_the_lag_is_not_known_any_more_when_instrumentation_has_ended(recording):
    telemetry = recording.telemetry()
    lags = []
    for value in (7, 8):
        lags.append(telemetry.lag(v.Destination("orders"), FACTS))
        lags[-1].value = value
        assert [point.value for point in points(recording.whole, "messaging.consumer.lag")] == [value]
        telemetry.close()
        telemetry = recording.telemetry()
    lags[0].value = 9  # a consumer that was not closed
    assert points(recording.whole, "messaging.consumer.lag") == []


def switch(times, tracers, provider):
    for _ in range(times):
        telemetry = Telemetry("test", Settings(), tracers, provider)
        publish(telemetry, publishing(telemetry))
        telemetry.close()


@pytest.mark.parametrize("provided", [True, False], ids=["a provider", "none yet"])
def test_instrumenting_again_and_again_leaves_nothing_behind(recording, unset, provided):
    tracers, provider = TracerProvider(shutdown_on_exit=False), recording.provider if provided else None
    switch(3, tracers, provider)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        switch(100, tracers, provider)
        gc.collect()
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    wanted = [tracemalloc.Filter(True, ours.__file__), tracemalloc.Filter(True, "*/opentelemetry/*metrics/*")]
    grown = after.filter_traces(wanted).compare_to(before.filter_traces(wanted), "filename")
    assert sum(one.size_diff for one in grown) < 5000  # less than one object each time; tables grow by leaps
    if provided:
        assert len(recording.provider._measurement_consumer._async_instruments) == 2


@pytest.fixture
def unset(monkeypatch):
    """The API as it is before anybody has set a provider."""
    monkeypatch.setattr(meters, "_METER_PROVIDER", None)
    monkeypatch.setattr(meters, "_METER_PROVIDER_SET_ONCE", Once())
    monkeypatch.setattr(meters, "_PROXY_METER_PROVIDER", meters._ProxyMeterProvider())
    monkeypatch.setattr(ours, "_unset", {})


@pytest.mark.parametrize("again", ["before", "after", "with the provider", "not"])
def test_a_provider_that_is_set_late_is_told_all_from_then_on(recording, unset, again):
    def begin(provider=None):
        telemetry = Telemetry("test", Settings(), TracerProvider(), provider)
        telemetry.lag(v.Destination("orders"), FACTS)
        return telemetry, publishing(telemetry)

    telemetry, operation = begin()
    publish(telemetry, operation)
    if again == "before":
        telemetry.close()
        telemetry, operation = begin()
    api.set_meter_provider(recording.provider)
    for expected in (1, 2):
        publish(telemetry, operation)
        assert recording.total() == expected
    if again in ("after", "with the provider"):
        telemetry.close()
        telemetry, operation = begin(recording.provider if again == "with the provider" else None)
    publish(telemetry, operation)
    lag = telemetry.lag(v.Destination("orders"), FACTS)
    lag.value = 7
    assert (recording.total(), recording.more()) == (3, 3)
    assert [point.value for point in points(recording.whole, "messaging.consumer.lag")] == [7]
    assert len(recording.provider._measurement_consumer._async_instruments) == 2


def test_a_collection_that_breaks_into_another_does_not_wait_for_it(recording, monkeypatch):
    """As one does that a signal's handler has begun."""
    monkeypatch.setattr(ours, "_PATIENCE", 0.01)
    telemetry = recording.telemetry()
    publish(telemetry, publishing(telemetry))
    ledger = telemetry._metrics._ledger
    with ledger._flushing:
        assert recording.total() == 0
    assert recording.total() == 1
