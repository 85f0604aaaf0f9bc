"""Publish one message and consume it, knowing nothing of OpenTelemetry: `python nats_program.py SUBJECT`."""

import asyncio
import os
import sys

import nats


async def main(subject):
    client = await nats.connect(os.environ["NATS_URL"])
    handled = asyncio.Event()

    async def handle(message):
        print(message.data.decode(), *(message.headers or ()))
        handled.set()

    await client.subscribe(subject, cb=handle)
    await client.publish(subject, b"hello")
    await asyncio.wait_for(handled.wait(), 8)
    await client.drain()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
