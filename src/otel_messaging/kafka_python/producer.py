"""`KafkaProducer`: records on their way, and transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import Cache
from otel_messaging.core.operations import Failure
from otel_messaging.core.propagation import fields
from otel_messaging.core.safety import guard, report
from otel_messaging.core.state import ATTRIBUTE, find, keep
from otel_messaging.core.telemetry import PublishRequest

from .cluster import Cluster
from .records import SYSTEM, fold, key_text, well_formed
from .settling import begin_settling, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

    from otel_messaging.core.operations import Operation, Publication, Settlement
    from otel_messaging.core.telemetry import Telemetry

    from .adapter import Kafka


HEADERS_SINCE = (0, 11)
_REST = ("partition", "timestamp_ms")  # of the parameters of `send`, those that follow the headers
_CLOSED = Failure("producer_closed", "the producer was closed before the broker answered")


class Producer:
    """What is kept for a producer. It must not refer to the producer itself, which its pending messages would keep.

    Attributes:
        pending: the messages that the broker has not answered yet.
        measures: whether the size of a value is known before it is sent.
        acknowledges_offsets: whether the broker tells offsets: without acknowledgement they are made up.
        places: what an acknowledgement tells of where a record has gone to, by topic and partition.
        flushes_first: whether the producer, when the interpreter exits, flushes before what is on its way is given up.
    """

    def __init__(self, telemetry: Telemetry, producer: Any) -> None:
        self.telemetry = telemetry
        self.pending: set[_Sent] = set()
        self.measures = producer.config["value_serializer"] is None
        self.acknowledges_offsets = producer.config["acks"] != 0
        self.places: Cache[Any, v.Facts] = Cache()
        self.flushes_first = False
        self._serializes_keys = producer.config["key_serializer"] is not None
        self._carries_headers = producer.config["api_version"] >= HEADERS_SINCE
        self._looks_twice = self._serializes_keys or not (self._carries_headers and self.measures)
        # Of lists, since 2.1, which is also since when a client knows its cluster's id: until then the library refuses.
        self._takes_subclasses = hasattr(producer._metadata, "cluster_id")
        self._cluster = Cluster(producer._metadata)
        self._facts = (*SYSTEM, (v.CLIENT_ID, producer.config["client_id"]))
        self._operations: Cache[str, Operation] = Cache()

    def begin(self, topic: str, value: Any, key: Any, headers: Any, context: Context) -> Publication:
        """Begin to send a record."""
        facts: v.Facts = () if key is None else ((v.KAFKA_KEY, key_text(key)),)
        if self.measures:
            sized = isinstance(value, bytes)
            facts += ((v.BODY_SIZE, len(value)) if sized else (v.KAFKA_TOMBSTONE, value is None or None),)
        folded = fold(headers) if headers and well_formed(headers) else None
        operation, cluster = self._operations.get(topic), self._cluster
        if operation is None or cluster.metadata._last_successful_refresh_ms != cluster.refreshed:
            operation = self.operation(topic)
        return self.telemetry.publish(operation, facts, folded, context)

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

    def carry(self, carrier: dict[str, str], value: Any, key: Any, headers: Any) -> Any:
        """A new list of headers, with a context in it instead of any that was there; the same where it would do harm.

        What is too large with a context is sent without, so that it must be possible to serialize it twice.
        """
        if (headers is not None or self._looks_twice) and not self._may_carry(value, key, headers):
            return headers
        sent = [item for item in headers if item[0].lower() not in fields()] if headers else []
        for name, text in carrier.items():
            sent.append((name, text.encode()))
        return sent

    def _may_carry(self, value: Any, key: Any, headers: Any) -> bool:
        """Whether the library takes more headers, and what it serializes can be serialized twice."""
        if not self._carries_headers or not (headers is None or well_formed(headers)):
            return False
        if headers is not None and type(headers) is not list and not self._takes_subclasses:
            return False
        if not self.measures and hasattr(value, "__next__"):
            return False
        return not (self._serializes_keys and hasattr(key, "__next__"))

    def settlement(self, verb: str) -> Settlement | None:
        """Begin a step of a transaction. It is told of the message that is being handled, of whatever library."""
        context = self.telemetry.context()
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
                    facts += _size(metadata)
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


def _size(metadata: Any) -> v.Facts:
    size = metadata.serialized_value_size
    return ((v.BODY_SIZE, size) if size >= 0 else (v.KAFKA_TOMBSTONE, True),)


def wrap_send(  # noqa: C901 (per message: a call would cost more than the branch it hides)
    kafka: Kafka, send: Callable[..., Any]
) -> Callable[..., Any]:
    """`KafkaProducer.send` is where every record enters; its future tells what became of it."""
    from kafka.errors import MessageSizeTooLargeError as too_large  # noqa: N813 (imported when the library is)

    telemetry = kafka.telemetry

    def wrapper(  # noqa: C901 (as above)
        self: Any, topic: Any, value: Any = None, key: Any = None, headers: Any = None, *args: Any, **kwargs: Any
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
                publication = producer.begin(topic, value, key, headers, context)
                if publication.carrier:
                    sent = producer.carry(publication.carrier, value, key, headers)
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
                try:
                    if args or kwargs:
                        future = send(self, topic, value, key, sent, *args, **kwargs)
                    else:
                        future = send(self, topic, value, key, sent)
                except too_large:
                    future = None
                # Until 2.3 the error comes with the future. Either way the producer has not taken the record, which may
                # be too large only with its context.
                if future is None or (getattr(future, "is_done", False) and isinstance(future.exception, too_large)):
                    future = send(self, topic, value, key, headers, *args, **kwargs)
        except BaseException as error:
            if publication is not None:
                publication.end(error)
            raise
        if publication is not None and (publication.span.is_recording() or publication.is_counted()):
            _await_answer(producer, publication, future, producer.measures and isinstance(value, bytes))
        return future

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


def wrap_init(kafka: Kafka, init: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaProducer.__init__` registers an exit handler that flushes; ours has to run after it."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            kafka.making(self)
        except Exception as error:
            report("KafkaProducer.__init__", error)
        return init(self, *args, **kwargs)

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
