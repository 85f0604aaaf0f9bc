"""Messages through real brokers on loopback: `python -m benchmarks.end_to_end KIND ARM` is one process that does it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from typing import Any

from examples import brokers

from .environment import FOLDER, ROOT

COUNTS = {"kafka": 4000, "rabbitmq": 1500, "nats": 8000}
BODY = b"x" * 100


def measure(rounds: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Messages per second and microseconds of processor time per message: medians, the arms in turn."""
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as stack:
        addresses = {}
        for kind, start in (("kafka", brokers.kafka), ("rabbitmq", brokers.rabbitmq), ("nats", brokers.nats)):
            with contextlib.suppress(brokers.BrokerUnavailable):
                addresses[kind] = stack.enter_context(start())
        for _ in range(rounds):
            for kind, address in addresses.items():
                for arm in ("plain", "ours", "ours, sampler off"):
                    for what, figures in _run(kind, arm, address).items():
                        seen.setdefault((f"{kind} {what}", arm), []).append(tuple(figures))
    return {key: tuple(map(statistics.median, zip(*figures, strict=True))) for key, figures in sorted(seen.items())}


def _run(kind: str, arm: str, address: str) -> dict[str, list[float]]:
    command = (str(FOLDER / "bin" / "python"), "-m", "benchmarks.end_to_end", kind, arm, address)
    path = os.pathsep.join((str(ROOT), str(ROOT / "src")))
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    return json.loads(told.stdout)


class Clock:
    """Wall time and processor time of a number of messages."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._begun = time.perf_counter(), time.process_time()

    def stop(self) -> tuple[float, float]:
        """Messages per second, and microseconds of processor time per message."""
        wall, spent = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
        return self._count / wall, spent / self._count * 1e6


def kafka(address: str, count: int) -> dict[str, Any]:
    """Send and loop."""
    from kafka import KafkaConsumer, KafkaProducer, TopicPartition

    topic = f"bench-{uuid.uuid4().hex[:8]}"
    producer = KafkaProducer(bootstrap_servers=address)
    producer.send(topic, BODY, partition=0).get(10)
    clock = Clock(count)
    for _ in range(count):
        producer.send(topic, BODY, partition=0)
    producer.flush()
    sent = clock.stop()
    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", group_id=None)
    consumer.assign([TopicPartition(topic, 0)])
    next(consumer)
    clock = Clock(count)
    for seen, _ in enumerate(consumer, 1):
        if seen == count:
            break
    return {"send": sent, "loop": clock.stop()}


async def rabbitmq(address: str, count: int) -> dict[str, Any]:
    """Publish and consume by a callback."""
    import aio_pika

    async with await aio_pika.connect(address) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=200)
        queue = await channel.declare_queue(exclusive=True)
        clock = Clock(count)
        for _ in range(count):
            await channel.default_exchange.publish(aio_pika.Message(BODY), queue.name)
        sent = clock.stop()
        finished, left = asyncio.Event(), count

        async def handle(message: Any) -> None:
            nonlocal left
            await message.ack()
            left -= 1
            if not left:
                finished.set()

        clock = Clock(count)
        await queue.consume(handle)
        await finished.wait()
        return {"publish": sent, "callback": clock.stop()}


async def nats(address: str, count: int) -> dict[str, Any]:
    """Publish and consume by a callback."""
    import nats as client

    connection = await client.connect(address)
    subject, finished, left = f"bench.{uuid.uuid4().hex[:8]}", asyncio.Event(), count

    async def handle(_message: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            finished.set()

    clock = Clock(count)
    for _ in range(count):
        await connection.publish("bench.nobody", BODY)
    await connection.flush()
    sent = clock.stop()
    await connection.subscribe(subject, cb=handle)
    clock = Clock(count)
    for _ in range(count):
        await connection.publish(subject, BODY)
    await finished.wait()
    both = clock.stop()
    await connection.close()
    return {"publish": sent, "publish and callback": both}


def main(kind: str, arm: str, address: str) -> None:
    """Do it once and print the figures."""
    if arm != "plain":
        _instrument(arm)
    done = {"kafka": kafka, "rabbitmq": rabbitmq, "nats": nats}[kind](address, COUNTS[kind])
    print(json.dumps(asyncio.run(done) if asyncio.iscoroutine(done) else done), flush=True)
    os._exit(0)  # nothing of what follows is measured


def _instrument(arm: str) -> None:
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    import otel_messaging

    from .worker import provide

    provide("sampler off" if arm.endswith("sampler off") else "batch", metered=False)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    for name in ("KafkaPythonInstrumentor", "AioPikaInstrumentor", "NatsPyInstrumentor"):
        getattr(otel_messaging, name)().instrument()


if __name__ == "__main__":
    main(*sys.argv[1:])
