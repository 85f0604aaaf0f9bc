"""Each order is handled in a task of its own, with its own span: `python nats_py_process.py SUBJECT`."""

import asyncio
import os
import sys

import nats
from nats.aio.msg import Msg

from otel_messaging.patterns import process


@process
async def handle(message: Msg) -> None:
    print("handled", message.data.decode(), flush=True)


async def main(subject: str, orders: int = 2) -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    subscription = await client.subscribe(subject)
    for number in range(orders):
        await client.publish(subject, f"order {number}".encode())

    tasks = []
    async for message in subscription.messages:
        tasks.append(asyncio.create_task(handle(message)))
        if len(tasks) == orders:
            break
    await asyncio.gather(*tasks)
    await client.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
