"""RabbitMQ through aio-pika: where it is patched, and how its objects are read.

The library: https://docs.aio-pika.com
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_messaging.instrumentation.conflicts import Rival
from otel_messaging.instrumentation.instrumentor import MessagingInstrumentor
from otel_messaging.instrumentation.lazy_imports import exports

if TYPE_CHECKING:
    from .dead_letters import dead_letter

__all__ = ["AioPikaInstrumentor", "dead_letter"]
__getattr__ = exports(__name__, dead_letter="dead_letters")


class AioPikaInstrumentor(MessagingInstrumentor):
    """Instruments `aio-pika <https://docs.aio-pika.com>`_: exchanges and queues of RabbitMQ."""

    library = "aio_pika"
    system = "rabbitmq"
    entry_point = "messaging-aio-pika"
    requirements = ("aio-pika >= 9.0, < 11",)
    package = "aio_pika"
    rivals = (
        Rival(
            "opentelemetry.instrumentation.aio_pika",
            "AioPikaInstrumentor",
            "opentelemetry-instrumentation-aio-pika",
            "aio-pika",
        ),
    )
