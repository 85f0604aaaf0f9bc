"""An order that cannot be handled goes to another subject: `python nats_py_dead_letter.py SUBJECT`."""

import asyncio
import os
import sys

import nats

from otel_messaging.nats_py import dead_letter


def handle(order: bytes) -> None:
    raise ValueError(f"{order.decode()} is out of stock")


async def main(subject: str) -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    orders, graves = await client.subscribe(subject), await client.subscribe(f"{subject}-dead")
    await client.publish(subject, b"order 0")
    async for message in orders.messages:
        try:
            handle(message.data)
        except ValueError as error:
            await dead_letter(message, error, client, f"{subject}-dead")
        break
    async for message in graves.messages:
        print(message.data, *message.headers.items(), sep="\n", flush=True)
        break
    await client.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
