"""Mail tells each customer about the parcel. It fails when there is no address to write to."""

import asyncio
import json
import os

import nats
from nats.aio.msg import Msg


def write_to_customer(parcel: dict[str, object]) -> None:
    if parcel["email"] is None:
        raise ValueError(f"no address for order {parcel['number']}")
    print(f"order {parcel['number']}: mail sent", flush=True)


async def main() -> None:
    remaining = int(os.environ.get("ORDERS", "3"))
    done = asyncio.Event()

    async def handle(message: Msg) -> None:
        nonlocal remaining
        if not (remaining := remaining - 1):
            done.set()
        write_to_customer(json.loads(message.data))

    client = await nats.connect(os.environ["NATS_URL"])
    await client.subscribe("parcels", cb=handle)
    await client.flush()
    print("ready", flush=True)
    await done.wait()
    await client.drain()


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(main(), timeout=60))
