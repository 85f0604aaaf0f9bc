"""`KafkaProducer.send`: what goes over the wire, what the span says of it, and which errors come out."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import contextlib
import functools

import pytest
from opentelemetry import baggage, context, propagate, trace

from tests.support.kafka_python import (  # noqa: F401 (fixtures)
    QUIET,
    VERSION,
    application,
    on_apache,
    plain,
    stack,
)
from tests.support.propagators import Telling
from tests.support.recorder import shape, span_id

pytestmark = QUIET
TRACEPARENT = "traceparent"
AT_MOST_ONCE = {"enable_idempotence": False} if VERSION >= (3,) else {}


def sent(application, count=1, **options):
    """The records that arrived, read where nothing is recorded."""
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    with suppress_instrumentation():
        consumer = application.consumer(**options)
        return [next(consumer) for _ in range(count)]


def carried(record):
    """The span ids of the contexts in a record's headers."""
    return [int(value.split(b"-")[2], 16) for name, value in record.headers if name == TRACEPARENT]


@pytest.mark.parametrize(
    "arguments",
    [
        lambda topic: ((topic, b"v", None, [("a", b"1")], 0), {}),
        lambda topic: ((topic, b"v", None, None, 0), {}),
        lambda topic: ((topic, b"v"), {"headers": [("a", b"1")], "partition": 0}),
        lambda topic: ((topic,), {"value": b"v", "headers": [], "partition": 0}),
        lambda topic: ((), {"topic": topic, "key": b"k", "value": b"v", "partition": 0, "timestamp_ms": 1}),
    ],
    ids=["positional", "None positional", "keyword", "empty", "all keywords"],
)
def test_headers_are_added_however_the_arguments_are_given(application, recorder, arguments):
    args, kwargs = arguments(application.topic)
    application.producer().send(*args, **kwargs).get(10)
    (record,) = sent(application)
    given = [args[3] if len(args) > 3 else kwargs.get("headers")][0] or []
    assert record.headers[:-1] == given
    assert carried(record) == [span_id(recorder.span(f"publish {application.topic}"))]


def test_a_list_that_is_used_again_stays_as_it_was_and_each_message_has_one_context(application, recorder):
    producer, headers = application.producer(), [("a", b"1")]
    for _ in range(3):
        producer.send(application.topic, b"v", headers=headers, partition=0).get(10)
    assert headers == [("a", b"1")]
    spans = recorder.spans(count=3)
    assert [carried(record) for record in sent(application, 3)] == [[span_id(span)] for span in spans]


class Headers(list):
    """As some applications have them."""


def test_headers_of_a_class_of_the_application_s_own_are_taken_as_the_library_takes_them(plain, recorder):
    """Since 2.1. Before, the library refuses them, and still does."""
    headers, producer = Headers([("a", b"1")]), plain.producer()
    call = lambda: producer.send(plain.topic, b"v", headers=headers, partition=0)  # noqa: E731
    expected = outcome(call)
    plain.instrument()
    assert outcome(call) == expected
    assert expected[0] == ("sent" if VERSION >= (2, 1) else "raised")
    assert headers == [("a", b"1")]
    span = recorder.span(f"publish {plain.topic}")
    if expected == ("sent",):
        assert [carried(record) for record in sent(plain, 2)] == [[], [span_id(span)]]


def test_what_a_propagator_writes_is_there_once_though_it_does_not_tell_its_names(application, stack):
    stack.callback(propagate.set_global_textmap, propagate.get_global_textmap())
    propagate.set_global_textmap(Telling())
    given = [("a", b"1"), ("uberctx-User", b"old"), ("uber-trace-id", b"old"), ("uberctx-other", b"its own")]
    application.producer().send(application.topic, b"v", headers=given, partition=0).get(10)
    (record,) = sent(application, 1)
    kept = [("a", b"1"), ("uberctx-other", b"its own")]
    assert record.headers == [*kept, ("uber-trace-id", b"new"), ("uberctx-user", b"new")]
    assert len(given) == 4


def test_a_context_that_was_carried_before_is_replaced_and_linked(application, recorder):
    old = ("TraceParent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    application.producer().send(application.topic, b"v", headers=[old, ("a", b"1")], partition=0).get(10)
    span = recorder.span(f"publish {application.topic}")
    (record,) = sent(application)
    assert [name for name, _ in record.headers] == ["a", TRACEPARENT]
    assert carried(record) == [span_id(span)]
    assert [link.context.span_id for link in span.links] == [0xB7AD6B7169203331]


FORWARDED = {
    "texts": lambda headers: [(name, value.decode()) for name, value in headers],
    "lists": lambda headers: [list(item) for item in headers],
    "names in bytes": lambda headers: [(name.encode(), value) for name, value in headers],
    "with a third": lambda headers: [(*item, 0) for item in headers],
    "names in capitals": lambda headers: [(name.upper(), value.decode()) for name, value in headers],
}


@pytest.mark.parametrize("form", FORWARDED)
def test_a_context_that_is_forwarded_in_another_form_is_replaced(application, recorder, form):
    """Without us there is no header, and every form of none is right."""
    producer = application.producer()
    producer.send(application.topic, b"first", partition=0).get(10)
    consumer = application.consumer()
    forwarded = FORWARDED[form](next(consumer).headers)
    given = list(forwarded)
    producer.send(application.topic, b"second", headers=forwarded, partition=0).get(10)
    consumer.close()
    assert forwarded == given
    first, second = recorder.spans(f"publish {application.topic}", count=2)
    assert [carried(record) for record in sent(application, 2)] == [[span_id(first)], [span_id(second)]]
    assert second.parent.span_id == span_id(recorder.spans(f"receive {application.topic}")[0])


def test_other_headers_that_the_library_refuses_are_still_refused(plain, recorder):
    producer = plain.producer()
    producer.partitions_for(plain.topic)
    headers = [(TRACEPARENT, "00-" + "a" * 32 + "-" + "b" * 16 + "-01"), ("tenant", "acme")]
    call = lambda: producer.send(plain.topic, b"v", headers=headers, partition=0)  # noqa: E731
    expected = outcome(call)
    assert expected[0] != "sent"
    plain.instrument()
    assert outcome(call) == expected
    assert_failed(recorder.span(f"publish {plain.topic}"), *expected[1:])


def test_other_headers_keep_their_order_repetitions_and_bytes(application):
    given = [("b", b"\xff\xfe"), ("a", b""), ("b", b"2")]
    application.producer().send(application.topic, b"v", headers=given, partition=0).get(10)
    (record,) = sent(application)
    assert record.headers[:-1] == given


def test_the_span_is_a_child_of_the_current_one_and_baggage_goes_along(application, recorder):
    with recorder.tracer.start_as_current_span("outer") as outer:
        token = context.attach(baggage.set_baggage("tenant", "blue"))
        application.producer().send(application.topic, b"v", partition=0).get(10)
        context.detach(token)
    assert recorder.span(f"publish {application.topic}").parent.span_id == span_id(outer)
    (record,) = sent(application)
    assert ("baggage", b"tenant=blue") in record.headers


def test_a_broker_without_headers_gets_none(application, recorder):
    """This broker does not take so old a format: what was sent is seen by its size, and no answer waited for."""
    future = application.producer(api_version=(0, 10, 1), acks=0, **AT_MOST_ONCE).send(application.topic, b"v")
    assert future.args[5] == -1  # the size of the headers
    future.get(10)
    assert recorder.span(f"publish {application.topic}").status.status_code is trace.StatusCode.OK


KEYS = [
    ({}, b"key", "key"),
    ({}, b"\xff\xfe", None),
    ({}, None, None),
    ({"key_serializer": str.encode}, "kéy", "kéy"),
    ({"key_serializer": lambda key: str(key).encode()}, 42, "42"),
    ({"key_serializer": lambda key: "/".join(key).encode()}, ("a", "b"), None),
]


@pytest.mark.parametrize(("options", "key", "shown"), KEYS, ids=[repr(key) for _, key, _ in KEYS])
def test_a_key_is_shown_where_it_is_text_or_a_number(application, recorder, options, key, shown):
    application.producer(**options).send(application.topic, b"v", key=key).get(10)
    assert recorder.span(f"publish {application.topic}").attributes.get("messaging.kafka.message.key") == shown


TOMBSTONE, SIZE = "messaging.kafka.message.tombstone", "messaging.message.payload_size_bytes"
SAID = {"guide": {SIZE: 0}, "semconv": {TOMBSTONE: True}, "both": {SIZE: 0, TOMBSTONE: True}}


@pytest.mark.parametrize(
    ("serializer", "is_tombstone"),
    [(None, True), (lambda value: value, True), (lambda value: b"null", False)],
    ids=["none", "None to None", "None to null"],
)
def test_a_tombstone_is_what_has_no_value_on_the_wire(plain, recorder, vocabulary, serializer, is_tombstone):
    plain.instrument()
    plain.producer(value_serializer=serializer).send(plain.topic, None, key=b"k").get(10)
    (span,) = recorder.producers(1)
    found = {name: span.attributes[name] for name in (SIZE, TOMBSTONE) if name in span.attributes}
    assert found == (SAID[vocabulary] if is_tombstone else {} if vocabulary == "semconv" else {SIZE: 4})


def test_the_size_is_that_of_the_serialized_value(application, recorder):
    producer = application.producer(value_serializer=lambda value: value.encode() * 2)
    producer.send(application.topic, "abc").get(10)
    assert recorder.span(f"publish {application.topic}").attributes["messaging.message.payload_size_bytes"] == 6


def test_a_value_that_is_no_bytes_object_has_a_size(application, recorder):
    application.producer().send(application.topic, bytearray(b"abc")).get(10)
    assert recorder.span(f"publish {application.topic}").attributes["messaging.message.payload_size_bytes"] == 3


def test_without_acknowledgement_there_is_no_offset(application, recorder):
    application.producer(acks=0, **AT_MOST_ONCE).send(application.topic, b"v", partition=2)
    span = recorder.span(f"publish {application.topic}")
    assert "messaging.kafka.message.offset" not in span.attributes
    assert span.attributes["messaging.kafka.destination.partition"] == 2
    assert span.status.status_code is trace.StatusCode.OK


@pytest.mark.parametrize("partition", [None, 3])
def test_the_span_has_the_partition_and_offset_of_the_acknowledgement(application, recorder, partition):
    producer = application.producer()
    producer.send(application.topic, b"v", key=b"k", partition=partition).get(10)
    metadata = producer.send(application.topic, b"v", key=b"k", partition=partition).get(10)
    span = recorder.spans(f"publish {application.topic}", count=2)[1]
    assert metadata.offset == 1
    assert span.attributes["messaging.kafka.destination.partition"] == metadata.partition
    assert span.attributes["messaging.kafka.message.offset"] == 1


@pytest.mark.parametrize("acks", [1, "all"])
def test_the_answer_tells_the_partition_and_the_offset(application, recorder, acks):
    options = AT_MOST_ONCE if acks == 1 else {}
    application.producer(acks=acks, **options).send(application.topic, b"v", partition=2).get(10)
    found = shape(recorder.span(f"publish {application.topic}"))
    assert found["status"] == ("OK", None)
    assert found["attributes"]["messaging.kafka.destination.partition"] == 2
    assert found["attributes"]["messaging.kafka.message.offset"] == 0


def test_the_whole_span_of_a_message_with_a_key(application, recorder):
    application.producer().send(application.topic, b"hello", key=b"k", partition=1).get(10)
    host, _, port = application.address.rpartition(":")
    assert shape(recorder.span(f"publish {application.topic}")) == {
        "name": f"publish {application.topic}",
        "kind": "PRODUCER",
        "parent": None,
        "links": [],
        "status": ("OK", None),
        "attributes": {
            "messaging.system": "kafka",
            "messaging.operation": "publish",
            "messaging.destination.name": application.topic,
            "messaging.client.id": "sender",
            "messaging.message.payload_size_bytes": 5,
            "messaging.kafka.message.key": "k",
            "messaging.kafka.destination.partition": 1,
            "messaging.kafka.message.offset": 0,
            "server.address": host,
            "server.port": int(port),
        },
        "events": [],
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"partition": 0}, 0), ({"partition": None}, None), ({}, None)],
    ids=["given", "None", "left to the partitioner"],
)
def test_a_sampler_sees_the_partition_that_is_given(plain, recorder, vocabulary, arguments, expected):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    seen = []

    class Sampler(type(ALWAYS_ON)):
        def should_sample(self, *args, **kwargs):
            seen.append(dict(kwargs.get("attributes") or args[4]))
            return super().should_sample(*args, **kwargs)

    plain.instrument(tracer_provider=TracerProvider(Sampler(ALWAYS_ON._decision)))
    plain.producer().send(plain.topic, b"v", **arguments).get(10)
    names = ("messaging.kafka.destination.partition", "messaging.destination.partition.id")
    known = {"guide": {names[0]: 0}, "semconv": {names[1]: "0"}, "both": {names[0]: 0, names[1]: "0"}}[vocabulary]
    assert {name: seen[0][name] for name in names if name in seen[0]} == ({} if expected is None else known)


def test_the_application_gets_the_very_future_and_its_callbacks_run(plain, recorder, monkeypatch):
    from kafka import KafkaProducer

    made, send = [], KafkaProducer.send

    def remembering(self, *args, **kwargs):
        made.append(send(self, *args, **kwargs))
        return made[-1]

    monkeypatch.setattr(KafkaProducer, "send", remembering)
    plain.instrument()
    future, answers = plain.producer().send(plain.topic, b"v"), []
    assert future.add_callback(answers.append) is future
    metadata = future.get(10)
    assert made == [future]
    assert answers == [metadata]


def test_the_span_ends_with_the_acknowledgement_and_not_before(application, recorder):
    producer = application.producer(linger_ms=30_000)
    future = producer.send(application.topic, b"v")
    assert recorder.spans() == []
    producer.flush(10)
    assert future.is_done
    assert len(recorder.spans()) == 1


def test_the_hook_is_told_the_arguments_by_their_names(plain, recorder):
    requests = []
    plain.instrument(publish_hook=lambda span, request: requests.append(request))
    producer = plain.producer()
    producer.send(plain.topic, b"v", None, None, 1, 5).get(10)
    (request,) = requests
    assert request.client is producer
    assert request.destination == plain.topic
    assert request.arguments == {
        "topic": plain.topic,
        "value": b"v",
        "key": None,
        "headers": None,
        "partition": 1,
        "timestamp_ms": 5,
    }


# Errors: what an uninstrumented producer does is the expectation.


def outcome(call):
    """What a call to `send` comes to, as plain values."""
    try:
        future = call()
    except Exception as error:
        return "raised", type(error), str(error)
    try:
        future.get(5)
    except Exception as error:
        return "failed", type(error), str(error)
    return ("sent",)


def boom(*_):
    raise ZeroDivisionError("boom")


LIMIT = 1000
ERRORS = {
    "tuple of headers": ({}, lambda: {"headers": (("a", b"1"),)}),
    "dict of headers": ({}, lambda: {"headers": {"a": b"1"}}),
    "generator of headers": ({}, lambda: {"headers": (item for item in [("a", b"1")])}),
    "list as header": ({}, lambda: {"headers": [["a", b"1"]]}),
    "three in a header": ({}, lambda: {"headers": [("a", b"1", b"2")]}),
    "None in a header": ({}, lambda: {"headers": [("a", None)]}),
    "str in a header": ({}, lambda: {"headers": [("a", "1")]}),
    "bytes as a name": ({}, lambda: {"headers": [(b"a", b"1")]}),
    "neither key nor value": ({}, lambda: {"value": None}),
    "str without serializer": ({}, lambda: {"value": "text"}),
    "unknown partition": ({}, lambda: {"partition": 99}),
    "float timestamp": ({}, lambda: {"timestamp_ms": 1.5}),
    "too large": ({"max_request_size": LIMIT}, lambda: {"value": b"x" * 2 * LIMIT}),
    "serializer raises": ({"value_serializer": boom}, dict),
    "partitioner raises": ({"partitioner": boom}, lambda: {"key": b"k", "partition": None}),
    "unknown argument": ({}, lambda: {"colour": "blue"}),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_the_library_s_own_and_ends_the_span(plain, recorder, case):
    options, arguments = ERRORS[case]
    producer = plain.producer(**options)
    producer.partitions_for(plain.topic)
    call = lambda: producer.send(plain.topic, **{"value": b"v", "partition": 0, **arguments()})  # noqa: E731
    expected = outcome(call)
    assert expected[0] != "sent"
    plain.instrument()
    assert outcome(call) == expected
    assert_failed(recorder.span(f"publish {plain.topic}"), *expected[1:])


def assert_failed(span, kind, text):
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    found = shape(span)
    assert found["status"] == ("ERROR", text)
    assert found["attributes"]["error.type"] == name
    assert [
        (event, attributes["exception.type"], attributes["exception.message"]) for event, attributes in found["events"]
    ] == [("exception", name, text)]


@pytest.mark.parametrize("arguments", [((), {}), (("t",), {"topic": "t"}), ((None, b"v"), {}), ((b"t", b"v"), {})])
def test_a_call_without_a_topic_fails_as_it_does_uninstrumented(plain, recorder, arguments):
    args, kwargs = arguments
    producer = plain.producer(max_block_ms=200)
    call = lambda: producer.send(*args, **kwargs)  # noqa: E731
    expected = outcome(call)
    assert expected[0] == "raised"
    plain.instrument()
    assert outcome(call) == expected
    assert recorder.spans() == []


def test_sending_after_close_fails_as_it_does_uninstrumented(plain, recorder):
    producer = plain.producer()
    producer.partitions_for(plain.topic)
    producer.close()
    expected = outcome(lambda: producer.send(plain.topic, b"v"))
    plain.instrument()
    assert outcome(lambda: producer.send(plain.topic, b"v")) == expected
    assert_failed(recorder.span(f"publish {plain.topic}"), *expected[1:])


def test_an_error_of_the_broker_that_comes_with_the_future_is_recorded_once(application, recorder, monkeypatch):
    from kafka.errors import TopicAuthorizationFailedError

    producer = application.producer()

    def refuse(*_):
        raise TopicAuthorizationFailedError("no")

    monkeypatch.setattr(producer, "_wait_on_metadata", refuse)
    future, errors = producer.send(application.topic, b"v"), []
    future.add_errback(errors.append)
    assert [type(error) for error in errors] == [TopicAuthorizationFailedError]
    assert_failed(recorder.span(f"publish {application.topic}"), type(errors[0]), str(errors[0]))


def test_an_answer_that_comes_while_we_ask_for_it_is_not_lost(plain, recorder, monkeypatch):
    """Until 2.1.2 futures have no lock, and a callback may be added after the callbacks were called."""
    from kafka import KafkaProducer

    class Deaf:
        def __init__(self, value, exception):
            self.is_done, self.value, self.exception = True, value, exception

        def add_callback(self, *_):
            return self

        add_errback = add_callback

    answers = [Deaf(None, ZeroDivisionError("late"))]
    monkeypatch.setattr(KafkaProducer, "send", lambda self, *args, **kwargs: answers[0])
    plain.instrument()
    assert plain.producer().send(plain.topic, b"v") is answers[0]
    assert_failed(recorder.span(f"publish {plain.topic}"), ZeroDivisionError, "late")


def test_what_is_no_future_is_returned_as_it_is(plain, recorder, lenient, monkeypatch):
    """Applications' own tests replace `send`, or what it returns."""
    from kafka import KafkaProducer

    monkeypatch.setattr(KafkaProducer, "send", lambda self, *args, **kwargs: "queued")
    plain.instrument()
    producer = plain.producer()
    assert producer.send(plain.topic, b"v") == "queued"
    assert len(recorder.spans()) == 1
    producer.close()
    assert len(recorder.spans()) == 1


# Sizes: the context must never be what makes a record too large.


def largest(application, **options):
    """The length of the longest value that a producer takes without our header."""
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    producer = application.producer(max_request_size=LIMIT, **options)
    with suppress_instrumentation():
        for length in range(LIMIT, 0, -1):
            value = b"x" * length
            if outcome(functools.partial(producer.send, application.topic, value, partition=0)) == ("sent",):
                return producer, length
    raise AssertionError("nothing fits")


@pytest.mark.parametrize("options", [{}, {"value_serializer": bytes}], ids=["bytes", "serialized"])
def test_a_record_that_only_just_fits_is_sent_without_a_context(application, recorder, options):
    producer, length = largest(application, **options)
    producer.send(application.topic, b"x" * length, partition=0).get(10)
    producer.send(application.topic, b"x" * (length // 2), partition=0).get(10)
    assert [len(carried(record)) for record in sent(application, 3)] == [0, 0, 1]
    assert [span.status.status_code.name for span in recorder.spans()] == ["OK", "OK"]


class Counting:
    """A serializer that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, value):
        self.calls += 1
        return value if isinstance(value, bytes) else b"".join(value)


def test_what_only_just_fits_is_serialized_once(application, recorder):
    serializer = Counting()
    producer, length = largest(application, value_serializer=serializer)
    before = serializer.calls
    producer.send(application.topic, b"x" * length, partition=0).get(10)
    assert serializer.calls == before + 1
    assert [carried(record) for record in sent(application, 2)] == [[], []]


@on_apache
@pytest.mark.skipif(VERSION < (3,), reason="only since 3.0 a refusal is the end of a producer that is idempotent")
def test_what_a_producer_has_learnt_its_successor_knows(plain, recorder):
    from kafka.errors import MessageSizeTooLargeError

    plain.create(max_message_bytes=LIMIT)
    length = largest_at_broker(plain, LIMIT)
    plain.instrument()
    with pytest.raises(MessageSizeTooLargeError):
        plain.producer().send(plain.topic, b"x" * length, partition=0).get(10)
    plain.producer().send(plain.topic, b"x" * length, partition=0).get(10)
    assert [carried(record) for record in sent(plain, 2)] == [[], []]


def test_what_only_just_fits_may_send_another_while_it_is_serialized(application):
    def serializer(value):
        if len(value) > 100 and nested:
            producer.send(application.topic, nested.pop(), partition=0).get(10)
        return value

    nested = []
    producer, length = largest(application, value_serializer=serializer)
    nested.append(b"inside")
    producer.send(application.topic, b"x" * length, partition=0).get(10)
    records = sent(application, 3)
    assert [len(record.value) for record in records] == [length, len(b"inside"), length]
    assert [len(carried(record)) for record in records] == [0, 1, 0]


def test_what_is_too_large_for_the_client_is_serialized_once_and_fails_as_it_does_uninstrumented(plain, recorder):
    serializer = Counting()
    producer = plain.producer(value_serializer=serializer, max_request_size=LIMIT)
    producer.partitions_for(plain.topic)
    call = lambda: producer.send(plain.topic, b"x" * 2 * LIMIT, partition=0)  # noqa: E731
    expected = outcome(call)
    natively = serializer.calls
    plain.instrument()
    assert outcome(call) == expected
    assert serializer.calls == 2 * natively
    assert_failed(recorder.span(f"publish {plain.topic}"), *expected[1:])


def test_what_only_just_fits_keeps_the_headers_that_it_has(application):
    """Also a context that it has from elsewhere: what natively fits goes as it would natively."""
    producer, length = largest(application)
    headers = [("a", b"1"), (TRACEPARENT, b"00-" + b"a" * 32 + b"-" + b"b" * 16)]  # shorter than ours
    size = sum(len(name) + len(value) + 2 for name, value in headers)
    producer.send(application.topic, b"x" * (length - size), headers=headers, partition=0).get(10)
    producer.send(application.topic, b"x" * (length - size - 1), headers=headers, partition=0).get(10)
    assert [record.headers for record in sent(application, 3)[1:]] == [headers, headers]


def test_what_only_just_fits_is_sent_without_a_context_that_it_cannot_keep(application):
    producer, length = largest(application)
    headers = [(TRACEPARENT, "00-" + "a" * 32 + "-" + "b" * 16 + "-01")]
    producer.send(application.topic, b"x" * length, headers=headers, partition=0).get(10)
    assert sent(application, 2)[1].headers == []


def largest_at_broker(application, limit):
    """The length of the longest value that the broker takes without our header, from what a record is made of."""
    from kafka.errors import MessageSizeTooLargeError
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    producer = application.producer(**AT_MOST_ONCE)
    with suppress_instrumentation():
        for length in range(limit, 0, -1):
            with contextlib.suppress(MessageSizeTooLargeError):
                producer.send(application.topic, b"x" * length, partition=0).get(10)
                return length
    raise AssertionError("nothing fits")


@on_apache
@pytest.mark.parametrize("options", [{}, {"value_serializer": bytes}], ids=["bytes", "serialized"])
@pytest.mark.parametrize("sampler", ["always_on", "always_off"])
def test_the_limit_of_a_broker_is_learnt_from_the_first_refusal(plain, recorder, options, sampler):
    from kafka.errors import MessageSizeTooLargeError
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    plain.create(max_message_bytes=LIMIT)
    length = largest_at_broker(plain, LIMIT)
    recorded = sampler == "always_on"
    plain.instrument(**({} if recorded else {"tracer_provider": TracerProvider(ALWAYS_OFF)}))
    producer = plain.producer(**AT_MOST_ONCE, **options)
    with pytest.raises(MessageSizeTooLargeError):
        producer.send(plain.topic, b"x" * length, partition=0).get(10)
    for shorter in (0, 1, 40, 200):
        producer.send(plain.topic, b"x" * (length - shorter), partition=0).get(10)
    records = sent(plain, 5)
    assert [len(record.value) for record in records] == [length, length, length - 1, length - 40, length - 200]
    assert [len(carried(record)) for record in records] == [0, 0, 0, 0, 1]
    outcomes = [span.status.status_code.name for span in recorder.spans(count=5 if recorded else 0)]
    assert outcomes == (["ERROR", "OK", "OK", "OK", "OK"] if recorded else [])


@on_apache
def test_a_record_that_no_broker_takes_does_not_cost_the_others_their_context(plain, recorder):
    from kafka.errors import MessageSizeTooLargeError

    plain.create(max_message_bytes=LIMIT)
    plain.instrument()
    producer = plain.producer(**AT_MOST_ONCE)
    for _ in range(2):
        with pytest.raises(MessageSizeTooLargeError):
            producer.send(plain.topic, b"x" * 50 * LIMIT, partition=0).get(10)
    producer.send(plain.topic, b"x" * (LIMIT // 2), partition=0).get(10)
    assert [len(carried(record)) for record in sent(plain)] == [1]


def test_a_value_that_can_be_serialized_only_once_is_serialized_once(application, recorder):
    producer, length = largest(application, value_serializer=lambda v: v if isinstance(v, bytes) else b"".join(v))
    producer.send(application.topic, iter([b"x" * length]), partition=0).get(10)
    assert [len(record.value) for record in sent(application, 2)] == [length, length]
