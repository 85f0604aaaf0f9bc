"""Orders published as one, for two workers who try again or give up: `python aio_pika_all.py QUEUE`."""

import asyncio
import os
import sys

import aio_pika
from bank import charge_later

from otel_messaging.aio_pika import dead_letter
from otel_messaging.patterns import batch_publish, process


async def main(name: str, orders: int = 3, workers: int = 2) -> None:
    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with free, process(message), message.process():
            try:
                await charge_later(message.body)
            except ValueError as error:
                await dead_letter(message, error, exchange, graves.name)

    async with await aio_pika.connect(os.environ["RABBITMQ_URL"]) as connection, connection.channel() as channel:
        exchange, free, tasks = channel.default_exchange, asyncio.Semaphore(workers), []
        queue, graves = [await channel.declare_queue(each, auto_delete=True) for each in (name, f"{name}-dead")]
        async with batch_publish(name):
            for number in range(orders):
                await exchange.publish(aio_pika.Message(b"order %d" % number), name)
        async for message in queue:
            tasks.append(asyncio.create_task(handle(message)))
            if len(tasks) == orders:
                break
        await asyncio.gather(*tasks)
        async for message in graves:
            print("refused", message.body.decode(), flush=True)
            await message.ack()
            break


asyncio.run(main(sys.argv[1]))
