"""Orders published as one, for two workers who try again or give up: `python nats_py_all.py SUBJECT`."""

import asyncio
import os
import sys

import nats
from bank import charge_later
from nats.aio.msg import Msg

from otel_messaging.nats_py import dead_letter
from otel_messaging.patterns import batch_publish, process


async def main(subject: str, orders: int = 3, workers: int = 2) -> None:
    async def handle(message: Msg) -> None:
        async with free, process(message):
            try:
                await charge_later(message.data)
            except ValueError as error:
                await dead_letter(message, error, client, f"{subject}-dead")

    client, free, tasks = await nats.connect(os.environ["NATS_URL"]), asyncio.Semaphore(workers), []
    subscription, graves = await client.subscribe(subject), await client.subscribe(f"{subject}-dead")
    async with batch_publish(subject):
        for number in range(orders):
            await client.publish(subject, b"order %d" % number)
    async for message in subscription.messages:
        tasks.append(asyncio.create_task(handle(message)))
        if len(tasks) == orders:
            break
    await asyncio.gather(*tasks)
    async for message in graves.messages:
        print("refused", message.data.decode(), flush=True)
        break
    await client.drain()


asyncio.run(main(sys.argv[1]))
