"""Messages that are asked for through nats-py: lists by `fetch`, and one at a time by `next_msg`."""

from __future__ import annotations

import asyncio
import json

import pytest
from opentelemetry import trace

from otel_messaging import NatsPyInstrumentor
from otel_messaging.patterns import process, process_batch
from tests.support.nats_py import VERSION, client, fresh, outcome, twice
from tests.support.recorder import links, shape, span_id
from tests.support.waiting import until

KIND = trace.SpanKind
CONSUMED = "messaging.messages.consumed"


@pytest.fixture
def library():
    return "nats_py"


async def pull(driver, *, durable="worker", subjects="a", wanted=None):
    """A stream of a test's own, and a pull subscription to it."""
    name, jetstream = driver.name(), driver.client.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"], storage="memory")
    subscription = await jetstream.pull_subscribe(f"{name}.{wanted or subjects}", durable)
    return jetstream, name, subscription


async def sent(jetstream, subject, count):
    for number in range(count):
        await jetstream.publish(subject, b"x" * (number + 1))


async def waiting(subscription, count):
    """Wait until the consumer knows that many messages: the server says that it has stored one a moment before."""
    while (await subscription.consumer_info()).num_pending < count:
        await asyncio.sleep(0.005)


def calls(recorder, vocabulary):
    """The spans of calls that have pulled messages."""
    word = "receive" if vocabulary == "guide" else "fetch"
    return [span for span in recorder.spans() if span.name.split()[0] == word]


def processed(recorder):
    return [span for span in recorder.spans() if span.name.startswith("process")]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_list_is_one_span_for_the_call_and_one_for_each_message(connect, recorder, vocabulary, count):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    subject = f"{name}.a"
    await sent(jetstream, subject, count)
    await waiting(subscription, count)
    published = recorder.producers(count)
    current = []
    messages = await subscription.fetch(count, timeout=2)
    for message in messages:
        current.append(span_id(trace.get_current_span()))
        await message.ack_sync(timeout=5)
    guide, semconv = vocabulary != "semconv", vocabulary != "guide"
    (call,) = calls(recorder, vocabulary)
    assert call.name == (f"receive {subject}" if vocabulary == "guide" else f"fetch {subject}")
    assert call.kind is (KIND.CONSUMER if vocabulary == "guide" else KIND.CLIENT)
    assert call.parent is None
    assert [link.context.span_id for link in call.links] == [span_id(span) for span in published]
    assert call.attributes["messaging.batch.message_count"] == count
    assert call.attributes["messaging.nats.stream"] == name
    if guide:
        assert call.attributes["messaging.batch.total_size_bytes"] == sum(range(count + 1))
        assert call.attributes["messaging.operation"] == "receive"
    if semconv:
        assert call.attributes["messaging.operation.type"] == "receive"
        assert call.attributes["messaging.consumer.group.name"] == "worker"
    spans = processed(recorder)
    assert current == [span_id(span) for span in spans]
    for number, (span, before) in enumerate(zip(spans, published, strict=True)):
        assert shape(span) == {
            "name": f"process {subject}",
            "kind": "CONSUMER",
            "parent": span_id(before),
            "links": [] if vocabulary == "guide" else [span_id(before)],
            "status": ("OK" if vocabulary == "guide" else "UNSET", None),
            "attributes": {
                **driver.consumed(vocabulary, subject, b"x" * (number + 1)),
                **({"messaging.operation": "process"} if guide else {}),
                **({"messaging.consumer.group.name": "worker"} if semconv else {}),
                "messaging.client.id": str(driver.client.client_id),
                "messaging.consumer.lag": count - number - 1,
                "messaging.message.delivery_attempt": 1,
                "messaging.message.queue_time": span.attributes["messaging.message.queue_time"],
                "messaging.nats.stream": name,
                "messaging.nats.sequence": number + 1,
            },
            "events": [("ack", {})] if vocabulary == "guide" else [],
        }
        assert 0 <= span.attributes["messaging.message.queue_time"] < 5
    assert len(recorder.producers(count)) == count  # nothing that is asked of JetStream is told of


async def test_a_link_tells_which_message_it_is_to(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await jetstream.publish(f"{name}.a", b"x", headers={"Nats-Msg-Id": "7"})
    await jetstream.publish(f"{name}.a", b"y")
    await waiting(subscription, 2)
    await subscription.fetch(2, timeout=2)
    first, second = recorder.producers(2)
    (call,) = calls(recorder, vocabulary)
    assert links(call) == [
        (
            span_id(first),
            {"messaging.message.id": "7", "messaging.nats.stream": name, "messaging.nats.sequence": 1},
        ),
        (span_id(second), {"messaging.nats.stream": name, "messaging.nats.sequence": 2}),
    ]


async def test_a_link_tells_the_subject_where_they_differ(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name, subscription = await pull(driver, wanted=">")
    for subject in "ab":
        await jetstream.publish(f"{name}.{subject}", b"x")
    await waiting(subscription, 2)
    await subscription.fetch(2, timeout=2)
    (call,) = calls(recorder, vocabulary)
    assert [attributes for _, attributes in links(call)] == [
        {
            "messaging.destination.name": f"{name}.{subject}",
            "messaging.nats.stream": name,
            "messaging.nats.sequence": sequence,
        }
        for sequence, subject in enumerate("ab", 1)
    ]


async def test_a_reply_subject_that_is_made_up_tells_nothing_of_a_message(connect, recorder):
    from otel_messaging.nats_py.readers import identify

    await connect()
    for reply in ("$JS.ACK.", "$JS.ACK.a.b.c.d.e.f.g", f"$JS.ACK.a.b.1.{2**63}.1.1.1", "inbox", "", None):
        assert identify(reply, {"nats-msg-id": b"\xff"}) == (("message id", None),)


async def test_the_call_began_when_it_was_made(connect, recorder):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    fetching = asyncio.create_task(subscription.fetch(2, timeout=5))
    await asyncio.sleep(0.1)
    await jetstream.publish(f"{name}.a")
    await fetching
    (call,) = calls(recorder, "guide")
    assert call.end_time - call.start_time >= 90_000_000


@pytest.mark.parametrize("count", [1, 5])
async def test_a_fetch_that_finds_nothing_is_silent(connect, recorder, vocabulary, count):
    driver = await connect()
    _, _, subscription = await pull(driver)
    with pytest.raises(asyncio.TimeoutError):
        await subscription.fetch(count, timeout=0.05)
    assert recorder.spans() == []


async def test_statuses_are_no_messages(connect, recorder, vocabulary):
    """A list that is not full ends with one, and so does a request that nobody waits for any more."""
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 2)
    beats = {"heartbeat": 0.1} if VERSION >= (2, 7) else {}
    assert len(await subscription.fetch(5, timeout=0.5, **beats)) == 2
    with pytest.raises(asyncio.TimeoutError):
        await subscription.fetch(5, timeout=0.3, **beats)
    (call,) = calls(recorder, vocabulary)
    assert call.attributes["messaging.batch.message_count"] == 2
    assert len(recorder.spans()) == 3


async def test_a_pushed_message_that_is_asked_for_is_told_of_once(connect, recorder):
    """The subscription of a push consumer asks another one inside."""
    driver = await connect()
    name, jetstream = driver.name(), driver.client.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"], storage="memory")
    subscription = await jetstream.subscribe(f"{name}.a", durable="worker")
    await jetstream.publish(f"{name}.a", b"x")
    message = await subscription.next_msg(timeout=5)
    current = span_id(trace.get_current_span())
    await message.ack()
    (span,) = recorder.consumers(1)
    assert (span_id(span), span.name) == (current, f"receive {name}.a")
    assert span.attributes["messaging.nats.sequence"] == 1
    assert [event.name for event in span.events] == ["ack"]
    assert {attributes["messaging.destination.name"] for attributes, _ in recorder.metrics()[CONSUMED]} == {f"{name}.a"}


async def test_a_list_is_as_it_was_without_us(instrument, nats_address):
    name = fresh()

    async def scenario(connection):
        jetstream = connection.jetstream()
        await jetstream.add_stream(name=name, subjects=[f"{name}.>"], storage="memory")
        try:
            subscription = await jetstream.pull_subscribe(f"{name}.a", "worker")
            await sent(jetstream, f"{name}.a", 3)
            messages = await subscription.fetch(3, timeout=2)
            assert messages == list(messages)
            wrong = [
                await outcome(lambda arguments=arguments: subscription.fetch(*arguments))
                for arguments in [(0,), (1, -1), (1, 2, 3, 4)]
            ]
            metadata = [message.metadata.sequence.stream for message in messages]
            return isinstance(messages, list), [m.data for m in messages], metadata, json.dumps(len(messages)), wrong
        finally:
            await jetstream.delete_stream(name)

    traced, plain = await twice(instrument, nats_address, scenario)
    assert traced == plain


async def test_a_message_is_equal_to_itself_unread(connect):
    """`Msg.metadata` keeps what it has read in the message; we do not call it."""
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 1)
    for message in await subscription.fetch(1, timeout=2):
        assert message._metadata is None


@pytest.mark.parametrize("vocabulary", ["guide", "both"], indirect=True)
async def test_subject_and_destination_agree_however_a_wildcard_is_subscribed_to(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name, pulled = await pull(driver, wanted="*")
    called, looped, asked = [], await driver.client.subscribe(f"{name}.*"), await driver.client.subscribe(f"{name}.>")

    async def callback(message):
        called.append(message)

    await driver.client.subscribe(f"{name}.*", cb=callback)
    await jetstream.subscribe(f"{name}.*", cb=callback)
    for subject in "ab":
        await jetstream.publish(f"{name}.{subject}", b"x")
    await looped.unsubscribe(limit=2)
    async for _ in looped.messages:
        pass
    with process(await asked.next_msg(5)):
        pass
    for count in (1, 1):
        for message in await pulled.fetch(count, timeout=2):
            await message.ack()
    with process_batch([await asked.next_msg(5)]):
        pass
    await until(lambda: len(called) == 4)
    spans = [span for span in recorder.spans() if span.kind is not KIND.CLIENT or span.name.startswith("fetch")]
    pairs = [(s.attributes["messaging.destination.name"], s.attributes["messaging.nats.subject"]) for s in spans]
    assert {subject for pair in pairs for subject in pair} == {f"{name}.a", f"{name}.b"}
    assert all(one == other for one, other in pairs)
    named = {span.name.split(" ")[1] for span in spans if span.kind is KIND.CONSUMER}
    assert named == {f"{name}.*", f"{name}.>"}


async def test_a_message_that_is_settled_later_has_the_wildcard_in_that_name_too(connect, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    driver = await connect()
    jetstream, name, pulled = await pull(driver, wanted="*")
    await jetstream.publish(f"{name}.a", b"x")
    messages = await pulled.fetch(1, timeout=2)
    for _ in messages:
        pass
    await messages[0].ack()
    span = recorder.span(f"ack {name}.*")
    assert shape(span) == {
        "name": f"ack {name}.*",
        "kind": "CLIENT",
        "parent": None,
        "links": [],
        "status": ("UNSET", None),
        "attributes": {
            **driver.consumed("semconv", f"{name}.a", b"x"),
            **driver.peer(),
            "messaging.operation.name": "ack",
            "messaging.operation.type": "settle",
            "messaging.destination.template": f"{name}.*",
            "messaging.consumer.group.name": "worker",
            "messaging.client.id": str(driver.client.client_id),
        },
        "events": [],
    }


async def test_wildcards_are_in_the_name(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name, subscription = await pull(driver, wanted="*.eu")
    for number in range(2):
        await jetstream.publish(f"{name}.{number}.eu")
    for message in await subscription.fetch(2, timeout=2):
        await message.ack()
    assert [span.name for span in processed(recorder)] == [f"process {name}.*.eu"] * 2
    (call,) = calls(recorder, vocabulary)
    assert call.name.split()[1] == f"{name}.*.eu"
    assert "messaging.destination.name" not in call.attributes  # they have none in common
    assert [span.attributes["messaging.destination.name"] for span in processed(recorder)] == [
        f"{name}.0.eu",
        f"{name}.1.eu",
    ]


async def test_a_name_made_up_for_a_consumer_is_on_no_metric(connect, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    driver = await connect()
    jetstream, name, subscription = await pull(driver, durable=None)
    await sent(jetstream, f"{name}.a", 2)
    for message in await subscription.fetch(2, timeout=2):
        await message.ack()
    made_up = subscription._consumer
    assert [span.attributes["messaging.consumer.group.name"] for span in processed(recorder)] == [made_up] * 2
    found = recorder.metrics()
    assert made_up not in str(found)
    assert [value for _, value in found["messaging.consumer.lag"]] == [0]


async def test_messages_that_wait_are_measured_until_the_subscription_ends(connect, recorder):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 5)
    await waiting(subscription, 5)
    for message in await subscription.fetch(2, timeout=2):
        await message.ack()
    (point,) = recorder.metrics()["messaging.consumer.lag"]
    attributes, value = point
    assert value == 3
    assert attributes == {
        "messaging.system": "nats",
        "messaging.destination.name": f"{name}.a",
        "messaging.nats.stream": name,
    }
    assert recorder.metrics()["messaging.queue.duration"][0][1] == 2
    await subscription.unsubscribe()
    assert "messaging.consumer.lag" not in recorder.metrics()


async def test_messages_are_counted_once(connect, recorder, vocabulary):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 3)
    for message in await subscription.fetch(3, timeout=2):
        await message.ack()
    found = recorder.metrics()
    for counter in ("messaging.messages.consumed", "messaging.client.consumed.messages"):
        if counter in found:
            assert sum(value for _, value in found[counter]) == 3
    assert {"messaging.messages.consumed", "messaging.client.consumed.messages"} & found.keys()


async def test_a_message_that_comes_again_shows_its_attempt(connect, recorder):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 1)
    for attempt in (1, 2):
        for message in await subscription.fetch(1, timeout=2):
            await (message.nak() if attempt == 1 else message.ack())
    spans = processed(recorder)
    assert [span.attributes["messaging.message.delivery_attempt"] for span in spans] == [1, 2]
    assert [[event.name for event in span.events] for span in spans] == [["nak"], ["ack"]]
    assert len({span.parent.span_id for span in spans}) == 1


async def test_an_excluded_subject_is_left_out(connect, recorder):
    driver = await connect(excluded_destinations="*.quiet")
    jetstream, name, subscription = await pull(driver, wanted="*")
    await jetstream.publish(f"{name}.quiet")
    await jetstream.publish(f"{name}.loud")
    seen = [message.subject for message in await subscription.fetch(2, timeout=2)]
    assert seen == [f"{name}.quiet", f"{name}.loud"]
    (call,) = [span for span in recorder.spans() if span.name.startswith("receive")]
    assert call.attributes["messaging.batch.message_count"] == 1
    assert [span.attributes["messaging.destination.name"] for span in processed(recorder)] == [f"{name}.loud"]


async def test_the_next_fetch_ends_what_the_same_task_handles(connect, recorder):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 2)
    for _ in await subscription.fetch(1, timeout=2):
        await subscription.fetch(1, timeout=2)
        assert trace.get_current_span() is trace.INVALID_SPAN
    assert len(processed(recorder)) == 1


async def test_the_end_of_the_subscription_ends_what_is_handled(connect, recorder):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 1)
    for _ in await subscription.fetch(1, timeout=2):
        await subscription.unsubscribe()
        assert len(processed(recorder)) == 1


async def test_a_list_that_is_left_ends_its_message(connect, recorder):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 3)
    for _ in await subscription.fetch(3, timeout=2):
        break
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert len(processed(recorder)) == 1


# One message at a time


async def test_one_message_is_handled_until_the_next_is_asked_for(connect, recorder, vocabulary):
    driver = await connect()
    subject = driver.name()
    subscription = await driver.listen(subject)
    guide, client_id = vocabulary == "guide", str(driver.client.client_id)
    name = f"{'receive' if guide else 'process'} {subject}"
    for body in (b"one", b"two"):
        await driver.publish(subject, body)
    published = recorder.producers(2)
    for number, body in enumerate((b"one", b"two")):
        message = await subscription.next_msg(timeout=2)
        assert message.data == body
        assert trace.get_current_span().name == name
        assert len(recorder.spans(name)) == number
    with pytest.raises(asyncio.TimeoutError):
        await subscription.next_msg(timeout=0.01)
    assert trace.get_current_span() is trace.INVALID_SPAN
    spans = recorder.spans(name)
    for span, before, body in zip(spans, published, (b"one", b"two"), strict=True):
        assert shape(span) == {
            "name": name,
            "kind": "CONSUMER",
            "parent": span_id(before),
            "links": [] if guide else [span_id(before)],
            "status": ("OK" if guide else "UNSET", None),
            "attributes": {
                **driver.consumed(vocabulary, subject, body),
                **({"messaging.operation": "process"} if vocabulary == "both" else {}),
                "messaging.client.id": client_id,
            },
            "events": [],
        }
    called = [span for span in recorder.spans() if span.kind is KIND.CLIENT]
    assert [span.name for span in called] == ([] if guide else [f"next_msg {subject}"] * 2)
    for span, before in zip(called, published, strict=False):
        assert [link.context.span_id for link in span.links] == [span_id(before)]
        assert span.attributes["messaging.operation.type"] == "receive"
        assert span.attributes["messaging.operation.name"] == "next_msg"


@pytest.mark.parametrize("how", ["unsubscribe", "drain", "close"])
async def test_the_end_of_a_subscription_ends_the_message(connect, recorder, how):
    driver = await connect()
    subject = driver.name()
    subscription = await driver.listen(subject)
    await driver.publish(subject)
    await subscription.next_msg(timeout=2)
    await (driver.client.close() if how == "close" else getattr(subscription, how)())
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert len(recorder.spans(f"receive {subject}")) == 1


async def test_waiting_in_vain_is_silent(connect, recorder, vocabulary):
    driver = await connect()
    subscription = await driver.listen(driver.name())
    with pytest.raises(asyncio.TimeoutError):
        await subscription.next_msg(timeout=0.01)
    assert recorder.spans() == []


SETTLING = ["ack", "ack_sync", "nak", "term"]


@pytest.mark.parametrize("method", SETTLING)
async def test_settling_ends_a_message_that_was_pulled(connect, recorder, vocabulary, method):
    driver = await connect()
    name, jetstream = driver.name(), driver.client.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"], storage="memory")
    subscription = await jetstream.subscribe(f"{name}.a", durable="worker")
    await jetstream.publish(f"{name}.a")
    message = await subscription.next_msg(timeout=2)
    during = trace.get_current_span()
    await message.in_progress()
    assert trace.get_current_span() is during
    await getattr(message, method)()
    assert trace.get_current_span() is trace.INVALID_SPAN
    guide = vocabulary == "guide"
    (span,) = recorder.spans(f"{'receive' if guide else 'process'} {name}.a")
    verb = method.removesuffix("_sync")
    assert [event.name for event in span.events] == (["in_progress", verb] if guide else [])
    assert span.attributes["messaging.nats.sequence"] == 1
    if not guide:
        assert recorder.span(f"{verb} {name}.a").parent.span_id == span_id(span)
    await subscription.unsubscribe()


async def test_a_message_settled_in_another_task_is_handled(connect, recorder):
    driver = await connect()
    name, jetstream = driver.name(), driver.client.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"{name}.>"], storage="memory")
    subscription = await jetstream.subscribe(f"{name}.a")
    await jetstream.publish(f"{name}.a")
    message = await subscription.next_msg(timeout=2)
    await asyncio.create_task(message.ack())
    (span,) = recorder.spans(f"receive {name}.a")
    assert [event.name for event in span.events] == ["ack"]
    with pytest.raises(asyncio.TimeoutError):
        await subscription.next_msg(timeout=0.01)
    assert trace.get_current_span() is trace.INVALID_SPAN
    await subscription.unsubscribe()


async def test_tasks_that_share_a_subscription_have_each_its_message(connect, recorder):
    driver = await connect()
    subject = driver.name()
    subscription = await driver.listen(subject)
    both, done = asyncio.Event(), []

    async def work():
        await subscription.next_msg(timeout=2)
        done.append(span_id(trace.get_current_span()))
        if len(done) == 2:
            both.set()
        await both.wait()
        assert trace.get_current_span().is_recording()

    tasks = []
    for _ in range(2):  # the second task asks while the first one handles its message
        tasks.append(asyncio.create_task(work()))
        await driver.publish(subject)
        await until(lambda: len(done) == len(tasks))
    await asyncio.gather(*tasks)
    await subscription.unsubscribe()
    assert sorted(span_id(span) for span in recorder.consumers(2)) == sorted(done)


async def test_what_was_pulled_is_not_kept(instrument, nats_address, recorder):
    instrument(NatsPyInstrumentor)
    async with client(nats_address) as connection:
        subject = fresh()
        subscription = await connection.subscribe(subject)
        for _ in range(20):
            await connection.publish(subject)
        for _ in range(20):
            await asyncio.create_task(subscription.next_msg(timeout=2))
        state = vars(connection)["_otel_messaging"]
        assert len(state.pulled) == 1
        await subscription.unsubscribe()
        assert state.pulled == {}
    await until(lambda: len(recorder.spans(f"receive {subject}")) == 20)


# A list of one


def unpack(messages):
    (message,) = messages
    return message


TAKEN = {"index": lambda messages: messages[0], "pop": lambda messages: messages.pop(), "unpacking": unpack}


@pytest.mark.parametrize("take", TAKEN)
async def test_a_list_of_one_that_is_taken_apart_is_handled_as_a_pulled_message(connect, recorder, vocabulary, take):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    subject = f"{name}.a"
    await sent(jetstream, subject, 1)
    await waiting(subscription, 1)
    (published,) = recorder.producers(1)
    message = TAKEN[take](await subscription.fetch(1, timeout=2))
    inside = span_id(trace.get_current_span())
    assert processed(recorder) == []
    await message.ack_sync(timeout=5)
    assert trace.get_current_span() is trace.INVALID_SPAN
    (call,) = calls(recorder, vocabulary)
    assert [link.context.span_id for link in call.links] == [span_id(published)]
    (span,) = processed(recorder)
    assert inside == span_id(span)
    guide, semconv = vocabulary != "semconv", vocabulary != "guide"
    assert shape(span) == {
        "name": f"process {subject}",
        "kind": "CONSUMER",
        "parent": span_id(published),
        "links": [] if vocabulary == "guide" else [span_id(published)],
        "status": ("OK" if vocabulary == "guide" else "UNSET", None),
        "attributes": {
            **driver.consumed(vocabulary, subject, b"x"),
            **({"messaging.operation": "process"} if guide else {}),
            **({"messaging.consumer.group.name": "worker"} if semconv else {}),
            "messaging.client.id": str(driver.client.client_id),
            "messaging.consumer.lag": 0,
            "messaging.message.delivery_attempt": 1,
            "messaging.message.queue_time": span.attributes["messaging.message.queue_time"],
            "messaging.nats.stream": name,
            "messaging.nats.sequence": 1,
        },
        "events": [("ack", {})] if vocabulary == "guide" else [],
    }
    consumed = recorder.metrics()["messaging.messages.consumed" if guide else "messaging.client.consumed.messages"]
    assert [count for _, count in consumed] == [1]


@pytest.mark.parametrize("ending", ["fetch", "next_msg", "unsubscribe", "close"])
async def test_a_message_that_was_taken_ends_with_the_next_question_or_the_subscription(connect, recorder, ending):
    from nats.errors import TimeoutError as NatsTimeoutError

    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 1)
    await waiting(subscription, 1)
    (message,) = await subscription.fetch(1, timeout=2)
    inside = span_id(trace.get_current_span())
    assert processed(recorder) == []
    if ending == "unsubscribe":
        await subscription.unsubscribe()
    elif ending == "close":
        await driver.client.close()
    else:
        ask = subscription.fetch if ending == "fetch" else subscription._sub.next_msg
        with pytest.raises(NatsTimeoutError):
            await ask(timeout=0.05)
    assert [span_id(span) for span in processed(recorder)] == [inside]
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert message.data == b"x"


async def test_a_message_that_was_taken_ends_once_its_task_is_over(connect, recorder):
    from nats.errors import TimeoutError as NatsTimeoutError

    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 1)
    await waiting(subscription, 1)

    async def take():
        return (await subscription.fetch(1, timeout=2))[0]

    await asyncio.create_task(take())
    assert processed(recorder) == []
    with pytest.raises(NatsTimeoutError):
        await subscription.fetch(1, timeout=0.05)
    assert len(processed(recorder)) == 1


async def test_a_list_of_one_that_is_taken_apart_in_a_thread_makes_nothing(connect, recorder):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 1)
    await waiting(subscription, 1)
    messages = await subscription.fetch(1, timeout=2)
    message = await asyncio.get_running_loop().run_in_executor(None, messages.pop)
    assert message.data == b"x"
    assert processed(recorder) == []


async def test_of_several_messages_none_is_handled_by_its_index(connect, recorder):
    driver = await connect()
    jetstream, name, subscription = await pull(driver)
    await sent(jetstream, f"{name}.a", 2)
    await waiting(subscription, 2)
    first, second = messages = await subscription.fetch(2, timeout=2)
    assert [messages[0], messages.pop()] == [first, second]
    assert processed(recorder) == []


async def test_a_message_of_a_subscription_that_is_made_anew_is_handled_until_the_task_asks_again(
    connect, recorder, vocabulary
):
    driver = await connect()
    subject, seen = driver.name(), []
    for number in range(3):
        subscription = await driver.listen(subject)
        await driver.publish(subject, b"%d" % number)
        seen.append((await subscription.next_msg(timeout=5)).data)
        assert len(recorder.open.spans) == 1
    assert seen == [b"0", b"1", b"2"]
    await driver.client.close()
    handled = recorder.consumers(3)
    published = recorder.producers(3)
    assert published[0].parent is None
    guide = vocabulary == "guide"
    for span, source in zip(handled, published, strict=True):
        assert span.parent.span_id == span_id(source)
        assert shape(span)["status"] == ("OK" if guide else "UNSET", None)
