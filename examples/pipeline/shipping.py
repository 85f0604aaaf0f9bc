"""Shipping packs a parcel for each invoice from RabbitMQ, and announces it on NATS."""

import asyncio
import json
import os

import aio_pika
import nats


async def main() -> None:
    remaining = int(os.environ.get("ORDERS", "3"))
    client = await nats.connect(os.environ["NATS_URL"])
    async with await aio_pika.connect_robust(os.environ["RABBITMQ_URL"]) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("invoices.shipping")
        print("ready", flush=True)
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    invoice = json.loads(message.body)
                    await client.publish("parcels", json.dumps(invoice).encode())
                    print(f"order {invoice['number']} packed", flush=True)
                if not (remaining := remaining - 1):
                    break
    await client.drain()


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(main(), timeout=60))
