"""aio-pika as an application uses it: a queue behind the default exchange, on a robust connection."""

from __future__ import annotations

from urllib.parse import urlsplit

from otel_messaging import AioPikaInstrumentor

from .base import Driver, both, call


class AioPikaDriver(Driver):
    library = "aio_pika"
    system = "rabbitmq"
    instrumentor = AioPikaInstrumentor
    broker = "rabbitmq_address"
    settles = "ack"
    varying = frozenset({"messaging.message.id", "messaging.rabbitmq.message.delivery_tag"})

    async def open(self):
        import aio_pika

        self.connection = await aio_pika.connect_robust(self.address)
        self.channel = await self.connection.channel()
        self.queues = []

    async def close(self):
        for queue in self.queues:
            await queue.delete(if_unused=False, if_empty=False)
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

    async def loop(self, listener, count, body):
        seen = 0
        async with listener.iterator(timeout=8) as messages:
            async for message in messages:
                seen += 1
                async with message.process():
                    await call(body, message)
                if seen == count:
                    break
        assert seen == count

    async def subscribe(self, destination, handler):
        queue = await self.queue(destination)
        await queue.consume(handler)
        return queue

    def published(self, vocabulary, destination, body):
        common = {
            "messaging.system": "rabbitmq",
            "messaging.destination.name": destination,
            "messaging.rabbitmq.destination.routing_key": destination,
            **self._server(),
        }
        guide = {"messaging.operation": "publish", "messaging.message.payload_size_bytes": len(body)}
        semconv = {"messaging.operation.name": "publish", "messaging.operation.type": "send"}
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

    def body(self, message):
        return message.body

    def headers(self, message):
        return list(message.headers.items())
