"""kafka-python as an application uses it: partition 0 of a topic, so that a group costs no time to join."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from otel_messaging import KafkaPythonInstrumentor

from .base import Driver, both, call


class KafkaPythonDriver(Driver):
    library = "kafka_python"
    system = "kafka"
    instrumentor = KafkaPythonInstrumentor
    broker = "kafka_address"
    verb = "send"
    callbacks = False
    funnel = ("kafka.producer.kafka", "KafkaProducer", "send")
    varying = frozenset(
        {
            "messaging.kafka.message.offset",
            "messaging.kafka.offset",
            "messaging.kafka.cluster.id",
            "messaging.message.queue_time",
            "messaging.consumer.lag",
        }
    )

    async def open(self):
        from kafka import KafkaProducer

        self.producer = KafkaProducer(bootstrap_servers=self.address, client_id="sender")
        self.consumers = []

    async def close(self):
        self.producer.close(timeout=5)
        for consumer in self.consumers:
            consumer.close()

    async def listen(self, destination: str):
        return self.consumer(destination)

    def consumer(self, topic: str, **options: Any):
        """A consumer of partition 0 from its beginning, which gives up after eight seconds."""
        from kafka import KafkaConsumer, TopicPartition

        defaults = {
            "bootstrap_servers": self.address,
            "client_id": "receiver",
            "group_id": "readers",
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "consumer_timeout_ms": 8000,
        }
        consumer = KafkaConsumer(**{**defaults, **options})
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek_to_beginning()
        self.consumers.append(consumer)
        return consumer

    async def publish(self, destination, body=b"body", headers=None):
        given = self.native(headers) if isinstance(headers, dict) else headers
        self.producer.send(destination, body, partition=0, headers=given).get(timeout=10)

    def native(self, headers):
        return [(name, value.encode() if isinstance(value, str) else value) for name, value in headers.items()]

    def odd_headers(self):
        return [[("traceparent", b"\xff\xfe")], [("traceparent", b""), ("traceparent", b"\x00")], [("", b"\xff")]]

    @property
    def publisher(self):
        return self.producer

    def asked(self, request):
        return request.destination, request.arguments["value"], request.arguments["headers"]

    async def disconnect(self):
        self.producer.close(timeout=5)

    async def loop(self, listener, count, body, after=None):
        seen = 0
        for message in listener:
            seen += 1
            await call(body, message)
            if seen == count:
                break
        if after is not None:
            after()
        assert seen == count

    async def first(self, listener):
        for message in listener:
            return message
        return None

    async def drain(self, listener, count, body, after=None):
        seen = 0
        for message in listener:
            seen += 1
            if seen == count:
                listener.config["consumer_timeout_ms"] = 300
            await call(body, message)
        if after is not None:
            after()
        assert seen == count

    async def guarded_loop(self, listener, body):
        if not hasattr(listener, "__enter__"):
            pytest.skip("KafkaConsumer is a context manager since kafka-python 3.0")
        with listener:
            for message in listener:
                await call(body, message)
                break

    async def generator(self, listener):
        with listener if hasattr(listener, "__enter__") else contextlib.nullcontext():
            for message in listener:
                yield message

    def iterate(self, listener):
        return iter(listener)

    async def advance(self, iterator):
        return next(iterator)

    async def stop(self, listener, iterator):
        listener.close()

    def published(self, vocabulary, destination, body):
        common = {
            "messaging.system": "kafka",
            "messaging.destination.name": destination,
            "messaging.client.id": "sender",
            **self._server(),
        }
        guide = {
            "messaging.operation": "publish",
            "messaging.message.payload_size_bytes": len(body),
            "messaging.kafka.destination.partition": 0,
        }
        semconv = {
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.partition.id": "0",
        }
        return both(vocabulary, {**common, **guide}, {**common, **semconv})

    def consumed(self, vocabulary, destination, body):
        common = {
            "messaging.system": "kafka",
            "messaging.destination.name": destination,
            "messaging.client.id": "receiver",
            **self._server(),
        }
        guide = {
            "messaging.operation": "receive",
            "messaging.message.payload_size_bytes": len(body),
            "messaging.kafka.destination.partition": 0,
            "messaging.kafka.consumer.group": "readers",
        }
        semconv = {
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.partition.id": "0",
            "messaging.consumer.group.name": "readers",
        }
        return both(vocabulary, {**common, **guide}, {**common, **semconv})

    def _server(self):
        host, _, port = self.address.rpartition(":")
        return {"server.address": host, "server.port": int(port)}

    def varying_types(self, vocabulary):
        guide, semconv = {"messaging.kafka.message.offset": "int"}, {"messaging.kafka.offset": "int"}
        if self.cluster_id() is not None:
            semconv["messaging.kafka.cluster.id"] = "str"
        ours = {"messaging.message.queue_time": "float", "messaging.consumer.lag": "int"}
        return {**both(vocabulary, guide, semconv), **ours}

    def cluster_id(self):
        """The cluster's id, which clients know since 3.0."""
        return getattr(self.producer._metadata, "cluster_id", None)

    def body(self, message):
        return message.value

    def headers(self, message):
        return [(name, value.decode(errors="replace")) for name, value in message.headers]
