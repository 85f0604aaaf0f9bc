"""The shop publishes orders to the Kafka topic `orders`. Every third customer left no address."""

import json
import os

from kafka import KafkaProducer

ADDRESSES = ("ada@example.com", "grace@example.com", None)


def main() -> None:
    producer = KafkaProducer(bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"])
    for index in range(int(os.environ.get("ORDERS", "3"))):
        order = {"number": index + 1, "item": "teapot", "email": ADDRESSES[index % 3]}
        producer.send("orders", json.dumps(order).encode(), key=str(order["number"]).encode())
        print(f"order {order['number']} placed", flush=True)
    producer.close(timeout=30)


if __name__ == "__main__":
    main()
