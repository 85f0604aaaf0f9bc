"""nats-py with its extra `fast-parse`: the values of headers are lists, which the library itself cannot send back."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.nats_py import fresh
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

HEADERS = {"Nats-Msg-Id": "7", "x-tenant": "blue"}


@pytest.fixture
def library():
    return "nats_py"


@pytest.fixture(scope="module")
def parse_email(tmp_path_factory):
    """The parser of the extra, beside the environment: in it, the library would use it in all other tests, too."""
    importlib.import_module("nats.aio.client")  # before it can find the parser
    with pytest.MonkeyPatch.context() as patch:
        uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
        if uv is None:
            pytest.skip("needs uv, which the environment of `make test` has")
        folder = tmp_path_factory.mktemp("fast-parse")
        tool = (uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder))
        done = subprocess.run((*tool, "fast-mail-parser>=0.10"), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip("fast-mail-parser 0.10 cannot be had here; before, values were no lists")
        patch.syspath_prepend(folder)
        parser = importlib.import_module("fast_mail_parser")
        del sys.modules["fast_mail_parser"]
        yield parser.parse_email


@pytest.fixture(autouse=True)
def fast(monkeypatch, parse_email):
    monkeypatch.setattr("nats.aio.client.parse_email", parse_email)


@pytest.mark.parametrize("way", ["callback", "loop", "next_msg"])
async def test_a_message_is_in_its_publishers_trace(connect, recorder, vocabulary, way):
    driver = await connect(consumer_parent="message", capture_headers="x-*")
    subject, seen = driver.name(), []

    async def callback(message):
        seen.append(message.headers)

    if way == "callback":
        await driver.subscribe(subject, callback)
    else:
        subscription = await driver.listen(subject)
    await driver.publish(subject, headers=HEADERS)
    if way == "loop":
        seen.append((await driver.first(subscription)).headers)
    elif way == "next_msg":
        seen.append((await subscription.next_msg()).headers)
        await subscription.unsubscribe()
    await until(lambda: seen)
    assert seen[0]["x-tenant"] == ["blue"]
    (published,) = recorder.producers(1)
    (span,) = recorder.consumers(1)
    assert span.parent.span_id == span_id(published)
    assert span.attributes["messaging.message.id"] == "7"
    assert span.attributes["messaging.header.x-tenant"] == "blue"


async def test_fetched_messages_are_linked(connect, recorder):
    driver = await connect()
    jetstream, name = driver.client.jetstream(), fresh()
    await jetstream.add_stream(name=name, subjects=[name], storage="memory")
    subscription = await jetstream.pull_subscribe(name)
    await jetstream.publish(name, headers=HEADERS)
    for message in await subscription.fetch(1):
        await message.ack()
    (published,) = recorder.producers(1)
    call, handled = recorder.consumers(2)
    assert shape(call)["links"] == [span_id(published)]
    assert shape(handled)["parent"] == span_id(published)


async def test_a_message_that_goes_on_is_linked_to_where_it_came_from(connect, recorder):
    driver = await connect()
    subject = driver.name()
    subscription = await driver.listen(subject)
    await driver.publish(subject)
    message = await driver.first(subscription)
    headers = {name: values[-1] for name, values in message.headers.items()}
    await driver.publish(driver.name(), headers=headers)
    first, second = recorder.producers(2)
    assert shape(second)["links"] == [span_id(first)]


async def test_a_request_is_answered(connect, recorder):
    """Though the library's `respond` sends the headers back that it has got: without us there would be none."""
    driver = await connect()
    subject = driver.name()

    async def answer(message):
        await message.respond(b"yes")

    await driver.subscribe(subject, answer)
    reply = await driver.client.request(subject, b"?", timeout=5)
    assert (reply.data, reply.headers) == (b"yes", None)
    (asked,) = recorder.producers(1)
    assert recorder.consumers(1)[0].parent.span_id == span_id(asked)
    assert driver.errors == []


async def test_nobody_there_is_an_error(connect, recorder):
    from nats.errors import NoRespondersError

    driver = await connect()
    with pytest.raises(NoRespondersError):
        await driver.client.request(driver.name())
    assert recorder.producers(1)[0].attributes["error.type"] == "nats.errors.NoRespondersError"


async def test_an_entry_is_linked_to_its_writer(connect, recorder):
    driver = await connect(store_context=True)
    bucket = await driver.client.jetstream().create_key_value(bucket=fresh(), storage="memory")
    watcher = await bucket.watchall()
    await bucket.put("name", b"value")
    await bucket.get("name")
    while await watcher.updates(timeout=5) is None:
        pass
    await watcher.stop()
    put, get, update = recorder.spans(count=3)
    assert shape(get)["links"] == [span_id(put)]
    assert shape(update)["parent"] == span_id(put)


async def test_a_service_that_fails_is_an_error(connect, recorder):
    micro = pytest.importorskip("nats.micro")
    driver = await connect()

    async def handler(request):
        await request.respond_error("418", "teapot")

    service = await micro.add_service(driver.client, name="pots", version="1.0.0")
    await service.add_endpoint(name=fresh(), handler=handler)
    (endpoint,) = service.info().endpoints
    reply = await driver.client.request(endpoint.subject)
    assert reply.headers["Nats-Service-Error-Code"] == ["418"]
    await service.stop()
    assert shape(recorder.producers(1)[0])["status"] == ("ERROR", "teapot")
