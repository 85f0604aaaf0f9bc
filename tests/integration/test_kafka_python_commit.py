"""Commits of a `KafkaConsumer`, and transactions of a `KafkaProducer`."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import time

import pytest
from opentelemetry import trace

from tests.support.kafka_python import APACHE, QUIET, VERSION, application, plain, stack  # noqa: F401
from tests.support.recorder import shape

pytestmark = QUIET


def events(span):
    return [(event.name, dict(event.attributes)) for event in span.events]


def offsets(application, offset):
    from kafka import OffsetAndMetadata, TopicPartition

    fields = (offset, "", -1)[: len(OffsetAndMetadata._fields)]
    return {TopicPartition(application.topic, 0): OffsetAndMetadata(*fields)}


@pytest.fixture
def spans(plain):
    """An application whose commits are spans."""
    plain.instrument(settle="span")
    plain.fill(b"a", b"b")
    return plain


@pytest.fixture
def filled(application):
    application.fill(b"a", b"b")
    return application


def test_a_commit_in_a_loop_is_an_event(filled, recorder):
    consumer = filled.consumer()
    for _ in consumer:
        consumer.commit()
        break
    assert events(recorder.span(f"receive {filled.topic}")) == [("commit", {})]
    assert len(recorder.spans()) == 1


def test_a_commit_in_a_loop_over_a_list_is_an_event(filled, recorder):
    consumer = filled.consumer()
    for records in consumer.poll(timeout_ms=8_000).values():
        for record in records:
            consumer.commit(offsets(filled, record.offset + 1))
    assert {event for span in recorder.spans(f"process {filled.topic}") for event, _ in events(span)} == {"commit"}


def test_a_commit_behind_the_loop_makes_nothing_in_the_guide(filled, recorder):
    consumer = filled.consumer()
    next(consumer)
    for _ in consumer:
        break
    consumer.commit()
    assert [events(span) for span in recorder.spans(count=2)] == [[], []]


def test_a_commit_in_a_loop_over_another_consumer_makes_nothing(filled, recorder):
    other = filled.consumer()
    other.poll(timeout_ms=8_000)
    recorder.exporter.clear()
    for _ in filled.consumer():
        other.commit()
        break
    assert [events(span) for span in recorder.spans(count=1)] == [[]]


def test_a_commit_that_fails_tells_its_error(application, recorder):
    application.fill(b"a")
    consumer = application.consumer(group_id=None)
    for _ in consumer:
        with pytest.raises(Exception, match="group_id") as caught:
            consumer.commit()
        break
    (event,) = events(recorder.span(f"receive {application.topic}"))
    kind = type(caught.value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    assert event == ("commit", {"error.type": name})


def raised(call, *args):
    try:
        call(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def commit(spans, verb):
    consumer = spans.consumer()
    next(consumer)
    return consumer, getattr(consumer, verb)()


def test_a_commit_is_a_client_span_in_the_conventions(plain, recorder, monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "messaging")
    plain.instrument()
    plain.fill(b"a")
    consumer, _ = commit(plain, "commit")
    consumer.close()
    found = shape(recorder.span(f"commit {plain.topic}"))
    found["attributes"].pop("messaging.kafka.cluster.id", None)
    host, _, port = plain.address.rpartition(":")
    assert found == {
        "name": f"commit {plain.topic}",
        "kind": "CLIENT",
        "parent": recorder.span(f"process {plain.topic}").context.span_id,
        "links": [],
        "status": ("UNSET", None),
        "attributes": {
            "messaging.system": "kafka",
            "messaging.destination.name": plain.topic,
            "messaging.operation.name": "commit",
            "messaging.operation.type": "settle",
            "messaging.client.id": "receiver",
            "messaging.consumer.group.name": "readers",
            "messaging.destination.partition.id": "0",
            "server.address": host,
            "server.port": int(port),
        },
        "events": [],
    }


def test_an_asynchronous_commit_ends_when_the_broker_answers(spans, recorder):
    answers = []
    consumer = spans.consumer()
    next(consumer)
    future = consumer.commit_async(callback=lambda *answer: answers.append(answer))
    end = time.monotonic() + 8
    while not answers and time.monotonic() < end:
        consumer.poll(timeout_ms=50, max_records=1)
    assert future.succeeded()
    assert shape(recorder.span(f"commit_async {spans.topic}"))["status"] == ("OK", None)


def test_an_asynchronous_commit_without_answer_ends_with_the_consumer(spans, recorder, monkeypatch):
    from kafka.future import Future

    consumer = spans.consumer()
    next(consumer)
    monkeypatch.setattr(consumer._coordinator, "commit_offsets_async", lambda *args, **kwargs: Future())
    consumer.commit_async()
    assert recorder.spans(f"commit_async {spans.topic}") == []
    consumer.close()
    span = recorder.span(f"commit_async {spans.topic}")
    assert span.attributes["error.type"] == "consumer_closed"
    assert span.status.status_code is trace.StatusCode.ERROR


def test_an_asynchronous_commit_ends_at_the_latest_with_what_is_kept_for_a_consumer(spans, recorder, monkeypatch):
    """Until 2.1 a consumer that is let go of without being closed sends nothing any more, and hears nothing."""
    from kafka.future import Future

    consumer = spans.consumer()
    for _ in consumer:
        break
    monkeypatch.setattr(consumer._coordinator, "commit_offsets_async", lambda *args, **kwargs: Future())
    future = consumer.commit_async()
    del consumer._otel_messaging
    recorder.metrics()  # whoever lets go of it may be the SDK
    span = recorder.span(f"commit_async {spans.topic}")
    assert span.attributes["error.type"] == "consumer_closed"
    assert not future.is_done
    recorder.exporter.clear()
    future.success(None)
    assert recorder.spans(f"commit_async {spans.topic}") == []


def test_an_asynchronous_commit_in_a_loop_is_an_event_at_once(filled, recorder):
    consumer = filled.consumer()
    for _ in consumer:
        consumer.commit_async()
        break
    assert events(recorder.span(f"receive {filled.topic}")) == [("commit_async", {})]


def test_wrong_arguments_fail_as_without_us(spans, recorder):
    consumer = spans.consumer()

    def failures():
        found = []
        for arguments in ((5,), ({"a": 1},), (None, None, None, None)):
            error = raised(consumer.commit, *arguments)
            found.append((type(error), str(error)))
        return found

    traced = failures()
    from otel_messaging import KafkaPythonInstrumentor

    KafkaPythonInstrumentor().uninstrument()
    assert traced == failures()


def test_offsets_given_twice_are_refused_by_the_library(spans):
    with pytest.raises(TypeError, match=r"commit\(\) got multiple values for argument 'offsets'"):
        spans.consumer().commit({}, offsets={})


def test_what_is_committed_by_itself_makes_nothing(plain, recorder):
    plain.instrument(settle="span")
    plain.fill(b"a")
    consumer = plain.consumer(enable_auto_commit=True, auto_commit_interval_ms=50)
    next(consumer)
    time.sleep(0.1)
    consumer.poll(timeout_ms=100)
    consumer.close()
    assert [span.name for span in recorder.spans()] == [f"receive {plain.topic}"]


def test_settling_can_be_switched_off(plain, recorder):
    plain.instrument(settle="off")
    plain.fill(b"a")
    consumer = plain.consumer()
    for _ in consumer:
        consumer.commit()
        break
    assert events(recorder.span(f"receive {plain.topic}")) == []


# Transactions, since 2.2

transactional = pytest.mark.skipif(
    VERSION < (2, 2) or (VERSION < (3,) and not APACHE),
    reason="there are no transactions before 2.2, and before 3.0 only Apache Kafka understands them: make test-kafka",
)


@pytest.fixture
def producer(plain, request):
    made = plain.producer(transactional_id=f"{plain.topic}-producer")
    made.init_transactions()
    return made


@transactional
@pytest.mark.parametrize(("finish", "status"), [("commit_transaction", "OK"), ("abort_transaction", "OK")])
def test_the_steps_of_a_transaction_are_spans(plain, producer, recorder, finish, status):
    plain.instrument(settle="span")
    producer.begin_transaction()
    future = producer.send(plain.topic, b"a", partition=0)
    if finish == "commit_transaction":
        future.get(10)
    getattr(producer, finish)()
    found = {span.name: shape(span) for span in recorder.spans()}
    assert [found[name]["status"][0] for name in ("begin_transaction", finish)] == ["OK", status]
    assert found[finish]["kind"] == "CLIENT"
    assert found[finish]["attributes"]["messaging.client.id"] == "sender"
    assert "messaging.destination.name" not in found[finish]["attributes"]
    assert len(recorder.producers(1)) == 1


@transactional
def test_a_step_that_fails_tells_its_error(plain, producer, recorder):
    plain.instrument(settle="span")
    error = raised(producer.commit_transaction)
    span = recorder.span("commit_transaction")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["error.type"].endswith(type(error).__name__)


@transactional
def test_a_transaction_in_a_loop_is_told_of_on_the_record_s_span(plain, producer, recorder):
    plain.instrument()
    plain.fill(b"a")
    for _ in plain.consumer():
        producer.begin_transaction()
        producer.send(f"{plain.topic}-out", b"b", partition=0)
        producer.commit_transaction()
        break
    span = recorder.span(f"receive {plain.topic}")
    assert [name for name, _ in events(span)] == ["begin_transaction", "commit_transaction"]


@transactional
def test_offsets_sent_to_a_transaction_are_told_of(plain, producer, recorder):
    plain.fill(b"a")  # a topic that does not exist has no offsets, and the client asks for ever
    plain.instrument(settle="span")
    producer.begin_transaction()
    if VERSION >= (3,):
        from kafka.structs import ConsumerGroupMetadata

        group = ConsumerGroupMetadata("readers", -1, "", None)
    else:
        group = "readers"
    producer.send_offsets_to_transaction(offsets(plain, 1), group)
    producer.commit_transaction()
    names = [span.name for span in recorder.spans()]
    assert names == ["begin_transaction", "send_offsets_to_transaction", "commit_transaction"]
