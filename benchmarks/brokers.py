"""Messages through real brokers: one process that publishes and consumes, plain or instrumented.

`python -m benchmarks.brokers '{...}'` prints, for each direction, messages per second and processor time per message.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from .worker import INSTRUMENTORS, LIBRARIES, provide

BODY = b"x" * 100
COUNTS = {"kafka_python": 8000, "aio_pika": 2000, "nats_py": 20000}
TITLES = {"kafka_python": "Kafka", "aio_pika": "RabbitMQ", "nats_py": "NATS"}


def main() -> None:
    """Do what the first argument says."""
    job = json.loads(sys.argv[1])
    asyncio.run(_measure(job))
    sys.stdout.flush()
    os._exit(0)


async def _measure(job: dict[str, Any]) -> None:
    library = job["library"]
    importlib.import_module(LIBRARIES[library])
    flush = provide("batch", metered=False)
    if job["instrumented"]:
        module, name = INSTRUMENTORS["ours", library]
        getattr(importlib.import_module(module), name)().instrument()
    told: dict[str, tuple[float, float]] = {}

    async def timed(direction: str, run: Callable[[], Awaitable[None]]) -> None:
        clock, spent = time.perf_counter(), time.process_time()
        await run()
        flush()
        seconds, spent = time.perf_counter() - clock, time.process_time() - spent
        told[direction] = (job["count"] / seconds, 1e6 * spent / job["count"])

    await _RUNS[library](job["address"], f"bench-{uuid.uuid4().hex}", job["count"], timed)
    print(json.dumps(told))


async def _kafka(address: str, name: str, count: int, timed: Any) -> None:
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition

    producer = KafkaProducer(bootstrap_servers=address, linger_ms=5)
    producer.send(name, BODY, partition=0).get(timeout=20)  # makes the topic

    async def publish() -> None:
        for _ in range(count):
            producer.send(name, BODY, partition=0)
        producer.flush()

    await timed("publish", publish)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", consumer_timeout_ms=20000)
    consumer.assign([TopicPartition(name, 0)])
    next(consumer)

    async def consume() -> None:
        for seen, _ in enumerate(consumer, 1):
            if seen == count:
                break

    await timed("consume", consume)
    consumer.close()


async def _rabbitmq(address: str, name: str, count: int, timed: Any) -> None:
    import aio_pika

    connection = await aio_pika.connect(address)
    channel = await connection.channel(publisher_confirms=False)
    await channel.set_qos(prefetch_count=200)
    queue = await channel.declare_queue(name, auto_delete=True)

    async def publish() -> None:
        for _ in range(count):
            await channel.default_exchange.publish(aio_pika.Message(BODY), name)

    async def consume() -> None:
        left, finished = count, asyncio.Event()

        async def handle(message: Any) -> None:
            nonlocal left
            await message.ack()
            left -= 1
            if not left:
                finished.set()

        await queue.consume(handle)
        await finished.wait()

    await timed("publish", publish)
    await timed("consume", consume)
    await connection.close()


async def _nats(address: str, name: str, count: int, timed: Any) -> None:
    import nats

    sender, receiver = await nats.connect(address), await nats.connect(address)
    left, finished = count, asyncio.Event()

    async def handle(_message: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            finished.set()

    async def publish(subject: str) -> None:
        for sent in range(count):
            await sender.publish(subject, BODY)
            if sent % 500 == 0:
                await sender.flush()
        await sender.flush()

    async def both() -> None:
        await publish(name)
        await finished.wait()

    await timed("publish", lambda: publish(f"{name}.unheard"))
    await receiver.subscribe(name, cb=handle)
    await receiver.flush()
    await timed("publish and consume", both)
    await sender.close()
    await receiver.close()


_RUNS: dict[str, Callable[..., Awaitable[None]]] = {"kafka_python": _kafka, "aio_pika": _rabbitmq, "nats_py": _nats}


if __name__ == "__main__":
    main()
