"""Names in metrics are bounded: whoever sends messages may make up a name for each."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from opentelemetry.context import get_current

from otel_messaging.core import metrics, settings
from otel_messaging.core import vocabulary as v
from otel_messaging.core.metrics import NAMES
from otel_messaging.core.operations import Failure

FACTS = ((v.SYSTEM, "nats"),)
NAME, TEMPLATE = "messaging.destination.name", "messaging.destination.template"
COUNTERS = {"guide": "messaging.messages.consumed", "semconv": "messaging.client.consumed.messages"}
DURATIONS = {"guide": "messaging.processing.duration", "semconv": "messaging.process.duration"}


def by_name(recorder):
    """Of each metric: its values by the name of the destination."""
    return {
        metric: {attributes.get(NAME): value for attributes, value in found}
        for metric, found in recorder.metrics().items()
    }


def deliver(office, name, waited=1.0):
    operation = office.operation(v.DELIVER, "process", name, FACTS)
    delivery = office.telemetry.deliver(operation, (), None, None, get_current(), waited)
    delivery.end()


@pytest.mark.parametrize("mode", ["guide", "semconv"])
def test_names_above_the_limit_are_not_told_apart(desk, recorder, caplog, mode):
    office = desk(mode)
    deliver(office, "real")
    for number in range(3 * NAMES):
        deliver(office, f"made-up-{number}")
    deliver(office, "real")
    found = by_name(recorder)
    for metric in (COUNTERS[mode], DURATIONS[mode], "messaging.queue.duration"):
        values = found[metric]
        assert len(values) == NAMES + 1
        assert (values["real"], values["_OTHER"]) == (2, 2 * NAMES + 1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "1000" in record.getMessage()
    assert settings.variable("destination_templates") in record.getMessage()
    assert "made-up" not in record.getMessage()


def test_each_instrument_has_its_own_names(desk, recorder, caplog):
    office = desk()
    for number in range(NAMES):
        office.publish(f"made-up-{number}").end()
    deliver(office, "real")
    office.publish("one more").end()
    for number in range(NAMES + 2):
        for counter in (v.RETRIED, v.DEAD_LETTERED):
            office.telemetry.count(counter, v.Destination(f"made-up-{number}"), FACTS, None)
    found = by_name(recorder)
    assert found["messaging.messages.produced"]["_OTHER"] == 1
    assert found["messaging.messages.consumed"] == {"real": 1}
    for counter in (v.RETRIED, v.DEAD_LETTERED):
        assert (len(found[counter]), found[counter]["_OTHER"]) == (NAMES + 1, 2)
    assert len(caplog.records) == 1


def test_what_is_excluded_and_what_has_no_name_counts_for_none(desk, recorder, caplog):
    office = desk(settings.Settings(excluded_destinations=("health.*",)))
    for number in range(NAMES + 1):
        assert office.deliver(f"health.{number}") is None
        office.publish(f"amq.gen-{number}", temporary=True).end()
        office.publish(f"devices.{number}", template="devices.*").end()
    found = by_name(recorder)
    assert found == {"messaging.messages.produced": {None: NAMES + 1, "devices.*": NAMES + 1}}
    assert caplog.records == []


@pytest.mark.parametrize("mode", ["guide", "semconv"])
def test_templates_have_the_same_limit(desk, recorder, caplog, mode):
    """An application may subscribe to a wildcard for each of its devices."""
    office = desk(mode)
    for number in range(NAMES + 3):
        office.deliver(f"devices.{number}.on", template=f"devices.{number}.*").end()
    found = recorder.metrics()[COUNTERS[mode]]
    assert len(found) == NAMES + 1
    ((attributes, value),) = [one for one in found if one[0].get(NAME) == "_OTHER"]
    assert (value, TEMPLATE in attributes) == (3, False)
    assert len(caplog.records) == 1


def test_names_that_are_made_up_take_no_memory(desk):
    office = desk()

    def publish(*numbers):
        for number in range(*numbers):
            office.telemetry.prepared(v.PUBLISH, "send", v.Destination(f"made-up-{number}"), FACTS)

    publish(4000)
    gc.collect()
    tracemalloc.start()
    try:
        publish(4000, 8096)  # the cache of operations is as full as before
        gc.collect()
        grown = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, metrics.__file__)])
    finally:
        tracemalloc.stop()
    assert len(office.telemetry._metrics._ledger._tallies) == NAMES + 1
    assert sum(one.size for one in grown.statistics("filename")) < 1_000_000


def test_what_waits_is_told_apart_by_name_and_added_up_where_it_is_not(desk, recorder):
    office = desk(settings.Settings(destination_templates=("devices.*",)))
    lags = []

    def waiting(name, value, *facts):
        lags.append(office.telemetry.lag(v.Destination(name), (*FACTS, *facts)))
        lags[-1].value = value

    for value in (1, 2):
        waiting("orders", value)  # the same twice: the one that came last is right
    for number in range(NAMES - 2):
        waiting(f"made-up-{number}", 1)
    waiting("devices.7", 10)
    waiting("devices.8", 20)
    waiting("late", 100)
    waiting("later", 200)
    found = by_name(recorder)["messaging.consumer.lag"]
    assert (found["orders"], found["devices.*"], found["_OTHER"]) == (2, 30, 300)
    assert len(found) == NAMES + 1


def test_the_lag_of_what_is_excluded_is_nobodys(desk):
    office = desk(settings.Settings(excluded_destinations=("health",)))
    assert office.telemetry.lag(v.Destination("health"), FACTS) is None


def test_what_waits_is_told_apart_by_all_that_a_sender_may_have_made_up(desk, recorder, caplog):
    office = desk()
    lags = []
    for number in range(3 * NAMES):
        facts = (*FACTS, (v.NATS_STREAM, f"made-up-{number}"), (v.NATS_GROUP, "consumer"))
        lags.append(office.telemetry.lag(v.Destination("orders"), facts))
        lags[-1].value = 1
    found = recorder.metrics()["messaging.consumer.lag"]
    assert len(found) == NAMES + 1
    assert [one for one in found if one[0][NAME] != "orders"] == [
        ({NAME: "_OTHER", "messaging.system": "nats"}, 2 * NAMES)
    ]
    assert len(caplog.records) == 1


def test_partitions_are_the_brokers_own_and_all_told_apart(desk, recorder, caplog):
    office = desk()
    lags = [
        office.telemetry.lag(
            v.Destination("orders"), ((v.SYSTEM, "kafka"), (v.GROUP, "g"), (v.KAFKA_PARTITION, number))
        )
        for number in range(NAMES + 5)
    ]
    for lag in lags:
        lag.value = 1
    assert len(recorder.metrics()["messaging.consumer.lag"]) == NAMES + 5
    assert caplog.records == []


@pytest.mark.parametrize("mode", ["guide", "semconv"])
def test_errors_above_the_limit_are_not_told_apart(desk, recorder, caplog, mode):
    """Whoever answers a request may make up an error for each."""
    office = desk(mode)
    operation = office.operation(v.DELIVER, "process", "orders", FACTS)

    def fail(error_type):
        delivery = office.telemetry.deliver(operation, (), None, None, get_current())
        delivery.end(Failure(error_type, "no"))

    for number in range(3 * NAMES):
        fail(f"made-up-{number}")
        office.telemetry.count(v.DEAD_LETTERED, v.Destination("orders"), FACTS, Failure(f"made-up-{number}", ""))
    fail("made-up-1")
    found = recorder.metrics()
    for metric, again in ((COUNTERS[mode], 1), (DURATIONS[mode], 1), (v.DEAD_LETTERED, 0)):
        values = {attributes["error.type"]: value for attributes, value in found[metric] if "error.type" in attributes}
        assert len(values) == NAMES + 1
        assert (values["made-up-1"], values["_OTHER"]) == (1 + again, 2 * NAMES)
    (record,) = caplog.records
    assert "1000 errors" in record.getMessage()
    assert "made-up" not in record.getMessage()
