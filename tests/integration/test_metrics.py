"""What is counted and timed, in every library and vocabulary.

How long messages have waited, and how many wait, is another matter: it is switched off here.
"""

from __future__ import annotations

import time

import pytest

from tests.support.drivers import CALLBACKS
from tests.support.recorder import span_id
from tests.support.waiting import until

with_callbacks = pytest.mark.parametrize("library", CALLBACKS)
QUIET = {"queue_time": False, "lag": False}

GUIDE = {"messaging.system", "messaging.destination.name", "messaging.kafka.consumer.group"}
SEMCONV = {
    "messaging.system",
    "messaging.destination.name",
    "messaging.operation.name",
    "messaging.consumer.group.name",
    "messaging.destination.partition.id",
    "server.address",
    "server.port",
}
UNITS = {
    "messaging.messages.produced": ("Sum", "{message}"),
    "messaging.messages.consumed": ("Sum", "{message}"),
    "messaging.processing.duration": ("Histogram", "ms"),
    "messaging.client.sent.messages": ("Sum", "{message}"),
    "messaging.client.consumed.messages": ("Sum", "{message}"),
    "messaging.client.operation.duration": ("Histogram", "s"),
    "messaging.process.duration": ("Histogram", "s"),
}
SEND = {"messaging.operation.type": "send"}  # the conventions have it on this one metric
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


class BrokenError(Exception):
    """What the application raises."""


def low(attributes, allowed, **more):
    return {**{key: value for key, value in attributes.items() if key in allowed}, **more}


def sent(driver, destination, mode, **more):
    """The attributes of the metrics of publishing; the partition is not known when a message is handed over."""
    allowed = (GUIDE if mode == "guide" else SEMCONV) - {"messaging.destination.partition.id"}
    return low(driver.published(mode, destination, b"body"), allowed, **more)


def consumed(driver, destination, mode, **more):
    return low(driver.consumed(mode, destination, b"body"), GUIDE if mode == "guide" else SEMCONV, **more)


def chosen(vocabulary, guide, semconv):
    return {"guide": guide, "semconv": semconv, "both": {**guide, **semconv}}[vocabulary]


def points(recorder):
    """The points of each metric, in an order of their own."""
    return {name: sorted(found, key=str) for name, found in recorder.metrics().items()}


async def test_a_published_and_consumed_message_is_counted_once(connect, recorder, vocabulary):
    driver = await connect(**QUIET, settle="off")
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    await driver.loop(listener, 1, lambda _: None)
    recorder.producers(1)
    assert points(recorder) == chosen(
        vocabulary,
        {
            "messaging.messages.produced": [(sent(driver, destination, "guide"), 1)],
            "messaging.messages.consumed": [(consumed(driver, destination, "guide"), 1)],
            "messaging.processing.duration": [(consumed(driver, destination, "guide"), 1)],
        },
        {
            "messaging.client.sent.messages": [(sent(driver, destination, "semconv"), 1)],
            "messaging.client.operation.duration": [(sent(driver, destination, "semconv", **SEND), 1)],
            "messaging.client.consumed.messages": [(consumed(driver, destination, "semconv"), 1)],
            "messaging.process.duration": [(consumed(driver, destination, "semconv"), 1)],
        },
    )


async def test_messages_add_up(connect, recorder, vocabulary):
    driver = await connect(**QUIET)
    destination = driver.name()
    listener = await driver.listen(destination)
    for _ in range(3):
        await driver.publish(destination)
    await driver.loop(listener, 2, lambda _: None)
    recorder.producers(3)
    found = recorder.metrics()
    for produced, received in (
        ("messaging.messages.produced", "messaging.messages.consumed"),
        ("messaging.client.sent.messages", "messaging.client.consumed.messages"),
    ):
        if produced in found:
            assert [value for _, value in found[produced]] == [3]
            assert [value for _, value in found[received]] == [2]


async def test_instruments_have_the_units_and_buckets_of_their_vocabulary(connect, recorder, vocabulary):
    driver = await connect(**QUIET)
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    await driver.loop(listener, 1, lambda _: None)
    recorder.producers(1)
    for name, kind, unit, bounds in recorder.instruments():
        assert (kind, unit) == UNITS[name]
        if kind == "Histogram":
            assert bounds == tuple(bound * (1000 if unit == "ms" else 1) for bound in BOUNDS)


async def test_a_duration_is_in_the_unit_that_it_names(connect, recorder, vocabulary):
    driver = await connect(**QUIET)
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    await driver.loop(listener, 1, lambda _: time.sleep(0.02))
    (span,) = recorder.consumers(1)
    seconds = (span.end_time - span.start_time) / 1e9
    sums = recorder.sums()
    for name, factor in (("messaging.processing.duration", 1000), ("messaging.process.duration", 1)):
        if name in sums:
            assert sums[name] == pytest.approx(seconds * factor, rel=0.5)


@with_callbacks
async def test_a_message_whose_callback_failed_is_counted_with_the_error(connect, recorder, vocabulary):
    driver = await connect(**QUIET, settle="off")
    destination = driver.name()

    async def handler(_message):
        raise BrokenError

    await driver.subscribe(destination, handler)
    await driver.publish(destination)
    await until(lambda: len(recorder.spans()) == 2)
    error = {"error.type": f"{BrokenError.__module__}.BrokenError"}
    found = recorder.metrics()
    expected = chosen(
        vocabulary,
        dict.fromkeys(("messaging.messages.consumed", "messaging.processing.duration"), "guide"),
        dict.fromkeys(("messaging.client.consumed.messages", "messaging.process.duration"), "semconv"),
    )
    for name, mode in expected.items():
        assert found[name] == [(consumed(driver, destination, mode, **error), 1)]


async def test_a_message_that_could_not_be_published_is_counted_with_the_error(connect, recorder, vocabulary):
    driver = await connect(**QUIET)
    destination = driver.name()
    await driver.listen(destination)
    await driver.publish(destination)
    recorder.producers(1)
    await driver.disconnect()
    with pytest.raises(Exception):  # noqa: B017, PT011 (each library has its own)
        await driver.publish(destination)
    found = recorder.metrics()
    error = {"error.type": recorder.producers(2)[1].attributes["error.type"]}
    expected = chosen(
        vocabulary,
        {"messaging.messages.produced": "guide"},
        dict.fromkeys(("messaging.client.sent.messages", "messaging.client.operation.duration"), "semconv"),
    )
    for name, mode in expected.items():
        more = SEND if name == "messaging.client.operation.duration" else {}
        assert (sent(driver, destination, mode, **more, **error), 1) in found[name]
        assert (sent(driver, destination, mode, **more), 1) in found[name]
        assert len(found[name]) == 2


@pytest.mark.parametrize("by", ["keyword", "variable"])
async def test_metrics_can_be_switched_off(connect, recorder, monkeypatch, by):
    if by == "variable":
        monkeypatch.setenv("OTEL_PYTHON_MESSAGING_METRICS", "false")
    driver = await connect(**({"metrics": False} if by == "keyword" else {}))
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    await driver.loop(listener, 1, lambda _: None)
    recorder.producers(1)
    recorder.consumers(1)
    assert recorder.metrics() == {}


async def test_what_was_counted_is_not_lost_when_instrumentation_ends(connect, recorder):
    driver = await connect(**QUIET)
    destination = driver.name()
    await driver.listen(destination)
    await driver.publish(destination)
    recorder.producers(1)
    driver.instrumentor().uninstrument()
    assert [value for _, value in recorder.metrics()["messaging.messages.produced"]] == [1]
    assert [value for _, value in recorder.metrics()["messaging.messages.produced"]] == [1]


async def test_durations_are_examples_of_their_messages_and_counts_are_of_none(connect, recorder, vocabulary):
    driver = await connect(**QUIET)
    destination = driver.name()
    listener = await driver.listen(destination)
    with recorder.tracer.start_as_current_span("job"):
        await driver.publish(destination)
    await driver.loop(listener, 1, lambda _: None)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    with recorder.tracer.start_as_current_span("unrelated job"):
        data = recorder.reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    found = {
        metric.name: {one.span_id for point in metric.data.data_points for one in point.exemplars} for metric in data
    }
    handled = {"messaging.processing.duration", "messaging.process.duration", "messaging.queue.duration"}
    assert handled & found.keys()
    for name, spans in found.items():
        if name in handled:
            assert spans == {span_id(consumed)}
        elif name == "messaging.client.operation.duration":
            assert span_id(published) in spans
        else:
            assert spans == set()


async def test_instrumenting_again_and_again_counts_once_and_registers_nothing_more(connect, recorder, instrument):
    driver = await connect(**QUIET)
    consumer = recorder.meter_provider._measurement_consumer
    registered = len(consumer._async_instruments)
    destination = driver.name()
    await driver.listen(destination)
    await driver.publish(destination)
    for _ in range(20):
        driver.instrumentor().uninstrument()
        instrument(driver.instrumentor, **QUIET)
    await driver.publish(destination)
    assert [value for _, value in recorder.metrics()["messaging.messages.produced"]] == [2]
    assert len(consumer._async_instruments) == registered
