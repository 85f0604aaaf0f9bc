"""JetStream by nats-py: acknowledged publishing, push consumers, settling, and silence about everything else."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace

from otel_messaging import NatsPyInstrumentor
from tests.support.nats_py import VERSION, client, fresh, on_the_wire, outcome, server, traceparent, twice
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

SILENT = pytest.mark.parametrize("where", ["default", "domain", "prefix"])

HUB = """
jetstream { domain: hub }
accounts {
  APP {
    jetstream: enabled
    users: [ { user: app, password: app } ]
    mappings: { "custom.api.>": "$JS.API.>" }
  }
}
no_auth_user: app
"""


@pytest.fixture
def library():
    return "nats_py"


@pytest.fixture(scope="module")
def hub(real_broker):
    """A server whose JetStream is also to be had by a domain, and under a prefix of its own."""
    with server(HUB) as running:
        yield running


async def stream(driver, *subjects, **config):
    """A JetStream context, and a stream of a test's own with the subjects below its name."""
    name, jetstream = driver.name(), driver.client.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"{name}.{subject}" for subject in subjects], **config)
    return jetstream, name


def consume_name(vocabulary, subject):
    return f"{'receive' if vocabulary == 'guide' else 'process'} {subject}"


async def handled(recorder, count=1):
    """The spans of handled messages."""
    await until(lambda: sum(s.kind is trace.SpanKind.CONSUMER for s in recorder.spans()) >= count)
    return recorder.consumers(count)


# Publishing


async def test_a_publish_span_ends_with_the_acknowledgement(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name = await stream(driver, "a")
    subject = f"{name}.a"
    for sequence in (1, 2):
        acknowledgement = await jetstream.publish(subject, b"hello")
        assert (acknowledgement.stream, acknowledgement.seq) == (name, sequence)
        span = recorder.producers(sequence)[-1]
        assert shape(span) == {
            "name": f"publish {subject}",
            "kind": "PRODUCER",
            "parent": None,
            "links": [],
            "status": ("OK" if vocabulary == "guide" else "UNSET", None),
            "attributes": {
                **driver.published(vocabulary, subject, b"hello"),
                "messaging.client.id": str(driver.client.client_id),
                "messaging.nats.stream": name,
                "messaging.nats.sequence": sequence,
            },
            "events": [],
        }
    stored = await jetstream.get_msg(name, 2)
    assert stored.headers == {"traceparent": traceparent(span)}


async def test_a_refused_message_is_an_error(connect, recorder):
    from nats.js.errors import BadRequestError

    driver = await connect()
    jetstream, name = await stream(driver, "a")
    with pytest.raises(BadRequestError) as caught:
        await jetstream.publish(f"{name}.a", stream="another")
    (span,) = recorder.producers(1)
    assert shape(span)["status"] == ("ERROR", str(caught.value))
    assert span.attributes["error.type"] == "nats.js.errors.BadRequestError"
    assert "messaging.nats.sequence" not in span.attributes


async def test_a_subject_without_a_stream_is_an_error(connect, recorder):
    from nats.js.errors import NoStreamResponseError

    driver = await connect()
    with pytest.raises(NoStreamResponseError):
        await driver.client.jetstream().publish(driver.name())
    (span,) = recorder.producers(1)
    assert span.attributes["error.type"] == "nats.js.errors.NoStreamResponseError"


async def test_a_missing_acknowledgement_is_an_error(connect, recorder):
    from nats.errors import TimeoutError as NatsTimeoutError

    driver = await connect()
    subject = driver.name()
    await driver.listen(subject)  # somebody is there, but it is no stream
    with pytest.raises(NatsTimeoutError):
        await driver.client.jetstream().publish(subject, timeout=0.02)
    (span,) = recorder.producers(1)
    assert span.attributes["error.type"] == "nats.errors.TimeoutError"


@pytest.mark.parametrize("by_name", [True, False], ids=["keyword", "positional"])
@pytest.mark.parametrize("expected", [True, False], ids=["stream", "no stream"])
async def test_the_callers_headers_are_what_the_library_makes_of_them(instrument, nats_address, by_name, expected):
    """nats-py itself writes the stream that is expected into them."""

    name = fresh()

    async def scenario(connection):
        jetstream, headers = connection.jetstream(), {"Nats-Msg-Id": "7", "kind": "order"}
        await jetstream.add_stream(name=name, subjects=[f"{name}.>"], storage="memory")
        stream = name if expected else None
        try:
            for _ in range(2):
                if by_name:
                    ack = await jetstream.publish(f"{name}.a", b"x", stream=stream, headers=headers)
                else:
                    ack = await jetstream.publish(f"{name}.a", b"x", None, stream, headers)
            stored = await jetstream.get_msg(name, 1)
            stored.headers.pop("traceparent", None)
            return headers, ack.seq, ack.duplicate, stored.headers
        finally:
            await jetstream.delete_stream(name)

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain
    assert traced[1:3] == (1, True)


async def test_the_message_id_is_told(connect, recorder):
    driver = await connect()
    jetstream, name = await stream(driver, "a")
    await jetstream.publish(f"{name}.a", headers={"Nats-Msg-Id": "order-7"})
    assert recorder.producers(1)[0].attributes["messaging.message.id"] == "order-7"


@pytest.mark.skipif(VERSION < (2, 12), reason="js.publish has msg_ttl since 2.12")
async def test_a_time_to_live_arrives(connect, recorder):
    from nats.js.api import StreamConfig

    driver = await connect()
    name, jetstream = driver.name(), driver.client.jetstream()
    await jetstream.add_stream(StreamConfig(name=name, subjects=[f"{name}.>"], allow_msg_ttl=True))
    acknowledgement = await jetstream.publish(f"{name}.a", b"x", msg_ttl=60)
    stored = await jetstream.get_msg(name, acknowledgement.seq)
    assert stored.headers == {"Nats-TTL": "60", "traceparent": traceparent(recorder.producers(1)[0])}


async def test_the_publish_hook_is_told_of_every_argument(connect):
    told = []
    driver = await connect(publish_hook=lambda _, request: told.append(dict(request.arguments)))
    jetstream, name = await stream(driver, "new")
    await jetstream.publish(f"{name}.new", b"x", 2.0, name)
    await outcome(lambda: driver.client.request(name, b"y", 0.1, old_style=True))
    if VERSION >= (2, 8):
        await (await jetstream.publish_async(f"{name}.new", b"z", wait_stall=3.0))
    later = {"msg_ttl": None} if VERSION >= (2, 12) else {}
    assert (
        told
        == [
            {"subject": f"{name}.new", "payload": b"x", "headers": None, "stream": name, "timeout": 2.0, **later},
            {"subject": name, "payload": b"y", "headers": None, "timeout": 0.1, "old_style": True},
            {"subject": f"{name}.new", "payload": b"z", "headers": None, "stream": None, "wait_stall": 3.0, **later},
        ][: len(told)]
    )
    assert len(told) == (3 if VERSION >= (2, 8) else 2)


async def test_wrong_arguments_are_refused_by_the_library(connect, recorder):
    driver = await connect()
    with pytest.raises(TypeError, match=r"publish\(\) got an unexpected keyword argument 'header'"):
        await driver.client.jetstream().publish(driver.name(), header={})
    assert recorder.spans() == []


# Push consumers


async def test_a_pushed_message_is_handled_and_acknowledged(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name = await stream(driver, "a")
    subject, seen = f"{name}.a", []

    async def callback(message):
        seen.append((message.data, span_id(trace.get_current_span())))

    await jetstream.subscribe(subject, cb=callback)
    await jetstream.publish(subject, b"hello")
    (span,) = await handled(recorder)
    (published,) = recorder.producers(1)
    guide = vocabulary == "guide"
    assert seen == [(b"hello", span_id(span))]
    assert shape(span) == {
        "name": consume_name(vocabulary, subject),
        "kind": "CONSUMER",
        "parent": span_id(published),
        "links": [] if guide else [span_id(published)],
        "status": ("OK" if guide else "UNSET", None),
        "attributes": {
            **driver.consumed(vocabulary, subject, b"hello"),
            "messaging.client.id": str(driver.client.client_id),
            **also(span),
        },
        "events": [("ack", {})] if guide else [],
    }
    settled = [found for found in recorder.spans() if found.kind is trace.SpanKind.CLIENT]
    assert [shape(found)["name"] for found in settled] == ([] if guide else [f"ack {subject}"])
    for found in settled:
        assert found.parent.span_id == span_id(span)
        assert found.attributes["messaging.operation.type"] == "settle"
        assert found.attributes["messaging.operation.name"] == "ack"
        assert found.attributes["messaging.destination.name"] == subject
    assert await acknowledged(jetstream, name) == 1


async def acknowledged(jetstream, name):
    """How many messages the server knows to be acknowledged, once it waits for none."""
    for _ in range(100):
        (info,) = await jetstream.consumers_info(name)
        if info.num_ack_pending == 0:
            break
        await asyncio.sleep(0.01)
    return info.ack_floor.consumer_seq


def also(span):
    """Attributes that are not known beforehand."""
    names = (
        "messaging.consumer.group.name",
        "messaging.consumer.lag",
        "messaging.message.delivery_attempt",
        "messaging.message.queue_time",
        "messaging.nats.stream",
        "messaging.nats.sequence",
    )
    return {name: span.attributes[name] for name in names if name in span.attributes}


SETTLING = {
    "ack": ("ack", lambda message: message.ack(), {}),
    "ack_sync": ("ack", lambda message: message.ack_sync(timeout=5), {}),
    "nak": ("nak", lambda message: message.nak(), {}),
    "nak with a delay": ("nak", lambda message: message.nak(delay=60), {"messaging.settle.delay": 60.0}),
    "nak with a delay by position": ("nak", lambda message: message.nak(0.5), {"messaging.settle.delay": 0.5}),
    "term": ("term", lambda message: message.term(), {}),
    "in_progress": ("in_progress", lambda message: message.in_progress(), {}),
}


@pytest.mark.parametrize("how", SETTLING)
async def test_settling_is_an_event_or_a_span(connect, recorder, vocabulary, how):
    driver = await connect()
    jetstream, name = await stream(driver, "a")
    subject, (verb, settle, details) = f"{name}.a", SETTLING[how]

    async def callback(message):
        if message.metadata.num_delivered == 1:
            await settle(message)

    subscription = await jetstream.subscribe(subject, cb=callback, manual_ack=True)
    await jetstream.publish(subject)
    await until(lambda: recorder.spans(consume_name(vocabulary, subject)))
    span = recorder.spans(consume_name(vocabulary, subject))[0]
    settled = recorder.spans(f"{verb} {subject}")
    await subscription.unsubscribe()
    if vocabulary == "guide":
        assert shape(span)["events"] == [(verb, details)]
        assert settled == []
    else:
        assert span.events == ()
        assert [found.parent.span_id for found in settled] == [span_id(span)]
        assert details.items() <= settled[0].attributes.items()
        assert settled[0].kind is trace.SpanKind.CLIENT


async def test_settling_twice_is_the_librarys_error_and_no_second_event(connect, recorder):
    from nats.errors import MsgAlreadyAckdError

    driver = await connect()
    jetstream, name = await stream(driver, "a")
    errors = []

    async def callback(message):
        await message.ack()
        try:
            await message.term()
        except MsgAlreadyAckdError as error:
            errors.append(error)

    await jetstream.subscribe(f"{name}.a", cb=callback, manual_ack=True)
    await jetstream.publish(f"{name}.a")
    (span,) = await handled(recorder)
    assert len(errors) == 1
    assert shape(span)["events"] == [("ack", {})]
    assert span.status.status_code.name == "OK"


SETTLED_BY_CALLBACK = {
    "ack": [("ack", {})],
    "ack_sync": [("ack", {})],
    "nak with a delay": [("nak", {"messaging.settle.delay": 60.0})],
    "term": [("term", {})],
    "in_progress": [("in_progress", {}), ("ack", {})],  # that settles nothing: the library's is the settlement
}


@pytest.mark.parametrize("how", SETTLED_BY_CALLBACK)
async def test_a_callback_that_settles_itself_has_settled_once(connect, recorder, vocabulary, how):
    """Without `manual_ack` the library acknowledges after the callback, and swallows that it is too late."""
    driver = await connect()
    jetstream, name = await stream(driver, "a")
    subject, settle = f"{name}.a", SETTLING[how][1]
    await jetstream.subscribe(subject, cb=settle)
    await jetstream.publish(subject, b"hello")
    (span,) = await handled(recorder)
    (published,) = recorder.producers(1)
    guide = vocabulary == "guide"
    assert shape(span) == {
        "name": consume_name(vocabulary, subject),
        "kind": "CONSUMER",
        "parent": span_id(published),
        "links": [] if guide else [span_id(published)],
        "status": ("OK" if guide else "UNSET", None),
        "attributes": {
            **driver.consumed(vocabulary, subject, b"hello"),
            "messaging.client.id": str(driver.client.client_id),
            **also(span),
        },
        "events": SETTLED_BY_CALLBACK[how] if guide else [],
    }
    settled = [shape(found) for found in recorder.spans() if found.kind is trace.SpanKind.CLIENT]
    told = [] if guide else [(f"{verb} {subject}", ("UNSET", None)) for verb, _ in SETTLED_BY_CALLBACK[how]]
    assert [(found["name"], found["status"]) for found in settled] == told


@pytest.mark.parametrize("method", ["ack", "ack_sync", "nak", "term", "in_progress"])
async def test_a_message_that_cannot_be_settled_is_the_librarys_error(instrument, nats_address, method):
    subject = fresh()

    async def scenario(connection):
        subscription = await connection.subscribe(subject)
        await connection.publish(subject)
        message = await subscription.messages.__anext__()
        found = await outcome(getattr(message, method))
        wrong = await outcome(lambda: getattr(message, method)("wrong", "arguments", "given"))
        return found, wrong

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain
    assert issubclass(traced[0][0], Exception)


async def test_a_message_that_is_delivered_again_is_in_the_same_trace(connect, recorder):
    driver = await connect()
    jetstream, name = await stream(driver, "a")
    seen = []

    async def callback(message):
        seen.append(message.metadata.num_delivered)
        await (message.nak() if len(seen) == 1 else message.ack())

    await jetstream.subscribe(f"{name}.a", cb=callback, manual_ack=True)
    await jetstream.publish(f"{name}.a")
    spans = await handled(recorder, 2)
    (published,) = recorder.producers(1)
    assert seen == [1, 2]
    assert [span.parent.span_id for span in spans] == [span_id(published)] * 2
    assert [[event.name for event in span.events] for span in spans] == [["nak"], ["ack"]]


async def test_an_exception_leaves_the_message_unacknowledged(connect, recorder):
    driver = await connect()
    jetstream, name = await stream(driver, "a")

    async def callback(message):
        raise ValueError("broken")

    await jetstream.subscribe(f"{name}.a", cb=callback)
    await jetstream.publish(f"{name}.a")
    (span,) = await handled(recorder)
    await until(lambda: driver.errors)
    assert span.status.description == "broken"
    assert [event.name for event in span.events] == ["exception"]
    (info,) = await jetstream.consumers_info(name)
    assert info.num_ack_pending == 1
    driver.errors.clear()


async def test_a_filter_with_wildcards_is_in_the_name(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name = await stream(driver, ">")

    async def callback(message):
        pass

    await jetstream.subscribe(f"{name}.*.eu", cb=callback)
    for number in range(2):
        await jetstream.publish(f"{name}.{number}.eu")
    spans = await handled(recorder, 2)
    assert {span.name for span in spans} == {consume_name(vocabulary, f"{name}.*.eu")}
    assert [span.attributes["messaging.destination.name"] for span in spans] == [f"{name}.0.eu", f"{name}.1.eu"]
    if vocabulary != "guide":
        assert {span.attributes["messaging.destination.template"] for span in spans} == {f"{name}.*.eu"}
        settled = [span for span in recorder.spans() if span.kind is trace.SpanKind.CLIENT]
        assert {span.name for span in settled} == {f"ack {name}.*.eu"}


async def test_a_consumer_without_a_filter_gets_all_of_its_stream(connect, recorder):
    from nats.js.api import ConsumerConfig

    driver = await connect()
    jetstream, name = await stream(driver, ">")
    config = ConsumerConfig(durable_name="all", deliver_subject=driver.client.new_inbox())
    await jetstream.add_consumer(name, config)

    async def callback(message):
        pass

    await jetstream.subscribe_bind(name, config, "all", cb=callback)
    await jetstream.publish(f"{name}.17")
    (span,) = await handled(recorder)
    assert (span.name, span.attributes["messaging.destination.name"]) == ("receive >", f"{name}.17")


@pytest.mark.parametrize("loop", [False, True], ids=["callback", "loop"])
async def test_a_durable_or_a_queue_is_the_group(connect, recorder, monkeypatch, loop):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    driver = await connect()
    jetstream, name = await stream(driver, "a", "b")

    async def callback(message):
        pass

    cb = None if loop else callback
    for subject, arguments in ((f"{name}.a", {"durable": "billing"}), (f"{name}.b", {"queue": "workers"})):
        subscription = await jetstream.subscribe(subject, cb=cb, **arguments)
        await jetstream.publish(subject)
        if loop:
            async for message in subscription.messages:
                await message.ack()
                break
    spans = await handled(recorder, 2)
    assert [span.attributes["messaging.consumer.group.name"] for span in spans] == ["billing", "workers"]
    assert [span.name for span in spans] == [f"process {name}.a", f"process {name}.b"]


async def test_a_loop_over_a_consumer_has_the_subjects_of_the_stream(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name = await stream(driver, ">")
    subscription = await jetstream.subscribe(f"{name}.*")
    for number in range(2):
        await jetstream.publish(f"{name}.{number}")
    seen = 0
    async for message in subscription.messages:
        await message.ack()
        seen += 1
        if seen == 2:
            break
    spans = recorder.consumers(2)
    assert [span.name for span in spans] == [consume_name(vocabulary, f"{name}.*")] * 2
    assert [span.attributes["messaging.destination.name"] for span in spans] == [f"{name}.0", f"{name}.1"]
    assert [span.parent.span_id for span in spans] == [span_id(span) for span in recorder.producers(2)]
    if vocabulary == "guide":
        assert [[event.name for event in span.events] for span in spans] == [["ack"], ["ack"]]


@pytest.mark.parametrize("loop", [False, True], ids=["callback", "loop"])
async def test_an_ordered_consumer_is_told_of_by_its_messages_alone(connect, recorder, loop):
    """Its heartbeats and flow control are the library's own."""
    driver = await connect()
    jetstream, name = await stream(driver, "a")
    subject, seen = f"{name}.a", []

    async def callback(message):
        seen.append(message.data)

    arguments = {"ordered_consumer": True, "idle_heartbeat": 0.1}
    subscription = await jetstream.subscribe(subject, cb=None if loop else callback, **arguments)
    for number in range(3):
        await jetstream.publish(subject, b"%d" % number)
    if loop:
        async for message in subscription.messages:
            await callback(message)
            if len(seen) == 3:
                break
    await until(lambda: len(seen) == 3)
    await asyncio.sleep(0.25)
    await subscription.unsubscribe()
    assert seen == [b"0", b"1", b"2"]
    assert sorted(span.name for span in recorder.spans()) == [f"publish {subject}"] * 3 + [f"receive {subject}"] * 3


@pytest.mark.parametrize("manual_ack", [False, True])
async def test_a_callback_that_cannot_be_awaited_fails_as_before(instrument, recorder, nats_address, manual_ack):
    """With automatic acknowledgement the library finds out only when a message is there."""

    def callback(message):
        pass

    name = fresh()

    async def scenario(connection):
        jetstream = connection.jetstream()
        await jetstream.add_stream(name=name, subjects=[f"{name}.a"], storage="memory")
        try:
            found = await outcome(lambda: jetstream.subscribe(f"{name}.a", cb=callback, manual_ack=manual_ack))
            await jetstream.publish(f"{name}.a")
            if not manual_ack:
                await until(lambda: connection.errors)
            return found if manual_ack else type(found), [(type(e), str(e)) for e in connection.errors]
        finally:
            await jetstream.delete_stream(name)

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain


# Silence


@SILENT
async def test_what_the_library_asks_of_jetstream_makes_no_span_and_gets_no_header(instrument, recorder, hub, where):
    from nats.js.errors import NotFoundError

    instrument(NatsPyInstrumentor)
    context = {"default": {}, "domain": {"domain": "hub"}, "prefix": {"prefix": "custom.api"}}[where]
    async with client(hub.address) as connection:
        commands = on_the_wire(connection)
        jetstream = connection.jetstream(**context)
        with recorder.tracer.start_as_current_span("job"):
            await jetstream.account_info()
            await jetstream.add_stream(name="SILENT", subjects=["silent.>"], allow_direct=True, storage="memory")
            await jetstream.stream_info("SILENT")
            assert await jetstream.find_stream_name_by_subject("silent.a") == "SILENT"
            subscription = await jetstream.pull_subscribe("silent.>", durable="puller")
            for batch in (1, 2):
                with pytest.raises(asyncio.TimeoutError):
                    await subscription.fetch(batch, timeout=0.05)
            with pytest.raises(NotFoundError):
                await jetstream.get_msg("SILENT", 1)
            with pytest.raises(NotFoundError):
                await jetstream.get_last_msg("SILENT", "silent.a", direct=True)
            await jetstream.consumer_info("SILENT", "puller")
            await jetstream.delete_stream("SILENT")
    assert [span.name for span in recorder.spans()] == ["job"]
    assert any(b"PUB" in command for command in commands)
    assert not any(b"HPUB" in command for command in commands)


@SILENT
async def test_messages_are_told_of_whatever_the_prefix(instrument, recorder, hub, where):
    instrument(NatsPyInstrumentor)
    context = {"default": {}, "domain": {"domain": "hub"}, "prefix": {"prefix": "custom.api"}}[where]

    async def callback(message):
        pass

    async with client(hub.address) as connection:
        jetstream = connection.jetstream(**context)
        await jetstream.add_stream(name="TOLD", subjects=["told"], storage="memory")
        await jetstream.subscribe("told", cb=callback)
        await jetstream.publish("told")
        await handled(recorder)
        await jetstream.delete_stream("TOLD")
    assert sorted(span.name for span in recorder.spans()) == ["publish told", "receive told"]
    assert [event.name for event in recorder.span("receive told").events] == ["ack"]


@SILENT
async def test_stores_are_told_of_by_their_calls_alone_whatever_the_prefix(instrument, recorder, hub, where):
    """Watchers have consumers, questions and inboxes of their own, here with a prefix that the application chose."""
    instrument(NatsPyInstrumentor)
    context = {"default": {}, "domain": {"domain": "hub"}, "prefix": {"prefix": "custom.api"}}[where]
    async with client(hub.address, inbox_prefix=b"_mine") as connection:
        commands = on_the_wire(connection)
        jetstream = connection.jetstream(**context)
        bucket = await jetstream.create_key_value(bucket="TOLD", storage="memory")
        watcher = await bucket.watchall()
        await bucket.put("name", b"x")
        await bucket.keys()
        while await watcher.updates(timeout=5) is None:
            pass
        await watcher.stop()
        store = await jetstream.create_object_store("TOLD")
        await store.put("name", b"x")
        await store.get("name")
        await jetstream.delete_object_store("TOLD")
        await jetstream.delete_key_value("TOLD")
    names = ["put", "keys", "process", "put", "get"]
    assert [span.name for span in recorder.spans()] == [f"{name} TOLD" for name in names]
    assert not any(b"traceparent" in command for command in commands)


async def test_a_publish_right_after_a_question_is_told_of(connect, recorder):
    """Also when the question has failed."""
    from nats.js.errors import NotFoundError

    driver = await connect()
    with pytest.raises(NotFoundError):
        await driver.client.jetstream().stream_info(driver.name())
    await driver.publish(driver.name())
    recorder.producers(1)


# What a reply subject tells

NOW = 1_700_000_000_000_000_000
REPLIES = {
    "nine words": (f"$JS.ACK.S.C.2.7.3.{NOW}.4", ("S", 7, 2, 4)),
    "a domain and an account": (f"$JS.ACK.hub.ACC.S.C.2.7.3.{NOW}.4", ("S", 7, 2, 4)),
    "and a token": (f"$JS.ACK.hub.ACC.S.C.2.7.3.{NOW}.4.tok", ("S", 7, 2, 4)),
    "ten words": (f"$JS.ACK.S.C.2.7.3.{NOW}.4.5", (None, None, None, None)),
    "too few": ("$JS.ACK.S.C", (None, None, None, None)),
    "no numbers": ("$JS.ACK.S.C.a.b.c.d.e", (None, None, None, None)),
}


@pytest.mark.parametrize("words", list(REPLIES))
async def test_a_reply_subject_of_any_form_is_read(connect, recorder, words):
    """Given to the client as if it had come from the server, which sends just one of the forms."""
    reply, expected = REPLIES[words]
    driver = await connect()
    subject, seen = driver.name(), []

    async def callback(message):
        seen.append(message.reply)

    subscription = await driver.subscribe(subject, callback)
    await driver.client._process_msg(subscription._id, subject.encode(), reply.encode(), b"x", None)
    (span,) = await handled(recorder)
    assert seen == [reply]
    names = ("messaging.nats.stream", "messaging.nats.sequence", "messaging.message.delivery_attempt")
    assert tuple(span.attributes.get(name) for name in (*names, "messaging.consumer.lag")) == expected
