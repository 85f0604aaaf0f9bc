"""Orders are written to a database three at a time: `python nats_py_process_batch.py SUBJECT`."""

import asyncio
import os
import sys

import nats

from otel_messaging.patterns import process_batch


async def main(subject: str, orders: int = 3) -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    jetstream = client.jetstream()
    await jetstream.add_stream(name=subject, subjects=[subject])
    for number in range(orders):
        await jetstream.publish(subject, f"order {number}".encode())

    subscription = await jetstream.pull_subscribe(subject, "writer")
    messages = await subscription.fetch(orders)
    async with process_batch(messages):
        print("wrote", len(messages), "orders", flush=True)
        for message in messages:
            await message.ack()
    await jetstream.delete_stream(subject)
    await client.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
