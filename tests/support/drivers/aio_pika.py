"""aio-pika as an application uses it: a queue behind the default exchange, on a robust connection."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

from otel_messaging import AioPikaInstrumentor

from .base import Driver, both, call


class AioPikaDriver(Driver):
    library = "aio_pika"
    system = "rabbitmq"
    instrumentor = AioPikaInstrumentor
    broker = "rabbitmq_address"
    settles = "ack"
    funnel = ("aio_pika.exchange", "Exchange", "publish")
    varying = frozenset({"messaging.message.id", "messaging.rabbitmq.message.delivery_tag"})

    async def open(self):
        import aio_pika

        self.connection = await aio_pika.connect_robust(self.address)
        self.channel = await self.connection.channel()
        self.queues = []
        asyncio.get_running_loop().set_exception_handler(self._report)

    def _report(self, _loop, report):
        if "exception" in report:
            self.errors.append(report["exception"])

    async def close(self):
        asyncio.get_running_loop().set_exception_handler(None)
        if self.queues:
            channel = await self.connection.channel()
            for queue in self.queues:
                await channel.queue_delete(queue.name)
        await self.connection.close()

    async def queue(self, name):
        queue = await self.channel.declare_queue(name, auto_delete=False)
        self.queues.append(queue)
        return queue

    async def listen(self, destination):
        return await self.queue(destination)

    async def publish(self, destination, body=b"body", headers=None):
        import aio_pika

        message = aio_pika.Message(body, headers=headers)
        await self.channel.default_exchange.publish(message, destination)

    def odd_headers(self):
        values = (7, 1.5, True, None, [], [[]], ["no", 7], {"a": "b"}, bytearray(b"\xff\xfe"))
        return [{"traceparent": value} for value in values]

    @property
    def publisher(self):
        return self.channel.default_exchange

    def asked(self, request):
        message = request.arguments["message"]
        return request.arguments["routing_key"], message.body, message.headers

    async def disconnect(self):
        await self.channel.close()

    async def loop(self, listener, count, body, after=None):
        seen = 0
        async with listener.iterator(timeout=8) as messages:
            async for message in messages:
                seen += 1
                async with message.process():
                    await call(body, message)
                if seen == count:
                    break
            if after is not None:
                after()
        assert seen == count

    async def first(self, listener):
        async for message in listener.iterator(no_ack=True, timeout=8):
            return message
        return None

    async def drain(self, listener, count, body, after=None):
        seen = 0
        try:
            async for message in listener.iterator(no_ack=True, timeout=0.3):
                seen += 1
                await call(body, message)
        except asyncio.TimeoutError:
            if after is not None:
                after()
        assert seen == count

    async def guarded_loop(self, listener, body):
        async with listener.iterator(no_ack=True, timeout=8) as messages:
            async for message in messages:
                await call(body, message)
                break

    async def generator(self, listener):
        async with listener.iterator(no_ack=True, timeout=8) as messages:
            async for message in messages:
                yield message

    def iterate(self, listener):
        return listener.iterator(no_ack=True, timeout=8).__aiter__()

    async def advance(self, iterator):
        return await iterator.__anext__()

    async def stop(self, listener, iterator):
        await iterator.close()

    async def subscribe(self, destination, handler):
        queue = await self.queue(destination)
        await queue.consume(handler)
        return queue

    async def interrupt(self, subscription):
        await self.channel.close()

    def published(self, vocabulary, destination, body):
        common = {
            "messaging.system": "rabbitmq",
            "messaging.destination.name": destination,
            "messaging.rabbitmq.destination.routing_key": destination,
            **self._server(),
        }
        guide = {"messaging.operation": "publish", "messaging.message.payload_size_bytes": len(body)}
        semconv = {"messaging.operation.name": "publish", "messaging.operation.type": "send", **self.peer()}
        return both(vocabulary, {**common, **guide}, {**common, **semconv})

    def consumed(self, vocabulary, destination, body):
        common = {
            "messaging.system": "rabbitmq",
            "messaging.destination.name": destination,
            "messaging.rabbitmq.destination.routing_key": destination,
            **self._server(),
        }
        guide = {"messaging.operation": "receive", "messaging.message.payload_size_bytes": len(body)}
        semconv = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
        return both(vocabulary, {**common, **guide}, {**common, **semconv})

    def _server(self):
        url = urlsplit(self.address)
        return {"server.address": url.hostname, "server.port": url.port or 5672}

    def peer(self):
        """What the conventions tell of the connection where the broker is called."""
        server = self._server()
        address = socket.gethostbyname(server["server.address"])
        return {"network.peer.address": address, "network.peer.port": server["server.port"]}

    def varying_types(self, vocabulary):
        return {"messaging.message.id": "str", "messaging.rabbitmq.message.delivery_tag": "int"}

    def body(self, message):
        return message.body

    def headers(self, message):
        return list(message.headers.items())
