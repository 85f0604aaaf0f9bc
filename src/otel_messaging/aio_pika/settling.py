"""Acknowledgements, and `message.process()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.instrumentation.nested_calls import EnclosingCall

from .adapter import leaving

if TYPE_CHECKING:
    from .adapter import AioPika


def leaves_process(pika: AioPika, process: Any, exc_val: BaseException | None) -> EnclosingCall | None:
    """`message.process()` sees what handling a message raised, even if the application catches it later."""
    if exc_val is None:
        return None
    delivery = pika.handled(process.message)
    if delivery is not None:
        delivery.fail(exc_val)
    return EnclosingCall(leaving)


def acked(multiple: bool = False) -> v.Attributes:
    """What `ack` tells."""
    return {v.SETTLE_MULTIPLE: True} if multiple else {}


def nacked(multiple: bool = False, requeue: bool = True) -> v.Attributes:
    """What `nack` tells."""
    return {**acked(multiple), v.SETTLE_REQUEUE: bool(requeue)}


def rejected(requeue: bool = False) -> v.Attributes:
    """What `reject` tells."""
    return {v.SETTLE_REQUEUE: bool(requeue)}
