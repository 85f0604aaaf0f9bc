"""Each order is handled in a task of its own, with its own span: `python aio_pika_process.py QUEUE`."""

import asyncio
import os
import sys

import aio_pika

from otel_messaging.patterns import process


@process
async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    async with message.process():
        print("handled", message.body.decode(), flush=True)


async def main(name: str, orders: int = 2) -> None:
    async with await aio_pika.connect(os.environ["RABBITMQ_URL"]) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, auto_delete=True)
        for number in range(orders):
            await channel.default_exchange.publish(aio_pika.Message(f"order {number}".encode()), name)

        tasks = []
        async with queue.iterator() as messages:
            async for message in messages:
                tasks.append(asyncio.create_task(handle(message)))
                if len(tasks) == orders:
                    break
            await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
