"""What the bank is too busy for is tried again, by stamina: `python aio_pika_retry.py QUEUE`."""

import asyncio
import os
import sys

import aio_pika
import stamina
from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks

from otel_messaging.patterns import record_retry

bank = iter(("busy", "busy", "paid"))


@stamina.retry(on=ConnectionError, wait_initial=0.05)
async def charge(order: bytes) -> None:
    answer = next(bank)
    if answer == "busy":
        raise ConnectionError("the bank is busy")
    print(answer, order.decode(), flush=True)


async def main(name: str) -> None:
    set_on_retry_hooks([*get_on_retry_hooks(), record_retry])
    async with await aio_pika.connect(os.environ["RABBITMQ_URL"]) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, auto_delete=True)
        await channel.default_exchange.publish(aio_pika.Message(b"order 0"), name)
        async for message in queue:
            async with message.process():
                await charge(message.body)
            break


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
