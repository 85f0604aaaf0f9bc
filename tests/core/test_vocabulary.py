"""Names and types of every attribute, and the names and kinds of spans, in each vocabulary."""

from __future__ import annotations

import pytest
from opentelemetry.trace import SpanKind

from otel_messaging.core import vocabulary as v
from otel_messaging.core.vocabulary import Destination, Vocabulary

MODES = ("guide", "semconv", "both")

# fact, value, what the guide writes, what the conventions write
ROWS = [
    (v.SYSTEM, "kafka", {"messaging.system": "kafka"}, {"messaging.system": "kafka"}),
    (v.DESTINATION, "orders", {"messaging.destination.name": "orders"}, {"messaging.destination.name": "orders"}),
    (v.TEMPLATE, "a.*", {"messaging.destination.template": "a.*"}, {"messaging.destination.template": "a.*"}),
    (v.TEMPORARY, True, {}, {"messaging.destination.temporary": True}),
    (v.ANONYMOUS, True, {}, {"messaging.destination.anonymous": True}),
    (v.OPERATION, "publish", {"messaging.operation": "publish"}, {}),
    (v.OPERATION_NAME, "send", {}, {"messaging.operation.name": "send"}),
    (v.OPERATION_TYPE, "send", {}, {"messaging.operation.type": "send"}),
    (v.MESSAGE_ID, "m-1", {"messaging.message.id": "m-1"}, {"messaging.message.id": "m-1"}),
    (v.CONVERSATION_ID, "c-1", {}, {"messaging.message.conversation_id": "c-1"}),
    (v.BODY_SIZE, 5, {"messaging.message.payload_size_bytes": 5}, {}),
    (v.SERVER_ADDRESS, "broker", {"server.address": "broker"}, {"server.address": "broker"}),
    (v.SERVER_PORT, 9092, {"server.port": 9092}, {"server.port": 9092}),
    (v.PEER_ADDRESS, "10.0.0.7", {}, {"network.peer.address": "10.0.0.7"}),
    (v.PEER_PORT, 9092, {}, {"network.peer.port": 9092}),
    (v.CLIENT_ID, "shop", {"messaging.client.id": "shop"}, {"messaging.client.id": "shop"}),
    (v.GROUP, "g", {"messaging.kafka.consumer.group": "g"}, {"messaging.consumer.group.name": "g"}),
    (v.BATCH_COUNT, 3, {"messaging.batch.message_count": 3}, {"messaging.batch.message_count": 3}),
    (v.BATCH_SIZE, 30, {"messaging.batch.total_size_bytes": 30}, {}),
    (
        v.KAFKA_PARTITION,
        2,
        {"messaging.kafka.destination.partition": 2},
        {"messaging.destination.partition.id": "2"},
    ),
    (v.KAFKA_OFFSET, 7, {"messaging.kafka.message.offset": 7}, {"messaging.kafka.offset": 7}),
    (v.KAFKA_KEY, "k", {"messaging.kafka.message.key": "k"}, {"messaging.kafka.message.key": "k"}),
    (v.KAFKA_TOMBSTONE, True, {}, {"messaging.kafka.message.tombstone": True}),
    (v.KAFKA_CLUSTER, "c", {}, {"messaging.kafka.cluster.id": "c"}),
    (
        v.RABBITMQ_ROUTING_KEY,
        "r",
        {"messaging.rabbitmq.destination.routing_key": "r"},
        {"messaging.rabbitmq.destination.routing_key": "r"},
    ),
    (
        v.RABBITMQ_DELIVERY_TAG,
        1,
        {"messaging.rabbitmq.message.delivery_tag": 1},
        {"messaging.rabbitmq.message.delivery_tag": 1},
    ),
    (v.NATS_SUBJECT, "s", {"messaging.nats.subject": "s"}, {}),
    (v.NATS_GROUP, "q", {}, {"messaging.consumer.group.name": "q"}),
    (v.NATS_STREAM, "S", {"messaging.nats.stream": "S"}, {"messaging.nats.stream": "S"}),
    (v.NATS_SEQUENCE, 4, {"messaging.nats.sequence": 4}, {"messaging.nats.sequence": 4}),
    (v.NATS_DUPLICATE, True, {"messaging.nats.duplicate": True}, {"messaging.nats.duplicate": True}),
    (v.NATS_BUCKET, "b", {"messaging.nats.bucket": "b"}, {"messaging.nats.bucket": "b"}),
    (v.NATS_KEY, "k", {"messaging.nats.key": "k"}, {"messaging.nats.key": "k"}),
    (v.QUEUE_TIME, 0.5, {"messaging.message.queue_time": 0.5}, {"messaging.message.queue_time": 0.5}),
    (v.LAG, 3, {"messaging.consumer.lag": 3}, {"messaging.consumer.lag": 3}),
    (v.ATTEMPT, 2, {"messaging.message.delivery_attempt": 2}, {"messaging.message.delivery_attempt": 2}),
    (v.REDELIVERED, True, {"messaging.message.redelivered": True}, {"messaging.message.redelivered": True}),
    (v.RABBITMQ_VHOST, "shop", {"messaging.rabbitmq.vhost": "shop"}, {"messaging.rabbitmq.vhost": "shop"}),
    (v.RABBITMQ_PRIORITY, 5, {"messaging.rabbitmq.message.priority": 5}, {"messaging.rabbitmq.message.priority": 5}),
    (
        v.RABBITMQ_EXPIRATION,
        1.5,
        {"messaging.rabbitmq.message.expiration": 1.5},
        {"messaging.rabbitmq.message.expiration": 1.5},
    ),
    (
        v.RABBITMQ_DEATH_QUEUE,
        "q",
        {"messaging.rabbitmq.first_death.queue": "q"},
        {"messaging.rabbitmq.first_death.queue": "q"},
    ),
    (
        v.RABBITMQ_DEATH_REASON,
        "expired",
        {"messaging.rabbitmq.first_death.reason": "expired"},
        {"messaging.rabbitmq.first_death.reason": "expired"},
    ),
    (v.RABBITMQ_DEATH_COUNT, 2, {"messaging.rabbitmq.death_count": 2}, {"messaging.rabbitmq.death_count": 2}),
    (
        v.RABBITMQ_DEATH_QUEUES,
        ("q", "r"),
        {"messaging.rabbitmq.deaths.queues": ("q", "r")},
        {"messaging.rabbitmq.deaths.queues": ("q", "r")},
    ),
    (
        v.RABBITMQ_DEATH_REASONS,
        ("expired", "maxlen"),
        {"messaging.rabbitmq.deaths.reasons": ("expired", "maxlen")},
        {"messaging.rabbitmq.deaths.reasons": ("expired", "maxlen")},
    ),
    (
        v.RABBITMQ_DEATH_COUNTS,
        (1, 2),
        {"messaging.rabbitmq.deaths.counts": (1, 2)},
        {"messaging.rabbitmq.deaths.counts": (1, 2)},
    ),
    (
        v.NATS_GIVEN_UP_STREAM,
        "S",
        {"messaging.nats.max_deliveries.stream": "S"},
        {"messaging.nats.max_deliveries.stream": "S"},
    ),
    (
        v.NATS_GIVEN_UP_CONSUMER,
        "c",
        {"messaging.nats.max_deliveries.consumer": "c"},
        {"messaging.nats.max_deliveries.consumer": "c"},
    ),
    (
        v.NATS_GIVEN_UP_SEQUENCE,
        7,
        {"messaging.nats.max_deliveries.sequence": 7},
        {"messaging.nats.max_deliveries.sequence": 7},
    ),
    (
        v.NATS_GIVEN_UP_DELIVERIES,
        3,
        {"messaging.nats.max_deliveries.deliveries": 3},
        {"messaging.nats.max_deliveries.deliveries": 3},
    ),
]


def typed(attributes):
    return {name: (type(value), value) for name, value in attributes.items()}


@pytest.mark.parametrize(("fact", "value", "guide", "semconv"), ROWS, ids=[row[0] for row in ROWS])
def test_a_fact_is_written_under_its_names(fact, value, guide, semconv):
    assert typed(Vocabulary("guide").write({}, [(fact, value)])) == typed(guide)
    assert typed(Vocabulary("semconv").write({}, [(fact, value)])) == typed(semconv)
    assert typed(Vocabulary("both").write({}, [(fact, value)])) == typed({**guide, **semconv})


def test_there_is_a_row_for_every_fact():
    assert {row[0] for row in ROWS} == set(v._NAMES)


@pytest.mark.parametrize("mode", ["guide", "semconv", "both"])
def test_a_fact_that_is_not_known_is_left_out(mode):
    assert Vocabulary(mode).write({}, [(row[0], None) for row in ROWS]) == {}


def test_facts_that_are_false_or_zero_or_empty_are_known():
    facts = [(v.KAFKA_PARTITION, 0), (v.BODY_SIZE, 0), (v.KAFKA_KEY, "")]
    assert Vocabulary("both").write({}, facts) == {
        "messaging.kafka.destination.partition": 0,
        "messaging.destination.partition.id": "0",
        "messaging.message.payload_size_bytes": 0,
        "messaging.kafka.message.key": "",
    }


def test_only_the_conventions_alone_have_a_schema_url():
    assert Vocabulary("semconv").schema_url == "https://opentelemetry.io/schemas/1.44.0"
    assert Vocabulary("guide").schema_url is None
    assert Vocabulary("both").schema_url is None


def test_only_the_guide_says_ok():
    assert [Vocabulary(mode).ok_on_success for mode in ("guide", "semconv", "both")] == [True, False, False]


# action, verb, the guide's word and kind, the conventions' word, type and kind
ACTIONS = [
    (v.PUBLISH, "send", "publish", SpanKind.PRODUCER, "send", "send", SpanKind.PRODUCER),
    (v.PUBLISH, "publish", "publish", SpanKind.PRODUCER, "publish", "send", SpanKind.PRODUCER),
    (v.PUBLISH, "request", "publish", SpanKind.PRODUCER, "request", "send", SpanKind.PRODUCER),
    (v.DELIVER, "process", "receive", SpanKind.CONSUMER, "process", "process", SpanKind.CONSUMER),
    (v.RECEIVE, "poll", "receive", SpanKind.CONSUMER, "poll", "receive", SpanKind.CLIENT),
    (v.PROCESS, "process", "process", SpanKind.CONSUMER, "process", "process", SpanKind.CONSUMER),
    (v.SETTLE, "ack", "ack", SpanKind.CLIENT, "ack", "settle", SpanKind.CLIENT),
]


@pytest.mark.parametrize(("action", "verb", "word", "kind", "own_word", "type_", "own_kind"), ACTIONS)
def test_an_action_has_its_words_and_kind(action, verb, word, kind, own_word, type_, own_kind):
    guide, semconv, both = (Vocabulary(mode) for mode in ("guide", "semconv", "both"))
    orders = Destination("orders")
    assert (guide.span_name(action, verb, orders), guide.kind(action)) == (f"{word} orders", kind)
    for names in (semconv, both):
        assert (names.span_name(action, verb, orders), names.kind(action)) == (f"{own_word} orders", own_kind)
    described = semconv.write({}, semconv.describe(action, verb, orders, ()))
    assert described == {
        "messaging.operation.name": own_word,
        "messaging.operation.type": type_,
        "messaging.destination.name": "orders",
    }


def test_what_the_broker_keeps_has_the_librarys_words_alone():
    for mode, name in (("guide", "messaging.operation"), ("semconv", "messaging.operation.name")):
        names = Vocabulary(mode)
        assert (names.span_name(v.STORE, "put", Destination("b")), names.kind(v.STORE)) == ("put b", SpanKind.CLIENT)
        described = names.write({}, names.describe(v.STORE, "put", Destination("b"), ()))
        assert described == {name: "put", "messaging.destination.name": "b"}


# destination, the guide's span name and destination name, the conventions' span name and destination attributes
DESTINATIONS = [
    (Destination("q"), "publish q", "q", "publish q", {"messaging.destination.name": "q"}),
    (Destination("x", semconv="x:r"), "publish x", "x", "publish x:r", {"messaging.destination.name": "x:r"}),
    (
        Destination("orders.eu", template="orders.*"),
        "publish orders.*",
        "orders.eu",
        "publish orders.*",
        {"messaging.destination.name": "orders.eu", "messaging.destination.template": "orders.*"},
    ),
    (
        Destination("amq.gen-1", temporary=True),
        "publish",
        "amq.gen-1",
        "publish",
        {"messaging.destination.name": "amq.gen-1", "messaging.destination.temporary": True},
    ),
    (
        Destination("amq.gen-1", temporary=True, anonymous=True),
        "publish",
        "amq.gen-1",
        "publish",
        {
            "messaging.destination.name": "amq.gen-1",
            "messaging.destination.temporary": True,
            "messaging.destination.anonymous": True,
        },
    ),
]


@pytest.mark.parametrize(("destination", "guide_name", "guide_destination", "name", "attributes"), DESTINATIONS)
def test_a_destination_is_named(destination, guide_name, guide_destination, name, attributes):
    guide, semconv = Vocabulary("guide"), Vocabulary("semconv")
    assert guide.span_name(v.PUBLISH, "publish", destination) == guide_name
    assert semconv.span_name(v.PUBLISH, "publish", destination) == name
    template = {key: value for key, value in attributes.items() if key == "messaging.destination.template"}
    assert guide.write({}, guide.describe(v.PUBLISH, "publish", destination, ())) == {
        "messaging.operation": "publish",
        "messaging.destination.name": guide_destination,
        **template,
    }
    operation = {"messaging.operation.name": "publish", "messaging.operation.type": "send"}
    assert semconv.write({}, semconv.describe(v.PUBLISH, "publish", destination, ())) == {**operation, **attributes}


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (v.PUBLISH, True),
        (v.BATCH_PUBLISH, True),
        (v.RECEIVE, True),
        (v.SETTLE, True),
        (v.DELIVER, False),
        (v.PROCESS, False),
        (v.BATCH_PROCESS, False),
    ],
)
def test_whom_a_connection_is_to_is_told_of_calls_to_the_broker_alone(action, told):
    semconv = Vocabulary("semconv")
    attributes = semconv.write({}, semconv.describe(action, "verb", Destination("q"), v.peer(("10.0.0.7", 5672))))
    assert ("network.peer.address" in attributes) == ("network.peer.port" in attributes) == told


@pytest.mark.parametrize(
    ("address", "facts"),
    [
        (("10.0.0.7", 5672), ((v.PEER_ADDRESS, "10.0.0.7"), (v.PEER_PORT, 5672))),
        (("::1", 5672, 0, 0), ((v.PEER_ADDRESS, "::1"), (v.PEER_PORT, 5672))),
        ("/run/broker.sock", ((v.PEER_ADDRESS, "/run/broker.sock"),)),
        ("", ()),
        (None, ()),
        ((), ()),
        (b"", ()),
    ],
)
def test_whom_a_connection_is_to_is_what_its_socket_tells(address, facts):
    assert v.peer(address) == facts


HIGH = ((v.MESSAGE_ID, "m"), (v.KAFKA_KEY, "k"), (v.KAFKA_OFFSET, 1), (v.BODY_SIZE, 1), (v.CLIENT_ID, "c"))
LOW = ((v.SYSTEM, "kafka"), (v.GROUP, "g"), (v.SERVER_ADDRESS, "h"), (v.SERVER_PORT, 1), (v.KAFKA_PARTITION, 2))


def test_the_conventions_metrics_have_what_is_low_in_cardinality():
    attributes = Vocabulary("semconv").metric_attributes("process", Destination("orders"), HIGH + LOW)
    assert typed(attributes) == typed(
        {
            "messaging.system": "kafka",
            "messaging.destination.name": "orders",
            "messaging.operation.name": "process",
            "messaging.consumer.group.name": "g",
            "server.address": "h",
            "server.port": 1,
            "messaging.destination.partition.id": "2",
        }
    )


def test_the_guides_metrics_have_fewer():
    attributes = Vocabulary("guide").metric_attributes("process", Destination("orders"), HIGH + LOW)
    assert attributes == {
        "messaging.system": "kafka",
        "messaging.destination.name": "orders",
        "messaging.kafka.consumer.group": "g",
    }


@pytest.mark.parametrize(
    ("destination", "template"),
    [
        (Destination("orders.eu", template="orders.*"), "orders.*"),
        (Destination("amq.gen-1", temporary=True), None),
        (Destination("made.up", template="made.*", temporary=True), "made.*"),
        (Destination("devices.7.status"), "devices.*.status"),
        (Destination("devices.7.status", template="devices.>"), "devices.*.status"),
        (Destination("devices.7", temporary=True), "devices.*"),
    ],
)
def test_metrics_never_have_a_name_that_is_made_up(destination, template):
    """A template is in the name's place in the guide, and beside it in the conventions."""
    expected = {} if template is None else {"messaging.destination.name": template}
    beside = {} if template is None else {"messaging.destination.template": template}
    operation = {"messaging.operation.name": "publish"}
    globs = ("devices.*.status", "devices.*")
    found = [Vocabulary(mode, globs).metric_attributes("publish", destination, ()) for mode in MODES]
    assert found == [expected, {**operation, **beside}, {**operation, **expected, **beside}]


# destination, span names in the guide and in the conventions, the template on a span in each
TEMPLATES = [
    (Destination("orders"), "orders", "orders", None, None),
    (Destination("devices.7.status"), "devices.*.status", "devices.*.status", "devices.*.status", "devices.*.status"),
    (Destination("devices.7.alarm"), "devices.*", "devices.*", "devices.*", "devices.*"),
    (Destination("Devices.7"), "Devices.7", "Devices.7", None, None),
    (Destination("logs", semconv="logs:eu.7"), "logs", "logs:*", None, "logs:*"),
    (Destination("", template="a.*"), "a.*", "a.*", "a.*", "a.*"),
]


@pytest.mark.parametrize(("destination", "guide_name", "name", "guide_template", "template"), TEMPLATES)
def test_a_glob_stands_for_the_names_that_it_matches(destination, guide_name, name, guide_template, template):
    for mode, named, its_template in (("guide", guide_name, guide_template), ("semconv", name, template)):
        names = Vocabulary(mode, ("devices.*.status", "devices.*", "logs:*"))
        assert names.span_name(v.PUBLISH, "publish", destination) == f"publish {named}"
        attributes = names.write({}, names.describe(v.PUBLISH, "publish", destination, ()))
        assert attributes.get("messaging.destination.template") == its_template
        assert attributes.get("messaging.destination.name") == (names.destination(destination) or None)
