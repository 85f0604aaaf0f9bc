"""Orders go to two workers, and none is taken while both are busy: `python nats_py_worker_pool.py SUBJECT`."""

import asyncio
import os
import sys

import nats
from nats.aio.msg import Msg

from otel_messaging.patterns import process


async def handle(message: Msg) -> None:
    async with process(message):
        await asyncio.sleep(0.1)
        print("handled", message.data.decode(), flush=True)


async def main(subject: str, orders: int = 4, workers: int = 2) -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    subscription = await client.subscribe(subject)
    for number in range(orders):
        await client.publish(subject, f"order {number}".encode())

    tasks, free = [], asyncio.Semaphore(workers)
    async for message in subscription.messages:
        await free.acquire()
        tasks.append(asyncio.create_task(handle(message)))
        tasks[-1].add_done_callback(lambda _: free.release())
        if len(tasks) == orders:
            break
    await asyncio.gather(*tasks)
    await client.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
