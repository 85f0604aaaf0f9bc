"""Zero-code OpenTelemetry for Kafka (kafka-python), RabbitMQ (aio-pika) and NATS (nats-py)."""

from ._version import __version__
from .aio_pika import AioPikaInstrumentor
from .core.telemetry import PublishRequest
from .kafka_python import KafkaPythonInstrumentor
from .nats_py import NatsPyInstrumentor

__all__ = ["AioPikaInstrumentor", "KafkaPythonInstrumentor", "NatsPyInstrumentor", "PublishRequest", "__version__"]
