"""nats-py as an application uses it: core NATS."""

from __future__ import annotations

import asyncio
import socket
from importlib.metadata import version
from urllib.parse import urlsplit

import pytest

from otel_messaging import NatsPyInstrumentor

from .base import Driver, both, call


class NatsPyDriver(Driver):
    library = "nats_py"
    system = "nats"
    instrumentor = NatsPyInstrumentor
    broker = "nats_address"
    funnel = ("nats.aio.client", "Client", "publish")
    ascii_headers = tuple(int(part) for part in version("nats-py").split(".")[:2]) < (2, 15)
    varying = frozenset({"messaging.client.id"})

    async def open(self):
        import nats

        self.client = await nats.connect(self.address, error_cb=self.error)

    async def error(self, error):
        self.errors.append(error)

    async def close(self):
        await self.client.close()

    async def listen(self, destination):
        subscription = await self.client.subscribe(destination)
        await self.client.flush()
        return subscription

    async def publish(self, destination, body=b"body", headers=None):
        await self.client.publish(destination, body, headers=headers)
        await self.client.flush()

    @property
    def publisher(self):
        return self.client

    async def disconnect(self):
        await self.client.close()

    async def loop(self, listener, count, body, after=None):
        seen = 0
        async with asyncio.timeout(8) if hasattr(asyncio, "timeout") else _Unlimited():
            async for message in listener.messages:
                seen += 1
                await call(body, message)
                if seen == count:
                    break
            if after is not None:
                after()
        assert seen == count

    async def first(self, listener):
        async for message in listener.messages:
            return message
        return None

    async def drain(self, listener, count, body, after=None):
        seen = 0
        await listener.unsubscribe(limit=count)
        async for message in listener.messages:
            seen += 1
            await call(body, message)
        if after is not None:
            after()
        assert seen == count

    async def guarded_loop(self, listener, body):
        pytest.skip("nats-py has no with block around messages")

    async def generator(self, listener):
        async for message in listener.messages:
            yield message

    def iterate(self, listener):
        return listener.messages.__aiter__()

    async def advance(self, iterator):
        return await iterator.__anext__()

    async def stop(self, listener, iterator):
        await listener.unsubscribe()

    async def interrupt(self, subscription):
        await subscription.unsubscribe()

    async def subscribe(self, destination, handler):
        subscription = await self.client.subscribe(destination, cb=handler)
        await self.client.flush()
        return subscription

    def published(self, vocabulary, destination, body):
        found = self._attributes(vocabulary, destination, body, "publish", "publish", "send")
        return both(vocabulary, found, {**found, **self.peer()})

    def consumed(self, vocabulary, destination, body):
        return self._attributes(vocabulary, destination, body, "receive", "process", "process")

    def peer(self):
        """What the conventions tell of the connection where the server is called."""
        url = urlsplit(self.address)
        return {"network.peer.address": socket.gethostbyname(url.hostname), "network.peer.port": url.port}

    def _attributes(self, vocabulary, destination, body, operation, name, kind):
        url = urlsplit(self.address)
        common = {
            "messaging.system": "nats",
            "messaging.destination.name": destination,
            "server.address": url.hostname,
            "server.port": url.port,
        }
        guide = {
            "messaging.operation": operation,
            "messaging.message.payload_size_bytes": len(body),
            "messaging.nats.subject": destination,
        }
        semconv = {"messaging.operation.name": name, "messaging.operation.type": kind}
        return both(vocabulary, {**common, **guide}, {**common, **semconv})

    def varying_types(self, vocabulary):
        return {"messaging.client.id": "str"}

    def body(self, message):
        return message.data

    def headers(self, message):
        return list((message.headers or {}).items())


class _Unlimited:
    """Python 3.10 has no `asyncio.timeout`; the suite's own limit ends a loop that hangs."""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        return None
