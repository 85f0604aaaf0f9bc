"""Publish one message and consume it, knowing nothing of OpenTelemetry: `python rabbitmq_program.py QUEUE`."""

import asyncio
import os
import sys

import aio_pika


async def main(name):
    connection = await aio_pika.connect_robust(os.environ["RABBITMQ_URL"])
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, arguments={"x-expires": 60_000})
        handled = asyncio.Event()

        async def handle(message):
            async with message.process():
                print(message.body.decode(), *message.headers)
                handled.set()

        await queue.consume(handle)
        await channel.default_exchange.publish(aio_pika.Message(b"hello"), name)
        await asyncio.wait_for(handled.wait(), 8)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
