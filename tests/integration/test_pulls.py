"""What fails while messages are asked for, by a call or by a loop: told once, and alike in every library."""

from __future__ import annotations

import asyncio
import time

import pytest
from opentelemetry import trace

from tests.support.kafka_python import QUIET
from tests.support.recorder import shape

pytestmark = QUIET
NEVER = 30


class BrokenError(Exception):
    """What a deserializer of the application's raises."""


def broken(_value):
    raise BrokenError("no")


class Pull:
    """One way to ask a library for messages.

    Attributes:
        library: the name of the adapter's module.
        verb: the library's own word for it.
        blocks: whether it blocks, and cannot be cancelled.
    """

    blocks = False

    def __init__(self, driver):
        self.driver = driver
        self.name = driver.name()

    async def fail(self):
        """Ask for messages in a way that fails."""

    async def wait(self, seconds):
        """Ask for messages of which there are none."""

    async def close(self):
        """Close the client, as another task or thread may do while messages are asked for."""

    def unknown(self):
        """Names of attributes that messages have and a call that failed has not, beside those of one message."""
        return set()

    def more(self, vocabulary):
        """What such a call has beside what messages have."""
        return {}


class KafkaPoll(Pull):
    library, verb, blocks = "kafka_python", "poll", True

    async def fail(self):
        await self.driver.publish(self.name)
        await self.ask(self.driver.consumer(self.name, value_deserializer=broken), 8)

    async def wait(self, seconds):
        self.consumer = self.driver.consumer(self.name)
        await self.ask(self.consumer, seconds)

    async def close(self):
        self.consumer.close()

    async def ask(self, consumer, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.to_thread(consumer.poll, timeout_ms=200)


class KafkaLoop(KafkaPoll):
    async def ask(self, consumer, seconds):
        consumer.config["consumer_timeout_ms"] = seconds * 1000
        await asyncio.to_thread(list, consumer)


class RabbitGet(Pull):
    library, verb = "aio_pika", "get"

    async def fail(self):
        await self.ask(await self.driver.channel.get_queue(self.name, ensure=False), 8)

    async def wait(self, seconds):
        await self.ask(await self.driver.channel.declare_queue(self.name, exclusive=True), seconds)

    async def close(self):
        await self.driver.connection.close()

    async def ask(self, queue, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await queue.get(fail=False, timeout=5)

    def unknown(self):
        return {"messaging.rabbitmq.destination.routing_key"}

    def more(self, vocabulary):
        return {} if vocabulary == "guide" else self.driver.peer()


class RabbitLoop(RabbitGet):
    verb = "consume"

    async def ask(self, queue, seconds):
        async for _ in queue.iterator(timeout=seconds):
            pass


class NatsNext(Pull):
    library, verb = "nats_py", "next_msg"

    async def fail(self):
        async def handle(_message):
            pass

        await (await self.driver.subscribe(self.name, handle)).next_msg()

    async def wait(self, seconds):
        subscription = await self.driver.listen(self.name)
        await subscription.next_msg(timeout=seconds)

    async def close(self):
        await self.driver.client.close()

    def more(self, vocabulary):
        return {} if vocabulary == "guide" else self.driver.peer()


class NatsFetch(NatsNext):
    verb = "fetch"

    async def pulling(self):
        jetstream = self.driver.client.jetstream()
        await jetstream.add_stream(name=self.name, subjects=[self.name], storage="memory")
        return jetstream, await jetstream.pull_subscribe(self.name, "worker")

    async def fail(self):
        jetstream, subscription = await self.pulling()
        await jetstream.delete_consumer(self.name, "worker")
        await subscription.fetch(1, timeout=8)

    async def wait(self, seconds):
        _, subscription = await self.pulling()
        await subscription.fetch(1, timeout=seconds)

    def more(self, vocabulary):
        return {} if vocabulary == "guide" else {"messaging.consumer.group.name": "worker", **super().more(vocabulary)}


PULLS = {kind.__name__: kind for kind in (KafkaPoll, KafkaLoop, RabbitGet, RabbitLoop, NatsNext, NatsFetch)}
ASYNC = [name for name, kind in PULLS.items() if not kind.blocks]


@pytest.fixture(params=PULLS)
def kind(request):
    return PULLS[request.param]


@pytest.fixture
def library(kind):
    return kind.library


async def test_what_fails_is_told_once(kind, connect, recorder, vocabulary):
    pull = kind(await connect())
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of another class in each
        await pull.fail()
    spans = [span for span in recorder.spans() if span.kind is not trace.SpanKind.PRODUCER]
    assert len(spans) == 1, [shape(span) for span in spans]
    found = shape(spans[0])
    varying = pull.driver.varying | pull.driver.varying_types(vocabulary).keys() | pull.unknown()
    message = pull.driver.consumed(vocabulary, pull.name, b"")
    call = {"messaging.operation.name": pull.verb, "messaging.operation.type": "receive"}
    expected = {**message, **{name: value for name, value in call.items() if name in message}}
    expected.pop("messaging.message.payload_size_bytes", None)
    error = type(caught.value)
    expected.update(pull.more(vocabulary))
    expected["error.type"] = f"{error.__module__}.{error.__qualname__}"
    found["attributes"] = {name: found["attributes"][name] for name in found["attributes"] if name not in varying}
    assert found == {
        "name": f"{'receive' if vocabulary == 'guide' else pull.verb} {pull.name}",
        "kind": "CONSUMER" if vocabulary == "guide" else "CLIENT",
        "parent": None,
        "links": [],
        "status": ("ERROR", str(caught.value)),
        "attributes": {name: value for name, value in expected.items() if name not in varying},
        "events": found["events"],
    }
    assert [name for name, _ in found["events"]] == ["exception"]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_what_finds_nothing_in_time_makes_nothing(kind, connect, recorder):
    pull = kind(await connect())
    try:
        await pull.wait(0.3)
    except Exception as error:
        assert "Timeout" in type(error).__name__  # noqa: PT017
    assert recorder.spans() == []


async def test_a_client_that_is_closed_meanwhile_makes_nothing(kind, connect, recorder):
    pull = kind(await connect())
    waiting = asyncio.create_task(pull.wait(5))
    await asyncio.sleep(0.5)
    await pull.close()
    await asyncio.wait([waiting], timeout=4)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert recorder.spans() == []


@pytest.mark.parametrize("kind", [PULLS[name] for name in ASYNC], ids=ASYNC)
async def test_to_be_cancelled_while_nothing_comes_makes_nothing(kind, connect, recorder):
    pull = kind(await connect())
    waiting = asyncio.create_task(pull.wait(NEVER))
    await asyncio.sleep(0.3)
    while not waiting.done():  # `asyncio.wait_for` of Python 3.10 now and then swallows a cancellation
        waiting.cancel()
        await asyncio.sleep(0.05)
    assert waiting.cancelled()
    assert recorder.spans() == []
