"""An ASGI application that has each request handled by way of NATS and RabbitMQ: `uvicorn asgi:app --workers 2`.

Subjects and queues are named after the worker. With FLUSH it exports all before it ends.
"""

import asyncio
import os

import aio_pika
import nats
from flushing import flush


class Worker:
    """What one process is connected to."""

    async def open(self):
        self.nats = await nats.connect(os.environ["NATS_URL"])
        self.rabbitmq = await aio_pika.connect_robust(os.environ["RABBITMQ_URL"])
        self.channel = await self.rabbitmq.channel()

    async def close(self):
        await self.rabbitmq.close()
        await self.nats.close()

    async def work(self, name):
        handled = asyncio.Event()
        queue = await self.channel.declare_queue(name, auto_delete=True)

        async def forward(message):
            await self.channel.default_exchange.publish(aio_pika.Message(message.data), name)

        async def finish(message):
            async with message.process():
                handled.set()

        tag = await queue.consume(finish)
        subscription = await self.nats.subscribe(name, cb=forward)
        await self.nats.publish(name, b"hello")
        await asyncio.wait_for(handled.wait(), 8)
        await subscription.unsubscribe()
        await queue.cancel(tag)


worker = Worker()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    await worker.work(f"{scope['path'][1:]}-{os.getpid()}")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


async def live(receive, send):
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await worker.open()
        else:
            await worker.close()
            if os.environ.get("FLUSH"):
                flush()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
