"""Billing turns each order from Kafka into an invoice, and publishes that to RabbitMQ."""

import asyncio
import json
import os

import aio_pika
import nats
from kafka import KafkaConsumer


async def publish(invoice: bytes) -> None:
    # A connection for each invoice keeps this short; a busy program would keep one open.
    async with await aio_pika.connect(os.environ["RABBITMQ_URL"]) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("invoices", aio_pika.ExchangeType.DIRECT)
        queue = await channel.declare_queue("invoices.shipping")
        await queue.bind(exchange, routing_key="shipping")
        await exchange.publish(aio_pika.Message(invoice), routing_key="shipping")


async def publish_without_rabbitmq(invoice: bytes) -> None:
    async with await nats.connect(os.environ["NATS_URL"]) as client:
        await client.publish("parcels", invoice)


def main() -> None:
    remaining = int(os.environ.get("ORDERS", "3"))
    hand_on = publish if os.environ.get("RABBITMQ_URL") else publish_without_rabbitmq
    consumer = KafkaConsumer(
        "orders",
        bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        group_id="billing",
        auto_offset_reset="earliest",
        session_timeout_ms=6000,
        heartbeat_interval_ms=1000,
        consumer_timeout_ms=60_000,
    )
    for record in consumer:
        invoice = json.loads(record.value) | {"price": 12.5}
        asyncio.run(hand_on(json.dumps(invoice).encode()))
        print(f"order {invoice['number']} billed", flush=True)
        if not (remaining := remaining - 1):
            break
    consumer.close()


if __name__ == "__main__":
    main()
