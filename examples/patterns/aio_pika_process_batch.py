"""Orders are written to a database three at a time: `python aio_pika_process_batch.py QUEUE`."""

import asyncio
import os
import sys

import aio_pika

from otel_messaging.patterns import process_batch


async def main(name: str, orders: int = 3) -> None:
    async with await aio_pika.connect(os.environ["RABBITMQ_URL"]) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, auto_delete=True)
        for number in range(orders):
            await channel.default_exchange.publish(aio_pika.Message(f"order {number}".encode()), name)

        batch = []
        async with queue.iterator() as messages:
            async for message in messages:
                batch.append(message)
                if len(batch) == orders:
                    break
            async with process_batch(batch):
                print("wrote", len(batch), "orders", flush=True)
                await batch[-1].ack(multiple=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
