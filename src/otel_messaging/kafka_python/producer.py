"""`KafkaProducer`: records on their way, and transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import Cache
from otel_messaging.core.operations import Failure
from otel_messaging.core.requests import PublishRequest
from otel_messaging.core.safety import guard, report
from otel_messaging.instrumentation.state import ATTRIBUTE, find, keep
from otel_messaging.systems.kafka import SYSTEM, TOMBSTONE, key_text, readable, sized, well_formed, without_fields
from otel_messaging.systems.kafka_cluster import Cluster

from .limits import largest_record
from .settling import begin_settling, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

    from otel_messaging.core.operations import Operation, Publication, Settlement
    from otel_messaging.core.telemetry import Telemetry

    from .adapter import Kafka


HEADERS_SINCE = (0, 11)
_REST = ("timestamp_ms",)  # of the parameters of `send`, those that follow the partition
_CLOSED = Failure("producer_closed", "the producer was closed before the broker answered")


class Producer:
    """What is kept for a producer. It must not refer to the producer itself, which its pending messages would keep.

    Attributes:
        pending: the messages that the broker has not answered yet.
        measures: whether the size of a value is known before it is sent.
        acknowledges_offsets: whether the broker tells offsets: without acknowledgement they are made up.
        places: what an acknowledgement tells of where a record has gone to, by topic and partition.
        flushes_first: whether the producer, when the interpreter exits, flushes before what is on its way is given up.
        largest: the size of the largest record that the client itself takes, in bytes.
    """

    def __init__(self, telemetry: Telemetry, producer: Any) -> None:
        self.telemetry = telemetry
        self.pending: set[_Sent] = set()
        self.measures = producer.config["value_serializer"] is None
        self.acknowledges_offsets = producer.config["acks"] != 0
        self.places: Cache[Any, v.Facts] = Cache()
        self.flushes_first = False
        self.largest = largest_record(producer.config)
        self._carries_headers = producer.config["api_version"] >= HEADERS_SINCE
        # Of lists, since 2.1, which is also since when a client knows its cluster's id: until then the library refuses.
        self._takes_subclasses = hasattr(producer._metadata, "cluster_id")
        self._cluster = Cluster(producer._metadata)
        self._facts = (*SYSTEM, (v.CLIENT_ID, producer.config["client_id"]))
        self._operations: Cache[str, Operation] = Cache()

    def begin(self, topic: str, value: Any, key: Any, headers: Any, partition: Any, context: Context) -> Publication:
        """Begin to send a record."""
        facts: v.Facts = () if key is None else ((v.KAFKA_KEY, key_text(key)),)
        if self.measures:
            if isinstance(value, bytes):
                facts += ((v.BODY_SIZE, len(value)),)
            elif value is None:
                facts += TOMBSTONE
        if type(partition) is int:
            facts += ((v.KAFKA_PARTITION, partition),)
        operation, cluster = self._operations.get(topic), self._cluster
        if operation is None or cluster.metadata._last_successful_refresh_ms != cluster.refreshed:
            operation = self.operation(topic)
        return self.telemetry.publish(operation, facts, readable(headers) if headers else None, context)

    def operation(self, topic: str) -> Operation:
        """What is the same for all messages to a topic."""
        if self._cluster.has_changed():
            self._operations.clear()
            self.places.clear()
        operation = self._operations.get(topic)
        if operation is None:
            facts = (*self._facts, *self._cluster.facts(topic, None))
            operation = self.telemetry.operation(v.PUBLISH, "send", v.Destination(topic), facts)
            self._operations.put(topic, operation)
        return operation

    def place(self, place: Any, operation: Operation) -> v.Facts:
        """The partition, and the broker that leads it, where the operation has not told of it already."""
        leader = self._cluster.leader(place.topic, place.partition)
        moved = () if all(fact in operation.facts for fact in leader) else leader
        return self.places.put(place, ((v.KAFKA_PARTITION, place.partition), *moved))

    def carry(self, carrier: dict[str, str], headers: Any) -> Any:
        """A new list of headers, with a context instead of any that was there; the same list where it would do harm."""
        if not self._carries_headers:
            return headers
        sent: list[Any] = []
        if headers is not None:
            if type(headers) is not list and not (self._takes_subclasses and isinstance(headers, list)):
                return headers
            sent = without_fields(headers, carrier)
            if not well_formed(sent):
                return headers
        for name, text in carrier.items():
            sent.append((name, text.encode()))
        return sent

    def settlement(self, verb: str) -> Settlement | None:
        """Begin a step of a transaction. It is told of the message that is being handled, of whatever library."""
        context = self.telemetry.active_context()
        if context is None:
            return None
        return self.telemetry.settle(verb, self.operation(""), self.telemetry.current_delivery(context), (), {})

    def abandon(self) -> None:
        """Nothing will be heard of what is still on its way."""
        for sent in list(self.pending):
            sent.failed(_CLOSED)


class _Sent:
    """A message that the producer has, until the broker has answered. Called on the producer's own thread."""

    __slots__ = ("_producer", "_publication", "_sized")

    def __init__(self, producer: Producer, publication: Publication, sized: bool) -> None:
        self._producer = producer
        self._publication: Publication | None = publication
        self._sized = sized
        producer.pending.add(self)

    def acknowledged(self, metadata: Any, error: BaseException | Failure | None = None) -> None:
        """The broker has the record, or has not if there is an error."""
        producer = self._producer
        try:
            producer.pending.remove(self)  # atomic: the producer's thread and close() may both want it
        except KeyError:
            return
        publication: Any = self._publication
        self._publication = None  # futures that are kept, keep us until 3.0
        facts: v.Facts = ()
        try:
            if error is None:
                place = metadata.topic_partition
                facts = producer.places.get(place) or producer.place(place, publication.operation)
                if producer.acknowledges_offsets and metadata.offset >= 0:
                    facts += ((v.KAFKA_OFFSET, metadata.offset),)
                if not self._sized:
                    facts += sized(metadata.serialized_value_size)
        except Exception as failure:
            report("acknowledging a record", failure)
        finally:
            publication.end(error, facts)

    def failed(self, error: BaseException | Failure | None) -> None:
        """The broker does not have the record, or nobody will know."""
        self.acknowledged(None, error)

    def answered(self, future: Any) -> None:
        """The answer is there already."""
        self.acknowledged(future.value, future.exception)


def wrap_send(  # noqa: C901 (per message: a call would cost more than the branch it hides)
    kafka: Kafka, send: Callable[..., Any]
) -> Callable[..., Any]:
    """`KafkaProducer.send` is where every record enters; its future tells what became of it."""
    telemetry = kafka.telemetry

    def wrapper(
        self: Any,
        topic: Any,
        value: Any = None,
        key: Any = None,
        headers: Any = None,
        partition: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        producer: Any = None
        publication: Publication | None = None
        sent = headers
        try:
            context = telemetry.outgoing()
            if context is not None and isinstance(topic, str):
                producer = self.__dict__.get(ATTRIBUTE)
                if producer is None or producer.telemetry is not telemetry:
                    producer = keep(self, telemetry, kafka.add_producer)
                publication = producer.begin(topic, value, key, headers, partition, context)
                if publication.carrier:
                    sent = producer.carry(publication.carrier, headers)
                if telemetry.publish_hook is not None:
                    rest = {**dict(zip(_REST, args, strict=False)), **kwargs}
                    arguments = {"topic": topic, "value": value, "key": key, "headers": headers, **rest}
                    arguments.update({} if partition is None else {"partition": partition})
                    telemetry.tell_publish_hook(publication, PublishRequest(self, topic, arguments))
        except Exception as error:
            report("KafkaProducer.send", error)
        try:
            if args or kwargs:
                future = send(self, topic, value, key, sent, partition, *args, **kwargs)
            else:
                future = send(self, topic, value, key, sent, partition)
        except BaseException as error:
            if publication is not None:
                publication.end(error)
            raise
        if publication is not None and (publication.span.is_recording() or publication.is_counted()):
            _await_answer(producer, publication, future, producer.measures and isinstance(value, bytes))
        return future

    kafka.limits.sends = wrapper.__code__
    return wrapper


def _await_answer(producer: Producer, publication: Publication, future: Any, sized: bool) -> None:
    sent = _Sent(producer, publication, sized)
    try:
        add_both = getattr(future, "_add_cb_eb", None)  # since 3.0: takes the future's lock once instead of twice
        if add_both is not None:
            add_both(sent.acknowledged, sent.failed)
            return
        future.add_callback(sent.acknowledged)
        future.add_errback(sent.failed)
        if future.is_done:  # until 2.1.2 without a lock: the answer may have come between its question and ours
            sent.answered(future)
    except Exception as error:
        sent.failed(None)  # no future of the library: nothing will be heard
        report("KafkaProducer.send", error)


def wrap_cleanup(kafka: Kafka, make: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaProducer._cleanup_factory` makes the exit handler that flushes, just before it is registered.

    Ours has to run after it. `__init__` calls it, whose own replacement would move the warnings that it gives to its
    caller.
    """

    def wrapper(self: Any) -> Any:
        guard("KafkaProducer._cleanup_factory", kafka.making, self)
        return make(self)

    return wrapper


def wrap_close_producer(kafka: Kafka, close: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaProducer.close` may give up on records: their spans must not outlive it."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return close(self, *args, **kwargs)
        finally:
            state = find(self)
            if state is not None and (kafka.leaving or getattr(self, "_closed", True)):
                guard("KafkaProducer.close", state.abandon)

    return wrapper


def transacts(verb: str) -> Callable[[Kafka, Callable[..., Any]], Callable[..., Any]]:
    """A step of a transaction, with its outcome."""

    def wrap(kafka: Kafka, step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            return settle(begin_settling(kafka.producer, self, verb), step, self, args, kwargs)

        return wrapper

    return wrap
