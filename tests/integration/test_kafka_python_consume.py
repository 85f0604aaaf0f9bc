"""Loops over a `KafkaConsumer`: from when until when a record is current, and that records stay what they were."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import contextlib
import gc
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from tests.support.kafka_python import QUIET, VERSION, application, plain, stack  # noqa: F401
from tests.support.recorder import shape, span_id

pytestmark = QUIET
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PARENT_ID = 0xB7AD6B7169203331


def current():
    return trace.get_current_span()


def nothing_is_current():
    return current() is trace.INVALID_SPAN


def received(application, recorder, count):
    return recorder.spans(f"receive {application.topic}", count=count)


def offsets(spans):
    return [span.attributes["messaging.kafka.message.offset"] for span in spans]


# Ways to leave a loop


def leave_by_break(consumer):
    for _ in consumer:
        break


def leave_by_return(consumer):
    for _ in consumer:
        return


def leave_by_exception(consumer):
    with contextlib.suppress(ZeroDivisionError):
        for _ in consumer:
            raise ZeroDivisionError


def leave_a_generator(consumer):
    def records():
        for record in consumer:  # noqa: UP028 (that is the point)
            yield record

    iterator = records()
    next(iterator)
    iterator.close()


def leave_by_unpacking(consumer):
    next(iter(consumer))


def leave_by_search(consumer):
    assert any(record.offset == 0 for record in consumer)


@pytest.mark.parametrize(
    "leave",
    [leave_by_break, leave_by_return, leave_by_exception, leave_a_generator, leave_by_unpacking, leave_by_search],
)
def test_a_loop_that_is_left_ends_the_handling_at_once(application, recorder, leave):
    application.fill(b"a", b"b")
    leave(application.consumer())
    assert offsets(received(application, recorder, 1)) == [0]
    assert nothing_is_current()


def test_each_record_is_current_in_its_turn(application, recorder):
    application.fill(b"a", b"b", b"c")
    seen = []
    for record in application.consumer():
        seen.append(span_id(current()))
        if record.offset == 2:
            break
    spans = received(application, recorder, 3)
    assert seen == [span_id(span) for span in spans]
    assert offsets(spans) == [0, 1, 2]


def test_a_loop_that_ends_by_timeout_ends_the_handling_before_it_waits(application, recorder):
    application.fill(b"a")
    records = list(application.consumer(consumer_timeout_ms=700))
    assert [record.value for record in records] == [b"a"]
    (span,) = received(application, recorder, 1)
    assert span.end_time - span.start_time < 500_000_000
    assert nothing_is_current()


def test_a_timeout_is_not_the_end_of_iteration(application, recorder):
    consumer = application.consumer(consumer_timeout_ms=700)
    assert next(consumer, None) is None
    assert recorder.spans() == []
    application.fill(b"a")
    assert next(consumer).value == b"a"
    assert next(consumer, None) is None
    assert offsets(received(application, recorder, 1)) == [0]


def test_next_ends_the_record_before(application, recorder):
    application.fill(b"a", b"b")
    consumer = application.consumer()
    next(consumer)
    first = current()
    next(consumer)
    assert offsets(received(application, recorder, 1)) == [0]
    assert current() is not first
    consumer.close()
    assert offsets(received(application, recorder, 2)) == [0, 1]
    assert nothing_is_current()


def test_a_loop_that_was_left_can_be_entered_again(application, recorder):
    application.fill(b"a", b"b", b"c")
    consumer = application.consumer()
    values = []
    for record in consumer:
        values.append(record.value)
        break
    for record in consumer:
        values.append(record.value)
        if len(values) == 3:
            break
    assert values == [b"a", b"b", b"c"]
    assert offsets(received(application, recorder, 3)) == [0, 1, 2]
    assert nothing_is_current()


def test_a_loop_that_is_left_does_not_end_the_record_of_another(application, recorder):
    application.fill(b"a", b"b")
    consumer = application.consumer()
    first = iter(consumer)
    next(first)
    second = iter(consumer)
    next(second)
    del first
    assert offsets(received(application, recorder, 1)) == [0]
    del second
    assert offsets(received(application, recorder, 2)) == [0, 1]


def test_closing_in_the_body_ends_the_handling(application, recorder):
    application.fill(b"a")
    consumer = application.consumer()
    for _ in consumer:
        consumer.close()
        received(application, recorder, 1)
        assert nothing_is_current()
    received(application, recorder, 1)


def test_closing_in_another_thread_leaves_no_context_to_the_loop(application, recorder):
    application.fill(b"a")
    consumer = application.consumer()
    for _ in consumer:
        thread = threading.Thread(target=consumer.close)
        thread.start()
        thread.join()
        received(application, recorder, 1)
    assert nothing_is_current()


def test_closing_in_another_thread_while_the_loop_waits_fails_it_as_it_does_uninstrumented(plain, recorder):
    def outcome():
        consumer = plain.consumer()
        closing = threading.Timer(0.5, consumer.close)
        try:
            for record in consumer:
                assert current().is_recording() is plain.instrumented
                if record.offset == 0:
                    closing.start()  # the next record never comes
        except Exception as error:
            return type(error), str(error)
        finally:
            closing.join()
            assert nothing_is_current()

    plain.instrumented = False
    plain.fill(b"a")
    expected = outcome()
    plain.instrument()
    plain.instrumented = True
    assert outcome() == expected
    assert offsets(received(plain, recorder, 1)) == [0]


def test_two_consumers_may_end_in_any_order(application, recorder):
    application.fill(b"a", b"b")
    first, second = application.consumer(), application.consumer()
    with recorder.tracer.start_as_current_span("outer") as outer:
        next(first)
        next(second)
        first.close()
        second.close()
        assert current() is outer
    assert offsets(received(application, recorder, 2)) == [0, 0]


def in_a_thread(pool, call, *args):
    return pool.submit(call, *args).result(10)


@pytest.fixture
def threads(stack):
    """Two threads that stay."""
    return [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2)]


def test_a_consumer_may_move_to_another_thread(application, recorder, threads):
    application.fill(b"a", b"b", b"c")
    consumer, inside = application.consumer(), []
    for thread in (threads[0], threads[1], threads[0]):
        in_a_thread(thread, next, consumer)
        inside.append(span_id(in_a_thread(thread, current)))
    in_a_thread(threads[0], consumer.close)
    spans = received(application, recorder, 3)
    assert inside == [span_id(span) for span in spans]
    assert [span.parent for span in spans] == [None] * 3
    assert in_a_thread(threads[0], nothing_is_current)


def test_a_thread_that_asks_in_vain_has_its_context_back(application, recorder, threads):
    application.fill(b"a", b"b")
    consumer = application.consumer(consumer_timeout_ms=500)
    for thread in threads:
        in_a_thread(thread, next, consumer)
    assert in_a_thread(threads[0], next, consumer, None) is None
    assert in_a_thread(threads[0], nothing_is_current)


def test_a_span_that_the_body_opens_hangs_below_the_record(application, recorder):
    application.fill(b"a", headers=[("traceparent", PARENT)])
    for _ in application.consumer():
        with recorder.tracer.start_as_current_span("work"):
            pass
        break
    (span,) = received(application, recorder, 1)
    assert recorder.span("work").parent.span_id == span_id(span)
    assert span.parent.span_id == PARENT_ID


# The iterator is the consumer in all but name


def test_an_iterator_behaves_as_its_consumer(application):
    from kafka import KafkaConsumer

    consumer = application.consumer()
    iterator = iter(consumer)
    assert isinstance(iterator, KafkaConsumer)
    assert iterator == consumer
    assert consumer == iterator
    assert hash(iterator) == hash(consumer)
    assert repr(iterator) == repr(consumer)
    assert iterator in [consumer]
    assert iterator.assignment() == consumer.assignment()
    assert iter(iterator) is iterator


def test_a_subclass_that_overrides_next_has_one_span_per_record_it_reads(application, recorder):
    from kafka import KafkaConsumer, TopicPartition

    class Skipping(KafkaConsumer):
        def __next__(self):
            record = super().__next__()
            return record if record.value != b"skip" else super().__next__()

    application.fill(b"skip", b"a")
    consumer = Skipping(bootstrap_servers=application.address, auto_offset_reset="earliest", enable_auto_commit=False)
    consumer.assign([TopicPartition(application.topic, 0)])
    for record in consumer:
        assert record.value == b"a"
        break
    consumer.close()
    assert offsets(received(application, recorder, 2)) == [0, 1]
    assert nothing_is_current()


@pytest.mark.skipif(VERSION >= (2, 1), reason="2.1 has one iterator only")
def test_the_legacy_iterator_is_seen_too(application, recorder):
    application.fill(b"a", b"b")
    consumer = application.consumer(legacy_iterator=True)
    assert [next(consumer).value, next(consumer).value] == [b"a", b"b"]
    consumer.close()
    assert offsets(received(application, recorder, 2)) == [0, 1]


def test_an_error_of_the_library_comes_through_and_ends_the_handling(application, recorder):
    def broken(value):
        if value == b"b":
            raise ZeroDivisionError("deserializer")
        return value

    application.fill(b"a")
    consumer = application.consumer(value_deserializer=broken)
    next(consumer)
    application.fill(b"b")
    with pytest.raises(ZeroDivisionError, match="deserializer"):
        next(consumer)
    handled, call = received(application, recorder, 2)
    assert [span.status.status_code.name for span in (handled, call)] == ["OK", "ERROR"]
    assert call.start_time >= handled.end_time
    assert nothing_is_current()


# `with consumer:`, since 3.0

managed = pytest.mark.skipif(VERSION < (3,), reason="a KafkaConsumer is no context manager before 3.0")


@managed
def test_with_records_the_exception_that_leaves_the_loop(application, recorder):
    application.fill(b"a")
    with contextlib.suppress(ZeroDivisionError), application.consumer() as consumer:
        for _ in consumer:
            raise ZeroDivisionError("boom")
    (span,) = received(application, recorder, 1)
    found = shape(span)
    assert found["status"] == ("ERROR", "boom")
    assert found["attributes"]["error.type"] == "ZeroDivisionError"
    assert [event for event, _ in found["events"]] == ["exception"]


@managed
def test_with_does_not_blame_the_record_for_what_happens_after_the_loop(application, recorder):
    application.fill(b"a")
    with contextlib.suppress(ZeroDivisionError), application.consumer() as consumer:
        for _ in consumer:
            break
        assert nothing_is_current()
        raise ZeroDivisionError
    (span,) = received(application, recorder, 1)
    assert shape(span)["status"] == ("OK", None)
    assert span.events == ()


@managed
def test_with_returns_the_consumer_itself_and_closes_it(application):
    consumer = application.consumer()
    with consumer as entered:
        assert entered is consumer
    assert consumer._closed


# Records


def test_records_are_the_library_s_own(application):
    from kafka.consumer.fetcher import ConsumerRecord

    application.fill(b"a", key=b"k", headers=[("h", b"1")])
    record = next(application.consumer())
    assert type(record) is ConsumerRecord
    assert record.headers == [("h", b"1")]
    assert pickle.loads(pickle.dumps(record)) == record


def with_headers(consumer, headers):
    """Let a consumer hand out records that have these headers, which no producer here would send."""
    poll = consumer.poll

    def polled(**arguments):
        found = poll(**arguments)
        return {tp: [record._replace(headers=headers) for record in records] for tp, records in found.items()}

    consumer.poll = polled
    return consumer


HEADERS = {
    "none": ([], None),
    "a value of None": ([("traceparent", None), ("a", None)], None),
    "a context that is not UTF-8": ([("traceparent", b"\xff\xfe")], None),
    "a context that is nonsense": ([("traceparent", b"00-zz")], None),
    "bytes that are no text": ([("a", b"\xff"), ("traceparent", PARENT)], PARENT_ID),
    "another case": ([("TraceParent", PARENT)], PARENT_ID),
    "two contexts": ([("traceparent", PARENT.replace(b"b7", b"c7")), ("traceparent", PARENT)], PARENT_ID),
}


@pytest.mark.parametrize("case", HEADERS)
def test_no_header_costs_a_record_and_the_last_context_counts(application, recorder, case):
    headers, parent = HEADERS[case]
    application.fill(b"a", b"b")
    consumer = with_headers(application.consumer(), headers)
    records = [next(consumer), next(consumer)]
    consumer.close()
    assert [record.value for record in records] == [b"a", b"b"]
    assert all(record.headers is headers for record in records)
    for span in received(application, recorder, 2):
        assert (span.parent.span_id if span.parent else None) == parent


KEYS = [
    ({}, b"key", "key"),
    ({}, b"\xff", None),
    ({}, None, None),
    ({"key_deserializer": lambda key: key.decode()}, "kéy".encode(), "kéy"),
    ({"key_deserializer": int}, b"42", "42"),
    ({"key_deserializer": lambda key: ("a", "b")}, b"ab", None),
]


@pytest.mark.parametrize(("options", "key", "shown"), KEYS, ids=[repr(key) for _, key, _ in KEYS])
def test_a_key_is_shown_where_it_is_text_or_a_number(application, recorder, options, key, shown):
    application.fill(b"a", key=key)
    leave_by_break(application.consumer(**options))
    (span,) = received(application, recorder, 1)
    assert span.attributes.get("messaging.kafka.message.key") == shown


LONG_KEYS = [({}, b"k" * 900_000), ({"key_deserializer": bytes.decode}, b"k" * 900_000)]


@pytest.mark.parametrize(("options", "key"), LONG_KEYS, ids=["bytes", "text"])
def test_of_a_long_key_the_beginning_is_kept(application, recorder, options, key):
    application.producer().send(application.topic, b"a", partition=0, key=key).get(10)
    leave_by_break(application.consumer(**options))
    (span,) = received(application, recorder, 1)
    assert span.attributes["messaging.kafka.message.key"] == "k" * 1024
    published = recorder.span(f"publish {application.topic}")
    assert published.attributes["messaging.kafka.message.key"] == "k" * 1024


def test_a_key_that_cannot_be_encoded_costs_no_export(application, recorder):
    application.fill(b"a", key=rb'"k\udcff"')
    leave_by_break(application.consumer(key_deserializer=json.loads))
    (span,) = received(application, recorder, 1)
    assert span.attributes["messaging.kafka.message.key"] == "k?"
    assert encode_spans([span]).SerializeToString()


def test_a_number_that_is_too_long_to_write_is_no_key(application, recorder):
    application.fill(b"a", key=b"1")
    leave_by_break(application.consumer(key_deserializer=lambda key: 10**5000))
    (span,) = received(application, recorder, 1)
    assert "messaging.kafka.message.key" not in span.attributes


TOMBSTONE, SIZE = "messaging.kafka.message.tombstone", "messaging.message.payload_size_bytes"
SAID = {"guide": {SIZE: 0}, "semconv": {TOMBSTONE: True}, "both": {SIZE: 0, TOMBSTONE: True}}


@pytest.mark.parametrize("value", [None, b"null"])
def test_a_tombstone_is_what_has_no_value_on_the_wire(plain, recorder, vocabulary, value):
    plain.instrument()
    plain.fill(value, key=b"k")
    for record in plain.consumer(value_deserializer=lambda value: None):
        assert record.value is None
        break
    (span,) = recorder.consumers(1)
    found = {name: span.attributes[name] for name in (SIZE, TOMBSTONE) if name in span.attributes}
    assert found == (SAID[vocabulary] if value is None else {} if vocabulary == "semconv" else {SIZE: 4})
    assert span.attributes["messaging.kafka.message.key"] == "k"


def test_a_consumer_without_group_says_nothing_of_one(application, recorder):
    application.fill(b"a")
    leave_by_break(application.consumer(group_id=None))
    (span,) = received(application, recorder, 1)
    host, _, port = application.address.rpartition(":")
    assert {name: value for name, value in span.attributes.items() if name != "messaging.message.queue_time"} == {
        "messaging.system": "kafka",
        "messaging.operation": "receive",
        "messaging.destination.name": application.topic,
        "messaging.client.id": "receiver",
        "messaging.message.payload_size_bytes": 1,
        "messaging.kafka.destination.partition": 0,
        "messaging.kafka.message.offset": 0,
        "messaging.consumer.lag": 0,
        "server.address": host,
        "server.port": int(port),
    }


def test_five_thousand_records_leave_nothing_behind(application, recorder):
    application.fill(*[b"v"] * 5_002)
    consumer = application.consumer(max_poll_records=100)
    iterator = iter(consumer)
    next(iterator)
    sizes = []
    for _ in range(2):
        for _ in range(2_500):
            next(iterator)
        recorder.exporter.clear()
        gc.collect()
        sizes.append(len(gc.get_objects()))
    assert sizes[1] - sizes[0] < 500  # a buffered batch more or less
    assert len(recorder.open.spans) == 1
    del iterator
    assert nothing_is_current()
