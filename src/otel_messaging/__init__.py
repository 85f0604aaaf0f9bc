"""Zero-code OpenTelemetry for Kafka (kafka-python), RabbitMQ (aio-pika) and NATS (nats-py)."""

from typing import TYPE_CHECKING

from otel_messaging.instrumentation.lazy_imports import exports

from ._version import __version__

if TYPE_CHECKING:
    from otel_messaging.core.requests import PublishRequest

    from .aio_pika import AioPikaInstrumentor
    from .kafka_python import KafkaPythonInstrumentor
    from .nats_py import NatsPyInstrumentor

__all__ = ["AioPikaInstrumentor", "KafkaPythonInstrumentor", "NatsPyInstrumentor", "PublishRequest", "__version__"]
# The doctor lies in this package, and has to start where OpenTelemetry does not.
__getattr__ = exports(
    __name__,
    AioPikaInstrumentor="aio_pika",
    KafkaPythonInstrumentor="kafka_python",
    NatsPyInstrumentor="nats_py",
    PublishRequest="core.requests",
)
