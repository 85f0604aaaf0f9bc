"""Orders go to two workers, and none is taken while both are busy: `python aio_pika_worker_pool.py QUEUE`."""

import asyncio
import os
import sys

import aio_pika

from otel_messaging.patterns import process


async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    async with process(message), message.process():
        await asyncio.sleep(0.1)
        print("handled", message.body.decode(), flush=True)


async def main(name: str, orders: int = 4, workers: int = 2) -> None:
    async with await aio_pika.connect(os.environ["RABBITMQ_URL"]) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, auto_delete=True)
        for number in range(orders):
            await channel.default_exchange.publish(aio_pika.Message(f"order {number}".encode()), name)

        tasks, free = [], asyncio.Semaphore(workers)
        async with queue.iterator() as messages:
            async for message in messages:
                await free.acquire()
                tasks.append(asyncio.create_task(handle(message)))
                tasks[-1].add_done_callback(lambda _: free.release())
                if len(tasks) == orders:
                    break
            await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
