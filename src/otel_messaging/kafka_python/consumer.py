"""`KafkaConsumer`: loops, lists of records, and commits."""

from __future__ import annotations

import time
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import Cache
from otel_messaging.core.delivery import forget_handled
from otel_messaging.core.finalizers import finalizer
from otel_messaging.core.operations import Failure, Moment
from otel_messaging.core.pulls import is_failure
from otel_messaging.core.safety import guard, report
from otel_messaging.instrumentation.loops import Held, HeldByThread, Loop
from otel_messaging.instrumentation.message_list import Batch, Single
from otel_messaging.instrumentation.settling import Last
from otel_messaging.instrumentation.state import ATTRIBUTE, find
from otel_messaging.systems.kafka import SYSTEM, describe, fold, place
from otel_messaging.systems.kafka_cluster import Cluster, Partition

from .settling import begin_settling, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.metrics import Lag
    from otel_messaging.core.operations import Operation
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.settling import Ends

    from .adapter import Kafka


_UNCOMMITTED = Failure("consumer_closed", "the consumer was closed before the broker answered")


class _Source(NamedTuple):
    """What is the same for all records of a partition."""

    partition: Partition
    operation: Operation
    lag: Lag | None


_Sources = Cache[tuple[str, int], _Source]


class Consumer:
    """What is kept for a consumer.

    Attributes:
        closed: whether it was closed.
    """

    def __init__(self, telemetry: Telemetry, consumer: Any) -> None:
        before = find(consumer)
        self.held: Held = Held() if before is None else before.held  # which loops have
        self.closed = False
        self.telemetry = telemetry
        self.pending: set[_Commit] = set()
        self._polled: tuple[HeldByThread, ...] = ()
        self._tells_lag = telemetry.settings.lag
        self._cluster = Cluster(consumer._client.cluster)
        self._assignment = consumer._subscription.assignment  # one dictionary, as long as the consumer lives
        config = consumer.config
        self._facts = (*SYSTEM, (v.CLIENT_ID, config["client_id"]), (v.GROUP, config["group_id"]))
        self._looped: _Sources = Cache()
        self._listed: _Sources = Cache()
        self._calls: Cache[tuple[str, int | None], Operation] = Cache()
        self._lags: Cache[Partition, Lag] = Cache()

    def hand_out(self, record: Any, context: Context) -> None:
        """A loop over the consumer has a record."""
        cluster = self._cluster
        source = self._looped.get((record.topic, record.partition))
        if source is None or cluster.metadata._last_successful_refresh_ms != cluster.refreshed:
            source = self.looped(record.topic, record.partition)
        behind = self._behind(source.partition, record) if self._tells_lag else None
        self.held.hold(self._deliver(source, record, behind, context))
        if source.lag is not None:
            source.lag.value = behind

    def ask(self) -> Moment:
        """The application asks for lists of records. Until there are any, it may still be handling those before."""
        forget_handled()  # that of a loop which is suspended in this thread, if the consumer was closed in another
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
        context = self.telemetry.active_context()
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
        shares = self._shares(seen, polled)
        every = [(place(record, bool(shares)), fold(record.headers)) for record in records]
        self.telemetry.receive(self._call(seen), facts, every, context, began, shares=shares)
        for tp in seen:
            source = sources[tp]
            if source.lag is not None:
                source.lag.value = self._behind(source.partition, polled[tp][-1])
        batches: dict[Any, Batch] = {tp: Batch(polled[tp], _handler(self, sources[tp])) for tp in seen}
        if len(records) == 1:
            (tp,) = seen
            batches[tp] = Single(polled[tp], _handler(self, sources[tp]), _taker(self, sources[tp]))
        for batch in batches.values():
            batch.held.entered = self.held.entered
        self._polled = tuple([batch.held for batch in batches.values()])
        polled.update(batches)

    def _shares(self, seen: list[Any], polled: dict[Any, list[Any]]) -> list[tuple[Operation, int]]:
        """How many records are of which topic, if they are of several."""
        topics = {tp.topic for tp in seen}
        if len(topics) == 1:
            return []
        return [(self._call([tp]), len(polled[tp])) for tp in seen]

    def fail(self, error: Exception, began: Moment) -> None:
        """Asking for lists of records has raised an exception."""
        context = self.telemetry.active_context()
        if context is not None:
            self.telemetry.receive(self._call(list(self._assignment)), (), (), context, began, error)

    def settlement(self, verb: str, offsets: Any = None) -> Ends | None:
        """Begin to commit offsets, those of all partitions if none are given."""
        context = self.telemetry.active_context()
        partitions = list(self._assignment) if offsets is None else _partitions(offsets)
        if context is None or partitions is None:
            return None
        delivery = self.telemetry.current_delivery(context)
        while delivery is not None and not self._settles(delivery, partitions):
            delivery = delivery.before()[1]  # the application may say itself that it handles the record
        settlement = self.telemetry.settle(verb, self._call(partitions), delivery, (), {})
        if delivery is None or not self.held.took(delivery):
            return settlement
        record = delivery.message
        return Last(settlement, delivery.end) if (record.topic, record.partition) in partitions else settlement

    def _settles(self, delivery: Delivery, partitions: list[Any]) -> bool:
        """Whether to commit partitions is to settle what is being handled: of this consumer, or several at once."""
        if any(held.delivery is delivery for held in self._helds()):
            return True
        records = delivery.message if delivery.several else ()
        places = {(getattr(record, "topic", None), getattr(record, "partition", None)) for record in records}
        return not places.isdisjoint(partitions)

    def abandon(self) -> None:
        """Nothing will be heard of commits that are still on their way."""
        for commit in list(self.pending):
            commit.failed(_UNCOMMITTED)

    @finalizer
    def __del__(self) -> None:
        guard("letting go of a KafkaConsumer", self.abandon)  # the application has not closed it

    def _helds(self) -> tuple[Held | HeldByThread, ...]:
        return (self.held, *self._polled)

    def enter(self) -> None:
        """A ``with`` block around the consumer will show the exceptions of its body."""
        for held in self._helds():
            held.entered = True

    def exit(self, error: BaseException | None) -> None:
        """The ``with`` block has ended, perhaps by an exception."""
        for held in self._helds():
            held.exit(error)

    def close(self) -> None:
        """The consumer was closed or has unsubscribed, perhaps in another thread."""
        for held in self._helds():
            held.close()
        self._lags = Cache()
        self._forget()

    def looped(self, topic: str, partition: int) -> _Source:
        """What is the same for all records of a partition that a loop over the consumer hands out."""
        if self._cluster.has_changed():
            self._forget()
        return self._looped.get((topic, partition)) or self._source(self._looped, v.DELIVER, topic, partition)

    def has(self, topic: str, partition: int) -> bool:
        """Whether records of a partition come to this consumer."""
        return (topic, partition) in self._assignment

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
        key = Partition(topic, partition)
        facts = (*self._facts, *self._cluster.facts(topic, partition), (v.KAFKA_PARTITION, partition))
        operation = self.telemetry.operation(action, "process", v.Destination(topic), facts)
        lag = self._lags.get(key)
        if lag is None and not operation.excluded:
            facts = (*SYSTEM, self._facts[-1], (v.KAFKA_PARTITION, partition))
            lag = self.telemetry.lag(operation.destination, facts, partial(self._assignment.__contains__, key))
            if lag is not None:
                self._lags.put(key, lag)
        return sources.put(key, _Source(key, operation, lag))

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
        stamp = record.timestamp
        waited = time.time() - stamp / 1000 if stamp is not None and stamp >= 0 else None
        telemetry = self.telemetry
        facts = describe(record, behind)
        delivery = telemetry.deliver(source.operation, facts, fold(record.headers), record, context, waited)
        if delivery is not None and telemetry.consume_hook is not None:
            telemetry.tell_consume_hook(delivery, record)
        return delivery

    def _behind(self, partition: Partition, record: Any) -> int | None:
        """How many records were behind one when the broker was last heard of. Nobody is asked for it."""
        state = self._assignment.get(partition)
        end = state.highwater if state is not None else None
        if end is None or end < 0:
            return None
        behind: int = end - record.offset - 1
        return behind if behind > 0 else 0

    def _end_current(self) -> None:
        """The record that is handled in this thread is handled. Other threads have lists of their own."""
        context = self.telemetry.active_context()
        current = self.telemetry.current_delivery(context) if context is not None else None
        for held in self._polled:
            if current is not None and held.delivery is current:
                held.end()


class _Commit:
    """A commit that the broker has not answered yet."""

    __slots__ = ("_pending", "_settlement")

    def __init__(self, pending: set[_Commit], settlement: Ends) -> None:
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


def _handler(consumer: Consumer, source: _Source) -> Callable[[Any], Delivery | None]:
    """What begins to handle one record of a list."""

    def begin(record: Any) -> Delivery | None:
        try:
            context = consumer.telemetry.active_context()
            if context is None:
                return None
            try:
                is_elsewhere = (record.topic, record.partition) != source.partition
            except AttributeError:
                return None  # the application has put something of its own into the list
            own = consumer.listed(record.topic, record.partition) if is_elsewhere else source  # or lists into one
            behind = consumer._behind(own.partition, record) if consumer._tells_lag else None
            return consumer._deliver(own, record, behind, context)
        except Exception as error:
            report("looping over records", error)
            return None

    return begin


def _taker(consumer: Consumer, source: _Source) -> Callable[[Any], None]:
    """What begins to handle the one record of a list that is not looped over, in the thread that has polled."""
    begin, polling = _handler(consumer, source), get_ident()

    def take(record: Any) -> None:
        if get_ident() == polling:  # another one does not poll, and so would never be done
            consumer.held.take(begin(record))

    return take


def _partitions(offsets: Any) -> list[Any] | None:
    """The partitions of offsets, or None where these are none: the library says so itself."""
    well_formed = isinstance(offsets, dict) and all(
        hasattr(key, "topic") and hasattr(key, "partition") for key in offsets
    )
    return list(offsets) if well_formed else None


def wrap_next(kafka: Kafka, advance: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.__next__` hands out one record, which is handled until the next is asked for."""
    telemetry = kafka.telemetry

    def wrapper(self: Any) -> Any:
        state = self.__dict__.get(ATTRIBUTE)
        if state is not None and state.held.delivery is not None:  # a loop has seen to it itself
            state.held.end()
        try:
            record = advance(self)
        except BaseException:
            forget_handled()  # the thread's last record, if another thread has asked since: that has ended its handling
            raise
        try:
            context = telemetry.active_context()
            if context is not None:
                if state is None or state.telemetry is not telemetry:
                    state = kafka.consumer(self)
                state.hand_out(record, context)
        except Exception as error:
            report("KafkaConsumer.__next__", error)
        return record

    return wrapper


def wrap_iter(kafka: Kafka, iterate: Callable[..., Any]) -> Callable[..., Any]:
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


def wrap_poll(kafka: Kafka, poll: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.poll` hands out records by lists. `__next__` calls it too, by an argument that is its own."""
    telemetry = kafka.telemetry

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        began, in_loop = None, False
        try:
            if telemetry.active_context() is not None:
                in_loop = _is_asked_by_iterator(*args, **kwargs)
                began = Moment.now() if in_loop else kafka.consumer(self).ask()
        except Exception as error:
            report("KafkaConsumer.poll", error)
        try:
            polled = poll(self, *args, **kwargs)
        except BaseException as error:
            if began is not None and is_failure(error, getattr(self, "_closed", False)):
                guard("KafkaConsumer.poll", kafka.consumer(self).fail, error, began)
            raise
        if polled and began is not None and not in_loop:
            guard("KafkaConsumer.poll", kafka.consumer(self).hand_over, polled, began)
        return polled

    return wrapper


def _is_asked_by_iterator(
    _timeout_ms: Any = 0, _max_records: Any = None, update_offsets: Any = True, *_: Any, **__: Any
) -> bool:
    return not update_offsets


def wrap_enter(kafka: Kafka, enter: Callable[..., Any]) -> Callable[..., Any]:
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


def wrap_exit(_kafka: Kafka, leave: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.__exit__`, since 3.0: the exception that passes is the one that handling a record raised."""

    def wrapper(self: Any, kind: Any, error: Any, trace: Any) -> Any:
        state = find(self)
        if state is not None:
            guard("KafkaConsumer.__exit__", state.exit, error)
        return leave(self, kind, error, trace)

    return wrapper


def wrap_close_consumer(_kafka: Kafka, close: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.close` ends the handling of records, perhaps in another thread, and gives up on commits."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = find(self)
        if state is None:
            return close(self, *args, **kwargs)
        guard("KafkaConsumer.close", state.close)
        try:
            return close(self, *args, **kwargs)
        finally:
            state.closed = True
            guard("KafkaConsumer.close", state.abandon)

    return wrapper


def wrap_unsubscribe(_kafka: Kafka, unsubscribe: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.unsubscribe` ends the handling of records."""

    def wrapper(self: Any) -> Any:
        state = find(self)
        if state is not None:
            guard("KafkaConsumer.unsubscribe", state.close)
        return unsubscribe(self)

    return wrapper


def wrap_commit(kafka: Kafka, commit: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.commit` returns when the broker has answered. What is committed by itself does not come here."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        settlement = begin_settling(kafka.consumer, self, "commit", _offsets(args, kwargs))
        return settle(settlement, commit, self, args, kwargs)

    return wrapper


def wrap_commit_async(kafka: Kafka, commit: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaConsumer.commit_async` returns at once; its future tells what became of it."""
    event = kafka.telemetry.settings.settle == "event"  # it cannot wait for the answer: the message is handled by then

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        settlement = begin_settling(kafka.consumer, self, "commit_async", _offsets(args, kwargs))
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


def _await_commit(kafka: Kafka, consumer: Any, settlement: Ends, future: Any, event: bool) -> None:
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


def _offsets(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a commit is given first. What it does not take, the library says itself."""
    return args[0] if args else kwargs.get("offsets")
