"""A day's orders are published as one: `python nats_py_batch_publish.py SUBJECT`."""

import asyncio
import os
import sys

import nats

from otel_messaging.patterns import batch_publish


async def main(subject: str, orders: int = 3) -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    async with batch_publish(subject):
        for number in range(orders):
            await client.publish(subject, f"order {number}".encode())
    await client.drain()
    print("published", orders, "orders", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
