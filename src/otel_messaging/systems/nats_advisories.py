"""Advisories of JetStream: what a server tells of messages that it has given up.

The form of their data: https://docs.nats.io/running-a-nats-service/nats_admin/monitoring/monitoring_jetstream
"""

from __future__ import annotations

import json

from otel_messaging.core import vocabulary as v

GIVEN_UP = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES."
"""Where a server publishes that a message was delivered as often as its consumer allows, and never acknowledged.

It is the one subject of the system's own whose messages an application handles as any others: they stand for dead
letters.
"""
_FACTS = (
    (v.NATS_GIVEN_UP_STREAM, "stream", v.named),
    (v.NATS_GIVEN_UP_CONSUMER, "consumer", v.named),
    (v.NATS_GIVEN_UP_SEQUENCE, "stream_seq", v.counted),
    (v.NATS_GIVEN_UP_DELIVERIES, "deliveries", v.counted),
)
_LONGEST = 10_000  # bytes: several times what a server sends


def given_up(data: bytes) -> v.Facts:
    """Which message it is: the stream that has it, its number there, its consumer and how often that got it.

    Args:
        data: the advisory's; nothing is known where a server would not send the like.
    """
    try:
        told = json.loads(data) if len(data) < _LONGEST else {}
    except (ValueError, RecursionError):
        return ()
    if not isinstance(told, dict):
        return ()
    read = ((fact, reader(told.get(name))) for fact, name, reader in _FACTS)
    return tuple(pair for pair in read if pair[1] is not None)
