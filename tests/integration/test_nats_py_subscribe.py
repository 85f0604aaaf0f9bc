"""Callbacks of nats-py: which are taken, how they end, and what their spans say."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from unittest.mock import AsyncMock

import pytest
import wrapt
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_messaging import NatsPyInstrumentor
from tests.support.nats_py import client, flushed, fresh, needs_fixed_drain, outcome, twice
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0x00F067AA0BA902B7
REMOTE = f"00-{TRACE:032x}-{PARENT:016x}-01"


@pytest.fixture
def library():
    return "nats_py"


class BrokenError(Exception):
    """What the application raises."""


def name(vocabulary, subject):
    return f"{'receive' if vocabulary == 'guide' else 'process'} {subject}"


async def handled(recorder, count=1):
    """The spans of handled messages."""
    await until(lambda: sum(s.kind is trace.SpanKind.CONSUMER for s in recorder.spans()) >= count)
    return recorder.consumers(count)


# Which callbacks


class Handlers:
    def __init__(self):
        self.seen = []

    def see(self, message):
        self.seen.append((message.data, span_id(trace.get_current_span())))

    async def method(self, message):
        self.see(message)

    async def more(self, _word, message):
        self.see(message)

    async def __call__(self, message):
        self.see(message)


def accepted():
    def function(handlers):
        async def callback(message):
            handlers.see(message)

        return callback

    def with_an_attribute(handlers):
        callback = function(handlers)
        callback.func = "of the application's own"
        return callback

    @wrapt.decorator
    async def around(wrapped, _instance, args, kwargs):
        return await wrapped(*args, **kwargs)

    return {
        "function": function,
        "method": lambda handlers: handlers.method,
        "partial": lambda handlers: functools.partial(handlers.more, "word"),
        "partial of a partial": lambda handlers: functools.partial(functools.partial(handlers.more, "word")),
        "mock": lambda handlers: AsyncMock(side_effect=handlers.see),
        "decorated": lambda handlers: around(function(handlers)),
        "with an attribute": with_an_attribute,
    }


@pytest.mark.parametrize("kind", accepted())
async def test_a_callback_of_any_kind_is_called_in_the_span(connect, recorder, kind):
    driver = await connect()
    subject, handlers = driver.name(), Handlers()
    await driver.client.subscribe(subject, cb=accepted()[kind](handlers))
    await driver.publish(subject, b"hello")
    (span,) = await handled(recorder)
    assert handlers.seen == [(b"hello", span_id(span))]


REJECTED = {
    "function": lambda message: None,
    "lambda": lambda message: asyncio.sleep(0),
    "callable object": Handlers(),
    "partial of a function": functools.partial(print, "word"),
    "number": 7,
}


@pytest.mark.parametrize("kind", REJECTED)
async def test_what_the_library_refuses_it_still_refuses(instrument, nats_address, kind):
    from nats.errors import Error

    subject = fresh()

    async def scenario(connection):
        before = connection._sid
        found = await outcome(lambda: connection.subscribe(subject, cb=REJECTED[kind]))
        return found, connection._sid - before, list(connection._subs)

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain
    assert traced[0] == (Error, "nats: must use coroutine for subscriptions")


@pytest.mark.parametrize("subject", ["", None, "a b", b"bytes"], ids=repr)
async def test_a_subject_that_the_library_refuses_it_still_refuses(instrument, nats_address, subject):
    async def callback(_message):
        pass

    async def scenario(connection):
        found = await outcome(lambda: connection.subscribe(subject, cb=callback))
        return found if isinstance(found, tuple) else type(found)

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain


# How they run


@pytest.mark.parametrize("suspends", [0, 1, 2])
async def test_as_many_of_a_burst_are_handled(instrument, recorder, nats_address, suspends):
    """With a limit the library cancels a callback that suspends: so there must be no suspension of ours."""

    subject = fresh()

    async def scenario(connection):
        seen = []

        async def callback(message):
            for _ in range(suspends):
                await asyncio.sleep(0)
            seen.append(message.data)

        subscription = await connection.subscribe(subject, cb=callback, max_msgs=3)
        for number in range(3):
            await connection.publish(subject, b"%d" % number)
        await flushed(connection)
        await until(subscription._wait_for_msgs_task.done)
        return seen

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain
    assert traced[0] == b"0"
    assert len(traced) == 3 or suspends


async def test_an_exception_reaches_the_error_callback_and_the_next_message_is_handled(connect, recorder):
    driver = await connect()
    subject, raised = driver.name(), [BrokenError("first"), BrokenError("second")]

    async def callback(message):
        raise raised[int(message.data)]

    await driver.client.subscribe(subject, cb=callback)
    await driver.publish(subject, b"0")
    await driver.publish(subject, b"1")
    spans = await handled(recorder, 2)
    await until(lambda: len(driver.errors) == 2)
    assert [found is error for found, error in zip(driver.errors, raised, strict=True)] == [True, True]
    assert [span.status.description for span in spans] == ["first", "second"]
    driver.errors.clear()


async def test_a_callback_that_is_cancelled_ends_its_subscription_as_before(instrument, recorder, nats_address):
    subject = fresh()

    async def scenario(connection):
        seen = []

        async def callback(message):
            seen.append(message.data)
            raise asyncio.CancelledError

        subscription = await connection.subscribe(subject, cb=callback)
        for number in range(2):
            await connection.publish(subject, b"%d" % number)
        await flushed(connection)
        task = subscription._wait_for_msgs_task
        await until(task.done)
        return seen, task.cancelled(), task.exception(), subscription.pending_msgs, connection.errors

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain == ([b"0"], False, None, 1, [])
    (span,) = recorder.consumers(1)
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"


async def test_a_callback_that_unsubscribes_itself_goes_as_far_as_before(instrument, recorder, nats_address):
    subject = fresh()

    async def scenario(connection):
        steps = []

        async def callback(message):
            steps.append(message.data)
            try:
                await subscription.unsubscribe()
                steps.append("unsubscribed")
                await asyncio.sleep(0)
                steps.append("later")
            except asyncio.CancelledError:
                steps.append("cancelled")
                raise

        subscription = await connection.subscribe(subject, cb=callback)
        for number in range(2):
            await connection.publish(subject, b"%d" % number)
        await flushed(connection)
        await until(subscription._wait_for_msgs_task.done)
        return steps

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain
    recorder.consumers(1)


async def test_unsubscribing_from_elsewhere_ends_the_span_of_the_callback(connect, recorder):
    driver = await connect()
    subject, running = driver.name(), asyncio.Event()

    async def callback(_message):
        running.set()
        await asyncio.Event().wait()

    subscription = await driver.subscribe(subject, callback)
    await driver.publish(subject)
    await running.wait()
    await subscription.unsubscribe()
    (span,) = await handled(recorder)
    assert span.status.status_code.name == "ERROR"


@needs_fixed_drain
async def test_draining_waits_for_the_callback(connect, recorder):
    driver = await connect()
    subject, running, over = driver.name(), asyncio.Event(), asyncio.Event()

    async def callback(_message):
        running.set()
        await over.wait()

    subscription = await driver.subscribe(subject, callback)
    await driver.publish(subject)
    await running.wait()
    draining = asyncio.create_task(subscription.drain())
    await asyncio.sleep(0.02)
    assert not draining.done()
    over.set()
    await asyncio.wait_for(draining, 5)
    (span,) = await handled(recorder)
    assert span.status.status_code.name == "OK"


async def test_a_subscription_lives_on_when_tracing_is_switched_off(connect, recorder):
    driver = await connect()
    subject, seen = driver.name(), []

    async def callback(message):
        seen.append((message.data, trace.get_current_span().get_span_context().is_valid))

    await driver.subscribe(subject, callback)
    await driver.publish(subject, b"on")
    await handled(recorder)
    NatsPyInstrumentor().uninstrument()
    await driver.publish(subject, b"off")
    await until(lambda: len(seen) == 2)
    assert seen == [(b"on", True), (b"off", False)]
    recorder.consumers(1)


# What their spans say


async def test_a_wildcard_is_in_the_name_and_the_subject_in_the_attributes(connect, recorder, vocabulary):
    driver = await connect()
    subject = driver.name()

    async def callback(_message):
        pass

    await driver.subscribe(f"{subject}.*", callback)
    await driver.publish(f"{subject}.17", b"hello")
    (span,) = await handled(recorder)
    (published,) = recorder.producers(1)
    expected = {
        **driver.consumed(vocabulary, f"{subject}.17", b"hello"),
        "messaging.destination.template": f"{subject}.*",
    }
    assert shape(span) == {
        "name": name(vocabulary, f"{subject}.*"),
        "kind": "CONSUMER",
        "parent": span_id(published),
        "links": [] if vocabulary == "guide" else [span_id(published)],
        "status": ("OK" if vocabulary == "guide" else "UNSET", None),
        "attributes": {**expected, "messaging.client.id": str(driver.client.client_id)},
        "events": [],
    }


async def test_wildcards_are_in_the_metrics_instead_of_subjects(connect, recorder, vocabulary):
    driver = await connect()
    subject = driver.name()

    async def callback(_message):
        pass

    await driver.subscribe(f"{subject}.>", callback)
    for number in range(3):
        await driver.publish(f"{subject}.{number}.x")
    await handled(recorder, 3)
    metrics = recorder.metrics()
    if vocabulary != "semconv":
        ((attributes, value),) = metrics["messaging.messages.consumed"]
        assert (value, attributes["messaging.destination.name"]) == (3, f"{subject}.>")
        assert "messaging.destination.template" not in attributes
    if vocabulary != "guide":
        ((attributes, value),) = metrics["messaging.client.consumed.messages"]
        assert (value, attributes["messaging.destination.template"]) == (3, f"{subject}.>")
        assert "messaging.destination.name" not in attributes


async def test_one_member_of_a_queue_group_handles_a_message(connect, recorder, vocabulary):
    driver = await connect()
    subject, seen = driver.name(), []

    def member(number):
        async def callback(message):
            seen.append((number, message.data))

        return callback

    await driver.client.subscribe(subject, "workers", member(0))
    await driver.client.subscribe(subject, queue="workers", cb=member(1))
    for number in range(4):
        await driver.publish(subject, b"%d" % number)
    spans = await handled(recorder, 4)
    assert sorted(data for _, data in seen) == [b"0", b"1", b"2", b"3"]
    groups = {span.attributes.get("messaging.consumer.group.name") for span in spans}
    assert groups == ({None} if vocabulary == "guide" else {"workers"})


async def test_a_message_without_headers_begins_a_trace(connect, recorder):
    driver = await connect()
    subject, seen = driver.name(), []

    async def callback(message):
        seen.append(message.headers)

    await driver.subscribe(subject, callback)
    with suppress_instrumentation():
        await driver.publish(subject)
    (span,) = await handled(recorder)
    assert (seen, span.parent, span.links) == ([None], None, ())


async def test_a_later_message_is_not_in_the_trace_of_the_startup(connect, recorder):
    driver = await connect()
    subject = driver.name()

    async def callback(_message):
        pass

    with recorder.tracer.start_as_current_span("startup"):
        await driver.subscribe(subject, callback)
    with suppress_instrumentation():
        await driver.publish(subject)
    (span,) = await handled(recorder)
    assert (span.parent, span.links) == (None, ())


@pytest.mark.parametrize("header", ["traceparent", "Traceparent", "TRACEPARENT"])
async def test_the_case_of_a_header_does_not_matter(connect, recorder, header):
    driver = await connect()
    subject, seen = driver.name(), []

    async def callback(message):
        seen.append(message.headers)

    await driver.subscribe(subject, callback)
    with suppress_instrumentation():
        await driver.publish(subject, headers={header: REMOTE})
    (span,) = await handled(recorder)
    assert (span.parent.trace_id, span.parent.span_id) == (TRACE, PARENT)
    assert seen == [{header: REMOTE}]


async def test_headers_may_be_lists(connect, recorder, vocabulary):
    """As they are with the extra `fast-parse`."""
    from nats.aio.msg import Msg

    @dataclass
    class Listed(Msg):
        def __post_init__(self):
            if self.headers:
                self.headers = {key: ["ignored", value] for key, value in self.headers.items()}

    driver = await connect()
    driver.client.msg_class = Listed
    subject, seen = driver.name(), []

    async def callback(message):
        seen.append(message.headers["Nats-Msg-Id"])

    await driver.subscribe(subject, callback)
    await driver.publish(subject, headers={"Nats-Msg-Id": "7"})
    (span,) = await handled(recorder)
    (published,) = recorder.producers(1)
    assert seen == [["ignored", "7"]]
    assert span.parent.span_id == span_id(published)
    assert span.attributes["messaging.message.id"] == "7"


async def test_a_subscription_to_an_inbox_makes_no_span(connect, recorder):
    driver = await connect()
    inbox, seen = driver.client.new_inbox(), []

    async def callback(message):
        seen.append((message.data, message.headers))

    await driver.subscribe(inbox, callback)
    await driver.publish(inbox, b"answer")
    await until(lambda: seen)
    assert seen == [(b"answer", None)]
    assert recorder.spans() == []


async def test_a_message_is_left_as_it_came(instrument, nats_address):
    subject = fresh()

    async def scenario(connection):
        seen = []

        async def callback(message):
            seen.append((type(message), sorted(vars(message)), message.headers, message.data))

        await connection.subscribe(subject, cb=callback)
        with suppress_instrumentation():
            await connection.publish(subject, b"x", headers={"name": "value"})
        await until(lambda: seen)
        return seen

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain


async def test_a_subscription_made_in_a_callback_handles_by_itself(connect, recorder):
    driver = await connect()
    outer, inner = driver.name(), driver.name()

    async def second(_message):
        pass

    async def first(_message):
        await driver.client.subscribe(inner, cb=second)

    await driver.subscribe(outer, first)
    await driver.publish(outer)
    await handled(recorder)
    with suppress_instrumentation():
        await driver.publish(inner)
    spans = await handled(recorder, 2)
    assert (spans[1].name, spans[1].parent) == (f"receive {inner}", None)


async def test_connections_do_not_mix(connect, recorder, nats_address):
    """Each message tells of the connection that it came by."""
    driver = await connect()
    subject = driver.name()

    async def callback(_message):
        pass

    async with client(nats_address) as other:
        await driver.subscribe(subject, callback)
        await other.publish(subject)
        (span,) = await handled(recorder)
        (published,) = recorder.producers(1)
        assert published.attributes["messaging.client.id"] == str(other.client_id)
        assert span.attributes["messaging.client.id"] == str(driver.client.client_id)


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 400, "-1", "one"])
def test_a_number_that_no_server_sends_is_not_told(digits):  # nor do servers let anybody else send such a reply
    from otel_messaging.nats_py.readers import stored

    with pytest.raises(ValueError, match=r"JetStream|int"):
        stored(["orders", "worker", "1", digits, "1", "1", "0"], 0, None)
