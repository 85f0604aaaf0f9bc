"""RabbitMQ puts aside what is rejected or comes too late: `python aio_pika_dead_letter_exchange.py QUEUE`."""

import asyncio
import os
import sys

import aio_pika


async def main(name: str) -> None:
    async with await aio_pika.connect(os.environ["RABBITMQ_URL"]) as connection:
        channel = await connection.channel()
        graves = await channel.declare_queue(f"{name}-dead", auto_delete=True)
        late = {"x-message-ttl": 50, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": graves.name}
        await channel.declare_queue(f"{name}-later", arguments=late)
        refused = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{name}-later"}
        orders = await channel.declare_queue(name, auto_delete=True, arguments=refused)
        await channel.default_exchange.publish(aio_pika.Message(b"order 0"), name)
        async for message in orders:
            await message.reject()
            break
        async for message in graves:
            print("dead", message.body.decode(), message.headers["x-death"], flush=True)
            await message.ack()
            break
        await channel.queue_delete(f"{name}-later")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
