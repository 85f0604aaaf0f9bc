"""Publish one message and consume it, knowing nothing of OpenTelemetry: `python kafka_program.py TOPIC`."""

import os
import sys

from kafka import KafkaConsumer, KafkaProducer, TopicPartition


def main(topic):
    address = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
    producer = KafkaProducer(bootstrap_servers=address)
    producer.send(topic, b"hello", partition=0).get(timeout=10)
    producer.close(timeout=5)

    consumer = KafkaConsumer(
        bootstrap_servers=address,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        consumer_timeout_ms=8000,
    )
    consumer.assign([TopicPartition(topic, 0)])
    for message in consumer:
        print(message.value.decode(), *(name for name, _ in message.headers))
        break
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
