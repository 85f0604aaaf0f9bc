"""The life of a `KafkaProducer`: no span outlives it, and nothing of ours keeps it, its threads or its process."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref

import pytest
from opentelemetry.sdk.trace import SpanProcessor

from examples import brokers
from otel_messaging.core.operations import Publication
from tests.support.kafka_python import QUIET, VERSION, application, plain, stack  # noqa: F401
from tests.support.recorder import shape, span_id

pytestmark = QUIET
IMPATIENT = {
    **({"delivery_timeout_ms": 800} if VERSION >= (2, 2) else {}),
    **({"enable_idempotence": False} if VERSION >= (3,) else {"retries": 0}),
}

OFFSET, PARTITION = "messaging.kafka.message.offset", "messaging.kafka.destination.partition"
GIVEN_UP = ("producer_closed", "kafka.errors.IllegalStateError")  # whichever notices first, we or the producer's thread


class Freezing(brokers.Kafka):
    """A broker that can stop answering: connections are taken, and nothing comes back."""

    def freeze(self):
        os.killpg(self._processes[-1].pid, signal.SIGSTOP)
        time.sleep(0.1)  # each of its threads stops at its own time

    def thaw(self):
        os.killpg(self._processes[-1].pid, signal.SIGCONT)


@pytest.fixture
def freezing(stack, real_broker):
    broker = stack.enter_context(Freezing())
    stack.callback(broker.thaw)
    return broker


def pending(application, freezing, **options):
    """A producer and the future of a message that is not answered."""
    settings = {"bootstrap_servers": freezing.address, "request_timeout_ms": 500, "retry_backoff_ms": 50}
    producer = application.producer(**settings, **options)
    producer.send(application.topic, b"first", partition=0).get(10)
    freezing.freeze()
    return producer, producer.send(application.topic, b"v", partition=0)


def test_a_message_that_expires_fails_its_span_once(application, recorder, freezing):
    producer, future = pending(application, freezing, **IMPATIENT)
    errors, told = [], threading.Event()
    future.add_errback(lambda error: (errors.append(error), told.set()))
    assert told.wait(20)
    _, span = recorder.spans(f"publish {application.topic}", count=2)
    found, (error,) = shape(span), errors
    assert found["status"] == ("ERROR", str(error))
    assert found["attributes"]["error.type"] == f"{type(error).__module__}.{type(error).__name__}"
    assert [event for event, _ in found["events"]] == ["exception"]
    freezing.thaw()
    producer.close(timeout=5)
    assert len(recorder.spans()) == 2


def test_a_broker_that_never_answers_gives_the_library_s_timeout(application, recorder, freezing):
    from kafka.errors import KafkaTimeoutError

    producer = application.producer(bootstrap_servers=freezing.address, max_block_ms=300)
    freezing.freeze()
    with pytest.raises(KafkaTimeoutError) as raised:
        producer.send(application.topic, b"v")
    found = shape(recorder.span(f"publish {application.topic}"))
    assert found["status"] == ("ERROR", str(raised.value))
    assert found["attributes"]["server.port"] == freezing.port
    freezing.thaw()


def test_flush_that_gives_up_ends_nothing(application, recorder, freezing):
    producer, future = pending(application, freezing)
    began = time.monotonic()
    with contextlib.suppress(Exception):  # since 2.1 it says so
        producer.flush(timeout=0.3)
    assert 0.2 < time.monotonic() - began < 5
    assert len(recorder.spans()) == 1
    freezing.thaw()
    assert recorder.spans(count=2)[1].attributes[OFFSET] == future.get(5).offset == 1


def test_close_that_gives_up_ends_the_spans_if_the_producer_is_closed(application, recorder, freezing):
    producer, _ = pending(application, freezing)
    if VERSION >= (2, 1):
        with pytest.raises(Exception, match="KafkaTimeoutError"):
            producer.close(timeout=0.2)
        assert len(recorder.spans()) == 1  # the producer stays open, and the message may yet arrive
        freezing.thaw()
        producer.close(timeout=5)
        assert recorder.spans()[1].status.status_code.name == "OK"
    else:
        producer.close(timeout=0.2)
        assert recorder.spans()[1].attributes["error.type"] in GIVEN_UP


def test_a_message_that_the_producer_has_given_up_ends_with_it(application, recorder):
    """Since 2.1 `close` flushes first; where the flush returns too early, as after fork, messages are left."""
    producer = application.producer(linger_ms=30_000)
    producer.send(application.topic, b"v")
    producer.flush = lambda timeout=None: None
    producer._sender.join = lambda timeout=None: None
    producer._sender.initiate_close = lambda: None
    producer.close(timeout=0)
    (span,) = recorder.spans()
    assert span.attributes["error.type"] in GIVEN_UP


def test_close_waits_for_what_is_on_its_way_as_it_does_uninstrumented(application, recorder):
    producer = application.producer(linger_ms=30_000)
    future = producer.send(application.topic, b"v")
    producer.close()
    assert future.succeeded()
    (span,) = recorder.spans()
    assert span.attributes["messaging.kafka.message.offset"] == future.value.offset


def test_closing_twice_ends_nothing_twice(application, recorder):
    producer = application.producer()
    producer.send(application.topic, b"v")
    producer.close()
    producer.close()
    assert len(recorder.spans()) == 1


def test_a_producer_that_failed_to_start_can_be_collected(application):
    with pytest.raises(Exception, match=r"Unrecognized config"):
        application.producer(colour="blue")


def test_a_producer_is_not_kept_alive(application, recorder):
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=application.address)
    producer.send(application.topic, b"v").get(10)
    producer.send(application.topic, b"v")
    reference, began = weakref.ref(producer), time.monotonic()
    del producer
    assert reference() is None
    assert time.monotonic() - began < 0.9
    assert [span.status.status_code.name for span in recorder.spans(count=2)] == ["OK", "OK"]


def test_a_producer_that_is_let_go_with_a_message_on_its_way_ends_its_span(application, recorder):
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=application.address, linger_ms=30_000)
    producer.send(application.topic, b"v")
    del producer
    assert [span.status.status_code.name for span in recorder.spans(count=1)] == ["OK"]


def publications():
    return [found for found in gc.get_objects() if type(found) is Publication]


def test_nothing_is_kept_for_messages_that_were_answered(application):
    before = publications()  # of tests that failed
    producer = application.producer()
    futures = [producer.send(application.topic, b"v") for _ in range(50)]
    producer.flush(10)
    assert all(future.is_done for future in futures)
    assert producer._otel_messaging.pending == set()
    gc.collect()
    assert publications() == before


def test_many_threads_send_at_once(application, recorder):
    producer = application.producer()
    producer.partitions_for(application.topic)

    def work():
        for _ in range(200):
            producer.send(application.topic, b"v")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    producer.flush(30)
    spans = recorder.spans(count=1600)
    assert len({span_id(span) for span in spans}) == 1600
    assert {span.status.status_code.name for span in spans} == {"OK"}
    assert len({(span.attributes[PARTITION], span.attributes[OFFSET]) for span in spans}) == 1600
    assert producer._otel_messaging.pending == set()


def test_a_span_processor_that_fails_stops_no_message(application, recorder, lenient, caplog):
    class Failing(SpanProcessor):
        def on_end(self, span):
            raise ZeroDivisionError("processor")

    recorder.tracer_provider.add_span_processor(Failing())
    producer = application.producer()
    offsets = [producer.send(application.topic, b"v", partition=0).get(10).offset for _ in range(3)]
    assert offsets == [0, 1, 2]
    reports = [record for record in caplog.records if record.name == "otel_messaging"]
    assert len(reports) == 1
    assert "Error processing" not in caplog.text


def test_metadata_that_changes_under_us_costs_a_fact_and_not_the_span(application, recorder, monkeypatch):
    class Changing:
        _last_successful_refresh_ms = 0

        def leader_for_partition(self, partition):
            raise KeyError(partition.topic)

        def broker_metadata(self, node):
            raise AssertionError("never asked")

    producer = application.producer(linger_ms=30_000)
    producer.send(application.topic, b"v", partition=1)
    state = producer._otel_messaging
    monkeypatch.setattr(state, "_cluster", type(state._cluster)(Changing()))
    producer.flush(10)
    assert recorder.span(f"publish {application.topic}").attributes["messaging.kafka.destination.partition"] == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_of_the_application_that_stops_the_producer_still_does(application, recorder):
    """kafka-python lets what is no `Exception` through: that is the application's affair, and unchanged."""

    class Stop(BaseException):
        pass

    def stop(_):
        raise Stop

    producer = application.producer(linger_ms=30_000)
    future = producer.send(application.topic, b"v")
    future.add_callback(stop)
    with contextlib.suppress(Exception):
        producer.flush(1)
    assert [span.status.status_code.name for span in recorder.spans(count=1)] == ["OK"]
    assert not future._produce_future._latch.is_set()
    producer._closed = True  # it cannot be closed any more


PROGRAM = """
import os, sys, threading
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

provider = TracerProvider()
provider.add_span_processor(
    BatchSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + chr(10)))
)
trace.set_tracer_provider(provider)

from otel_messaging import KafkaPythonInstrumentor
KafkaPythonInstrumentor().instrument()
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

address, topic = sys.argv[1:]
"""

PROGRAMS = {
    "without close": """
producer = KafkaProducer(bootstrap_servers=address)
for _ in range(5):
    producer.send(topic, b"v")
""",
    "with work in flight": """
producer = KafkaProducer(bootstrap_servers=address, linger_ms=30_000)
for _ in range(5):
    producer.send(topic, b"v")
""",
    "of a producer made before it was instrumented": """
KafkaPythonInstrumentor().uninstrument()
producer = KafkaProducer(bootstrap_servers=address, linger_ms=30_000)
KafkaPythonInstrumentor().instrument()
another = KafkaProducer(bootstrap_servers=address)
for _ in range(5):
    producer.send(topic, b"v")
""",
    "in a thread": """
def work():
    producer = KafkaProducer(bootstrap_servers=address)
    for _ in range(5):
        producer.send(topic, b"v")
    producer.flush(5)
    producer.close()

thread = threading.Thread(target=work)
thread.start()
thread.join()
""",
    "of a forked child": """
producer = KafkaProducer(bootstrap_servers=address, linger_ms=1_000)
for _ in range(5):
    producer.send(topic, b"v")
if os.fork() == 0:
    sys.stderr = open(os.devnull, "w")  # the child's producer has no thread, and says so
    sys.exit(0)
os.wait()
producer.flush(5)
producer.close()
""",
}


def run(body, *arguments):
    """Run a program that exports to its output; its spans and what it says."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM + body, *arguments],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("OTEL_")},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


IMPATIENT_AT_EXIT = {"without close", "with work in flight", "of a producer made before it was instrumented"}


@pytest.mark.parametrize("way", PROGRAMS)
def test_a_program_that_ends_has_told_every_span(kafka_address, way):
    topic = f"exit-{os.urandom(6).hex()}"
    spans, said = run(PROGRAMS[way], kafka_address, topic)
    assert [span["name"] for span in spans] == [f"publish {topic}"] * 5
    assert len({span["context"]["span_id"] for span in spans}) == 5
    if VERSION >= (3, 0, 7) or way not in IMPATIENT_AT_EXIT:
        assert {span["status"]["status_code"] for span in spans} == {"OK"}
    assert "tracing this call failed" not in said
    assert said == "" or (2, 1) <= VERSION < (3, 0, 7)  # these versions complain that they cannot flush at exit


MADE = {
    "instrumented": "producer = KafkaProducer(bootstrap_servers=address)",
    "instrumented later": """
KafkaPythonInstrumentor().uninstrument()
producer = KafkaProducer(bootstrap_servers=address)
KafkaPythonInstrumentor().instrument()
""",
}


@pytest.mark.parametrize("made", MADE)
def test_a_program_that_ends_while_the_broker_is_silent_tells_what_was_given_up(freezing, made):
    topic, process = f"exit-{os.urandom(6).hex()}", freezing._processes[-1].pid
    spans, said = run(
        f"""
{MADE[made]}
producer.send(topic, b"first").get(10)
import signal, time
os.killpg({process}, signal.SIGSTOP)
time.sleep(0.1)
producer.send(topic, b"v")
""",
        freezing.address,
        topic,
    )
    assert [span["status"]["status_code"] for span in spans] == ["OK", "ERROR"]
    assert spans[1]["attributes"]["error.type"] in GIVEN_UP
    assert "tracing this call failed" not in said


def test_a_program_that_ends_before_a_commit_is_answered_tells_so(kafka_address):
    topic = f"exit-{os.urandom(6).hex()}"
    spans, _ = run(
        """
KafkaPythonInstrumentor().uninstrument()
KafkaPythonInstrumentor().instrument(settle="span")
from kafka.future import Future
consumer = KafkaConsumer(bootstrap_servers=address, group_id="readers", enable_auto_commit=False)
consumer.assign([TopicPartition(topic, 0)])
consumer._coordinator.commit_offsets_async = lambda *args, **kwargs: Future()
consumer.commit_async()
if os.fork() == 0:
    sys.exit(0)  # the commit is its parent's
os.wait()
""",
        kafka_address,
        topic,
    )
    assert [span["name"] for span in spans] == [f"commit_async {topic}"]
    assert spans[0]["attributes"]["error.type"] == "consumer_closed"


def test_a_program_that_ends_in_a_loop_has_told_the_record(kafka_address):
    topic = f"exit-{os.urandom(6).hex()}"
    spans, said = run(
        """
producer = KafkaProducer(bootstrap_servers=address)
producer.send(topic, b"v", partition=0).get(10)
producer.close()
consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False)
consumer.assign([TopicPartition(topic, 0)])
for record in consumer:
    sys.exit(0)
""",
        kafka_address,
        topic,
    )
    assert [span["name"] for span in spans] == [f"publish {topic}", f"receive {topic}"]
    assert said == ""


def test_an_iterator_that_is_left_to_the_interpreter_makes_no_noise(kafka_address):
    topic = f"exit-{os.urandom(6).hex()}"
    _, said = run(
        """
producer = KafkaProducer(bootstrap_servers=address)
producer.send(topic, b"v", partition=0).get(10)
producer.close()
consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False)
consumer.assign([TopicPartition(topic, 0)])
iterator = iter(consumer)
next(iterator)
""",
        kafka_address,
        topic,
    )
    assert said == ""


@pytest.mark.skipif(VERSION < (3,), reason="only since 3.0 the client warns of serializers that are functions")
def test_warnings_of_the_client_name_the_same_line(plain):
    def warned():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plain.producer(value_serializer=str.encode)
        return [(str(warning.message), warning.filename, warning.lineno) for warning in caught]

    expected = warned()
    assert expected
    plain.instrument()
    assert warned() == expected
