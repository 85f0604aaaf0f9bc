"""JetStream gives up an order, and says so in an advisory: `python nats_py_max_deliveries.py SUBJECT`."""

import asyncio
import json
import os
import sys

import nats
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from otel_messaging.nats_py import dead_letter


async def forget(message: Msg) -> None:
    print("not acknowledged", message.data.decode(), flush=True)


async def main(subject: str) -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    jetstream = client.jetstream()
    await jetstream.add_stream(name=subject, subjects=[subject, f"{subject}-dead"])
    advisories = await client.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{subject}.worker")
    await jetstream.publish(subject, b"order 0")

    config = ConsumerConfig(max_deliver=2, ack_wait=0.1)
    await jetstream.subscribe(subject, durable="worker", config=config, cb=forget, manual_ack=True)
    async for advisory in advisories.messages:
        told = json.loads(advisory.data)
        message = await jetstream.get_msg(told["stream"], told["stream_seq"])
        await dead_letter(message, TimeoutError("no worker was fast enough"), jetstream, f"{subject}-dead")
        break
    await jetstream.delete_stream(subject)
    await client.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
