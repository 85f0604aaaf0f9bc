"""An order that cannot be handled goes to another topic: `python kafka_python_dead_letter.py TOPIC`."""

import os
import sys

from kafka import KafkaConsumer, KafkaProducer

from otel_messaging.kafka_python import dead_letter


def handle(order: bytes) -> None:
    raise ValueError(f"{order.decode()} is out of stock")


def main(topic: str) -> None:
    servers = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
    producer = KafkaProducer(bootstrap_servers=servers)
    producer.send(topic, b"order 0", key=b"customer 7").get(timeout=10)

    for record in KafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest", group_id=None):
        try:
            handle(record.value)
        except ValueError as error:
            dead_letter(record, error, producer, f"{topic}-dead").get(timeout=10)
        break
    for record in KafkaConsumer(
        f"{topic}-dead", bootstrap_servers=servers, auto_offset_reset="earliest", group_id=None
    ):
        print(record.key, record.value, *record.headers, sep="\n", flush=True)
        break


if __name__ == "__main__":
    main(sys.argv[1])
