"""A WSGI application that sends a record per request: `gunicorn wsgi:app`.

Topics are named after the worker. GREET is the topic of a record that is sent when this is imported.
"""

import os

from kafka import KafkaProducer

producers = []
if os.environ.get("GREET"):
    producer = KafkaProducer(bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"])
    producer.send(os.environ["GREET"], b"hello").get(timeout=10)
    producer.close()


def app(environ, start_response):
    if not producers:
        producers.append(KafkaProducer(bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"]))
    producers[0].send(f"{environ['PATH_INFO'][1:]}-{os.getpid()}", b"hello").get(timeout=10)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
