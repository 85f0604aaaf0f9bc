"""What anybody can answer or store: no span, metric or export is the worse for it, and nothing is kept of it."""

from __future__ import annotations

import json

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from otel_messaging.core import vocabulary as v
from tests.support.nats_py import VERSION

HALF = "\ud800"  # of a surrogate, which JSON can hold and no exporter encodes
HOSTILE = {
    "long": ({"stream": "s" * 5000, "seq": 1}, {"messaging.nats.stream": "s" * 1024, "messaging.nats.sequence": 1}),
    "not text": ({"stream": HALF, "seq": 1}, {"messaging.nats.stream": "?", "messaging.nats.sequence": 1}),
    "large": ({"stream": "s", "seq": v.LARGEST + 1}, {"messaging.nats.stream": "s"}),
    "negative": ({"stream": "s", "seq": -1}, {"messaging.nats.stream": "s"}),
    "of other types": ({"stream": {"a": 1}, "seq": [1], "duplicate": "x"}, {"messaging.nats.duplicate": True}),
}
TOLD = ("messaging.nats.stream", "messaging.nats.sequence", "messaging.nats.duplicate")


@pytest.fixture
def library():
    return "nats_py"


async def answering(driver, answer):
    """A subject of no stream, on which somebody answers as a stream would."""
    subject = driver.name()

    async def answers(message):
        await message.respond(json.dumps(answer).encode())

    await driver.client.subscribe(subject, cb=answers)
    return subject


@pytest.mark.parametrize("how", ["publish", "publish_async"])
@pytest.mark.parametrize("what", HOSTILE)
async def test_an_acknowledgement_that_is_made_up_does_no_harm(connect, recorder, caplog, how, what):
    if how == "publish_async" and VERSION < (2, 8):
        pytest.skip("publish_async came with nats-py 2.8")
    driver = await connect()
    answer, expected = HOSTILE[what]
    subject = await answering(driver, answer)
    acknowledgement = await getattr(driver.client.jetstream(), how)(subject)
    if how == "publish_async":
        acknowledgement = await acknowledgement
    assert (acknowledgement.stream, acknowledgement.seq) == (answer["stream"], answer["seq"])
    span = recorder.span(f"publish {subject}")
    assert {name: span.attributes[name] for name in TOLD if name in span.attributes} == expected
    assert encode_spans([span]).SerializeToString()
    assert caplog.records == []


@pytest.mark.parametrize("name", ["n" * 5000, HALF], ids=["long", "not text"])
async def test_an_object_that_is_made_up_does_no_harm(connect, recorder, caplog, name):
    driver = await connect()
    jetstream = driver.client.jetstream()
    store = await jetstream.create_object_store(driver.name())
    watcher = await store.watch()
    meta = {"name": name, "bucket": store._name, "nuid": "x", "size": v.LARGEST + 1, "chunks": 0, "deleted": False}
    await jetstream.publish(f"$O.{store._name}.M.x", json.dumps(meta).encode())
    while (update := await watcher.updates(timeout=5)) is None:  # a marker
        pass
    assert (update.name, update.size) == (name, meta["size"])
    await watcher.stop()
    span = recorder.span(f"process {store._name}")
    assert span.attributes["messaging.nats.key"] == v.cut(name)
    assert "messaging.message.payload_size_bytes" not in span.attributes
    assert encode_spans([span]).SerializeToString()
    assert caplog.records == []
