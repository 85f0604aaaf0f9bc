"""A day's orders are published as one: `python kafka_python_batch_publish.py TOPIC`."""

import os
import sys

from kafka import KafkaProducer

from otel_messaging.patterns import batch_publish


def main(topic: str, orders: int = 3) -> None:
    producer = KafkaProducer(bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"])
    with batch_publish(topic):
        for number in range(orders):
            producer.send(topic, f"order {number}".encode(), partition=0)
    producer.close(timeout=10)
    print("published", orders, "orders", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
