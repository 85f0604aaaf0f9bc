"""An order that cannot be handled goes to another queue: `python aio_pika_dead_letter.py QUEUE`."""

import asyncio
import os
import sys

import aio_pika

from otel_messaging.aio_pika import dead_letter


def handle(order: bytes) -> None:
    raise ValueError(f"{order.decode()} is out of stock")


async def main(name: str) -> None:
    async with await aio_pika.connect(os.environ["RABBITMQ_URL"]) as connection:
        channel = await connection.channel()
        exchange = channel.default_exchange
        orders = await channel.declare_queue(name, auto_delete=True)
        graves = await channel.declare_queue(f"{name}-dead", auto_delete=True)
        await exchange.publish(aio_pika.Message(b"order 0"), name)
        async for message in orders:
            async with message.process():
                try:
                    handle(message.body)
                except ValueError as error:
                    await dead_letter(message, error, exchange, graves.name)
            break
        async for message in graves:
            async with message.process():
                print(message.body, *message.headers.items(), sep="\n", flush=True)
            break


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
