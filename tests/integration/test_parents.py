"""What the span of a consumed message is a child of, and what it is linked to."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tests.support.drivers import CALLBACKS
from tests.support.recorder import span_id, trace_id
from tests.support.waiting import until

with_callbacks = pytest.mark.parametrize("library", CALLBACKS)

MESSAGE, AMBIENT = "message", "ambient"

# (vocabulary, CONSUMER_PARENT): situation: (parent, links). "same": the message was published below the ambient span;
# "other": in another trace.
RULES = {
    ("guide", None): {
        "neither": (None, []),
        "ambient only": (AMBIENT, []),
        "message only": (MESSAGE, []),
        "same": (MESSAGE, []),
        "other": (MESSAGE, [AMBIENT]),
    },
    ("guide", "ambient"): {
        "neither": (None, []),
        "ambient only": (AMBIENT, []),
        "message only": (MESSAGE, []),
        "same": (AMBIENT, [MESSAGE]),
        "other": (AMBIENT, [MESSAGE]),
    },
    ("semconv", None): {
        "neither": (None, []),
        "ambient only": (AMBIENT, []),
        "message only": (MESSAGE, [MESSAGE]),
        "same": (AMBIENT, [MESSAGE]),
        "other": (AMBIENT, [MESSAGE]),
    },
    ("semconv", "message"): {
        "neither": (None, []),
        "ambient only": (AMBIENT, []),
        "message only": (MESSAGE, [MESSAGE]),
        "same": (MESSAGE, [MESSAGE]),
        "other": (MESSAGE, [MESSAGE, AMBIENT]),
    },
}
RULES["both", None] = RULES["semconv", None]
CASES = [(*rule, situation) for rule, situations in RULES.items() for situation in situations]
OPT_IN = {"semconv": "messaging", "both": "messaging/dup"}


async def publish(driver, destination, *, traced=True):
    with contextlib.nullcontext() if traced else suppress_instrumentation():
        await driver.publish(destination)


def correlation(span, **known):
    """The names of a span's parent and links."""
    names = {span_id(other): name for name, other in known.items()}
    return names[span.parent.span_id] if span.parent else None, [names[link.context.span_id] for link in span.links]


@pytest.mark.parametrize(("vocabulary", "override", "situation"), CASES)
async def test_parent_and_links(connect, recorder, monkeypatch, vocabulary, override, situation):
    if vocabulary in OPT_IN:
        monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", OPT_IN[vocabulary])
    if override:
        monkeypatch.setenv("OTEL_PYTHON_MESSAGING_CONSUMER_PARENT", override)
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    with_message = situation not in ("neither", "ambient only")
    known = {}
    if situation != "same":
        await publish(driver, destination, traced=with_message)
    with contextlib.ExitStack() as stack:
        if situation in ("ambient only", "same", "other"):
            known[AMBIENT] = stack.enter_context(recorder.tracer.start_as_current_span("job"))
        if situation == "same":
            await publish(driver, destination)
        await driver.loop(listener, 1, lambda _: None)
    if with_message:
        (known[MESSAGE],) = recorder.producers(1)
    (consumed,) = recorder.consumers(1)
    parent, links = RULES[vocabulary, override][situation]
    assert correlation(consumed, **known) == (parent, links)
    assert trace_id(consumed) == (trace_id(known[parent]) if parent else trace_id(consumed))


@with_callbacks
@pytest.mark.parametrize("traced", [True, False], ids=["with context", "without context"])
async def test_a_span_that_has_ended_is_never_ambient(connect, recorder, vocabulary, traced):
    with recorder.tracer.start_as_current_span("startup"):
        driver = await connect()
        destination = driver.name()
        handled = asyncio.Event()

        async def handler(_message):
            handled.set()

        await driver.subscribe(destination, handler)
    await publish(driver, destination, traced=traced)
    await asyncio.wait_for(handled.wait(), 5)
    await until(lambda: len(recorder.spans()) == 2 + traced)
    (consumed,) = recorder.consumers(1)
    if traced:
        (published,) = recorder.producers(1)
        assert correlation(consumed, message=published) == (MESSAGE, [] if vocabulary == "guide" else [MESSAGE])
    else:
        assert correlation(consumed) == (None, [])
        assert trace_id(consumed) != trace_id(recorder.span("startup"))


@with_callbacks
async def test_messages_of_one_subscription_are_not_in_each_others_traces(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    bodies = []

    async def handler(message):
        bodies.append(driver.body(message))

    await driver.subscribe(destination, handler)
    for _ in range(3):
        await publish(driver, destination, traced=False)
    await until(lambda: len(bodies) == 3 and len(recorder.spans()) == 3)
    assert [correlation(span) for span in recorder.consumers(3)] == [(None, [])] * 3
    assert len({trace_id(span) for span in recorder.consumers(3)}) == 3


async def test_messages_of_one_loop_are_not_in_each_others_traces(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    for _ in range(3):
        await publish(driver, destination, traced=False)
    await driver.loop(listener, 3, lambda _: None)
    assert [correlation(span) for span in recorder.consumers(3)] == [(None, [])] * 3
    assert len({trace_id(span) for span in recorder.consumers(3)}) == 3


async def test_a_span_that_is_not_sampled_is_not_ambient(connect, recorder, vocabulary):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await publish(driver, destination)
    unsampled = trace.NonRecordingSpan(trace.SpanContext(7, 7, is_remote=False))
    with trace.use_span(unsampled):
        await driver.loop(listener, 1, lambda _: None)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert correlation(consumed, message=published) == (MESSAGE, [] if vocabulary == "guide" else [MESSAGE])


async def test_a_published_message_is_a_child_of_the_current_span(connect, recorder, vocabulary):
    driver = await connect()
    with recorder.tracer.start_as_current_span("request") as request:
        await publish(driver, driver.name())
    (published,) = recorder.producers(1)
    assert correlation(published, request=request) == ("request", [])


async def test_the_sampling_decision_of_the_publisher_is_kept(connect, recorder):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    unsampled = trace.NonRecordingSpan(trace.SpanContext(7, 7, is_remote=False))
    with trace.use_span(unsampled):
        await publish(driver, destination)
    seen = []
    await driver.loop(listener, 1, lambda _: seen.append(trace.get_current_span().get_span_context()))
    assert [(context.trace_id, context.trace_flags.sampled) for context in seen] == [(7, False)]
    assert recorder.spans() == []
