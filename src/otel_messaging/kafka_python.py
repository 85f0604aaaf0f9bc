"""Kafka through kafka-python: where it is patched, and how its objects are read.

The library: https://kafka-python.readthedocs.io
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from .core import vocabulary as v
from .core.batch import Batch
from .core.cache import Cache
from .core.instrumentor import MessagingInstrumentor
from .core.patching import Patch
from .core.propagation import as_text, fields
from .core.rivals import Rival
from .core.safety import report
from .core.scope import Held, Loop
from .core.state import find, keep
from .core.telemetry import Failure, Moment, PublishRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

    from .core.metrics import Lag
    from .core.telemetry import Delivery, Operation, Publication, Settlement, Telemetry

_HEADERS_SINCE = (0, 11)
_REST = ("partition", "timestamp_ms")  # of the parameters of `send`, those that follow the headers
_SYSTEM = ((v.SYSTEM, "kafka"),)
_CLOSED = Failure("producer_closed", "the producer was closed before the broker answered")
_UNCOMMITTED = Failure("consumer_closed", "the consumer was closed before the broker answered")


class _Kafka:
    """Reads kafka-python's objects for the telemetry of one instrumentor."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self._producers: weakref.WeakSet[_Producer] = weakref.WeakSet()
        self._watching = False

    def watch(self) -> None:
        """End what is still on its way when the interpreter exits.

        Called before a producer is made: exit handlers run last in, first out, so that the producer, which flushes in
        its own, comes first, and a tracer provider made earlier can still export.
        """
        if not self._watching:
            self._watching = True
            adapter = weakref.ref(self)
            atexit.register(_at_exit, adapter)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=lambda: _in_child(adapter))

    def producers(self) -> list[_Producer]:
        """The producers that have sent something and are still there."""
        return list(self._producers)

    def producer(self, producer: Any) -> _Producer:
        """What is kept for a producer."""
        return keep(producer, self.telemetry, self._add_producer)

    def consumer(self, consumer: Any) -> _Consumer:
        """What is kept for a consumer."""
        return keep(consumer, self.telemetry, _Consumer)

    def _add_producer(self, telemetry: Telemetry, producer: Any) -> _Producer:
        state = _Producer(telemetry, producer)
        self._producers.add(state)
        return state


def _at_exit(adapter: weakref.ref[_Kafka]) -> None:
    kafka = adapter()
    for producer in kafka.producers() if kafka is not None else ():
        producer.abandon()


def _in_child(adapter: weakref.ref[_Kafka]) -> None:
    """A forked child has no sender thread: what its parent sent is its parent's."""
    kafka = adapter()
    for producer in kafka.producers() if kafka is not None else ():
        producer.pending.clear()


class _Producer:
    """What is kept for a producer. It must not refer to the producer itself, which its pending messages would keep."""

    def __init__(self, telemetry: Telemetry, producer: Any) -> None:
        self.pending: set[_Sent] = set()
        self.acknowledged_offsets = producer.config["acks"] != 0  # without acknowledgement the offset is made up
        self.carries_headers = producer.config["api_version"] >= _HEADERS_SINCE
        self.serializes = producer.config["value_serializer"] is not None
        self._serializes_keys = producer.config["key_serializer"] is not None
        self.telemetry = telemetry
        self._cluster = _Cluster(producer._metadata)
        self._facts = (*_SYSTEM, (v.CLIENT_ID, producer.config["client_id"]))
        self._operations: Cache[str, Operation] = Cache()

    def operation(self, topic: str) -> Operation:
        """What is the same for all messages to a topic."""
        if self._cluster.has_changed():
            self._operations.clear()
        operation = self._operations.get(topic)
        if operation is None:
            facts = (*self._facts, *self._cluster.facts(topic, None))
            operation = self.telemetry.operation(v.PUBLISH, "send", v.Destination(topic), facts)
            self._operations.put(topic, operation)
        return operation

    def may_carry(self, value: Any, key: Any, headers: Any) -> bool:
        """Whether a context may be added to a record."""
        if not self.carries_headers or not (headers is None or _well_formed(headers)):
            return False
        # What is too large with a context is sent without, so that it must be possible to serialize it twice.
        once = (self.serializes and hasattr(value, "__next__")) or (self._serializes_keys and hasattr(key, "__next__"))
        return not once

    def settlement(self, verb: str) -> Settlement | None:
        """Begin a step of a transaction. It is told of the message that is being handled, of whatever library."""
        context = self.telemetry.context()
        if context is None:
            return None
        return self.telemetry.settle(verb, self.operation(""), self.telemetry.current_delivery(context), (), {})

    def leader(self, topic: str, partition: int) -> v.Facts:
        """The broker that leads a partition, and its cluster."""
        return self._cluster.leader(topic, partition)

    def abandon(self) -> None:
        """Nothing will be heard of what is still on its way."""
        for sent in list(self.pending):
            sent.failed(_CLOSED)


class _Partition(NamedTuple):
    """What the client's own metadata is asked about."""

    topic: str
    partition: int


class _Cluster:
    """What the client already knows of its cluster, without asking it."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._refreshed = cluster._last_successful_refresh_ms
        self._leaders: Cache[_Partition, v.Facts] = Cache()

    def has_changed(self) -> bool:
        """Whether brokers or leaders may have changed since this was last asked."""
        refreshed = self._cluster._last_successful_refresh_ms
        if refreshed == self._refreshed:
            return False
        self._refreshed = refreshed
        self._leaders.clear()
        return True

    def facts(self, topic: str, partition: int | None) -> v.Facts:
        """The server that a partition's records go to or come from, and the cluster."""
        leader = self.leader(topic, partition) if partition is not None else ()
        return leader or self._describe(next(iter(self._cluster._bootstrap_brokers.values()), None))

    def leader(self, topic: str, partition: int) -> v.Facts:
        """The broker that leads a partition, and its cluster, if it is known."""
        key = _Partition(topic, partition)
        leader = self._leaders.get(key)
        if leader is None:
            try:
                broker = self._cluster.broker_metadata(self._cluster.leader_for_partition(key))
            except KeyError:  # the producer's own thread is putting new metadata in place
                return ()
            leader = self._leaders.put(key, self._describe(broker) if broker is not None else ())
        return leader

    def _describe(self, broker: Any) -> v.Facts:
        cluster = (v.KAFKA_CLUSTER, getattr(self._cluster, "cluster_id", None))  # since 2.1, and with the metadata
        return (
            (cluster,) if broker is None else ((v.SERVER_ADDRESS, broker.host), (v.SERVER_PORT, broker.port), cluster)
        )


class _Sent:
    """A message that the producer has, until the broker has answered. Called on the producer's own thread."""

    __slots__ = ("_producer", "_publication", "_sized")

    def __init__(self, producer: _Producer, publication: Publication, sized: bool) -> None:
        self._producer = producer
        self._publication: Publication | None = publication
        self._sized = sized
        producer.pending.add(self)

    def acknowledged(self, metadata: Any) -> None:
        """The broker has the record."""
        publication = self._claim()
        if publication is not None:
            facts: v.Facts = ()
            try:
                if publication.span.is_recording():
                    facts = self._facts(metadata, publication.operation.facts)
            except Exception as error:
                report("acknowledging a record", error)
            finally:
                publication.end(facts=facts)

    def failed(self, error: BaseException | Failure | None) -> None:
        """The broker does not have the record, or nobody will know."""
        publication = self._claim()
        if publication is not None:
            publication.end(error)

    def answered(self, future: Any) -> None:
        """The answer is there already."""
        if future.exception is not None:
            self.failed(future.exception)
        else:
            self.acknowledged(future.value)

    def _claim(self) -> Publication | None:
        try:
            self._producer.pending.remove(self)  # atomic: the producer's thread and close() may both want it
        except KeyError:
            return None
        publication, self._publication = self._publication, None  # futures that are kept, keep us until 3.0
        return publication

    def _facts(self, metadata: Any, known: v.Facts) -> v.Facts:
        leader = self._producer.leader(metadata.topic, metadata.partition)
        size = metadata.serialized_value_size
        return (
            (v.KAFKA_PARTITION, metadata.partition),
            (v.KAFKA_OFFSET, metadata.offset if self._producer.acknowledged_offsets and metadata.offset >= 0 else None),
            (v.BODY_SIZE, None if self._sized or size < 0 else size),
            (v.KAFKA_TOMBSTONE, True if size < 0 else None),
            *(() if all(fact in known for fact in leader) else leader),
        )


class _Source(NamedTuple):
    """What is the same for all records of a partition."""

    partition: _Partition
    operation: Operation


_Sources = Cache[tuple[str, int], _Source]


class _Consumer:
    """What is kept for a consumer."""

    def __init__(self, telemetry: Telemetry, consumer: Any) -> None:
        self.held = Held()
        self.telemetry = telemetry
        self.pending: set[_Commit] = set()
        self._polled: tuple[Held, ...] = ()
        self._cluster = _Cluster(consumer._client.cluster)
        self._assignment = consumer._subscription.assignment  # one dictionary, as long as the consumer lives
        config = consumer.config
        self._facts = (*_SYSTEM, (v.CLIENT_ID, config["client_id"]), (v.GROUP, config["group_id"]))
        self._looped: _Sources = Cache()
        self._listed: _Sources = Cache()
        self._calls: Cache[tuple[str, int | None], Operation] = Cache()
        self._lags: Cache[_Partition, Lag] = Cache()

    def hand_out(self, record: Any, context: Context) -> None:
        """A loop over the consumer has a record."""
        source = self.looped(record.topic, record.partition)
        behind = self._behind(source.partition, record)
        self.held.hold(self._deliver(source, record, behind, context))
        if source.partition in self._lags:
            self._lags[source.partition].value = behind

    def ask(self) -> Moment:
        """The application asks for lists of records. Until there are any, it may still be handling those before."""
        self.held.end()
        for held in self._polled:
            if held.is_left():
                held.end()
        return Moment.now()

    def hand_over(self, polled: dict[Any, list[Any]], began: Moment) -> None:
        """The application has lists of records: those before are handled, in this thread at least.

        Args:
            polled: the lists. They are replaced.
            began: when it asked for them.
        """
        self._end_current()
        context = self.telemetry.context()
        if context is None:
            return
        sources = {tp: self.listed(tp.topic, tp.partition) for tp, records in polled.items() if records}
        seen = [tp for tp, source in sources.items() if not source.operation.excluded]
        if not seen:
            return
        records = [record for tp in seen for record in polled[tp]]
        facts = (
            (v.BATCH_COUNT, len(records)),
            (v.BATCH_SIZE, sum(max(0, record.serialized_value_size) for record in records)),
        )
        headers = [_fold(record.headers) for record in records]
        self.telemetry.receive(self._call(seen), facts, headers, context, began)
        for tp in seen:
            if sources[tp].partition in self._lags:
                self._lags[sources[tp].partition].value = self._behind(sources[tp].partition, polled[tp][-1])
        batches = {tp: Batch(polled[tp], _handler(self, sources[tp])) for tp in seen}
        for batch in batches.values():
            batch.held.entered = self.held.entered
        self._polled = tuple(batch.held for batch in batches.values())
        polled.update(batches)

    def fail(self, error: Exception, began: Moment) -> None:
        """Asking for lists of records has raised an exception."""
        context = self.telemetry.context()
        if context is not None:
            self.telemetry.receive(self._call(list(self._assignment)), (), (), context, began, error)

    def settlement(self, verb: str, offsets: Any = None) -> Settlement | None:
        """Begin to commit offsets, those of all partitions if none are given."""
        context = self.telemetry.context()
        partitions = list(self._assignment) if offsets is None else _partitions(offsets)
        if context is None or partitions is None:
            return None
        delivery = self.telemetry.current_delivery(context)
        if delivery is not None and all(held.delivery is not delivery for held in (self.held, *self._polled)):
            delivery = None
        return self.telemetry.settle(verb, self._call(partitions), delivery, (), {})

    def abandon(self) -> None:
        """Nothing will be heard of commits that are still on their way."""
        for commit in list(self.pending):
            commit.failed(_UNCOMMITTED)

    def enter(self) -> None:
        """A ``with`` block around the consumer will show the exceptions of its body."""
        for held in (self.held, *self._polled):
            held.entered = True

    def exit(self, error: BaseException | None) -> None:
        """The ``with`` block has ended, perhaps by an exception."""
        for held in (self.held, *self._polled):
            held.exit(error)

    def close(self) -> None:
        """The consumer was closed or has unsubscribed, perhaps in another thread."""
        for held in (self.held, *self._polled):
            held.close()
        self._lags = Cache()
        self._forget()

    def forget(self) -> None:
        """Partitions that now belong to others have no lag here."""
        if not self._lags.keys() <= self._assignment.keys():
            self._lags = Cache({key: lag for key, lag in self._lags.items() if key in self._assignment})
            self._forget()

    def looped(self, topic: str, partition: int) -> _Source:
        """What is the same for all records of a partition that a loop over the consumer hands out."""
        if self._cluster.has_changed():
            self._forget()
        return self._looped.get((topic, partition)) or self._source(self._looped, v.DELIVER, topic, partition)

    def listed(self, topic: str, partition: int) -> _Source:
        """What is the same for all records of a partition that come in lists."""
        if self._cluster.has_changed():
            self._forget()
        return self._listed.get((topic, partition)) or self._source(self._listed, v.PROCESS, topic, partition)

    def _forget(self) -> None:
        self._looped.clear()
        self._listed.clear()
        self._calls.clear()

    def _source(self, sources: _Sources, action: v.Action, topic: str, partition: int) -> _Source:
        key = _Partition(topic, partition)
        facts = (*self._facts, *self._cluster.facts(topic, partition), (v.KAFKA_PARTITION, partition))
        operation = self.telemetry.operation(action, "process", v.Destination(topic), facts)
        source = sources.put(key, _Source(key, operation))
        if key not in self._lags and not source.operation.excluded:
            facts = (*_SYSTEM, (v.DESTINATION, topic), self._facts[-1], (v.KAFKA_PARTITION, partition))
            lag = self.telemetry.lag(facts)
            if lag is not None:
                self._lags.put(key, lag)
        return source

    def _call(self, partitions: list[Any]) -> Operation:
        """A call about partitions. What they have in common is told of it."""
        topics = {partition.topic for partition in partitions}
        topic = topics.pop() if len(topics) == 1 else ""
        partition = partitions[0].partition if len(partitions) == 1 else None
        call = self._calls.get((topic, partition))
        if call is None:
            facts = (*self._facts, *self._cluster.facts(topic, partition), (v.KAFKA_PARTITION, partition))
            call = self.telemetry.operation(v.RECEIVE, "poll", v.Destination(topic), facts)
            self._calls.put((topic, partition), call)
        return call

    def _deliver(self, source: _Source, record: Any, behind: int | None, context: Context) -> Delivery | None:
        size = record.serialized_value_size
        stamp = record.timestamp
        facts = (
            (v.KAFKA_OFFSET, record.offset),
            (v.KAFKA_KEY, _key(record.key)),
            (v.BODY_SIZE, size if size >= 0 else None),
            (v.KAFKA_TOMBSTONE, True if size < 0 else None),  # the value itself is what a deserializer made of it
            (v.LAG, behind),
        )
        waited = time.time() - stamp / 1000 if stamp is not None and stamp >= 0 else None
        delivery = self.telemetry.deliver(source.operation, facts, _fold(record.headers), None, context, waited)
        if delivery is not None:
            self.telemetry.tell_consume_hook(delivery, record)
        return delivery

    def _behind(self, partition: _Partition, record: Any) -> int | None:
        """How many records were behind one when the broker was last heard of. Nobody is asked for it."""
        if not self.telemetry.settings.lag:
            return None
        state = self._assignment.get(partition)
        end = state.highwater if state is not None else None
        return max(0, end - record.offset - 1) if end is not None and end >= 0 else None

    def _end_current(self) -> None:
        """The record that is handled in this thread is handled. Other threads have lists of their own."""
        context = self.telemetry.context()
        current = self.telemetry.current_delivery(context) if context is not None else None
        for held in self._polled:
            if current is not None and held.delivery is current:
                held.end()


class _Commit:
    """A commit that the broker has not answered yet."""

    __slots__ = ("_pending", "_settlement")

    def __init__(self, pending: set[_Commit], settlement: Settlement) -> None:
        self._pending = pending
        self._settlement = settlement
        pending.add(self)

    def answered(self, _answer: Any) -> None:
        """The broker has the offsets."""
        self._end(None)

    def failed(self, error: BaseException | Failure | None) -> None:
        """The broker does not have the offsets, or nobody will know."""
        self._end(error)

    def _end(self, error: BaseException | Failure | None) -> None:
        try:
            self._pending.remove(self)  # atomic: the client's thread and close() may both want it
        except KeyError:
            return
        self._settlement.end(error)


def _handler(consumer: _Consumer, source: _Source) -> Callable[[Any], Delivery | None]:
    """What begins to handle one record of a list."""

    def begin(record: Any) -> Delivery | None:
        try:
            context = consumer.telemetry.context()
            if context is None:
                return None
            return consumer._deliver(source, record, consumer._behind(source.partition, record), context)
        except Exception as error:
            report("looping over records", error)
            return None

    return begin


def _partitions(offsets: Any) -> list[Any] | None:
    """The partitions of offsets, or None where these are none: the library says so itself."""
    well_formed = isinstance(offsets, dict) and all(
        hasattr(key, "topic") and hasattr(key, "partition") for key in offsets
    )
    return list(offsets) if well_formed else None


def _key(key: Any) -> str | None:
    """A key as text, if it has one that is beyond doubt."""
    if isinstance(key, (int, float)):
        return str(key)
    return None if isinstance(key, (list, tuple)) else as_text(key)


def _fold(headers: list[tuple[str, bytes | None]]) -> dict[str, bytes | None] | None:
    return {name.lower(): value for name, value in headers} if headers else None


def _well_formed(headers: Any) -> bool:
    """Whether the library will take these headers: if not, its own error must reach the application."""
    return type(headers) is list and all(
        isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], bytes)
        for item in headers
    )


def _add(headers: list[tuple[str, bytes]] | None, carrier: dict[str, str]) -> list[tuple[str, bytes]]:
    """A new list of headers, with a context in it instead of any that was there."""
    kept = [item for item in headers if item[0].lower() not in fields()] if headers else []
    kept.extend([(name, value.encode()) for name, value in carrier.items()])
    return kept


def _send(kafka: _Kafka, send: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaProducer.send` is where every record enters; its future tells what became of it."""
    from kafka.errors import MessageSizeTooLargeError as too_large  # noqa: N813 (imported when the library is)

    telemetry = kafka.telemetry

    def wrapper(
        self: Any, topic: Any, value: Any = None, key: Any = None, headers: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        producer = publication = None
        sent = headers
        try:
            context = telemetry.context()
            if context is not None and isinstance(topic, str):
                producer = kafka.producer(self)
                publication = _begin(telemetry, producer, context, topic, value, key, headers)
                if publication.carrier and producer.may_carry(value, key, headers):
                    sent = _add(headers, publication.carrier)
                if telemetry.publish_hook is not None:
                    rest = {**dict(zip(_REST, args, strict=False)), **kwargs}
                    arguments = {"topic": topic, "value": value, "key": key, "headers": headers, **rest}
                    telemetry.tell_publish_hook(publication, PublishRequest(self, topic, arguments))
        except Exception as error:
            report("KafkaProducer.send", error)
        try:
            if sent is headers:
                future = send(self, topic, value, key, headers, *args, **kwargs)
            else:
                future = _carry(send, too_large, (self, topic, value, key), headers, sent, args, kwargs)
        except BaseException as error:
            if publication is not None:
                publication.end(error)
            raise
        if producer is not None and publication is not None:
            _await_answer(producer, publication, future, isinstance(value, bytes) and not producer.serializes)
        return future

    return wrapper


def _carry(
    send: Callable[..., Any],
    too_large: type[Exception],
    record: tuple[Any, ...],
    headers: Any,
    sent: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Send a record with its context, or without where it is too large: perhaps it is so only with it."""
    try:
        future = send(*record, sent, *args, **kwargs)
    except too_large:
        future = None
    # Until 2.3 the error comes with the future. Either way the producer has not taken the record.
    if future is None or (getattr(future, "is_done", False) and isinstance(future.exception, too_large)):
        return send(*record, headers, *args, **kwargs)
    return future


def _begin(
    telemetry: Telemetry, producer: _Producer, context: Context, topic: str, value: Any, key: Any, headers: Any
) -> Publication:
    facts = (
        (v.KAFKA_KEY, _key(key)),
        (v.BODY_SIZE, len(value) if isinstance(value, bytes) and not producer.serializes else None),
        (v.KAFKA_TOMBSTONE, True if value is None and not producer.serializes else None),
    )
    folded = _fold(headers) if headers and _well_formed(headers) else None
    return telemetry.publish(producer.operation(topic), facts, folded, context)


def _await_answer(producer: _Producer, publication: Publication, future: Any, sized: bool) -> None:
    sent = _Sent(producer, publication, sized)
    try:
        future.add_callback(sent.acknowledged)
        future.add_errback(sent.failed)
        if future.is_done:  # until 2.1.2 without a lock: the answer may have come between its question and ours
            sent.answered(future)
    except Exception as error:
        sent.failed(None)  # no future of the library: nothing will be heard
        report("KafkaProducer.send", error)


def _make_producer(kafka: _Kafka, init: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaProducer.__init__` registers an exit handler that flushes; ours has to run after it."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        kafka.watch()
        return init(self, *args, **kwargs)

    return wrapper


def _close_producer(_kafka: _Kafka, close: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaProducer.close` may give up on records: their spans must not outlive it."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return close(self, *args, **kwargs)
        finally:
            state = find(self)
            if state is not None and getattr(self, "_closed", True):
                state.abandon()

    return wrapper


def _next(kafka: _Kafka, advance: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.__next__` hands out one record, which is handled until the next is asked for."""
    telemetry = kafka.telemetry

    def wrapper(self: Any) -> Any:
        state = find(self)
        if state is not None:
            state.held.end()
        record = advance(self)
        try:
            context = telemetry.context()
            if context is not None:
                kafka.consumer(self).hand_out(record, context)
        except Exception as error:
            report("KafkaConsumer.__next__", error)
        return record

    return wrapper


def _iter(kafka: _Kafka, iterate: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.__iter__` returns the consumer itself, which would not notice that a loop was left."""

    def wrapper(self: Any) -> Any:
        iterator = iterate(self)
        try:
            if kafka.telemetry.enabled and iterator is self:
                return Loop(self, kafka.consumer(self).held)
        except Exception as error:
            report("KafkaConsumer.__iter__", error)
        return iterator

    return wrapper


def _poll(kafka: _Kafka, poll: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.poll` hands out records by lists. `__next__` calls it too, by an argument that is its own."""
    telemetry = kafka.telemetry

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = None
        try:
            if _is_asked_by_iterator(*args, **kwargs):
                state = find(self)
                if state is not None:
                    state.forget()
            elif telemetry.context() is not None:
                state = kafka.consumer(self)
                state.forget()
                began = state.ask()
        except Exception as error:
            report("KafkaConsumer.poll", error)
        try:
            polled = poll(self, *args, **kwargs)
        except Exception as error:
            if began is not None:
                _guard(kafka.consumer(self).fail, error, began)
            raise
        if polled and began is not None:
            _guard(kafka.consumer(self).hand_over, polled, began)
        return polled

    return wrapper


def _is_asked_by_iterator(
    _timeout_ms: Any = 0, _max_records: Any = None, update_offsets: Any = True, **_named: Any
) -> bool:
    return not update_offsets


def _guard(tell: Callable[..., None], *args: Any) -> None:
    try:
        tell(*args)
    except Exception as error:
        report("KafkaConsumer.poll", error)


def _enter(kafka: _Kafka, enter: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.__enter__`, since 3.0: its block will show the exceptions that leave a loop in it."""

    def wrapper(self: Any) -> Any:
        entered = enter(self)
        try:
            if kafka.telemetry.enabled:
                kafka.consumer(self).enter()
        except Exception as error:
            report("KafkaConsumer.__enter__", error)
        return entered

    return wrapper


def _exit(_kafka: _Kafka, leave: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.__exit__`, since 3.0: the exception that passes is the one that handling a record raised."""

    def wrapper(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        state = find(self)
        if state is not None:
            state.exit(error)
        return leave(self, kind, error, trace)

    return wrapper


def _close_consumer(_kafka: _Kafka, close: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.close` ends the handling of records, perhaps in another thread, and gives up on commits."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = find(self)
        if state is None:
            return close(self, *args, **kwargs)
        state.close()
        try:
            return close(self, *args, **kwargs)
        finally:
            state.abandon()

    return wrapper


def _unsubscribe(_kafka: _Kafka, unsubscribe: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.unsubscribe` ends the handling of records."""

    def wrapper(self: Any) -> Any:
        state = find(self)
        if state is not None:
            state.close()
        return unsubscribe(self)

    return wrapper


def _commit(kafka: _Kafka, commit: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.commit` returns when the broker has answered. What is committed by itself does not come here."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        settlement = _settlement(kafka.consumer, self, "commit", _offsets(*args, **kwargs))
        return _settle(settlement, commit, self, args, kwargs)

    return wrapper


def _commit_async(kafka: _Kafka, commit: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.commit_async` returns at once; its future tells what became of it."""
    event = kafka.telemetry.settings.settle == "event"  # it cannot wait for the answer: the message is handled by then

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        settlement = _settlement(kafka.consumer, self, "commit_async", _offsets(*args, **kwargs))
        try:
            future = commit(self, *args, **kwargs)
        except BaseException as error:
            if settlement is not None:
                settlement.end(error)
            raise
        if settlement is not None:
            _await_commit(kafka, self, settlement, future, event)
        return future

    return wrapper


def _await_commit(kafka: _Kafka, consumer: Any, settlement: Settlement, future: Any, event: bool) -> None:
    if event or not hasattr(future, "add_errback"):
        done = getattr(future, "is_done", False)
        settlement.end(future.exception if done else None)
        return
    commit = _Commit(kafka.consumer(consumer).pending, settlement)
    try:
        future.add_callback(commit.answered)
        future.add_errback(commit.failed)
        if future.is_done:  # until 2.1.2 without a lock: the answer may have come between its question and ours
            commit.failed(future.exception)
    except Exception as error:
        commit.failed(None)
        report("KafkaConsumer.commit_async", error)


def _offsets(offsets: Any = None, *_args: Any, **_kwargs: Any) -> Any:
    return offsets


def _settlement(state: Callable[[Any], Any], client: Any, verb: str, *args: Any) -> Settlement | None:
    try:
        return state(client).settlement(verb, *args)  # type: ignore[no-any-return]
    except Exception as error:
        report(verb, error)
        return None


def _settle(
    settlement: Settlement | None, call: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    try:
        result = call(client, *args, **kwargs)
    except BaseException as error:
        if settlement is not None:
            settlement.end(error)
        raise
    if settlement is not None:
        settlement.end()
    return result


def _transacts(verb: str) -> Callable[[_Kafka, Callable[..., Any]], Callable[..., Any]]:
    """A step of a transaction, with its outcome."""

    def wrap(kafka: _Kafka, step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            return _settle(_settlement(kafka.producer, self, verb), step, self, args, kwargs)

        return wrapper

    return wrap


_TRANSACTION = ("begin_transaction", "send_offsets_to_transaction", "commit_transaction", "abort_transaction")
_PRODUCER = ("kafka.producer.kafka", "KafkaProducer")
_CONSUMER = ("kafka.consumer.group", "KafkaConsumer")


class KafkaPythonInstrumentor(MessagingInstrumentor):
    """Instruments `kafka-python <https://kafka-python.readthedocs.io>`_: `KafkaProducer` and `KafkaConsumer`."""

    library = "kafka_python"
    entry_point = "messaging-kafka-python"
    requirements = ("kafka-python >= 2.0.2, < 4", "kafka-python-ng >= 2.2.3, < 4")
    adapter = _Kafka
    patches = (
        Patch(*_PRODUCER, "__init__", _make_producer),
        Patch(*_PRODUCER, "send", _send),
        Patch(*_PRODUCER, "close", _close_producer),
        *(Patch(*_PRODUCER, step, _transacts(step), since="2.2") for step in _TRANSACTION),
        Patch(*_CONSUMER, "__next__", _next),
        Patch(*_CONSUMER, "__iter__", _iter),
        Patch(*_CONSUMER, "poll", _poll),
        Patch(*_CONSUMER, "__enter__", _enter, since="3.0"),
        Patch(*_CONSUMER, "__exit__", _exit, since="3.0"),
        Patch(*_CONSUMER, "commit", _commit),
        Patch(*_CONSUMER, "commit_async", _commit_async),
        Patch(*_CONSUMER, "unsubscribe", _unsubscribe),
        Patch(*_CONSUMER, "close", _close_consumer),
    )
    rivals = (
        Rival(
            "opentelemetry.instrumentation.kafka",
            "KafkaInstrumentor",
            "opentelemetry-instrumentation-kafka-python",
            "kafka",
        ),
    )
