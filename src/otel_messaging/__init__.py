"""Zero-code OpenTelemetry for Kafka (kafka-python), RabbitMQ (aio-pika) and NATS (nats-py)."""

from typing import TYPE_CHECKING

from ._version import __version__
from .aio_pika import AioPikaInstrumentor
from .core.lazily import exports
from .kafka_python import KafkaPythonInstrumentor
from .nats_py import NatsPyInstrumentor

if TYPE_CHECKING:
    from .core.telemetry import PublishRequest

__all__ = ["AioPikaInstrumentor", "KafkaPythonInstrumentor", "NatsPyInstrumentor", "PublishRequest", "__version__"]
__getattr__ = exports(__name__, PublishRequest="core.telemetry")
