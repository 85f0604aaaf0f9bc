"""Orders go to two workers, and none is taken while both are busy: `python kafka_python_worker_pool.py TOPIC`."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
from typing import Any

from kafka import KafkaConsumer, KafkaProducer

from otel_messaging.patterns import process


def handle(record: Any) -> None:
    with process(record):
        time.sleep(0.1)
        print("handled", record.value.decode(), flush=True)


def main(topic: str, orders: int = 4, workers: int = 2) -> None:
    servers = os.environ["KAFKA_BOOTSTRAP_SERVERS"]
    producer = KafkaProducer(bootstrap_servers=servers)
    for number in range(orders):
        producer.send(topic, f"order {number}".encode(), partition=0)
    producer.close(timeout=10)

    consumer = KafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest", group_id=None)
    free = Semaphore(workers)
    with ThreadPoolExecutor(workers) as pool:
        for record in consumer:
            free.acquire()
            pool.submit(handle, record).add_done_callback(lambda _: free.release())
            if record.offset == orders - 1:
                break


if __name__ == "__main__":
    main(sys.argv[1])
