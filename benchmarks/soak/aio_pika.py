"""RabbitMQ: a third of the messages to a callback, one in loops, one by `get`, over a wire that is cut all the time.

It runs on the broker that RABBITMQ_URL names, or starts one. It needs aio-pika 10: with 9 it comes to a stop after the
first cut, with instrumentation and without.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind

from examples.brokers import rabbitmq
from otel_messaging import AioPikaInstrumentor
from tests.support.proxy import Proxy

from . import watch as watching
from .watch import LEAD, ROUNDS

CUT_AFTER = 2_000  # messages
PUBLISHERS = 20  # at once
PREFETCHED = 100


class Handlings(SpanProcessor):
    """Compares the spans that consumers end with those that handlers have seen.

    Attributes:
        begun: how often a handler was called.
        seen: of spans that have not ended yet, those that a handler has seen; none twice.
        unbegun: how many callbacks were cancelled before they ran, by a connection that broke that moment.
        unseen: how many other spans no handler has seen.
    """

    def __init__(self) -> None:
        self.begun = self.unbegun = self.unseen = 0
        self.seen: set[int] = set()

    def begin(self) -> None:
        """A handler is called."""
        self.begun += 1
        self.seen.add(trace.get_current_span().get_span_context().span_id)

    def on_end(self, span: Any) -> None:
        if span.kind is not SpanKind.CONSUMER or "messaging.rabbitmq.message.delivery_tag" not in span.attributes:
            return  # or a `get` that the connection has broken off
        if span.context.span_id in self.seen:
            self.seen.remove(span.context.span_id)
        elif span.attributes.get("error.type") == "asyncio.exceptions.CancelledError":
            self.unbegun += 1
        else:
            self.unseen += 1


class Watch(watching.Watch):
    """What was handled when a connection broke comes again, and what was published then is published again.

    Attributes:
        cuts: how often the connection was cut.
        published: how often a message was published, with or without success.
        handlings: what handlers have seen.
    """

    def __init__(self, messages: int) -> None:
        super().__init__(messages)
        self.cuts = self.published = 0
        self.handlings = Handlings()
        self.providers["tracer_provider"].add_span_processor(self.handlings)

    def judge(self, bare: bool) -> list[str]:
        print(f"{self.cuts} times cut; {self.published:,} attempts to publish, {self.handlings.begun:,} handled")
        return super().judge(bare)

    def told(self) -> dict[str, bool]:
        """What must be true of spans and metrics, and what to say otherwise."""
        found, counted = self.handlings, self.counted()
        print(f"{found.unbegun} callbacks were cancelled before they ran")
        spans = self.published, found.begun + found.unbegun
        return {
            "not every attempt to publish has its span": self.spans.published.count == self.published,
            f"{found.unseen} spans of consumers were seen by no handler": found.unseen == 0,
            f"{len(found.seen)} times there was no span for a handler, or an old one": not found.seen,
            f"metrics have counted {counted}, and not {spans}": counted == spans,
        }


def run(watch: Watch, messages: int, bare: bool) -> None:
    """Publish and consume.

    Args:
        watch: told of every message that was handled.
        messages: how many, a multiple of 15.
        bare: without instrumentation.
    """
    logging.getLogger("aio_pika").setLevel(logging.CRITICAL)
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    if not bare:
        AioPikaInstrumentor().instrument(**watch.providers)
    with rabbitmq() as address:
        asyncio.run(_run(watch, address, messages // len(WAYS) // ROUNDS))
    if not bare:
        AioPikaInstrumentor().uninstrument()


async def _run(watch: Watch, address: str, share: int) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with Proxy(address) as wire:
        for name, way in list(WAYS.items()) * ROUNDS:
            async with Program(watch, wire, share) as program:
                await asyncio.gather(program.publish(), way(program))
            watch.look(name)


class Program:
    """A queue, what publishes to it, and what handles its messages; each message at least once.

    Args:
        watch: told of every message that was handled.
        wire: what the connection goes through.
        count: how many.
    """

    def __init__(self, watch: Watch, wire: Proxy, count: int) -> None:
        self.watch, self.wire, self.count = watch, wire, count
        self.name = f"soak-{uuid.uuid4().hex[:8]}"
        self.handled: set[int] = set()
        self.lead = asyncio.Semaphore(LEAD)
        self.complete = asyncio.Event()

    async def __aenter__(self) -> Program:
        import aio_pika

        self.lost = (
            aio_pika.exceptions.AMQPException,
            ConnectionError,
            RuntimeError,
            asyncio.TimeoutError,
        )
        self.connection = await aio_pika.connect_robust(self.wire.address, reconnect_interval=0.05)
        self.channel = await self.connection.channel()
        await self.channel.set_qos(prefetch_count=PREFETCHED)
        self.queue = await self.channel.declare_queue(self.name, durable=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.insist(lambda: self.queue.delete(if_unused=False, if_empty=False))
        await self.connection.close()

    async def insist(self, do: Callable[[], Awaitable[Any]]) -> int:
        """Do something until it succeeds, and tell how often that was tried."""
        for attempt in itertools.count(1):
            with contextlib.suppress(*self.lost):
                await do()
                return attempt
            await asyncio.sleep(0.02)
        raise AssertionError

    async def publish(self) -> None:
        """Publish all messages, several at once."""
        import aio_pika

        channel = await self.connection.channel()
        numbers = iter(range(self.count))

        async def work() -> None:
            for number in numbers:
                await self.lead.acquire()
                message = aio_pika.Message(b"%d" % number, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                attempts = await self.insist(
                    lambda message=message: channel.default_exchange.publish(message, self.name, timeout=10)
                )
                self.watch.published += attempts

        await asyncio.gather(*(work() for _ in range(PUBLISHERS)))

    async def handle(self, message: Any) -> None:
        """What the application does with a message."""
        self.watch.handlings.begin()
        async with message.process(requeue=True):
            number = int(message.body)
        if number not in self.handled:
            self.handled.add(number)
            self.lead.release()
            self.watch.saw()
            if len(self.handled) % CUT_AFTER == 0:
                self.watch.cuts += 1
                self.wire.cut()
        if len(self.handled) == self.count:
            self.complete.set()


async def _callback(program: Program) -> None:
    """The library restores the consumer."""
    await program.insist(lambda: program.queue.consume(program.handle))
    await program.complete.wait()


async def _get(program: Program) -> None:
    while not program.complete.is_set():
        with contextlib.suppress(*program.lost):
            message = await program.queue.get(fail=False, timeout=10)
            if message is not None:
                await program.handle(message)
                continue
        await asyncio.sleep(0.02)


async def _loop(program: Program) -> None:
    """Each loop has a channel of its own.

    On the one that it shared, the library would restore the consumer of a loop that was left meanwhile: its iterator
    goes on to be given messages, which nobody handles and which never come to another.
    """

    async def loop() -> None:
        async with program.connection.channel() as channel:
            await channel.set_qos(prefetch_count=PREFETCHED)
            queue = await channel.get_queue(program.name)
            async with queue.iterator() as messages:
                async for message in messages:
                    await program.handle(message)
                    if program.complete.is_set():
                        break

    while not program.complete.is_set():
        await program.insist(loop)


WAYS: dict[str, Callable[[Program], Awaitable[None]]] = {"callback": _callback, "loop": _loop, "get": _get}
