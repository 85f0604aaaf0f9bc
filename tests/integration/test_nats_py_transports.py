"""nats-py over TLS and over websockets."""

from __future__ import annotations

import dataclasses
import ssl
from urllib.parse import urlsplit

import pytest

from examples import brokers
from otel_messaging import NatsPyInstrumentor
from tests.support.nats_py import client, flushed, fresh, server
from tests.support.recorder import span_id
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("real_broker")


async def exchange(connection):
    """One of everything that goes to and fro."""
    subject, seen, jetstream = fresh(), [], connection.jetstream()

    async def answer(message):
        seen.append(message.data)
        await message.respond(b"yes")

    await connection.subscribe(subject, cb=answer)
    await flushed(connection)
    assert (await connection.request(subject, b"?", timeout=5)).data == b"yes"
    await jetstream.add_stream(name=subject, subjects=[f"{subject}.stored"], storage="memory")
    assert (await jetstream.publish(f"{subject}.stored", bytes(100_000))).seq == 1
    await until(lambda: seen)
    return subject


def check(recorder, subject, port):
    """The spans of that, with the address that the application has connected to."""
    request, stored = recorder.producers(2)
    (handled,) = recorder.consumers(1)
    assert [span.name for span in (request, stored)] == [f"publish {subject}", f"publish {subject}.stored"]
    assert handled.parent.span_id == span_id(request)
    for span in (request, stored, handled):
        assert (span.attributes["server.address"], span.attributes["server.port"]) == ("127.0.0.1", port)


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_messages_over_tls_are_told_of(instrument, recorder, certificate, trusting, scheme):
    """A server that demands TLS gets it with either scheme."""
    instrument(NatsPyInstrumentor)
    with server('tls {{ cert_file: "{}", key_file: "{}" }}'.format(*certificate)) as running:
        async with client(running.address.replace("nats", scheme), tls=trusting) as connection:
            subject = await exchange(connection)
            check(recorder, subject, running.port)


async def test_a_certificate_that_is_not_trusted_is_refused_as_before(instrument, recorder, certificate):
    instrument(NatsPyInstrumentor)
    with server('tls {{ cert_file: "{}", key_file: "{}" }}'.format(*certificate)) as running:
        options = {"tls": ssl.create_default_context(), "allow_reconnect": False}
        with pytest.raises(ssl.SSLError):
            await client(running.address, **options).__aenter__()
    assert recorder.spans() == []


async def test_messages_over_a_websocket_are_told_of(instrument, recorder):
    pytest.importorskip("aiohttp", reason="nats-py needs aiohttp for websockets")
    instrument(NatsPyInstrumentor)
    port = brokers.free_port()
    with server(f'websocket {{ host: "127.0.0.1", port: {port}, no_tls: true }}'):
        async with client(f"ws://127.0.0.1:{port}") as connection:
            subject = await exchange(connection)
            check(recorder, subject, port)


@pytest.mark.parametrize("scheme", ["nats", "tls", "ws"])
async def test_the_address_that_a_connection_is_to_is_told_of_every_transport(
    instrument, recorder, certificate, trusting, monkeypatch, scheme
):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    if scheme == "ws":
        pytest.importorskip("aiohttp", reason="nats-py needs aiohttp for websockets")
    instrument(NatsPyInstrumentor)
    port = brokers.free_port()
    options = {
        "nats": "",
        "tls": 'tls {{ cert_file: "{}", key_file: "{}" }}'.format(*certificate),
        "ws": f'websocket {{ host: "127.0.0.1", port: {port}, no_tls: true }}',
    }
    with server(options[scheme]) as running:
        port = port if scheme == "ws" else running.port
        async with client(f"{scheme}://127.0.0.1:{port}", tls=trusting if scheme == "tls" else None) as connection:
            await connection.publish(fresh())
    (span,) = recorder.producers(1)
    assert (span.attributes["network.peer.address"], span.attributes["network.peer.port"]) == ("127.0.0.1", port)


@pytest.mark.parametrize(
    ("address", "port"), [("ws://127.0.0.1", 80), ("wss://127.0.0.1", 443), ("wss://[::1]:8443", 8443)]
)
async def test_a_websocket_without_a_port_is_at_the_usual_one(instrument, recorder, nats_address, address, port):
    instrument(NatsPyInstrumentor)
    async with client(nats_address) as connection:
        connection._current_server = dataclasses.replace(connection._current_server, uri=urlsplit(address))
        await connection.publish(fresh())
    assert recorder.producers(1)[0].attributes["server.port"] == port
