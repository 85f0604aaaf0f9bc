"""What the bank is too busy for is tried again, by tenacity: `python nats_py_retry.py SUBJECT`."""

import asyncio
import os
import sys

import nats
from nats.aio.msg import Msg
from tenacity import retry, wait_fixed

from otel_messaging.patterns import record_retry

bank = iter(("busy", "busy", "paid"))


@retry(wait=wait_fixed(0.05), before=record_retry, before_sleep=record_retry)
async def charge(message: Msg) -> None:
    answer = next(bank)
    if answer == "busy":
        raise ConnectionError("the bank is busy")
    print(answer, message.data.decode(), flush=True)


async def main(subject: str) -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    subscription = await client.subscribe(subject)
    await client.publish(subject, b"order 0")
    async for message in subscription.messages:
        await charge(message)
        break
    await client.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
