"""Orders published as one, for two workers who try again or give up: `python kafka_python_all.py TOPIC`."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bank import charge
from kafka import KafkaConsumer, KafkaProducer

from otel_messaging.kafka_python import dead_letter
from otel_messaging.patterns import batch_publish, process

topic, servers = sys.argv[1], os.environ["KAFKA_BOOTSTRAP_SERVERS"]
producer = KafkaProducer(bootstrap_servers=servers)


def handle(record: Any) -> None:
    with process(record):
        try:
            charge(record.value)
        except ValueError as error:
            dead_letter(record, error, producer, f"{topic}-dead").get(timeout=10)


with batch_publish(topic):
    for number in range(3):
        producer.send(topic, f"order {number}".encode(), partition=0)
options = {"bootstrap_servers": servers, "auto_offset_reset": "earliest", "group_id": None}
with ThreadPoolExecutor(2) as pool:
    for record in KafkaConsumer(topic, **options):
        pool.submit(handle, record)
        if record.offset == 2:
            break
for record in KafkaConsumer(f"{topic}-dead", **options):
    print("refused", record.value.decode(), flush=True)
    break
