"""`KafkaConsumer.poll`: one span for the call, then one for each record as the lists are looped over."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import contextlib
import gc
import itertools
import pickle
import threading
import time

import pytest
from opentelemetry import trace

from otel_messaging.core import propagation
from tests.support.kafka_python import QUIET, VERSION, application, plain, stack  # noqa: F401
from tests.support.recorder import links, shape, span_id

pytestmark = QUIET
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PARENT_ID = 0xB7AD6B7169203331
OFFSET, KAFKA_OFFSET = "messaging.kafka.message.offset", "messaging.kafka.offset"
PARTITION, PARTITION_ID = "messaging.kafka.destination.partition", "messaging.destination.partition.id"


def current():
    return trace.get_current_span()


def nothing_is_current():
    return current() is trace.INVALID_SPAN


def polled(consumer, count, **options):
    """What `poll` returns, once it returns this many records at once."""
    end = time.monotonic() + 10
    while True:
        found = consumer.poll(timeout_ms=300, **options)
        if found:
            assert sum(len(records) for records in found.values()) == count
            return found
        assert time.monotonic() < end, "no records"


def only(found):
    (records,) = found.values()
    return records


def offsets(spans):
    return [span.attributes[OFFSET] for span in spans]


def processed(application, recorder, count):
    return recorder.spans(f"process {application.topic}", count=count)


def common(application, guide=True):
    host, _, port = application.address.rpartition(":")
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": application.topic,
        "messaging.client.id": "receiver",
        "server.address": host,
        "server.port": int(port),
    }


def test_poll_is_one_span_with_links_and_counts(application, recorder):
    application.fill(b"abc", headers=[("traceparent", PARENT)])
    application.fill(b"de")
    polled(application.consumer(), 2)
    assert shape(recorder.span(f"receive {application.topic}")) == {
        "name": f"receive {application.topic}",
        "kind": "CONSUMER",
        "parent": None,
        "links": [PARENT_ID],
        "status": ("OK", None),
        "attributes": {
            **common(application),
            "messaging.operation": "receive",
            "messaging.kafka.consumer.group": "readers",
            "messaging.kafka.destination.partition": 0,
            "messaging.batch.message_count": 2,
            "messaging.batch.total_size_bytes": 5,
        },
        "events": [],
    }
    assert len(recorder.spans()) == 1


def test_a_loop_over_a_list_is_one_span_for_each_record(application, recorder):
    application.fill(b"abc", key=b"k", headers=[("traceparent", PARENT)])
    for record in only(polled(application.consumer(), 1)):
        assert record.value == b"abc"
        inside = span_id(current())
    span = recorder.span(f"process {application.topic}")
    found = shape(span)
    assert found["attributes"].pop("messaging.message.queue_time") >= 0
    assert found == {
        "name": f"process {application.topic}",
        "kind": "CONSUMER",
        "parent": PARENT_ID,
        "links": [],
        "status": ("OK", None),
        "attributes": {
            **common(application),
            "messaging.operation": "process",
            "messaging.kafka.consumer.group": "readers",
            "messaging.kafka.destination.partition": 0,
            "messaging.kafka.message.offset": 0,
            "messaging.kafka.message.key": "k",
            "messaging.message.payload_size_bytes": 3,
            "messaging.consumer.lag": 0,
        },
        "events": [],
    }
    assert inside == span_id(span)
    assert nothing_is_current()


def test_the_conventions_call_it_poll(plain, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    plain.instrument()
    plain.fill(b"abc", headers=[("traceparent", PARENT)])
    for _ in only(polled(plain.consumer(), 1)):
        pass
    call = shape(recorder.span(f"poll {plain.topic}"))
    call["attributes"].pop("messaging.kafka.cluster.id", None)
    assert call == {
        "name": f"poll {plain.topic}",
        "kind": "CLIENT",
        "parent": None,
        "links": [PARENT_ID],
        "status": ("UNSET", None),
        "attributes": {
            **common(plain),
            "messaging.operation.name": "poll",
            "messaging.operation.type": "receive",
            "messaging.consumer.group.name": "readers",
            "messaging.destination.partition.id": "0",
            "messaging.batch.message_count": 1,
        },
        "events": [],
    }
    assert shape(recorder.span(f"process {plain.topic}"))["links"] == [PARENT_ID]


def test_a_link_tells_which_record_it_is_to(plain, recorder, vocabulary):
    plain.instrument()
    plain.fill(b"unlinked")
    plain.fill(b"abc", key=b"k", headers=[("traceparent", PARENT)])
    plain.fill(b"de", key=b"\xff", headers=[("traceparent", PARENT)])
    polled(plain.consumer(), 3)
    (call,) = [span for span in recorder.spans() if "messaging.batch.message_count" in span.attributes]
    place = {
        "guide": lambda offset: {PARTITION: 0, OFFSET: offset},
        "semconv": lambda offset: {PARTITION_ID: "0", KAFKA_OFFSET: offset},
        "both": lambda offset: {PARTITION: 0, OFFSET: offset, PARTITION_ID: "0", KAFKA_OFFSET: offset},
    }[vocabulary]
    key = {"messaging.kafka.message.key": "k"}
    assert links(call) == [(PARENT_ID, {**place(1), **key}), (PARENT_ID, place(2))]


def test_a_link_tells_the_topic_where_there_are_several(two_topics, recorder):
    consumer, topics = two_topics
    poll_both(consumer)
    (call,) = recorder.spans("receive")[-1:]
    expected = [{"messaging.destination.name": topic, PARTITION: 0, OFFSET: 0} for topic in topics]
    assert sorted((found for _, found in links(call)), key=str) == sorted(expected, key=str)


def test_the_span_of_poll_begins_before_the_call(application, recorder):
    consumer = application.consumer()
    consumer.poll(timeout_ms=100)
    timer = threading.Timer(0.5, application.fill, (b"a",))
    before = time.time_ns()
    timer.start()
    while not consumer.poll(timeout_ms=5_000):
        pass
    timer.join()
    span = recorder.span(f"receive {application.topic}")
    assert span.end_time - span.start_time > 300_000_000
    assert span.start_time >= before


def test_an_empty_poll_makes_nothing(application, recorder):
    consumer = application.consumer()
    assert consumer.poll(timeout_ms=200) == {}
    consumer.close()
    assert recorder.spans() == []


def test_who_looks_at_all_objects_meanwhile_disturbs_nothing(application, recorder, monkeypatch):
    """As memory profilers do in a thread of their own: CPython refuses to finish a tuple that they have seen."""
    seen, extract = [], propagation.extract

    def looked_at(*arguments):
        seen.append(gc.get_objects())
        return extract(*arguments)

    monkeypatch.setattr(propagation, "extract", looked_at)
    application.fill(b"a", headers=[("traceparent", PARENT)])
    polled(application.consumer(), 1)
    assert [link.context.span_id for link in recorder.span(f"receive {application.topic}").links] == [PARENT_ID]
    assert len(seen) == 1


def test_arguments_that_poll_refuses_are_a_failure(application, recorder):
    consumer = application.consumer()
    with pytest.raises((AssertionError, ValueError)) as caught:
        consumer.poll(timeout_ms=-1)
    (span,) = recorder.spans()
    assert span.name == f"receive {application.topic}"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["error.type"] == type(caught.value).__name__
    assert [event.name for event in span.events] == ["exception"]


def test_more_arguments_than_poll_takes_are_refused_as_they_are_uninstrumented(application, recorder):
    with pytest.raises(TypeError, match=r"poll\(\) takes from 1 to 4 positional arguments but 5 were given"):
        application.consumer().poll(0, None, True, 4)


@pytest.fixture
def two_topics(application):
    """A consumer of two topics with one record each, and their names; both records come at once."""
    from kafka import TopicPartition

    topics = [application.topic, f"{application.topic}-b"]
    consumer = application.consumer()
    for topic in topics:
        application.topic = topic
        application.fill(b"v" * len(topic), headers=[("traceparent", PARENT)])
    consumer.assign([TopicPartition(topic, 0) for topic in topics])
    consumer.seek_to_beginning()
    return consumer, topics


def poll_both(consumer):
    """Poll once there are records of both topics."""
    from kafka import TopicPartition

    end = time.monotonic() + 10
    while True:
        found = consumer.poll(timeout_ms=500)
        if len(found) == 2:
            return found
        for records in found.values():  # they came one by one: again
            consumer.seek(TopicPartition(records[0].topic, 0), 0)
        assert time.monotonic() < end, "no records"


def test_records_of_several_topics_have_a_call_without_destination(two_topics, recorder):
    consumer, topics = two_topics
    seen = {}
    for tp, records in poll_both(consumer).items():
        seen[tp.topic] = [current().name for _ in records]
    assert seen == {topic: [f"process {topic}"] for topic in topics}
    span = recorder.spans("receive")[0]
    assert span.attributes["messaging.batch.message_count"] == 2
    assert "messaging.destination.name" not in span.attributes
    assert "messaging.kafka.destination.partition" not in span.attributes


def test_records_of_several_topics_are_counted_for_each(two_topics, recorder):
    consumer, topics = two_topics
    poll_both(consumer)
    calls = [span.name for span in recorder.spans()]
    counted = {
        labels["messaging.destination.name"]: number
        for labels, number in recorder.metrics()["messaging.messages.consumed"]
    }
    assert counted == {topic: calls.count("receive") + calls.count(f"receive {topic}") for topic in topics}


def test_an_excluded_topic_makes_nothing_and_stays_a_plain_list(plain, recorder):
    plain.instrument(excluded_destinations=[plain.topic])
    plain.fill(b"a")
    records = only(polled(plain.consumer(), 1))
    assert type(records) is list
    assert recorder.spans() == []


# What poll returns


def test_poll_returns_the_same_dictionary_of_lists_of_records(application):
    from kafka import TopicPartition
    from kafka.consumer.fetcher import ConsumerRecord

    application.fill(b"a", b"b")
    found = polled(application.consumer(), 2)
    assert type(found) is dict
    assert list(found) == [TopicPartition(application.topic, 0)]
    records = only(found)
    assert isinstance(records, list)
    assert [type(record) for record in list(records)] == [ConsumerRecord, ConsumerRecord]
    assert sorted(records, key=lambda record: -record.offset) == records[::-1]
    assert type(pickle.loads(pickle.dumps(found))[TopicPartition(application.topic, 0)]) is list


def test_what_takes_all_at_once_makes_no_span(application, recorder):
    application.fill(b"a", b"b")
    found = polled(application.consumer(), 2)
    records = list(itertools.chain(*found.values()))
    assert records[1].value == b"b"
    assert only(found)[0].value == b"a"
    for _ in records:
        assert nothing_is_current()
    assert processed(application, recorder, 0) == []


def test_a_chain_that_is_looped_over_makes_a_span_for_each_record(application, recorder):
    application.fill(b"a", b"b")
    found = polled(application.consumer(), 2)
    for record in itertools.chain.from_iterable(found.values()):
        assert current().attributes[OFFSET] == record.offset
    assert offsets(processed(application, recorder, 2)) == [0, 1]
    assert nothing_is_current()


def test_a_second_loop_makes_no_second_span(application, recorder):
    application.fill(b"a", b"b")
    records = only(polled(application.consumer(), 2))
    for _ in range(2):
        for _ in records:
            pass
    processed(application, recorder, 2)


def leave_by_break(records):
    for _ in records:
        break


def leave_by_return(records):
    for _ in records:
        return


def leave_by_exception(records):
    with contextlib.suppress(ZeroDivisionError):
        for _ in records:
            raise ZeroDivisionError


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_return, leave_by_exception])
def test_a_loop_that_is_left_ends_the_handling_at_once(application, recorder, leave):
    application.fill(b"a", b"b")
    leave(only(polled(application.consumer(), 2)))
    assert offsets(processed(application, recorder, 1)) == [0]
    assert nothing_is_current()


@pytest.mark.skipif(VERSION < (3,), reason="a KafkaConsumer is no context manager before 3.0")
def test_with_records_the_exception_that_leaves_the_loop(application, recorder):
    application.fill(b"a")
    with contextlib.suppress(ZeroDivisionError), application.consumer() as consumer:
        for _ in only(polled(consumer, 1)):
            raise ZeroDivisionError("boom")
    span = recorder.span(f"process {application.topic}")
    assert shape(span)["status"] == ("ERROR", "boom")


# Until when


def messages(consumer, count):
    """A generator that the test may leave suspended."""
    for records in polled(consumer, count).values():
        yield from records


def suspend(generator):
    for record in generator:
        return record
    return None


def test_lists_that_the_application_puts_together_keep_what_each_record_is(two_topics, recorder):
    consumer, topics = two_topics
    one, other = poll_both(consumer).values()
    one += [*other, "the end"]
    assert len([record for record in one]) == 3  # noqa: C416 (a loop)
    for topic in topics:
        span = recorder.span(f"process {topic}")
        assert span.attributes["messaging.destination.name"] == topic


def test_the_next_records_end_what_a_suspended_loop_has(application, recorder):
    application.fill(b"a")
    consumer = application.consumer()
    generator = messages(consumer, 1)
    suspend(generator)
    assert not nothing_is_current()
    consumer.poll(timeout_ms=100)
    assert not nothing_is_current()  # nothing came: the application may be in its loop, and ask to stay in its group
    application.fill(b"b")
    polled(consumer, 1)
    assert offsets(processed(application, recorder, 1)) == [0]
    assert nothing_is_current()
    generator.close()


@pytest.mark.parametrize("method", ["close", "unsubscribe"])
def test_closing_ends_what_a_suspended_loop_has(application, recorder, method):
    application.fill(b"a")
    consumer = application.consumer()
    generator = messages(consumer, 1)
    suspend(generator)
    getattr(consumer, method)()
    processed(application, recorder, 1)
    assert nothing_is_current()
    generator.close()


def test_a_thread_has_its_context_back_when_it_asks_after_another_has_unsubscribed(application, recorder):
    application.fill(b"a")
    consumer = application.consumer()
    generator = messages(consumer, 1)
    suspend(generator)
    thread = threading.Thread(target=consumer.unsubscribe)
    thread.start()
    thread.join()
    processed(application, recorder, 1)
    assert consumer.poll(timeout_ms=50) == {}
    assert nothing_is_current()
    generator.close()


def test_a_poll_in_the_body_that_keeps_the_group_leaves_the_record_alone(application, recorder):
    application.fill(b"a", b"b")
    consumer = application.consumer()
    found = polled(consumer, 2)
    consumer.pause(*found)
    for _ in only(found):
        before = current()
        assert consumer.poll(timeout_ms=0) == {}
        assert current() is before
    assert offsets(processed(application, recorder, 2)) == [0, 1]


def test_threads_that_loop_keep_their_records_when_there_are_more(application, recorder):
    application.fill(b"a")
    consumer = application.consumer()
    records = only(polled(consumer, 1))
    inside, go, seen = threading.Event(), threading.Event(), []

    def work():
        for _ in records:
            inside.set()
            go.wait(10)
            seen.append((current().is_recording(), span_id(current())))

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    application.fill(b"b")
    polled(consumer, 1)
    go.set()
    thread.join()
    (span,) = processed(application, recorder, 1)
    assert seen == [(True, span_id(span))]


# Iteration uses poll inside


def test_the_iterator_s_own_poll_is_not_seen(application, recorder):
    application.fill(b"a", b"b", b"c")
    consumer = application.consumer()
    assert [next(consumer).offset for _ in range(3)] == [0, 1, 2]
    consumer.close()
    spans = recorder.spans()
    assert [span.name for span in spans] == [f"receive {application.topic}"] * 3
    assert all("messaging.batch.message_count" not in span.attributes for span in spans)


def test_pausing_and_seeking_in_a_loop_count_each_delivery_once(application, recorder):
    from kafka import TopicPartition

    application.fill(b"a", b"b", b"c")
    consumer = application.consumer()
    partition, seen = TopicPartition(application.topic, 0), []
    for record in consumer:
        seen.append(record.offset)
        if seen == [0]:
            consumer.pause(partition)
            consumer.resume(partition)
        if seen == [0, 1]:
            consumer.seek(partition, 0)
        if len(seen) == 5:
            break
    assert seen == [0, 1, 0, 1, 2]
    assert offsets(recorder.spans(count=5)) == seen


def test_a_subclass_that_overrides_poll_is_counted_once(application, recorder):
    from kafka import KafkaConsumer, TopicPartition

    class Logging(KafkaConsumer):
        def poll(self, timeout_ms=0, max_records=None, update_offsets=True):
            return super().poll(timeout_ms, max_records, update_offsets)

    application.fill(b"a", b"b")
    options = {"bootstrap_servers": application.address, "auto_offset_reset": "earliest", "enable_auto_commit": False}
    for use in (lambda consumer: [next(consumer), next(consumer)], lambda consumer: polled(consumer, 2)):
        consumer = Logging(**options)
        consumer.assign([TopicPartition(application.topic, 0)])
        use(consumer)
        consumer.close()
    counts = [span.attributes.get("messaging.batch.message_count") for span in recorder.spans(count=3)]
    assert counts == [None, None, 2]


# A list of one


def unpack(records):
    (record,) = records
    return record


TAKEN = {"index": lambda records: records[0], "pop": lambda records: records.pop(), "unpacking": unpack}


@pytest.mark.parametrize("take", TAKEN)
def test_a_list_of_one_that_is_taken_apart_is_handled_until_the_next_poll(application, recorder, take):
    application.fill(b"abc", headers=[("traceparent", PARENT)])
    consumer = application.consumer()
    record = TAKEN[take](only(polled(consumer, 1)))
    assert record.value == b"abc"
    inside = span_id(current())
    assert recorder.spans(f"process {application.topic}") == []
    consumer.poll(timeout_ms=10)
    assert nothing_is_current()
    span = recorder.span(f"process {application.topic}")
    assert inside == span_id(span)
    found = shape(span)
    assert found["attributes"].pop("messaging.message.queue_time") >= 0
    assert found == {
        "name": f"process {application.topic}",
        "kind": "CONSUMER",
        "parent": PARENT_ID,
        "links": [],
        "status": ("OK", None),
        "attributes": {
            **common(application),
            "messaging.operation": "process",
            "messaging.kafka.consumer.group": "readers",
            "messaging.kafka.destination.partition": 0,
            "messaging.kafka.message.offset": 0,
            "messaging.message.payload_size_bytes": 3,
            "messaging.consumer.lag": 0,
        },
        "events": [],
    }
    assert [count for _, count in recorder.metrics()["messaging.messages.consumed"]] == [1]


def test_a_record_that_was_taken_is_handled_until_it_is_committed(application, recorder):
    application.fill(b"abc")
    consumer = application.consumer()
    only(polled(consumer, 1))[0]
    consumer.commit()
    assert nothing_is_current()
    assert shape(recorder.span(f"process {application.topic}"))["events"] == [("commit", {})]
    consumer.commit()


def test_a_record_that_was_taken_is_handled_until_the_consumer_is_closed(application, recorder):
    application.fill(b"abc")
    consumer = application.consumer()
    only(polled(consumer, 1)).pop()
    consumer.close()
    assert shape(recorder.span(f"process {application.topic}"))["status"] == ("OK", None)


def test_a_record_that_another_thread_takes_makes_nothing(application, recorder):
    application.fill(b"abc")
    records = only(polled(application.consumer(), 1))
    thread = threading.Thread(target=lambda: records[0])
    thread.start()
    thread.join()
    assert recorder.spans(f"process {application.topic}") == []


@pytest.mark.skipif(VERSION < (3,), reason="KafkaConsumer is a context manager since kafka-python 3.0")
def test_an_exception_that_leaves_the_consumers_block_is_that_of_the_record_that_was_taken(application, recorder):
    application.fill(b"abc")
    with contextlib.suppress(ZeroDivisionError), application.consumer() as consumer:
        only(polled(consumer, 1))[0]
        raise ZeroDivisionError("no")
    assert shape(recorder.span(f"process {application.topic}"))["status"] == ("ERROR", "no")
    assert nothing_is_current()


def test_of_several_records_none_is_handled_by_its_index(application, recorder):
    application.fill(b"a", b"b")
    records = only(polled(application.consumer(), 2))
    assert [records[0].value, records.pop().value] == [b"a", b"b"]
    assert recorder.spans(f"process {application.topic}") == []


# Metrics, and what stays


def test_each_polled_record_is_counted_once(application, recorder):
    application.fill(b"a", b"b")
    for _ in only(polled(application.consumer(), 2)):
        pass
    metrics = recorder.metrics()
    labels = {
        "messaging.system": "kafka",
        "messaging.destination.name": application.topic,
        "messaging.kafka.consumer.group": "readers",
    }
    assert metrics["messaging.messages.consumed"] == [(labels, 2)]
    assert metrics["messaging.processing.duration"] == [(labels, 2)]


def test_five_thousand_records_leave_nothing_behind(application, recorder):
    application.fill(*[b"v"] * 5_000)
    consumer = application.consumer(max_poll_records=100)
    sizes, seen = [], 0
    while seen < 5_000:
        for records in consumer.poll(timeout_ms=500).values():
            for _ in records:
                seen += 1
        if seen in (2_500, 5_000):
            recorder.exporter.clear()
            gc.collect()
            sizes.append(len(gc.get_objects()))
    assert seen == 5_000
    assert sizes[-1] - sizes[0] < 500
    assert nothing_is_current()
