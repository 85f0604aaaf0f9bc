"""What hooks and helpers are told of a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from . import vocabulary as v
    from .delivery import Delivery


@dataclass(frozen=True)
class PublishRequest:
    """What ``publish_hook`` is told of a message that is about to be sent.

    Attributes:
        client: what sends it: a ``KafkaProducer``, an aio-pika ``Exchange``, a NATS client or JetStream context.
        destination: topic, exchange or subject.
        arguments: the call's arguments, under the library's own names, those with defaults too. Change nothing in it.
    """

    client: Any
    destination: str
    arguments: Mapping[str, Any]


class Incoming(NamedTuple):
    """What is known of a message outside of the consumer that it has come from."""

    destination: v.Destination
    common: v.Facts
    """What is the same for all messages of the same source."""
    facts: v.Facts
    """What is known of this one."""
    headers: Mapping[str, Any] | None
    """Names in lower case."""
    size: int
    """Of its body, in bytes; 0 where it is not known."""
    identity: Any = None
    """What tells it from others, for `Delivery.message`."""
    delivery: Delivery | None = None
    """Its handling, if that has begun already."""
    reply_to: str | None = None
    """Where it asks to be answered at, if it does."""
    release: Callable[[], None] | None = None
    """Leaves the end of its handling to who calls this, where that has begun since it was taken out of a list."""
