"""NATS: a fifth of the messages each to a callback, in a loop, by `next_msg`, by `fetch` from a stream, in requests.

It runs on the server that NATS_URL names, or starts one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from examples.brokers import nats
from otel_messaging import NatsPyInstrumentor

from .watch import LEAD, ROUNDS, Watch

REQUESTERS = 20  # at once
FETCHED = 100


def run(watch: Watch, messages: int, bare: bool) -> None:
    """Publish and consume.

    Args:
        watch: told of every message that was handled.
        messages: how many, a multiple of 25.
        bare: without instrumentation.
    """
    if not bare:
        NatsPyInstrumentor().instrument(**watch.providers)
    with nats() as address:
        asyncio.run(_run(watch, address, messages // len(WAYS) // ROUNDS))
    if not bare:
        NatsPyInstrumentor().uninstrument()


async def _run(watch: Watch, address: str, share: int) -> None:
    for name, way in list(WAYS.items()) * ROUNDS:
        async with Program(watch, address, share) as program:
            await way(program)
        watch.look(name)


class Program:
    """A subject of its own, what publishes to it, and what handles its messages.

    Args:
        watch: told of every message that was handled.
        address: of the server.
        count: how many messages there are.
    """

    def __init__(self, watch: Watch, address: str, count: int) -> None:
        self.watch, self.address, self.count = watch, address, count
        self.subject = f"soak-{uuid.uuid4().hex[:8]}"
        self.lead = asyncio.Semaphore(LEAD)
        self.handled = 0
        self.complete = asyncio.Event()

    async def __aenter__(self) -> Program:
        import nats

        self.client = await nats.connect(self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.drain()

    async def publish(self) -> None:
        """Publish all messages."""
        for number in range(self.count):
            await self.lead.acquire()
            await self.client.publish(self.subject, b"%d" % number)
        await self.client.flush()

    def handle(self) -> None:
        """What the application does with a message."""
        self.handled += 1
        self.lead.release()
        self.watch.saw()
        if self.handled == self.count:
            self.complete.set()


async def _callback(program: Program) -> None:
    async def callback(_message: Any) -> None:
        program.handle()

    await program.client.subscribe(program.subject, "workers", cb=callback)
    await asyncio.gather(program.publish(), program.complete.wait())


async def _loop(program: Program) -> None:
    """Left by `break` now and then, and begun anew."""
    subscription = await program.client.subscribe(program.subject)

    async def work() -> None:
        while program.handled < program.count:
            async for _ in subscription.messages:
                program.handle()
                if program.handled % 1_000 == 0 or program.handled == program.count:
                    break

    await asyncio.gather(program.publish(), work())


async def _next_msg(program: Program) -> None:
    subscription = await program.client.subscribe(program.subject)

    async def work() -> None:
        for _ in range(program.count):
            await subscription.next_msg(timeout=60)
            program.handle()

    await asyncio.gather(program.publish(), work())


async def _fetch(program: Program) -> None:
    """From a stream that acknowledges what is published, half of it later."""
    jetstream = program.client.jetstream()
    await jetstream.add_stream(name=program.subject, subjects=[program.subject], storage="memory")
    subscription = await jetstream.pull_subscribe(program.subject, "soak")

    async def publish(each: Callable[[], Awaitable[Any]]) -> None:
        for _ in range(program.count // 2):
            await program.lead.acquire()
            await each()

    async def work() -> None:
        while program.handled < program.count:
            for message in await subscription.fetch(FETCHED, timeout=60):
                await message.ack()
                program.handle()

    later = getattr(jetstream, "publish_async", jetstream.publish)  # which nats-py has since 2.8
    await asyncio.gather(
        publish(lambda: jetstream.publish(program.subject, b"now")),
        publish(lambda: later(program.subject, b"later")),
        work(),
    )
    await jetstream.delete_stream(program.subject)


async def _request(program: Program) -> None:
    async def answer(message: Any) -> None:
        program.handle()
        await message.respond(b"yes")

    async def ask() -> None:
        for _ in numbers:
            await program.client.request(program.subject, b"?", timeout=60)

    numbers = iter(range(program.count))
    await program.client.subscribe(program.subject, cb=answer)
    await asyncio.gather(*(ask() for _ in range(REQUESTERS)))


WAYS: dict[str, Callable[[Program], Awaitable[None]]] = {
    "callback": _callback,
    "loop": _loop,
    "next_msg": _next_msg,
    "fetch": _fetch,
    "request": _request,
}
