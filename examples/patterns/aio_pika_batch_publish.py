"""A day's orders are published as one, all at the same time: `python aio_pika_batch_publish.py QUEUE`."""

import asyncio
import os
import sys

import aio_pika

from otel_messaging.patterns import batch_publish


async def main(name: str, orders: int = 3) -> None:
    async with await aio_pika.connect(os.environ["RABBITMQ_URL"]) as connection:
        channel = await connection.channel()
        await channel.declare_queue(name, auto_delete=True)
        messages = [aio_pika.Message(f"order {number}".encode()) for number in range(orders)]
        async with batch_publish(name):
            await asyncio.gather(*(channel.default_exchange.publish(message, name) for message in messages))
        await channel.queue_delete(name)
    print("published", orders, "orders", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
