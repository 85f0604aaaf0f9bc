"""The six paths that a message can take, in the libraries' own code, without a network.

Each path is opened after the library is instrumented, and then runs any number of messages. Only the transport is
replaced: what a library would write is thrown away, and what it would read is ready.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar
from urllib.parse import urlparse

HOST = "127.0.0.1"
NAME = "orders"
BODY = b"x" * 100
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Path:
    """A way that messages go.

    Attributes:
        library: the name of its adapter.
        title: what the application does.
        consumes: whether it gets messages or sends them.
        headers: what the application itself sends with each message.
    """

    library: ClassVar[str]
    title: ClassVar[str]
    consumes: ClassVar[bool] = False
    headers: Any = None

    async def open(self) -> None:
        """Prepare what is not measured."""

    async def run(self, count: int) -> None:
        """Let messages pass."""
        raise NotImplementedError


class KafkaSend(Path):
    """The record is not accumulated; the broker's answer comes at once."""

    library = "kafka_python"
    title = "kafka-python send"

    async def open(self) -> None:
        from kafka import KafkaProducer
        from kafka.producer.future import FutureProduceResult, FutureRecordMetadata
        from kafka.producer.sender import Sender

        def append(partition: Any, timestamp: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
            self.answer = FutureProduceResult(partition)
            future = FutureRecordMetadata(self.answer, 0, timestamp, None, len(key), len(value), -1)
            return future, False, False, False

        Sender.start = lambda _self: None
        self.producer = KafkaProducer(client_id="sender", **_kafka_options())
        _add_topic(self.producer._metadata)
        self.producer._accumulator.append = append

    async def run(self, count: int) -> None:
        for offset in range(count):
            self.producer.send(NAME, BODY, b"order-1", headers=self.headers)
            self.answer.success((offset, None, None))


class KafkaNext(Path):
    """The records were fetched before."""

    library = "kafka_python"
    title = "kafka-python for record in consumer"
    consumes = True

    async def open(self) -> None:
        from kafka import KafkaConsumer, TopicPartition

        partition = TopicPartition(NAME, 0)
        self.consumer = KafkaConsumer(client_id="receiver", group_id="readers", **_kafka_options())
        _add_topic(self.consumer._client.cluster)
        self.consumer.assign([partition])
        self.consumer._subscription.seek(partition, 0)
        self.consumer.poll = lambda **_: {partition: self.records}

    async def run(self, count: int) -> None:
        self.records = [_record(offset) for offset in range(count)]
        for seen, _ in enumerate(self.consumer, 1):
            if seen == count:
                break


def _kafka_options() -> dict[str, Any]:
    from kafka.net.compat import KafkaNetClient

    def client(**options: Any) -> Any:
        made = KafkaNetClient(**options)
        made._manager._net.start = lambda: None
        return made

    return {"bootstrap_servers": f"{HOST}:9092", "api_version": (2, 5), "kafka_client": client}


def _add_topic(cluster: Any) -> None:
    from kafka.protocol.metadata import MetadataResponse

    partition = MetadataResponse.MetadataResponseTopic.MetadataResponsePartition(leader_id=0)
    cluster._brokers[0] = MetadataResponse.MetadataResponseBroker(0, HOST, 9092, None)
    cluster._partitions[NAME] = {0: partition}


def _record(offset: int) -> Any:
    from kafka.consumer.fetcher import ConsumerRecord

    headers = [("traceparent", TRACEPARENT.encode())]
    return ConsumerRecord(NAME, 0, 0, offset, 0, 0, b"order-1", BODY, headers, None, 7, len(BODY), 70)


class AioPikaPublish(Path):
    """The frames are made; the broker's confirmation comes at once."""

    library = "aio_pika"
    title = "aio-pika publish"

    async def open(self) -> None:
        from aio_pika import Exchange, Message

        self.message = Message(BODY, headers=self.headers)
        self.exchange = Exchange(_Channel(), "shop")

    async def run(self, count: int) -> None:
        for _ in range(count):
            await self.exchange.publish(self.message, NAME)


class AioPikaConsume(Path):
    """The frames have arrived."""

    library = "aio_pika"
    title = "aio-pika callback"
    consumes = True

    async def open(self) -> None:
        from aio_pika import Queue
        from pamqp.body import ContentBody
        from pamqp.commands import Basic
        from pamqp.header import ContentHeader

        async def callback(_message: Any) -> None:
            self.left -= 1
            if not self.left:
                self.finished.set()

        channel = _Channel()
        tag = await Queue(channel, NAME, False, False, False, None).consume(callback, no_ack=True)
        self.frames = channel.underlay.frames
        properties = Basic.Properties(message_id="m-1", headers={"traceparent": TRACEPARENT})
        self.delivery = (
            (0, Basic.Deliver(consumer_tag=tag, delivery_tag=1, exchange="shop", routing_key=NAME)),
            (0, ContentHeader(properties=properties, body_size=len(BODY))),
            (0, ContentBody(BODY)),
        )

    async def run(self, count: int) -> None:
        self.left = count
        self.finished = asyncio.Event()
        for _ in range(count):
            for frame in self.delivery:
                self.frames.put_nowait(frame)
        await self.finished.wait()


class _Channel:
    """An aio-pika channel, as far as exchanges and queues ask for it, over a channel of aiormq without a connection."""

    is_closed = False

    def __init__(self) -> None:
        self.underlay, self.connection = _connect()
        self._connection = self.connection

    async def get_underlay_channel(self) -> Any:
        return self.underlay


def _connect() -> tuple[Any, Any]:
    from types import SimpleNamespace

    from aiormq.base import Base
    from aiormq.channel import Channel
    from pamqp.commands import Basic
    from yarl import URL

    class Connection(Base):
        publisher_confirms = is_opened = True
        connection_tune = SimpleNamespace(frame_max=131072)
        url = URL(f"amqp://guest:guest@{HOST}:5672/")

        def __init__(self) -> None:
            super().__init__(loop=asyncio.get_running_loop())
            self.write_queue = self
            self.connection = self

        def __str__(self) -> str:
            return "nowhere"

        async def _on_close(self, _exc: Any = None) -> None:
            pass

        async def put(self, frame: Any) -> None:
            frame.drain()
            channel.frames.put_nowait((0, Basic.Ack(delivery_tag=channel.delivery_tag)))

    class Channel_(Channel):  # noqa: N801
        async def rpc(self, frame: Any, **_: Any) -> Any:
            return Basic.ConsumeOk(consumer_tag=frame.consumer_tag)

    connection = Connection()
    channel = Channel_(connection, 1)
    return channel, connection


class NatsPublish(Path):
    """The command is made and pends; the flusher is kicked already."""

    library = "nats_py"
    title = "nats-py publish"

    async def open(self) -> None:
        self.client = _nats_client()
        self.client._flush_queue.put_nowait(None)

    async def run(self, count: int) -> None:
        for _ in range(count):
            await self.client.publish(NAME, BODY, headers=self.headers)
        self.client._pending.clear()


class NatsConsume(Path):
    """The bytes have arrived."""

    library = "nats_py"
    title = "nats-py callback"
    consumes = True

    async def open(self) -> None:
        async def callback(_message: Any) -> None:
            pass

        self.client = _nats_client()
        self.subscription = await self.client.subscribe(NAME, cb=callback)
        headers = f"NATS/1.0\r\ntraceparent: {TRACEPARENT}\r\n\r\n".encode()
        self.line = b"HMSG %s 1 %d %d\r\n" % (NAME.encode(), len(headers), len(headers) + len(BODY))
        self.line += headers + BODY + b"\r\n"

    async def run(self, count: int) -> None:
        await self.client._ps.parse(self.line * count)
        await self.subscription._pending_queue.join()


class _Transport:
    def writelines(self, _lines: Any) -> None:
        pass

    async def drain(self) -> None:
        pass


def _nats_client() -> Any:
    from nats.aio.client import Client, Srv

    client = Client()
    client._status = Client.CONNECTED
    client._client_id = 7
    client._current_server = Srv(urlparse(f"nats://{HOST}:4222"))
    client._server_info = {"headers": True}
    client._transport = _Transport()
    client._flush_queue = asyncio.Queue()
    return client


PATHS: dict[str, type[Path]] = {
    "kafka-send": KafkaSend,
    "kafka-next": KafkaNext,
    "aio-pika-publish": AioPikaPublish,
    "aio-pika-callback": AioPikaConsume,
    "nats-publish": NatsPublish,
    "nats-callback": NatsConsume,
}
