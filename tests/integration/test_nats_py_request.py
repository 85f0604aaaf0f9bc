"""Request and reply by nats-py: one span for the requester, one for the responder, none for the reply."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import NoOpTracerProvider

from otel_messaging import NatsPyInstrumentor
from tests.support.nats_py import client, flushed, fresh, on_the_wire, outcome, traceparent, twice
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

STYLES = pytest.mark.parametrize("old_style", [False, True], ids=["new style", "old style"])


@pytest.fixture
def library():
    return "nats_py"


async def responder(connection, subject, answer=b"pong"):
    """A responder, and the headers that it gets."""
    seen = []

    async def callback(message):
        seen.append(message.headers)
        await message.respond(answer)

    await connection.subscribe(subject, cb=callback)
    await flushed(connection)
    return seen


@STYLES
async def test_a_request_is_one_span_until_the_reply(connect, recorder, vocabulary, old_style):
    driver = await connect()
    subject = driver.name()
    seen = await responder(driver.client, subject)
    reply = await driver.client.request(subject, b"ping", timeout=5, old_style=old_style)
    assert reply.data == b"pong"
    await until(lambda: len(recorder.spans()) == 2)
    (requested,), (responded,) = recorder.producers(1), recorder.consumers(1)
    plain = vocabulary == "guide"
    client_id = {"messaging.client.id": str(driver.client.client_id)}
    expected = {**driver.published(vocabulary, subject, b"ping"), **client_id}
    if not plain:
        expected["messaging.operation.name"] = "request"
    assert shape(requested) == {
        "name": f"{'publish' if plain else 'request'} {subject}",
        "kind": "PRODUCER",
        "parent": None,
        "links": [],
        "status": ("OK" if plain else "UNSET", None),
        "attributes": expected,
        "events": [],
    }
    assert shape(responded) == {
        "name": f"{'receive' if plain else 'process'} {subject}",
        "kind": "CONSUMER",
        "parent": span_id(requested),
        "links": [] if plain else [span_id(requested)],
        "status": ("OK" if plain else "UNSET", None),
        "attributes": {**driver.consumed(vocabulary, subject, b"ping"), **client_id},
        "events": [],
    }
    assert seen == [{"traceparent": traceparent(requested)}]
    assert requested.end_time >= responded.start_time


async def test_a_request_is_counted_once(connect, recorder):
    driver = await connect()
    subject = driver.name()
    await responder(driver.client, subject)
    for _ in range(3):
        await driver.client.request(subject, timeout=5)
    await until(lambda: len(recorder.spans()) == 6)
    metrics = recorder.metrics()
    assert [value for _, value in metrics["messaging.messages.produced"]] == [3]
    assert [value for _, value in metrics["messaging.messages.consumed"]] == [3]


@pytest.mark.parametrize("by_name", [True, False], ids=["keyword", "positional"])
async def test_the_headers_of_a_request_get_a_context_in_a_copy(connect, recorder, by_name):
    driver = await connect()
    subject, headers = driver.name(), {"kind": "question"}
    seen = await responder(driver.client, subject)
    for _ in range(2):
        if by_name:
            await driver.client.request(subject, b"", timeout=5, headers=headers)
        else:
            await driver.client.request(subject, b"", 5, False, headers)
    assert headers == {"kind": "question"}
    assert seen == [{"kind": "question", "traceparent": traceparent(span)} for span in recorder.producers(2)]


async def test_a_reply_adds_no_header(connect, recorder):
    """nats-py answers with the headers of the request, whatever we do."""
    driver = await connect()
    subject = driver.name()
    await responder(driver.client, subject)
    reply = await driver.client.request(subject, timeout=5, headers={"kind": "question"})
    assert reply.headers == {"kind": "question", "traceparent": traceparent(recorder.producers(1)[0])}
    with suppress_instrumentation():
        reply = await driver.client.request(subject, timeout=5)
    assert reply.headers is None


@STYLES
async def test_nobody_there_is_an_error(connect, recorder, old_style):
    from nats.errors import NoRespondersError

    driver = await connect()
    subject = driver.name()
    with pytest.raises(NoRespondersError) as caught:
        await driver.client.request(subject, timeout=5, old_style=old_style)
    (span,) = recorder.producers(1)
    assert shape(span)["status"] == ("ERROR", str(caught.value))
    assert span.attributes["error.type"] == "nats.errors.NoRespondersError"
    assert [event.name for event in span.events] == ["exception"]


@STYLES
async def test_no_reply_in_time_is_an_error(connect, recorder, old_style):
    from nats.errors import TimeoutError as NatsTimeoutError

    driver = await connect()
    subject = driver.name()
    await driver.listen(subject)
    with pytest.raises(NatsTimeoutError):
        await driver.client.request(subject, timeout=0.02, old_style=old_style)
    (span,) = recorder.producers(1)
    assert span.attributes["error.type"] == "nats.errors.TimeoutError"


async def test_a_request_that_is_cancelled_ends(connect, recorder):
    driver = await connect()
    subject = driver.name()
    await driver.listen(subject)
    task = asyncio.create_task(driver.client.request(subject, timeout=5))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = recorder.producers(1)
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"


async def test_after_a_failed_request_messages_have_spans_again(connect, recorder):
    from nats.errors import NoRespondersError

    driver = await connect()
    subject = driver.name()
    with pytest.raises(NoRespondersError):
        await driver.client.request(subject, timeout=5)
    await driver.client.publish(subject)
    assert [span.name for span in recorder.producers(2)] == [f"publish {subject}"] * 2


@pytest.mark.parametrize("whose", ["the requester's", "the responder's", "both"])
async def test_an_inbox_prefix_may_be_chosen(instrument, recorder, nats_address, whose):
    subject = fresh()
    instrument(NatsPyInstrumentor)
    ours = {"inbox_prefix": "custom.one"} if whose != "the responder's" else {}
    theirs = {"inbox_prefix": "custom.two"} if whose != "the requester's" else {}
    async with client(nats_address, **ours) as requester, client(nats_address, **theirs) as other:
        await responder(other, subject)
        reply = await requester.request(subject, timeout=5)
        assert reply.data == b"pong"
        assert reply.subject.startswith(ours.get("inbox_prefix", "_INBOX") + ".")
    await until(lambda: len(recorder.spans()) == 2)
    assert sorted(span.name for span in recorder.spans()) == [f"publish {subject}", f"receive {subject}"]


@pytest.mark.parametrize("prefix", ["_INBOX", "custom"])
async def test_an_answer_by_publish_makes_no_span_either(instrument, recorder, nats_address, prefix):
    """Also to an inbox of another prefix than ours: it is where the message being handled asks to be answered."""
    subject = fresh()
    instrument(NatsPyInstrumentor)
    async with client(nats_address, inbox_prefix=prefix) as requester, client(nats_address) as other:

        async def callback(message):
            await other.publish(message.reply, b"pong")

        await other.subscribe(subject, cb=callback)
        await flushed(other)
        reply = await requester.request(subject, timeout=5)
        assert (reply.data, reply.headers) == (b"pong", None)
    await until(lambda: len(recorder.spans()) == 2)
    assert sorted(span.name for span in recorder.spans()) == [f"publish {subject}", f"receive {subject}"]


@pytest.mark.parametrize("how", ["respond", "publish"])
async def test_an_answer_that_comes_after_the_handler_makes_no_span_either(instrument, recorder, nats_address, how):
    """In a task that the handler has started, it is known where its message asks to be answered."""
    subject, tasks = fresh(), []
    instrument(NatsPyInstrumentor)
    async with client(nats_address, inbox_prefix="custom") as requester, client(nats_address) as other:

        async def later(message):
            await until(lambda: recorder.spans(f"receive {subject}"))
            await (message.respond(b"pong") if how == "respond" else other.publish(message.reply, b"pong"))

        async def callback(message):
            tasks.append(asyncio.create_task(later(message)))

        await other.subscribe(subject, cb=callback)
        await flushed(other)
        assert (await requester.request(subject, timeout=5)).data == b"pong"
        await asyncio.gather(*tasks)
    assert sorted(span.name for span in recorder.spans()) == [f"publish {subject}", f"receive {subject}"]


async def test_an_answer_to_a_subject_that_is_no_inbox_is_a_message(connect, recorder, vocabulary):
    """Its name is made up for one conversation, whatever it looks like: it is in no span name and in no metric."""
    driver = await connect()
    ask, answers = driver.name(), driver.name()

    async def callback(message):
        await driver.client.publish(message.reply, b"pong")

    await driver.subscribe(ask, callback)
    listener = await driver.listen(answers)
    await driver.client.publish(ask, reply=answers)
    async for message in listener.messages:
        assert message.data == b"pong"
        break
    await until(lambda: len(recorder.spans()) == 4)
    receive = "receive" if vocabulary == "guide" else "process"
    names = [f"publish {ask}", f"{receive} {ask}", "publish", f"{receive} {answers}"]
    spans = [recorder.span(name) for name in names]
    if vocabulary == "guide":
        assert [span.parent and span.parent.span_id for span in spans] == [None, *(span_id(span) for span in spans[:3])]
    temporary = {} if vocabulary == "guide" else {"messaging.destination.temporary": True}
    client_id = {"messaging.client.id": str(driver.client.client_id)}
    assert dict(spans[2].attributes) == {**driver.published(vocabulary, answers, b"pong"), **client_id, **temporary}
    metrics = recorder.metrics()
    counters = {"guide": ["messaging.messages.produced"], "semconv": ["messaging.client.sent.messages"]}
    for counter in counters.get(vocabulary, [*counters["guide"], *counters["semconv"]]):
        named = [attributes.get("messaging.destination.name") for attributes, _ in metrics[counter]]
        assert sorted(named, key=str) == [None, ask]


async def test_a_handler_of_another_library_may_publish(connect, recorder):
    """The message being handled need not be one of NATS."""
    from otel_messaging.core import vocabulary as v
    from otel_messaging.core.settings import Settings
    from otel_messaging.core.telemetry import Telemetry

    driver = await connect()
    other = Telemetry("other", Settings(), recorder.tracer_provider, recorder.meter_provider)
    operation = other.operation(v.DELIVER, "process", v.Destination("topic"), ())
    delivery = other.deliver(operation, (), None, None, context.get_current())
    await driver.publish("subject.of.another")
    delivery.end()
    other.close()
    assert recorder.span("publish subject.of.another").parent.span_id == span_id(delivery.span)


async def test_a_request_in_a_handler_is_its_child(connect, recorder):
    driver = await connect()
    front, back = driver.name(), driver.name()

    async def callback(message):
        reply = await driver.client.request(back, message.data, timeout=5)
        await message.respond(reply.data)

    await responder(driver.client, back, b"deep")
    await driver.subscribe(front, callback)
    reply = await driver.client.request(front, timeout=5)
    assert reply.data == b"deep"
    await until(lambda: len(recorder.spans()) == 4)
    names = [f"publish {front}", f"receive {front}", f"publish {back}", f"receive {back}"]
    spans = [recorder.span(name) for name in names]
    assert [span.parent and span.parent.span_id for span in spans] == [None, *(span_id(span) for span in spans[:3])]


async def test_what_happens_during_a_request_is_not_below_it(instrument, recorder, nats_address):
    """The library, or a class of the application's below it, may make tasks that outlive the request."""
    from nats.aio.client import Client

    before, tasks = context.get_current(), []

    async def aside(connection):
        assert context.get_current() == before
        await Client.publish(connection, "aside")

    class Hurried(Client):
        async def publish(self, *args, **kwargs):
            tasks.append(asyncio.create_task(aside(self)))
            return await super().publish(*args, **kwargs)

    subject = fresh()
    instrument(NatsPyInstrumentor)
    connection = Hurried()
    await connection.connect(nats_address)
    try:
        async with client(nats_address) as other:
            await responder(other, subject)
            await connection.request(subject, timeout=5)
            await asyncio.gather(*tasks)
            await until(lambda: len(recorder.spans()) == 3)
    finally:
        await connection.close()
    assert recorder.span(f"receive {subject}").parent.span_id == span_id(recorder.span(f"publish {subject}"))
    assert recorder.span("publish aside").parent is None
    assert context.get_current() is before


async def test_the_first_request_does_not_lend_its_context_to_replies(connect, recorder):
    """The task that takes replies is made in the first request, and lives on."""
    driver = await connect()
    subject = driver.name()
    await responder(driver.client, subject)
    with recorder.tracer.start_as_current_span("first"):
        await driver.client.request(subject, timeout=5)
    await driver.client.request(subject, timeout=5)
    await until(lambda: len(recorder.spans()) == 5)
    first, second = recorder.producers(2)
    assert first.parent.span_id == span_id(recorder.span("first"))
    assert second.parent is None
    (subscription,) = (s for s in driver.client._subs.values() if s._subject.startswith("_INBOX"))
    assert subscription._cb == driver.client._request_sub_callback


async def test_requests_at_once_have_each_their_span(connect, recorder):
    driver = await connect()
    subject = driver.name()
    await responder(driver.client, subject)
    replies = await asyncio.gather(*(driver.client.request(subject, b"%d" % n, timeout=5) for n in range(20)))
    assert len(replies) == 20
    await until(lambda: len(recorder.spans()) == 40)
    parents = {span.parent.span_id for span in recorder.consumers(20)}
    assert parents == {span_id(span) for span in recorder.producers(20)}


async def test_baggage_reaches_the_responder(connect, recorder):
    driver = await connect()
    subject, seen = driver.name(), []

    async def callback(message):
        seen.append(baggage.get_baggage("tenant"))
        await message.respond(b"")

    await driver.subscribe(subject, callback)
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    try:
        await driver.client.request(subject, timeout=5)
    finally:
        context.detach(token)
    assert seen == ["acme"]


@STYLES
async def test_without_an_sdk_the_bytes_of_a_request_are_the_same(instrument, nats_address, old_style):
    subject = fresh()

    async def scenario(connection):
        await responder(connection, subject)
        commands = on_the_wire(connection)
        await connection.request(subject, b"ping", timeout=5, old_style=old_style)
        return [(command.split()[0], b"HPUB" in command) for command in commands if b"PING" not in command]

    instrument(NatsPyInstrumentor, tracer_provider=NoOpTracerProvider())
    async with client(nats_address) as connection:
        traced = await scenario(connection)
    NatsPyInstrumentor().uninstrument()
    async with client(nats_address) as connection:
        assert traced == await scenario(connection)
    assert not any(with_headers for _, with_headers in traced)


async def test_an_answer_that_fails_fails_as_before(instrument, recorder, nats_address):
    wrong, nowhere = fresh(), fresh()

    async def scenario(connection):
        async def callback(message):
            await message.respond("no bytes")

        async def nobody(message):
            await message.respond(b"nobody asked")

        await connection.subscribe(wrong, cb=callback)
        await connection.subscribe(nowhere, cb=nobody)
        await connection.publish(wrong, reply=fresh())
        await connection.publish(nowhere)
        await until(lambda: len(connection.errors) == 2)
        return [(type(error), str(error)) for error in connection.errors]

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain
    assert [span.status.status_code.name for span in recorder.consumers(2)] == ["ERROR", "ERROR"]
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.parametrize("headers", [None, {"kind": "order"}])
async def test_a_context_that_the_library_cannot_send_back_is_left_out(connect, recorder, headers):
    """The extra `fast-parse` makes lists of values; without us there would be none where the requester has none."""
    from nats.aio.msg import Msg

    @dataclass
    class Listed(Msg):
        def __post_init__(self):
            if self.headers:
                self.headers = {key: [value] for key, value in self.headers.items()}

    driver = await connect()
    driver.client.msg_class = Listed
    subject = driver.name()

    async def answer(message):
        await message.respond(b"yes")

    await driver.subscribe(subject, answer)
    found = await outcome(lambda: driver.client.request(subject, headers=headers, timeout=0.1))
    if headers is None:
        assert (found.data, found.headers) == (b"yes", None)
    else:
        assert found[0].__name__ == "TimeoutError"  # as without us
    recorder.consumers(1)
    recorder.producers(1)
