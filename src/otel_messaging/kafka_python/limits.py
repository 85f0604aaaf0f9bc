"""Records that would be too large only with a context in them, which go without.

How large a record is, is known once it is serialized, and how large it may be, from the producer's settings. What a
broker takes nobody tells: it is learnt from the first refusal, which reaches the application as it is.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_messaging.core.cache import Cache
from otel_messaging.core.safety import MISTAKES, guard, report
from otel_messaging.instrumentation.state import find
from otel_messaging.systems.kafka import well_formed, without_fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from .adapter import Kafka


class Sending(NamedTuple):
    """A record that is being sent with a context.

    Attributes:
        topic: where to.
        given: the application's own headers.
        carrier: the context.
    """

    topic: str
    given: Any
    carrier: dict[str, str]

    def bare(self, headers: list[Any]) -> list[Any]:
        """The headers that it would have without a context.

        Args:
            headers: those that it has.
        """
        own: list[Any] = self.given or []
        others = without_fields(own, self.carrier)
        added = headers[len(others) + len(self.carrier) :]  # by a serializer
        return [*(own if well_formed(own) else others), *added]


_OVERHEAD, _HEADER_OVERHEAD = 128, 10
"""More than a record, and a header of one, takes beyond what is in it, in bytes."""


class Limits:
    """How large records may be.

    Attributes:
        careful: the size up to which every record is taken, in bytes, as far as one knows.
        sends: the code of what replaces `KafkaProducer.send`.
    """

    def __init__(self) -> None:
        self.careful = sys.maxsize
        self.sends: CodeType | None = None
        self._refused: Cache[str, int] = Cache()

    def add(self, largest: int) -> None:
        """There is a producer that takes no larger records itself."""
        self.careful = min(self.careful, largest)

    def refused(self, topic: str, size: int) -> None:
        """A broker has refused a record for its size, which may have been so because of its context."""
        size = min(size, self._refused.get(topic, size))
        self._refused.put(topic, size)
        self.careful = min(self.careful, size // 2)  # what `crosses` adds to a size is less than that

    def sending(self, headers: Any) -> Sending | None:
        """What is being sent with headers that have a context; None where they have none.

        To note it for each record would cost more than to look it up for the few that are large, where it is noted
        anyway: among the variables of the replacement of `KafkaProducer.send`, which is calling.
        """
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not self.sends:
            frame = frame.f_back
        known = frame.f_locals if frame is not None else {}
        if known.get("sent") is not headers or headers is known["headers"]:
            return None
        return Sending(known["topic"], known["headers"], known["publication"].carrier)

    def crosses(self, topic: str, size: int, bare: int) -> bool:
        """Whether a broker would refuse a record with a context, but perhaps not without.

        Args:
            topic: where it is sent to.
            size: its size in bytes.
            bare: what that would be without the context.
        """
        limit = self._refused.get(topic)
        return limit is not None and size + (size - bare) > limit


def largest_record(config: dict[str, Any]) -> int:
    """The size of the largest record that a producer takes, in bytes."""
    largest: int = config["max_request_size"]
    memory: int = config.get("buffer_memory", largest)  # until 2.0
    return min(largest, memory)


def largest_size(record: Any, headers: list[tuple[str, bytes]]) -> int:
    """The size that a record may have when it is sent again with other headers, in bytes; it is hardly less."""
    sizes = [len(name.encode()) + len(value) + _HEADER_OVERHEAD for name, value in headers]
    return sum((_OVERHEAD, max(0, record.serialized_key_size), max(0, record.serialized_value_size), *sizes))


def wrap_estimate(kafka: Kafka, estimate: Callable[..., Any]) -> Callable[..., Any]:
    """`KafkaProducer._estimate_size_in_bytes` is asked how large a record is, once that is serialized.

    A record that crosses a limit only with a context in it goes without: nothing is serialized or sent twice.
    """
    limits = kafka.limits

    def wrapper(self: Any, key: Any, value: Any, headers: Any = ()) -> Any:
        size = estimate(self, key, value, headers)
        if size <= limits.careful:
            return size
        try:
            sending = limits.sending(headers)
            if sending is None:
                return size
            bare = sending.bare(headers)
            smaller = estimate(self, key, value, bare)
            if size > find(self).largest or limits.crosses(sending.topic, size, smaller):
                headers[:] = bare  # our own list
                return smaller
        except MISTAKES as error:
            report("KafkaProducer._estimate_size_in_bytes", error)
        return size

    return wrapper


def wrap_done(kafka: Kafka, done: Callable[..., Any]) -> Callable[..., Any]:
    """`ProducerBatch.done` has the broker's answer, whether or not anybody records what became of the records."""
    from kafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

    too_large = (MessageSizeTooLargeError, RecordListTooLargeError)

    def learn(batch: Any, error: Any) -> None:
        if isinstance(error, too_large) or (isinstance(error, type) and issubclass(error, too_large)):
            kafka.limits.refused(batch.topic_partition.topic, batch.max_record_size)

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        error = args[2] if len(args) > 2 else kwargs.get("exception", kwargs.get("top_level_exception"))
        if error is not None:
            guard("ProducerBatch.done", learn, self, error)
        return done(self, *args, **kwargs)

    return wrapper
