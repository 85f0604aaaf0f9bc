"""NATS through nats-py: where it is patched, and how its objects are read.

The library: https://nats-io.github.io/nats.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_messaging.instrumentation.conflicts import Rival
from otel_messaging.instrumentation.instrumentor import MessagingInstrumentor
from otel_messaging.instrumentation.lazy_imports import exports

if TYPE_CHECKING:
    from .dead_letters import dead_letter

__all__ = ["NatsPyInstrumentor", "dead_letter"]
__getattr__ = exports(__name__, dead_letter="dead_letters")


class NatsPyInstrumentor(MessagingInstrumentor):
    """Instruments `nats-py <https://nats-io.github.io/nats.py>`_: core NATS, JetStream, services and stores."""

    library = "nats_py"
    system = "nats"
    entry_point = "messaging-nats-py"
    requirements = ("nats-py >= 2.6, < 3",)
    package = "nats"
    rivals = (Rival("otel_instrumentation_nats", "NatsInstrumentor", "otel-instrumentation-nats", "nats"),)
