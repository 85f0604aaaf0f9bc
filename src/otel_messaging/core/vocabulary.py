"""Every name that telemetry of messaging uses, in the two vocabularies: the guide's and the conventions'.

The conventions are the OpenTelemetry messaging semantic conventions 1.44.0
(https://github.com/open-telemetry/semantic-conventions/tree/v1.44.0/docs/messaging). Names without a page there, those
of NATS above all, are the guide's.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.trace import SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

LARGEST = 2**63 - 1
"""The largest number that OTLP has room for. A larger one costs a span its attribute, and metrics the whole export."""

LONGEST = 1024
"""How many characters are recorded of a text whose length a sender decides."""

# What adapters know of a message. Each is written under the names that _NAMES gives it.
SYSTEM = "system"
DESTINATION = "destination"
TEMPLATE = "template"
TEMPORARY = "temporary"
ANONYMOUS = "anonymous"
OPERATION = "operation"
OPERATION_NAME = "operation name"
OPERATION_TYPE = "operation type"
MESSAGE_ID = "message id"
CONVERSATION_ID = "conversation id"
BODY_SIZE = "body size"
SERVER_ADDRESS = "server address"
SERVER_PORT = "server port"
PEER_ADDRESS = "peer address"
PEER_PORT = "peer port"
CLIENT_ID = "client id"
GROUP = "group"
BATCH_COUNT = "batch count"
BATCH_SIZE = "batch size"
KAFKA_PARTITION = "partition"
KAFKA_OFFSET = "offset"
KAFKA_KEY = "key"
KAFKA_TOMBSTONE = "tombstone"
KAFKA_CLUSTER = "cluster"
RABBITMQ_ROUTING_KEY = "routing key"
RABBITMQ_DELIVERY_TAG = "delivery tag"
RABBITMQ_VHOST = "virtual host"
RABBITMQ_PRIORITY = "priority"
RABBITMQ_EXPIRATION = "expiration"  # seconds
RABBITMQ_DEATH_QUEUE = "first death's queue"
RABBITMQ_DEATH_REASON = "first death's reason"
RABBITMQ_DEATH_COUNT = "deaths"
RABBITMQ_DEATH_QUEUES = "each death's queue"
RABBITMQ_DEATH_REASONS = "each death's reason"
RABBITMQ_DEATH_COUNTS = "each death's count"
NATS_SUBJECT = "subject"
NATS_GROUP = "queue group or durable"
NATS_STREAM = "stream"
NATS_SEQUENCE = "sequence"
NATS_DUPLICATE = "duplicate"
NATS_BUCKET = "bucket"
NATS_KEY = "stored key"
NATS_GIVEN_UP_STREAM = "given up: stream"
NATS_GIVEN_UP_CONSUMER = "given up: consumer"
NATS_GIVEN_UP_SEQUENCE = "given up: sequence"
NATS_GIVEN_UP_DELIVERIES = "given up: deliveries"
QUEUE_TIME = "queue time"  # seconds
LAG = "lag"
ATTEMPT = "attempt"
REDELIVERED = "redelivered"

# fact: (the guide's name, the conventions' name); None where a vocabulary has none.
_NAMES: dict[str, tuple[str | None, str | None]] = {
    SYSTEM: ("messaging.system", "messaging.system"),
    DESTINATION: ("messaging.destination.name", "messaging.destination.name"),
    TEMPLATE: ("messaging.destination.template", "messaging.destination.template"),
    TEMPORARY: (None, "messaging.destination.temporary"),
    ANONYMOUS: (None, "messaging.destination.anonymous"),
    OPERATION: ("messaging.operation", None),
    OPERATION_NAME: (None, "messaging.operation.name"),
    OPERATION_TYPE: (None, "messaging.operation.type"),
    MESSAGE_ID: ("messaging.message.id", "messaging.message.id"),
    CONVERSATION_ID: (None, "messaging.message.conversation_id"),
    BODY_SIZE: ("messaging.message.payload_size_bytes", None),  # opt-in in the conventions
    SERVER_ADDRESS: ("server.address", "server.address"),
    SERVER_PORT: ("server.port", "server.port"),
    PEER_ADDRESS: (None, "network.peer.address"),
    PEER_PORT: (None, "network.peer.port"),
    CLIENT_ID: ("messaging.client.id", "messaging.client.id"),
    GROUP: ("messaging.kafka.consumer.group", "messaging.consumer.group.name"),
    BATCH_COUNT: ("messaging.batch.message_count", "messaging.batch.message_count"),
    BATCH_SIZE: ("messaging.batch.total_size_bytes", None),
    KAFKA_PARTITION: ("messaging.kafka.destination.partition", "messaging.destination.partition.id"),
    KAFKA_OFFSET: ("messaging.kafka.message.offset", "messaging.kafka.offset"),
    KAFKA_KEY: ("messaging.kafka.message.key", "messaging.kafka.message.key"),
    KAFKA_TOMBSTONE: (None, "messaging.kafka.message.tombstone"),
    KAFKA_CLUSTER: (None, "messaging.kafka.cluster.id"),
    RABBITMQ_ROUTING_KEY: (
        "messaging.rabbitmq.destination.routing_key",
        "messaging.rabbitmq.destination.routing_key",
    ),
    RABBITMQ_DELIVERY_TAG: (
        "messaging.rabbitmq.message.delivery_tag",
        "messaging.rabbitmq.message.delivery_tag",
    ),
    NATS_SUBJECT: ("messaging.nats.subject", None),
    NATS_GROUP: (None, "messaging.consumer.group.name"),
    NATS_STREAM: ("messaging.nats.stream", "messaging.nats.stream"),
    NATS_SEQUENCE: ("messaging.nats.sequence", "messaging.nats.sequence"),
    NATS_DUPLICATE: ("messaging.nats.duplicate", "messaging.nats.duplicate"),
    NATS_BUCKET: ("messaging.nats.bucket", "messaging.nats.bucket"),
    NATS_KEY: ("messaging.nats.key", "messaging.nats.key"),
    # Ours, in both: neither vocabulary has a name for what only the broker knows.
    QUEUE_TIME: ("messaging.message.queue_time", "messaging.message.queue_time"),
    LAG: ("messaging.consumer.lag", "messaging.consumer.lag"),
    ATTEMPT: ("messaging.message.delivery_attempt", "messaging.message.delivery_attempt"),
    REDELIVERED: ("messaging.message.redelivered", "messaging.message.redelivered"),
    RABBITMQ_VHOST: ("messaging.rabbitmq.vhost", "messaging.rabbitmq.vhost"),
    RABBITMQ_PRIORITY: ("messaging.rabbitmq.message.priority", "messaging.rabbitmq.message.priority"),
    RABBITMQ_EXPIRATION: ("messaging.rabbitmq.message.expiration", "messaging.rabbitmq.message.expiration"),
    RABBITMQ_DEATH_QUEUE: ("messaging.rabbitmq.first_death.queue", "messaging.rabbitmq.first_death.queue"),
    RABBITMQ_DEATH_REASON: ("messaging.rabbitmq.first_death.reason", "messaging.rabbitmq.first_death.reason"),
    RABBITMQ_DEATH_COUNT: ("messaging.rabbitmq.death_count", "messaging.rabbitmq.death_count"),
    RABBITMQ_DEATH_QUEUES: ("messaging.rabbitmq.deaths.queues", "messaging.rabbitmq.deaths.queues"),
    RABBITMQ_DEATH_REASONS: ("messaging.rabbitmq.deaths.reasons", "messaging.rabbitmq.deaths.reasons"),
    RABBITMQ_DEATH_COUNTS: ("messaging.rabbitmq.deaths.counts", "messaging.rabbitmq.deaths.counts"),
    NATS_GIVEN_UP_STREAM: ("messaging.nats.max_deliveries.stream", "messaging.nats.max_deliveries.stream"),
    NATS_GIVEN_UP_CONSUMER: ("messaging.nats.max_deliveries.consumer", "messaging.nats.max_deliveries.consumer"),
    NATS_GIVEN_UP_SEQUENCE: ("messaging.nats.max_deliveries.sequence", "messaging.nats.max_deliveries.sequence"),
    NATS_GIVEN_UP_DELIVERIES: ("messaging.nats.max_deliveries.deliveries", "messaging.nats.max_deliveries.deliveries"),
}

# Attributes whose type differs from the fact's: a partition is a number to Kafka and a string to the conventions.
_CONVERT: dict[str, Callable[[Any], Any]] = {"messaging.destination.partition.id": str}

ERROR_TYPE = "error.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"
MESSAGE_FAILED = "message_failed"
MESSAGE_INDEX = "message.index"
CAPTURED_HEADER = "messaging.header."
RETRY = "retry_attempt"
RETRY_NUMBER = "attempt"
RETRY_COUNT = "retry.count"
DEAD_LETTER = "send_to_dead_letter"
DEAD_LETTER_ORIGIN = "original_topic"
DEAD_LETTER_ERROR = "error"
SETTLE_REQUEUE = "messaging.settle.requeue"
SETTLE_MULTIPLE = "messaging.settle.multiple"
SETTLE_DELAY = "messaging.settle.delay"  # seconds

PRODUCED = "messaging.messages.produced"
CONSUMED = "messaging.messages.consumed"
PROCESSING_DURATION = "messaging.processing.duration"
CLIENT_SENT = "messaging.client.sent.messages"
CLIENT_CONSUMED = "messaging.client.consumed.messages"
CLIENT_DURATION = "messaging.client.operation.duration"
PROCESS_DURATION = "messaging.process.duration"
QUEUE_DURATION = "messaging.queue.duration"  # ours, in both vocabularies
CONSUMER_LAG = "messaging.consumer.lag"  # ours, in both vocabularies
RETRIED = "messaging.messages.retried"  # ours, in both vocabularies
DEAD_LETTERED = "messaging.messages.dead_lettered"  # ours, in both vocabularies
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
MILLISECONDS_BUCKETS = tuple(1000 * bound for bound in SECONDS_BUCKETS)

OTHER = "_OTHER"
"""Stands in metrics for the names of destinations above a limit."""

# Low in cardinality, and so allowed on metrics. In the guide the instrument says what the operation was.
_METRIC_FACTS = (SYSTEM, GROUP)
_SEMCONV_METRIC_FACTS = (OPERATION_NAME, NATS_GROUP, SERVER_ADDRESS, SERVER_PORT, KAFKA_PARTITION)


def cut(text: str) -> str:
    """What is recorded of a text that a sender decides: its beginning, as text that can be encoded.

    Half a surrogate, which JSON can hold, costs an exporter all the spans that it is about to send.
    """
    short = text if len(text) <= LONGEST else text[:LONGEST]
    return short if short.isascii() else short.encode(errors="replace").decode()


def named(value: Any) -> str | None:
    """What is recorded of a name that somebody may have made up, as in JSON: nothing where it is no text."""
    return cut(value) if isinstance(value, str) else None


def counted(value: Any) -> int | None:
    """The same of a number: no exporter encodes one that is too large, nor anything else that was sent with it."""
    return value if type(value) is int and 0 <= value <= LARGEST else None


class Action(NamedTuple):
    """A kind of operation, in both vocabularies.

    Attributes:
        operation: the guide's ``messaging.operation``, the first word of its span names.
        type: the conventions' ``messaging.operation.type``.
        guide_kind: the span kind in the guide.
        kind: the span kind in the conventions.
        word: the first word of the guide's span names, where it is not the operation.
    """

    operation: str
    type: str
    guide_kind: SpanKind
    kind: SpanKind
    word: str = ""


PUBLISH = Action("publish", "send", SpanKind.PRODUCER, SpanKind.PRODUCER)
DELIVER = Action("receive", "process", SpanKind.CONSUMER, SpanKind.CONSUMER)
"""The application is called with a message, or loops over messages."""
RECEIVE = Action("receive", "receive", SpanKind.CONSUMER, SpanKind.CLIENT)
"""The application pulls one message, or a batch."""
PROCESS = Action("process", "process", SpanKind.CONSUMER, SpanKind.CONSUMER)
"""The application handles a message that it has pulled."""
BATCH_PROCESS = Action("process", "process", SpanKind.CONSUMER, SpanKind.CONSUMER, "batch_process")
"""The application handles several messages at once."""
BATCH_PUBLISH = Action("publish", "send", SpanKind.PRODUCER, SpanKind.CLIENT, "batch_publish")
"""The application publishes several messages as one. The contexts that they carry are those of their own spans."""
SETTLE = Action("settle", "settle", SpanKind.CLIENT, SpanKind.CLIENT)
STORE = Action("", "", SpanKind.CLIENT, SpanKind.CLIENT)
"""The application reads or writes a value that the broker keeps. No vocabulary has a word for it but the library's."""
HANDLING = (DELIVER, PROCESS, BATCH_PROCESS)
_NOT_OF_HANDLING = frozenset({PEER_ADDRESS, PEER_PORT})
"""What the conventions leave out where the application handles messages: no call to the broker is made then."""


_WHEREABOUTS = frozenset({SYSTEM, SERVER_ADDRESS, SERVER_PORT})


class Destination(NamedTuple):
    """Where messages go to or come from.

    Attributes:
        name: in the guide's words; empty where the messages of a batch have no destination in common.
        semconv: in the conventions' words, where they compose another name.
        template: stands for the name in span names and metrics where names are many, such as a wildcard.
        temporary: the name is made up for one conversation, and stays out of span names and metrics.
        anonymous: nobody has chosen the name; temporary, too.
    """

    name: str
    semconv: str | None = None
    template: str | None = None
    temporary: bool = False
    anonymous: bool = False


Facts = tuple[tuple[str, Any], ...]
Attributes = dict[str, Any]


def peer(address: Any) -> Facts:
    """Whom a connection is to.

    Args:
        address: what ``getpeername()`` tells of its socket: a tuple of host and port, or a path; None if nothing.
    """
    if isinstance(address, tuple) and len(address) >= 2:
        return ((PEER_ADDRESS, str(address[0])), (PEER_PORT, address[1]))
    return ((PEER_ADDRESS, address),) if isinstance(address, str) and address else ()


def whereabouts(facts: Facts) -> Facts:
    """The facts that say which system messages go to, and which server of it."""
    return tuple(fact for fact in facts if fact[0] in _WHEREABOUTS and fact[1] is not None)


class Vocabulary:
    """The names in force.

    Args:
        mode: ``guide``, ``semconv`` or ``both``.
        templates: globs of destinations whose names are many: the first that matches stands for them.

    Attributes:
        keys: of each fact the names of its attributes, and what converts the value for it.
        single: the name of each fact that has just one, and is not converted.
    """

    def __init__(self, mode: str, templates: tuple[str, ...] = ()) -> None:
        self.templates = templates
        self.guide = mode in ("guide", "both")
        self.semconv = mode in ("semconv", "both")
        self.schema_url = SCHEMA_URL if mode == "semconv" else None
        self.ok_on_success = mode == "guide"
        self.keys = {fact: tuple(self._chosen(names)) for fact, names in _NAMES.items()}
        self.single = {fact: keys[0][0] for fact, keys in self.keys.items() if len(keys) == 1 and keys[0][1] is None}

    def _chosen(self, names: tuple[str | None, str | None]) -> Iterable[tuple[str, Callable[[Any], Any] | None]]:
        wanted = dict.fromkeys((names[0] if self.guide else None, names[1] if self.semconv else None))
        return ((name, _CONVERT.get(name)) for name in wanted if name is not None)

    def write(self, attributes: Attributes, facts: Iterable[tuple[str, Any]]) -> Attributes:
        """Write facts into attributes, under the names in force. A fact that is None is not known, and left out."""
        keys = self.keys
        for fact, value in facts:
            if value is not None:
                for key, convert in keys[fact]:
                    attributes[key] = value if convert is None else convert(value)
        return attributes

    def destination(self, destination: Destination) -> str:
        """The destination's name in the vocabulary in force."""
        return destination.semconv or destination.name if self.semconv else destination.name

    def span_name(self, action: Action, verb: str, destination: Destination) -> str:
        """``verb destination``, or the verb alone where no name of low cardinality is known."""
        word = verb if self.semconv or action in (SETTLE, STORE) else action.word or action.operation
        name = self.low_name(destination)
        return f"{word} {name}" if name else word

    def template(self, destination: Destination) -> str | None:
        """What stands for the destination's name: a glob of the settings goes before a wildcard of a subscription."""
        name = self.destination(destination)
        if name:
            for glob in self.templates:
                if fnmatchcase(name, glob):
                    return glob
        return destination.template

    def low_name(self, destination: Destination) -> str:
        """The destination's name or what stands for it, of low cardinality; empty where there is none."""
        return self.template(destination) or ("" if destination.temporary else self.destination(destination))

    def kind(self, action: Action) -> SpanKind:
        """The span kind of an action."""
        return action.kind if self.semconv else action.guide_kind

    def describe(self, action: Action, verb: str, destination: Destination, facts: Facts) -> Facts:
        """All facts that are the same for every message of an operation."""
        return (
            (OPERATION, action.operation or verb),
            (OPERATION_NAME, verb),
            (OPERATION_TYPE, action.type or None),
            (DESTINATION, self.destination(destination) or None),
            (TEMPLATE, self.template(destination)),
            (TEMPORARY, destination.temporary or None),
            (ANONYMOUS, destination.anonymous or None),
            *(facts if action not in HANDLING else (pair for pair in facts if pair[0] not in _NOT_OF_HANDLING)),
        )

    def metric_attributes(self, verb: str, destination: Destination, facts: Facts, other: bool = False) -> Attributes:
        """The attributes of an operation's metrics: the facts of low cardinality.

        Args:
            verb: the library's own word for the operation.
            destination: where the messages go to or come from.
            facts: what is the same for all of its messages.
            other: whether the destination is one of those that are not told apart.
        """
        allowed = _METRIC_FACTS + _SEMCONV_METRIC_FACTS if self.semconv else _METRIC_FACTS
        told = ((OPERATION_NAME, verb), *facts)
        return self.write(self.place(destination, other), (pair for pair in told if pair[0] in allowed))

    def place(self, destination: Destination, other: bool = False) -> Attributes:
        """How metrics name a destination. In the conventions a template is not in the name's place, but beside it.

        Args:
            destination: where the messages go to or come from.
            other: whether it is one of those that are not told apart.
        """
        if other:
            return self.write({}, ((DESTINATION, OTHER),))
        template, name = self.template(destination), self.low_name(destination) or None
        if template is None or not self.semconv:
            return self.write({}, ((DESTINATION, name),))
        return self.write({}, ((DESTINATION, name if self.guide else None), (TEMPLATE, template)))
