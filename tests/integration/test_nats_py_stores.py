"""Key-value and object stores of nats-py: a span for each call and each update, and nothing of the library's inside."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from opentelemetry import context, trace

from otel_messaging import NatsPyInstrumentor
from tests.support.nats_py import VERSION, client, fresh, on_the_wire, outcome, traceparent, twice
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

LARGE = bytes(range(256)) * 2048  # four chunks
contexts = pytest.mark.parametrize("store_context", [False, True], ids=["plain", "with contexts"])


@pytest.fixture
def library():
    return "nats_py"


async def keys_of(connection, **config):
    """A bucket of a test's own."""
    return await connection.jetstream().create_key_value(bucket=fresh(), storage="memory", **config)


async def objects_of(connection):
    """A store of a test's own."""
    return await connection.jetstream().create_object_store(fresh())


def current_id():
    return span_id(trace.get_current_span())


async def watched(watcher, count):
    """The next updates, without the markers between them."""
    found = []
    while len(found) < count:
        update = await watcher.updates(timeout=5)
        if update is not None:
            found.append(update)
    return found


def attributes(driver, vocabulary, bucket, verb, **ours):
    """All attributes of the span of a call, or of an update."""
    operation = {"guide": ["messaging.operation"], "semconv": ["messaging.operation.name"]}
    operation["both"] = operation["guide"] + operation["semconv"]
    size = ours.pop("size", None)
    return {
        "messaging.system": "nats",
        "messaging.destination.name": bucket,
        "messaging.nats.bucket": bucket,
        "messaging.client.id": str(driver.client.client_id),
        "server.address": driver.client.connected_url.hostname,
        "server.port": driver.client.connected_url.port,
        **({} if vocabulary == "guide" or verb == "process" else driver.peer()),
        **dict.fromkeys(operation[vocabulary], verb),
        **({"messaging.message.payload_size_bytes": size} if size is not None and vocabulary != "semconv" else {}),
        **{f"messaging.nats.{name}": value for name, value in ours.items()},
    }


# Calls


async def test_putting_a_value_is_one_span(connect, recorder, vocabulary):
    driver = await connect()
    bucket = await keys_of(driver.client)
    assert await bucket.put("a.name", b"value") == 1
    (span,) = recorder.spans(count=1)
    assert shape(span) == {
        "name": f"put {bucket._name}",
        "kind": "CLIENT",
        "parent": None,
        "links": [],
        "status": ("OK" if vocabulary == "guide" else "UNSET", None),
        "attributes": attributes(driver, vocabulary, bucket._name, "put", key="a.name", sequence=1, size=5),
        "events": [],
    }


async def test_getting_a_value_is_one_span(connect, recorder, vocabulary):
    driver = await connect()
    bucket = await keys_of(driver.client)
    await bucket.put("name", b"value")
    with recorder.tracer.start_as_current_span("job") as job:
        assert (await bucket.get("name")).value == b"value"
    span = recorder.span(f"get {bucket._name}")
    assert shape(span) == {
        "name": f"get {bucket._name}",
        "kind": "CLIENT",
        "parent": span_id(job),
        "links": [],
        "status": ("OK" if vocabulary == "guide" else "UNSET", None),
        "attributes": attributes(driver, vocabulary, bucket._name, "get", key="name", sequence=1, size=5),
        "events": [],
    }


async def test_every_call_is_one_span_and_says_nothing_else_on_the_wire(connect, recorder):
    driver = await connect()
    bucket = await keys_of(driver.client, history=5)
    commands = on_the_wire(driver.client)
    await bucket.create("name", b"1")
    await bucket.update("name", b"2", last=1)
    await bucket.history("name")
    await bucket.keys()
    await bucket.status()
    await bucket.delete("name")
    await bucket.create("name", b"3")  # which is refused, asks for the deleted one, and publishes again
    await bucket.purge("name")
    await bucket.purge_deletes()
    verbs = ["create", "update", "history", "keys", "status", "delete", "create", "purge", "purge_deletes"]
    assert [span.name for span in recorder.spans()] == [f"{verb} {bucket._name}" for verb in verbs]
    assert {span.status.status_code.name for span in recorder.spans()} == {"OK"}
    assert not any(b"traceparent" in command for command in commands)
    assert [span.attributes.get("messaging.batch.message_count") for span in recorder.spans()[2:4]] == [2, 1]


async def test_an_object_of_many_chunks_is_one_span(connect, recorder, vocabulary):
    driver = await connect()
    store = await objects_of(driver.client)
    commands = on_the_wire(driver.client)
    await store.put("name", LARGE)
    (span,) = recorder.spans(count=1)
    assert shape(span) == {
        "name": f"put {store._name}",
        "kind": "CLIENT",
        "parent": None,
        "links": [],
        "status": ("OK" if vocabulary == "guide" else "UNSET", None),
        "attributes": attributes(driver, vocabulary, store._name, "put", key="name", size=len(LARGE)),
        "events": [],
    }
    assert sum(b"$O." in command for command in commands) >= 5
    assert not any(b"traceparent" in command for command in commands)


async def test_every_call_of_an_object_store_is_one_span(connect, recorder):
    from nats.js.api import ObjectMeta

    driver = await connect()
    store = await objects_of(driver.client)
    await store.put("name", LARGE)
    assert (await store.get("name")).data == LARGE
    await store.get_info("name")
    await store.update_meta("name", ObjectMeta(name="name", description="new"))
    await store.list()
    await store.status()
    await store.delete("name")
    await store.seal()
    verbs = ["put", "get", "get_info", "update_meta", "list", "status", "delete", "seal"]
    assert [span.name for span in recorder.spans()] == [f"{verb} {store._name}" for verb in verbs]
    assert {span.status.status_code.name for span in recorder.spans()} == {"OK"}


@pytest.mark.parametrize("call", ["get", "deleted", "keys", "history"])
async def test_that_there_is_no_such_value_is_an_answer(connect, recorder, vocabulary, call):
    from nats.js.errors import KeyNotFoundError, NoKeysError

    driver = await connect()
    bucket = await keys_of(driver.client)
    if call == "deleted":
        await bucket.put("name", b"")
        await bucket.delete("name")
    method = {"keys": bucket.keys, "history": bucket.history}.get(call, bucket.get)
    with pytest.raises((KeyNotFoundError, NoKeysError)):
        await method(*(() if call == "keys" else ("name",)))
    span = recorder.spans()[-1]
    assert shape(span)["status"] == ("OK" if vocabulary == "guide" else "UNSET", None)
    assert shape(span)["events"] == []
    assert "error.type" not in span.attributes
    assert "messaging.nats.sequence" not in span.attributes


@pytest.mark.parametrize("call", ["get", "get_info", "list"])
async def test_that_there_is_no_such_object_is_an_answer(connect, recorder, call):
    from nats.js.errors import NotFoundError

    driver = await connect()
    store = await objects_of(driver.client)
    with pytest.raises(NotFoundError):
        await getattr(store, call)(*(() if call == "list" else ("name",)))
    assert shape(recorder.spans(count=1)[0])["status"] == ("OK", None)


async def test_a_bucket_that_is_gone_is_an_error(connect, recorder):
    from nats.js.errors import NotFoundError

    driver = await connect()
    bucket = await keys_of(driver.client)
    await driver.client.jetstream().delete_key_value(bucket._name)
    with pytest.raises(NotFoundError):
        await bucket.status()
    (span,) = recorder.spans(count=1)
    assert span.attributes["error.type"] == "nats.js.errors.NotFoundError"


@pytest.mark.parametrize("call", ["create", "update"])
async def test_a_value_that_has_changed_meanwhile_is_an_error(connect, recorder, call):
    from nats.js.errors import KeyWrongLastSequenceError

    driver = await connect()
    bucket = await keys_of(driver.client)
    await bucket.put("name", b"")
    with pytest.raises(KeyWrongLastSequenceError) as caught:
        await (bucket.create("name", b"x") if call == "create" else bucket.update("name", b"x", last=7))
    span = recorder.span(f"{call} {bucket._name}")
    assert shape(span)["status"] == ("ERROR", str(caught.value))
    assert span.attributes["error.type"] == "nats.js.errors.KeyWrongLastSequenceError"


async def test_stores_answer_as_they_did(instrument, nats_address):
    async def scenario(connection):
        bucket, store = await keys_of(connection, history=3), await objects_of(connection)
        found = [
            await outcome(lambda: bucket.put("name", b"1")),
            await outcome(lambda: bucket.put("name", "text")),
            await outcome(lambda: bucket.put("name")),
            await outcome(lambda: bucket.get()),
            await outcome(lambda: bucket.get(key="name")),
            await outcome(lambda: bucket.get("none")),
            await outcome(lambda: bucket.create("name", value=b"2")),
            await outcome(lambda: bucket.update("name", b"2", 1)),
            await outcome(lambda: bucket.delete("name", last=1)),
            await outcome(bucket.keys),
            await outcome(lambda: store.put("name", 5)),
            await outcome(lambda: store.get(name="none")),
            await outcome(store.list),
        ]
        return [str(each).replace(bucket._name, "bucket") for each in found]

    traced, plain = await twice(instrument, nats_address, scenario)
    assert [text.partition("created")[0] for text in traced] == [text.partition("created")[0] for text in plain]


async def test_a_message_published_right_after_a_call_is_told_of(connect, recorder):
    from nats.js.errors import KeyNotFoundError

    driver = await connect()
    bucket = await keys_of(driver.client)
    with pytest.raises(KeyNotFoundError):
        await bucket.get("name")
    await driver.publish(driver.name())
    recorder.producers(1)


async def test_stored_values_are_no_messages_that_are_counted(connect, recorder, vocabulary):
    driver = await connect()
    bucket = await keys_of(driver.client)
    watcher = await bucket.watchall()
    await bucket.put("name", b"value")
    await watched(watcher, 1)
    await watcher.stop()
    common = {"messaging.system": "nats", "messaging.destination.name": bucket._name}
    server = {"server.address": driver.client.connected_url.hostname, "server.port": driver.client.connected_url.port}
    guide = {"messaging.processing.duration": [(common, 1)]}
    semconv = {
        "messaging.client.operation.duration": [({**common, **server, "messaging.operation.name": "put"}, 1)],
        "messaging.process.duration": [({**common, **server, "messaging.operation.name": "process"}, 1)],
    }
    assert recorder.metrics() == {"guide": guide, "semconv": semconv, "both": {**guide, **semconv}}[vocabulary]


async def test_a_bucket_may_be_excluded(connect, recorder):
    driver = await connect(excluded_destinations="test-*")
    bucket = await keys_of(driver.client)
    watcher = await bucket.watchall()
    await bucket.put("name", b"value")
    await watched(watcher, 1)
    await watcher.stop()
    assert recorder.spans() == []


async def test_a_call_that_is_cancelled_ends_its_span(connect, recorder):
    driver = await connect()
    bucket = await keys_of(driver.client)
    task = asyncio.create_task(bucket.get("name"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = recorder.spans(count=1)
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"


async def test_calls_at_once_have_each_their_span(connect, recorder):
    driver = await connect()
    bucket = await keys_of(driver.client)
    await asyncio.gather(*(bucket.put(f"name-{number}", b"") for number in range(5)))
    found = sorted(span.attributes["messaging.nats.key"] for span in recorder.spans(count=5))
    assert found == [f"name-{number}" for number in range(5)]


# Updates


async def test_an_update_is_one_span_while_it_is_handled(connect, recorder, vocabulary):
    driver = await connect()
    bucket = await keys_of(driver.client)
    watcher = await bucket.watch("a.*")
    await bucket.put("a.name", b"value")
    before = context.get_current()
    await watched(watcher, 1)
    current = current_id()
    await watcher.stop()
    assert context.get_current() is before
    (span,) = recorder.consumers(1)
    assert span_id(span) == current
    expected = attributes(driver, vocabulary, bucket._name, "process", key="a.name", sequence=1, size=5)
    kind = {} if vocabulary == "guide" else {"messaging.operation.type": "process"}
    assert shape(span) == {
        "name": f"process {bucket._name}",
        "kind": "CONSUMER",
        "parent": None,
        "links": [],
        "status": ("OK" if vocabulary == "guide" else "UNSET", None),
        "attributes": {**expected, **kind},
        "events": [],
    }


@pytest.mark.skipif(VERSION < (2, 14), reason="a loop over a watcher ended at the first marker")
async def test_a_loop_over_a_watcher_has_a_span_for_each_update_and_none_for_markers(connect, recorder):
    driver = await connect()
    bucket = await keys_of(driver.client)
    watcher = await bucket.watchall()
    for number in range(3):
        await bucket.put(f"name-{number}", b"")
    before, seen = context.get_current(), []
    async for update in watcher:
        if update is None:
            assert trace.get_current_span() is trace.INVALID_SPAN
            continue
        seen.append(current_id())
        if len(seen) == 3:
            break
    assert context.get_current() is before
    assert seen == [span_id(span) for span in recorder.consumers(3)]
    await watcher.stop()


async def test_a_watcher_of_objects_has_a_span_for_each_update(connect, recorder):
    driver = await connect()
    store = await objects_of(driver.client)
    watcher = await store.watch(include_history=True)
    await store.put("name", LARGE)
    await store.delete("name")
    assert [update.deleted for update in await watched(watcher, 2)] == [False, True]
    await watcher.stop()
    spans = recorder.consumers(2)
    assert [span.attributes["messaging.nats.key"] for span in spans] == ["name", "name"]
    assert [span.attributes["messaging.message.payload_size_bytes"] for span in spans] == [len(LARGE), 0]


@pytest.mark.parametrize("how", ["stop", "close"])
async def test_the_end_of_a_watcher_ends_the_update(connect, recorder, how):
    driver = await connect()
    bucket = await keys_of(driver.client)
    watcher = await bucket.watchall()
    await bucket.put("name", b"")
    await watched(watcher, 1)
    await asyncio.create_task(watcher.stop() if how == "stop" else driver.client.close())
    recorder.consumers(1)
    with contextlib.suppress(asyncio.TimeoutError):
        await watcher.updates(timeout=0.01)
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.skipif(VERSION < (2, 9), reason="the client kept what had unsubscribed")
async def test_a_watcher_that_nobody_has_any_more_ends_its_update(connect, recorder):
    driver = await connect()
    bucket = await keys_of(driver.client)
    watcher = await bucket.watchall()
    await bucket.put("name", b"")
    await watched(watcher, 1)
    await watcher._sub.unsubscribe()
    await asyncio.sleep(0.02)  # the task of the subscription ends
    del watcher
    gc.collect()
    recorder.metrics()  # not in the collector
    recorder.consumers(1)
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_waiting_for_an_update_in_vain_is_silent(connect, recorder):
    from nats.errors import TimeoutError as NatsTimeoutError

    driver = await connect()
    watcher = await (await keys_of(driver.client)).watchall()
    assert await watcher.updates(timeout=5) is None
    with pytest.raises(NatsTimeoutError):
        await watcher.updates(timeout=0.01)
    await watcher.stop()
    assert recorder.spans() == []


async def test_a_watcher_goes_on_when_tracing_is_switched_off(connect, recorder):
    driver = await connect()
    bucket = await keys_of(driver.client)
    watcher = await bucket.watchall()
    await bucket.put("a", b"")
    await watched(watcher, 1)
    NatsPyInstrumentor().uninstrument()
    await bucket.put("b", b"")
    assert [update.key for update in await watched(watcher, 1)] == ["b"]
    await watcher.stop()
    watcher._otel_messaging.close()
    assert len(recorder.consumers(1)) == 1


async def test_the_consume_hook_is_told_of_updates(connect):
    told = []
    driver = await connect(consume_hook=lambda _span, update: told.append(update))
    bucket = await keys_of(driver.client)
    watcher = await bucket.watchall()
    await bucket.put("name", b"")
    assert await watched(watcher, 1) == told
    await watcher.stop()


# Contexts in what is stored


@contexts
async def test_a_value_carries_its_writers_context_only_where_that_is_asked_for(connect, recorder, store_context):
    driver = await connect(store_context=store_context)
    bucket = await keys_of(driver.client)
    await bucket.put("name", b"value")
    stored = await driver.client.jetstream().get_msg(bucket._stream, 1)
    (span,) = recorder.spans(count=1)
    assert stored.headers == ({"traceparent": traceparent(span)} if store_context else None)


@contexts
async def test_an_object_carries_its_writers_context_once(connect, recorder, store_context):
    driver = await connect(store_context=store_context)
    store = await objects_of(driver.client)
    commands = on_the_wire(driver.client)
    await store.put("name", LARGE)
    (span,) = recorder.spans(count=1)
    carrying = [command for command in commands if b"traceparent" in command]
    assert len(carrying) == store_context
    for command in carrying:
        assert b"HPUB $O." in command
        assert traceparent(span).encode() in command


@contexts
@pytest.mark.parametrize("consumer_parent", ["message", "ambient"])
async def test_an_update_continues_its_writers_trace(connect, recorder, vocabulary, store_context, consumer_parent):
    driver = await connect(store_context=store_context, consumer_parent=consumer_parent)
    bucket = await keys_of(driver.client, history=5)
    watcher = await bucket.watchall()
    await bucket.put("name", b"1")
    await bucket.delete("name")
    await watched(watcher, 2)
    await watcher.stop()
    writers = [span_id(span) for span in recorder.spans() if span.kind is trace.SpanKind.CLIENT]
    updates = [shape(span) for span in recorder.consumers(2)]
    assert [update["parent"] for update in updates] == (writers if store_context else [None, None])
    linked = [[writer] for writer in writers] if store_context and vocabulary != "guide" else [[], []]
    assert [update["links"] for update in updates] == linked


@contexts
async def test_an_update_of_an_object_continues_its_writers_trace(connect, recorder, store_context):
    driver = await connect(store_context=store_context)
    store = await objects_of(driver.client)
    watcher = await store.watch(include_history=True)
    await store.put("name", b"1")
    await store.delete("name")
    await watched(watcher, 2)
    await watcher.stop()
    writers = [span_id(span) for span in recorder.spans() if span.kind is trace.SpanKind.CLIENT]
    parents = [shape(span)["parent"] for span in recorder.consumers(2)]
    assert parents == (writers if store_context else [None, None])


@contexts
async def test_getting_a_value_is_linked_to_its_writer(connect, recorder, store_context):
    driver = await connect(store_context=store_context)
    bucket, store = await keys_of(driver.client), await objects_of(driver.client)
    await bucket.put("name", b"value")
    await bucket.get("name")
    await store.put("name", b"value")
    await store.get("name")
    put, get, put_object, get_object = recorder.spans(count=4)
    assert shape(get)["links"] == ([span_id(put)] if store_context else [])
    assert shape(get_object)["links"] == ([span_id(put_object)] if store_context else [])


async def test_a_watcher_keeps_nothing_of_what_it_has_handed_out(connect):
    driver = await connect(store_context=True)
    bucket = await keys_of(driver.client)
    watcher = await bucket.watchall()
    for number in range(20):
        await bucket.put(f"name-{number}", b"")
    await watched(watcher, 20)
    await watcher.stop()
    assert not watcher._otel_messaging._writers


async def test_a_context_that_was_stored_by_somebody_hostile_is_ignored(connect, recorder):
    driver = await connect(store_context=True)
    bucket = await keys_of(driver.client)
    watcher = await bucket.watchall()
    jetstream = driver.client.jetstream()
    await jetstream.publish(f"$KV.{bucket._name}.name", b"x", headers={"traceparent": "00-zz-1-01"})
    await watched(watcher, 1)
    await watcher.stop()
    await bucket.get("name")
    assert [shape(span)["parent"] for span in recorder.consumers(1)] == [None]
    assert shape(recorder.span(f"get {bucket._name}"))["links"] == []


async def test_without_an_sdk_the_bytes_are_the_same(instrument, nats_address):
    async with client(nats_address) as connection:
        bucket = await keys_of(connection)
        sent = []
        for traced in (False, True):
            if traced:
                NatsPyInstrumentor().instrument()
            commands = on_the_wire(connection)
            await bucket.put("name", b"value")
            await until(lambda commands=commands: commands)
            sent.append([command.split(b" ")[0:2] for command in commands])
        NatsPyInstrumentor().uninstrument()
    assert sent[1] == sent[0]
