"""What the environments of these tests have in them."""

from __future__ import annotations

from tests.support import clients

CLIENTS = ("kafka-python", "aio-pika", "nats-py")
SDK = ("opentelemetry-sdk", "opentelemetry-distro", "opentelemetry-exporter-otlp-proto-http")
SERVERS = ("gunicorn", "uvicorn", "uvicorn-worker", "uvloop", "gevent")


def installed(*names):
    """Requirements for the versions that this environment has, the oldest or the newest."""
    return ["==".join(clients.installed(name)) for name in names]
