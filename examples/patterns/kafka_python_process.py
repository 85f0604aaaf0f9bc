"""Each order is handled in a thread of its own, with its own span: `python kafka_python_process.py TOPIC`."""

import os
import sys
import threading
from typing import Any

from kafka import KafkaConsumer, KafkaProducer

from otel_messaging.patterns import process

SERVERS = os.environ["KAFKA_BOOTSTRAP_SERVERS"]


@process
def handle(record: Any) -> None:
    print("handled", record.value.decode(), flush=True)


def main(topic: str, orders: int = 2) -> None:
    producer = KafkaProducer(bootstrap_servers=SERVERS)
    for number in range(orders):
        producer.send(topic, f"order {number}".encode(), partition=0)
    producer.close(timeout=10)

    consumer = KafkaConsumer(topic, bootstrap_servers=SERVERS, auto_offset_reset="earliest", group_id=None)
    for record in consumer:
        threading.Thread(target=handle, args=[record]).start()
        if record.offset == orders - 1:
            break
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1])
