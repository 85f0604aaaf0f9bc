"""Orders are written to a database three at a time: `python kafka_python_process_batch.py TOPIC`."""

import os
import sys

from kafka import KafkaConsumer, KafkaProducer

from otel_messaging.patterns import process_batch

SERVERS = os.environ["KAFKA_BOOTSTRAP_SERVERS"]


def main(topic: str, orders: int = 3) -> None:
    producer = KafkaProducer(bootstrap_servers=SERVERS)
    for number in range(orders):
        producer.send(topic, f"order {number}".encode(), partition=0)
    producer.close(timeout=10)

    consumer = KafkaConsumer(topic, bootstrap_servers=SERVERS, auto_offset_reset="earliest", group_id=None)
    polled = consumer.poll(timeout_ms=10_000, max_records=orders)
    with process_batch(polled):
        print("wrote", sum(len(records) for records in polled.values()), "orders", flush=True)
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1])
