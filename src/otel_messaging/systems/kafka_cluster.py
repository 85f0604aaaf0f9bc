"""What a client of Kafka already knows of its cluster."""

from __future__ import annotations

from typing import Any, NamedTuple

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import Cache


class Partition(NamedTuple):
    """What the client's own metadata is asked about."""

    topic: str
    partition: int


class Cluster:
    """What the client already knows of its cluster, without asking it.

    Attributes:
        metadata: the client's own.
        refreshed: when that was brought up to date, as of the last time that we looked.
    """

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata
        self.refreshed = metadata._last_successful_refresh_ms
        self._leaders: Cache[Partition, v.Facts] = Cache()

    def has_changed(self) -> bool:
        """Whether brokers or leaders may have changed since this was last asked."""
        refreshed = self.metadata._last_successful_refresh_ms
        if refreshed == self.refreshed:
            return False
        self.refreshed = refreshed
        self._leaders.clear()
        return True

    def facts(self, topic: str, partition: int | None) -> v.Facts:
        """The server that a partition's records go to or come from, and the cluster."""
        leader = self.leader(topic, partition) if partition is not None else ()
        return leader or self._describe(next(iter(self.metadata._bootstrap_brokers.values()), None))

    def leader(self, topic: str, partition: int) -> v.Facts:
        """The broker that leads a partition, and its cluster, if it is known."""
        key = Partition(topic, partition)
        leader = self._leaders.get(key)
        if leader is None:
            try:
                broker = self.metadata.broker_metadata(self.metadata.leader_for_partition(key))
            except KeyError:  # the producer's own thread is putting new metadata in place
                return ()
            leader = self._leaders.put(key, self._describe(broker) if broker is not None else ())
        return leader

    def _describe(self, broker: Any) -> v.Facts:
        cluster = (v.KAFKA_CLUSTER, getattr(self.metadata, "cluster_id", None))  # since 2.1, and with the metadata
        return (
            (cluster,) if broker is None else ((v.SERVER_ADDRESS, broker.host), (v.SERVER_PORT, broker.port), cluster)
        )
