"""What the bank is too busy for is tried again, by tenacity: `python kafka_python_retry.py TOPIC`."""

import os
import sys

from kafka import KafkaConsumer, KafkaProducer
from tenacity import retry, wait_fixed

from otel_messaging.patterns import record_retry

bank = iter(("busy", "busy", "paid"))


@retry(wait=wait_fixed(0.05), before=record_retry, before_sleep=record_retry)
def charge(order: bytes) -> None:
    answer = next(bank)
    if answer == "busy":
        raise ConnectionError("the bank is busy")
    print(answer, order.decode(), flush=True)


def main(topic: str) -> None:
    servers = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
    producer = KafkaProducer(bootstrap_servers=servers)
    producer.send(topic, b"order 0")
    producer.close(timeout=10)

    for record in KafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest", group_id=None):
        charge(record.value)
        break


if __name__ == "__main__":
    main(sys.argv[1])
