"""Kafka: what a dead letter keeps of its record."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest

from otel_messaging.kafka_python import dead_letter
from tests.support import kafka_python
from tests.support.recorder import span_id

pytestmark = kafka_python.QUIET
stack, plain, application = kafka_python.stack, kafka_python.plain, kafka_python.application

ERROR = ValueError("out of stock")


def first(application, **options):
    """The first record of the application's topic."""
    return next(iter(application.consumer(**options)))


def letters(application, count=2, **options):
    """The records of the topic, dead letters among them: they go to the same one."""
    consumer = application.consumer(**options)
    return [next(consumer) for _ in range(count)]


def buried(application, record, **options):
    """What a record becomes as a dead letter."""
    producer = application.producer(**options)
    dead_letter(record, ERROR, producer, application.topic, partition=0).get(timeout=10)
    return letters(application)[1]


def told(application):
    return [
        ("dead-letter-original-topic", application.topic.encode()),
        ("dead-letter-original-partition", b"0"),
        ("dead-letter-original-offset", b"0"),
        ("dead-letter-error-type", b"ValueError"),
        ("dead-letter-error", b"out of stock"),
    ]


@pytest.mark.parametrize(
    ("key", "value"), [(b"k", b"hello"), (None, b"hello"), (b"k", None), (b"\xff", b"\xfe"), (b"", b"")]
)
def test_key_and_value_are_kept(plain, key, value):
    plain.fill(value, key=key)
    letter = buried(plain, first(plain))
    assert (letter.key, letter.value, letter.headers) == (key, value, told(plain))


def test_repeated_headers_stay_in_their_order(plain):
    plain.fill(b"hello", headers=[("a", b"1"), ("b", b"\xff"), ("a", b"2")])
    letter = buried(plain, first(plain))
    assert letter.headers == [("a", b"1"), ("b", b"\xff"), ("a", b"2"), *told(plain)]


def test_a_header_without_a_value_gets_an_empty_one(plain):
    plain.fill(b"hello")
    record = first(plain)
    record.headers.append(("empty", None))  # the library's own producer cannot send one
    assert buried(plain, record).headers[0] == ("empty", b"")
    assert record.headers == [("empty", None)]


def test_what_a_deserializer_has_made_a_serializer_undoes(plain):
    plain.fill(b'{"order": 7}')
    record = first(plain, value_deserializer=lambda value: json.loads(value or b"{}"))
    letter = buried(plain, record, value_serializer=lambda value: json.dumps(value).encode())
    assert letter.value == b'{"order": 7}'


@pytest.mark.parametrize("instrumented", [False, True])
def test_a_record_that_is_as_large_as_it_may_be_goes_without_our_headers(plain, instrumented):
    plain.fill(b"x" * 4000, headers=[("tenant", b"acme")])
    record = first(plain)
    if instrumented:
        plain.instrument()
    letter = buried(plain, record, max_request_size=4100)
    assert (letter.value, letter.headers) == (b"x" * 4000, [("tenant", b"acme")])


def test_a_record_that_is_too_large_fails_as_it_does_by_itself(application, recorder):
    from kafka.errors import MessageSizeTooLargeError

    application.fill(b"x" * 4000)
    record = first(application)
    producer = application.producer(max_request_size=2000)
    with pytest.raises(MessageSizeTooLargeError):
        dead_letter(record, ERROR, producer, application.topic, partition=0).get(timeout=10)
    assert "messaging.messages.dead_lettered" not in recorder.metrics()


@pytest.mark.parametrize("headers", [[], [("tenant", b"acme")]])
def test_brokers_without_headers_get_none(plain, monkeypatch, headers):
    plain.fill(b"hello", headers=headers)
    record = first(plain)
    producer = plain.producer()
    sent = []
    monkeypatch.setattr(producer, "send", lambda topic, **arguments: sent.append((topic, arguments)))
    monkeypatch.setitem(producer.config, "api_version", (0, 10))  # there is no such broker any more
    dead_letter(record, ERROR, producer, "dead")
    assert sent == [("dead", {"value": b"hello", "key": None, "headers": []})]


def test_what_stands_for_a_producer_in_a_test_gets_the_letter(plain):
    plain.fill(b"hello", key=b"k")
    producer = Mock()
    future = dead_letter(first(plain), ERROR, producer, "dead", timestamp_ms=7)
    assert future is producer.send.return_value
    producer.send.assert_called_once_with("dead", value=b"hello", key=b"k", headers=told(plain), timestamp_ms=7)


def test_the_trace_goes_on_from_a_list_of_records(application, recorder):
    producer, consumer = application.producer(), application.consumer()
    producer.send(application.topic, b"hello", partition=0).get(timeout=10)
    for records in consumer.poll(5000).values():
        for record in records:
            dead_letter(record, ERROR, producer, application.topic, partition=0).get(timeout=10)
    published, letter = recorder.producers(2)
    (handled,) = recorder.spans(f"process {application.topic}")
    assert letter.parent.span_id == span_id(handled)
    assert [link.context.span_id for link in letter.links] == [span_id(published)]
    assert [event.name for event in handled.events] == ["send_to_dead_letter"]


def test_what_the_producer_refuses_is_raised(application, recorder):
    from kafka.errors import IllegalStateError

    application.fill(b"hello")
    record = first(application)
    producer = application.producer()
    producer.close()
    with pytest.raises((IllegalStateError, AssertionError)):
        dead_letter(record, ERROR, producer, application.topic)
    assert recorder.producers(1)[0].status.is_ok is False
