"""Instrumentation that is off, suppressed, wrapped by others, or without an SDK: the application does not notice."""

from __future__ import annotations

import functools
import importlib
import weakref

import pytest
import wrapt
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_messaging.instrumentation.loops import Held
from tests.support.drivers import CALLBACKS, DRIVERS
from tests.support.recorder import Recorder, span_id, trace_id
from tests.support.waiting import until

with_callbacks = pytest.mark.parametrize("library", CALLBACKS)


def owner_of(module, owner):
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:  # older than its patch's `since`
        return None
    for name in owner.split("."):
        found = getattr(found, name, None)
    return found


def patched(instrumentor):
    """What the classes of a library have, for each method that is replaced."""
    owners = [(owner_of(patch.module, patch.owner), patch.name) for patch in instrumentor.patches]
    return [None if owner is None else owner.__dict__.get(name) for owner, name in owners]


@pytest.fixture
def funnel(library):
    """The class and the name of the method that every message leaves by; put back after the test."""
    module, owner, name = DRIVERS[library].funnel
    kind = owner_of(module, owner)
    original = kind.__dict__[name]
    yield kind, name
    setattr(kind, name, original)


def with_wrapt(method, calls):
    def wrapper(wrapped, instance, args, kwargs):
        calls.append("wrapt")
        return wrapped(*args, **kwargs)

    return wrapt.FunctionWrapper(method, wrapper)


def with_closure(method, calls):
    @functools.wraps(method)
    def wrapper(*args, **kwargs):
        calls.append("closure")
        return method(*args, **kwargs)

    return wrapper


@pytest.fixture(params=[with_wrapt, with_closure], ids=["wrapt", "closure"])
def wrap(request, funnel):
    """Put somebody else's wrapper on the funnel; answers the list of its calls, and the wrapper."""
    kind, name = funnel

    def put():
        calls = []
        wrapper = request.param(kind.__dict__[name], calls)
        setattr(kind, name, wrapper)
        return calls, wrapper

    return put


async def exchanged(driver, headers=None, *, seen=None):
    """Publish and consume; the headers on the wire."""
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination, b"body", headers)
    wire = []

    def body(message):
        wire.append(driver.headers(message))
        if seen is not None:
            seen.append(trace.get_current_span())

    await driver.loop(listener, 1, body)
    return wire[0]


async def test_nothing_is_told_while_suppressed(connect, recorder):
    driver = await connect()
    seen = []
    with suppress_instrumentation():
        assert await exchanged(driver, {"tenant": "acme"}, seen=seen) == [("tenant", "acme")]
    assert seen == [trace.INVALID_SPAN]
    assert recorder.spans() == []
    assert recorder.metrics() == {}


async def test_a_span_around_stays_current_while_suppressed(connect, recorder):
    driver = await connect()
    seen = []
    with recorder.tracer.start_as_current_span("request") as request, suppress_instrumentation():
        await exchanged(driver, seen=seen)
    assert seen == [request]


async def test_uninstrumenting_puts_the_very_same_functions_back(connect, library):
    driver = await connect()
    instrumentor = driver.instrumentor
    instrumentor().uninstrument()
    before = patched(instrumentor)
    for _ in range(2):
        instrumentor().instrument()
        during = patched(instrumentor)
        instrumentor().uninstrument()
        assert [new is old for new, old in zip(during, before, strict=True)] == [old is None for old in before]
        assert [new is old for new, old in zip(patched(instrumentor), before, strict=True)] == [True] * len(before)


async def test_nothing_is_told_after_uninstrumenting(connect, recorder):
    driver = await connect()
    driver.instrumentor().uninstrument()
    seen = []
    assert await exchanged(driver, {"tenant": "acme"}, seen=seen) == [("tenant", "acme")]
    assert seen == [trace.INVALID_SPAN]
    assert recorder.spans() == []


async def test_uninstrumenting_in_a_loop_body_leaves_nothing_behind(connect, recorder):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    before = context.get_current()
    await driver.loop(listener, 1, lambda _: driver.instrumentor().uninstrument())
    recorder.consumers(1)
    assert context.get_current() is before


async def test_what_a_loop_holds_may_be_referred_to_weakly(connect):
    driver = await connect()
    listener = await driver.listen(driver.name())
    iterator = driver.iterate(listener)
    reference, collected = weakref.ref(iterator), []
    known = weakref.WeakSet([iterator])
    weakref.finalize(iterator, collected.append, "gone")
    assert reference() is iterator
    assert weakref.proxy(iterator) == iterator
    assert iterator in known
    assert collected == []
    await driver.stop(listener, iterator)


async def test_a_consumer_is_closed_also_where_ours_fails(connect, recorder, lenient, monkeypatch):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    iterator = driver.iterate(listener)
    await driver.advance(iterator)
    calls = []

    def fail(held):
        calls.append(held)
        raise ZeroDivisionError("our own mistake")

    monkeypatch.setattr(Held, "close", fail)
    await driver.stop(listener, iterator)
    assert calls
    recorder.open.spans.clear()


@with_callbacks
async def test_a_callback_that_was_wrapped_is_silent_after_uninstrumenting(connect, recorder):
    driver = await connect()
    destination = driver.name()
    seen = []

    async def handler(message):
        seen.append((driver.body(message), trace.get_current_span()))

    await driver.subscribe(destination, handler)
    driver.instrumentor().uninstrument()
    await driver.publish(destination, b"hello")
    assert await until(lambda: seen) == [(b"hello", trace.INVALID_SPAN)]
    assert recorder.spans() == []


@pytest.mark.parametrize("off_first", ["ours", "foreign"])
async def test_a_foreign_wrapper_below_ours_is_kept(connect, recorder, wrap, funnel, off_first):
    kind, name = funnel
    original = kind.__dict__[name]
    calls, wrapper = wrap()
    driver = await connect()
    await exchanged(driver)
    assert len(calls) == 1
    recorder.producers(1)
    if off_first == "ours":
        driver.instrumentor().uninstrument()
        assert kind.__dict__[name] is wrapper
        await exchanged(driver)
        assert len(calls) == 2
    else:
        setattr(kind, name, original)
        driver.instrumentor().uninstrument()
        assert kind.__dict__[name] is original
        await exchanged(driver)
        assert len(calls) == 1
    recorder.producers(1)


async def test_a_foreign_wrapper_above_ours_is_kept(connect, recorder, wrap, funnel):
    kind, name = funnel
    original = kind.__dict__[name]
    driver = await connect()
    calls, wrapper = wrap()
    await exchanged(driver)
    assert len(calls) == 1
    recorder.producers(1)
    driver.instrumentor().uninstrument()
    assert kind.__dict__[name] is wrapper
    if isinstance(wrapper, wrapt.FunctionWrapper):  # of any other nobody knows what it wraps
        assert wrapper.__wrapped__ is original
    assert await exchanged(driver, {"tenant": "acme"}) == [("tenant", "acme")]
    assert len(calls) == 2
    recorder.producers(1)
    driver.instrumentor().instrument(**recorder.providers)
    await exchanged(driver)
    assert len(calls) == 3
    recorder.producers(2)


async def test_instrumenting_twice_makes_one_span(connect, recorder):
    driver = await connect()
    driver.instrumentor().instrument(**recorder.providers)
    await exchanged(driver)
    recorder.producers(1)
    recorder.consumers(1)


async def test_a_live_client_goes_over_to_another_provider(connect, recorder):
    driver = await connect()
    await exchanged(driver)
    driver.instrumentor().uninstrument()
    other = Recorder()
    driver.instrumentor().instrument(**other.providers)
    await exchanged(driver)
    for each in (recorder, other):
        (published,), (consumed,) = each.producers(1), each.consumers(1)
        assert trace_id(published) == trace_id(consumed)
    assert [value for _, value in other.metrics()["messaging.messages.produced"]] == [1]


async def test_a_client_from_before_instrumenting_is_traced(connect, recorder):
    driver = await connect()
    driver.instrumentor().uninstrument()
    await exchanged(driver)
    assert recorder.spans() == []
    driver.instrumentor().instrument(**recorder.providers)
    await exchanged(driver)
    (published,), (consumed,) = recorder.producers(1), recorder.consumers(1)
    assert consumed.parent.span_id == span_id(published)


async def test_a_subclass_that_calls_super_makes_one_span(connect, recorder):
    driver = await connect()
    publisher, name = driver.publisher, driver.funnel[2]
    calls = []

    def overridden(self, *args, **kwargs):
        calls.append(self)
        return getattr(super(subclass, self), name)(*args, **kwargs)

    subclass = type("Mine", (type(publisher),), {name: overridden})
    publisher.__class__ = subclass
    await exchanged(driver)
    assert calls == [publisher]
    recorder.producers(1)


async def test_the_methods_still_look_as_they_did(connect, library):
    driver = await connect()
    replacements = patched(driver.instrumentor)
    driver.instrumentor().uninstrument()
    for replacement, original in zip(replacements, patched(driver.instrumentor), strict=True):
        if original is not None:
            assert replacement.__name__ == original.__name__
            assert replacement.__doc__ == original.__doc__
            assert replacement.__wrapped__ is original


@pytest.mark.parametrize("provider", [None, trace.NoOpTracerProvider()], ids=["no provider", "no-op provider"])
async def test_without_an_sdk_a_message_has_exactly_the_headers_of_the_user(connect, provider):
    driver = await connect(tracer_provider=provider, meter_provider=None)
    seen = []
    assert await exchanged(driver, {"tenant": "acme"}, seen=seen) == [("tenant", "acme")]
    assert await exchanged(driver) == []
    assert [span.get_span_context().is_valid for span in seen] == [False]


@pytest.mark.parametrize("provider", [None, trace.NoOpTracerProvider()], ids=["no provider", "no-op provider"])
async def test_without_an_sdk_a_context_that_came_in_is_passed_on(connect, provider):
    driver = await connect(tracer_provider=provider, meter_provider=None)
    destination, elsewhere = driver.name(), driver.name()
    listener, second_listener = await driver.listen(destination), await driver.listen(elsewhere)
    came = f"00-{7:032x}-{8:016x}-01"
    with suppress_instrumentation():
        await driver.publish(destination, headers={"traceparent": came})
    wire = []

    async def body(_message):
        await driver.publish(elsewhere)

    await driver.loop(listener, 1, body)
    await driver.loop(second_listener, 1, lambda message: wire.extend(driver.headers(message)))
    assert wire == [("traceparent", came)]
    assert trace.get_current_span() is trace.INVALID_SPAN
