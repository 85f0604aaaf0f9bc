"""Settings, by keyword and by variable, as a message shows them."""

from __future__ import annotations

import logging

import pytest
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tests.support.drivers import CALLBACKS
from tests.support.recorder import span_id
from tests.support.waiting import until

GUIDE = ("messaging.messages.produced", "messaging.messages.consumed", "messaging.processing.duration")
CONVENTIONS = (
    "messaging.client.sent.messages",
    "messaging.client.consumed.messages",
    "messaging.client.operation.duration",
    "messaging.process.duration",
)
with_callbacks = pytest.mark.parametrize("library", CALLBACKS)


@pytest.fixture(params=["keyword", "variable"])
def connect_with(request, connect, monkeypatch):
    """Connect with a setting, given in either way."""

    async def opened(**settings):
        if request.param == "keyword":
            return await connect(**settings)
        for name, value in settings.items():
            text = ",".join(value) if isinstance(value, (list, tuple)) else str(value)
            monkeypatch.setenv(f"OTEL_PYTHON_MESSAGING_{name.upper()}", text)
        return await connect()

    return opened


async def exchanged(driver, destination, headers=None, *, seen=None):
    """Publish and consume; the headers on the wire."""
    listener = await driver.listen(destination)
    await driver.publish(destination, b"body", headers)
    wire = []

    def body(message):
        wire.extend(driver.headers(message))
        if seen is not None:
            seen.append(trace.get_current_span())

    await driver.loop(listener, 1, body)
    return dict(wire)


async def test_an_excluded_destination_has_no_span_and_no_metric(connect_with, recorder):
    driver = await connect_with(excluded_destinations=["other-*", "test-*"])
    seen = []
    with recorder.tracer.start_as_current_span("request") as request:
        wire = await exchanged(driver, driver.name(), {"tenant": "acme"}, seen=seen)
    assert [span.name for span in recorder.spans()] == ["request"]
    assert recorder.metrics() == {}
    assert seen == [request]
    carrier = {}
    propagate.inject(carrier, trace.set_span_in_context(request))
    assert wire == {"tenant": "acme", **carrier}


@with_callbacks
async def test_an_excluded_destination_reaches_its_callback(connect, recorder):
    driver = await connect(excluded_destinations="test-*")
    destination = driver.name()
    bodies = []

    async def handler(message):
        bodies.append(driver.body(message))

    await driver.subscribe(destination, handler)
    await driver.publish(destination, b"hello")
    assert await until(lambda: bodies) == [b"hello"]
    assert recorder.spans() == []


async def test_what_no_glob_matches_is_not_excluded(connect, recorder):
    driver = await connect(excluded_destinations="test,*-test")
    await exchanged(driver, driver.name())
    recorder.producers(1)
    recorder.consumers(1)


async def test_a_template_stands_for_the_names_that_it_matches(connect_with, recorder, vocabulary):
    driver = await connect_with(destination_templates=["other-*", "test-*"])
    names = [driver.name() for _ in range(3)]
    for name in names:
        await exchanged(driver, name)
    verbs = {"guide": ("publish", "receive")}.get(vocabulary, (driver.verb, "process"))
    template = {"messaging.destination.template": "test-*"}
    spans = zip(names, recorder.producers(3), recorder.consumers(3), strict=True)
    for name, published, consumed in spans:
        assert [published.name, consumed.name] == [f"{verb} test-*" for verb in verbs]
        expected = {**driver.published(vocabulary, name, b"body"), **template}
        assert {**dict(published.attributes), **expected} == dict(published.attributes)
        expected = {**driver.consumed(vocabulary, name, b"body"), **template}
        assert {**dict(consumed.attributes), **expected} == dict(consumed.attributes)
    ours = {"guide": (True, False), "semconv": (False, True), "both": (True, True)}[vocabulary]
    for metric, points in recorder.metrics().items():
        in_name, beside = (True, False) if metric in GUIDE else (False, True) if metric in CONVENTIONS else ours
        for attributes, _ in points:
            assert attributes.get("messaging.destination.name") == ("test-*" if in_name else None)
            assert attributes.get("messaging.destination.template") == ("test-*" if beside else None)
        if metric in ("messaging.messages.produced", "messaging.client.sent.messages"):
            assert [value for _, value in points] == [3]


async def test_headers_can_be_captured_but_not_those_of_propagation(connect_with, recorder, vocabulary):
    driver = await connect_with(capture_headers=["X-*", "tenant", "trace*"])
    headers = {"X-Kind": "order", "Tenant": "acme", "secret": "1"}
    await exchanged(driver, driver.name(), headers)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    for span in (published, consumed):
        captured = {key: value for key, value in span.attributes.items() if key.startswith("messaging.header.")}
        assert captured == {"messaging.header.x-kind": "order", "messaging.header.tenant": "acme"}


async def test_everything_captured_is_still_without_propagation_headers(connect, recorder):
    driver = await connect(capture_headers="*")
    destination = driver.name()
    listener = await driver.listen(destination)
    with suppress_instrumentation():
        carrier = {"traceparent": f"00-{7:032x}-{7:016x}-01", "tracestate": "a=b", "baggage": "c=d", "kind": "order"}
        await driver.publish(destination, headers=carrier)
    await driver.loop(listener, 1, lambda _: None)
    (consumed,) = recorder.consumers(1)
    captured = {key: value for key, value in consumed.attributes.items() if key.startswith("messaging.header.")}
    assert captured == {"messaging.header.kind": "order"}


async def test_captured_headers_are_bounded_and_hold_no_secrets(connect, recorder, caplog):
    driver = await connect(capture_headers="*")
    many = {f"x-{number}": str(number) for number in range(100)}
    secrets = {"Authorization": "secret", "cookie": "secret", "b3": "1-2-1", "uber-trace-id": "1:2:0:1"}
    with caplog.at_level(logging.WARNING):
        await exchanged(driver, driver.name(), {**secrets, "kind": "x" * 5000, **many})
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert caplog.messages == []
    for span in (published, consumed):
        captured = {key: value for key, value in span.attributes.items() if key.startswith("messaging.header.")}
        assert len(captured) == 64
        assert captured["messaging.header.kind"] == "x" * 1024
        assert "secret" not in captured.values()
        assert not {"messaging.header.b3", "messaging.header.uber-trace-id"} & captured.keys()


async def test_a_secret_header_is_captured_if_it_is_named(connect_with, recorder):
    driver = await connect_with(capture_headers=["Authorization", "x-*"])
    await exchanged(driver, driver.name(), {"authorization": "Bearer 1", "x-b3-traceid": "1", "x-kind": "order"})
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    for span in (published, consumed):
        captured = {key: value for key, value in span.attributes.items() if key.startswith("messaging.header.")}
        assert captured == {"messaging.header.authorization": "Bearer 1", "messaging.header.x-kind": "order"}


async def test_without_process_spans_a_span_ends_when_its_message_is_handed_over(connect_with, recorder, vocabulary):
    driver = await connect_with(process_spans=False)
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    ended, seen = [], []

    def body(_message):
        ended.extend(span for span in recorder.spans() if span.kind is trace.SpanKind.CONSUMER)
        seen.append(trace.get_current_span())

    await driver.loop(listener, 1, body)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert ended == [consumed]
    assert seen == [trace.INVALID_SPAN]
    assert consumed.parent.span_id == span_id(published)


@with_callbacks
async def test_without_process_spans_nothing_is_current_in_a_callback(connect, recorder):
    driver = await connect(process_spans=False)
    destination = driver.name()
    seen = []

    async def handler(_message):
        seen.append(trace.get_current_span())

    await driver.subscribe(destination, handler)
    await driver.publish(destination)
    await until(lambda: seen)
    recorder.consumers(1)
    assert seen == [trace.INVALID_SPAN]


@pytest.mark.parametrize("library", ["aio_pika"])
@pytest.mark.parametrize(("mode", "events", "spans"), [("event", ["ack"], []), ("span", [], ["ack"]), ("off", [], [])])
async def test_settling_is_an_event_or_a_span_or_nothing(connect_with, recorder, vocabulary, mode, events, spans):
    driver = await connect_with(settle=mode)
    destination = driver.name()
    await exchanged(driver, destination)
    (consumed,) = recorder.consumers(1)
    settled = [span for span in recorder.spans() if span.attributes.get("messaging.rabbitmq.message.delivery_tag")]
    settled.remove(consumed)
    assert [event.name for event in consumed.events] == events
    assert [span.name.removesuffix(f" {destination}") for span in settled] == spans
    assert [(span.kind, span.parent.span_id) for span in settled] == [
        (trace.SpanKind.CLIENT, span_id(consumed)) for _ in spans
    ]


@pytest.mark.parametrize(
    ("name", "value", "used"),
    [
        ("consumer_parent", "father", "message"),
        ("process_spans", "maybe", "True"),
        ("settle", "span,event", "event"),
        ("metrics", "2", "True"),
    ],
)
async def test_a_bad_value_is_named_with_what_is_used_instead(
    connect, recorder, monkeypatch, caplog, name, value, used
):
    variable = f"OTEL_PYTHON_MESSAGING_{name.upper()}"
    monkeypatch.setenv(variable, value)
    with caplog.at_level(logging.WARNING, "otel_messaging"):
        driver = await connect()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "otel_messaging"]
    assert all(part in warning for part in (variable, repr(value), used))
    await exchanged(driver, driver.name())
    recorder.consumers(1)


async def test_a_keyword_wins_over_a_variable(connect, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_PYTHON_MESSAGING_EXCLUDED_DESTINATIONS", "test-*")
    monkeypatch.setenv("OTEL_PYTHON_MESSAGING_METRICS", "true")
    driver = await connect(excluded_destinations=["nothing"], metrics=False)
    await exchanged(driver, driver.name())
    recorder.producers(1)
    assert recorder.metrics() == {}
