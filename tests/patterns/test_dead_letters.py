"""`dead_letter`: in every library, what goes to where dead letters go, and what is told of it."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_messaging.instrumentation import dead_letters
from otel_messaging.patterns import process
from tests.support.drivers import DRIVERS
from tests.support.recorder import shape, span_id, trace_id

BROKEN = f"{__name__}.BrokenError"
HEADERS = {"tenant": "acme", "dead-letter-error": "of another time"}
COUNTER = "messaging.messages.dead_lettered"
WORDS = {"kafka_python": "send", "aio_pika": "publish", "nats_py": "publish"}


class BrokenError(Exception):
    """What the application raises."""


class UnspeakableError(Exception):
    """An error that raises another one where it is asked what it is."""

    def __str__(self):
        raise ValueError("no")


async def bury(driver, message, destination, error=None, **options):
    """Dead-letter a message, and wait until the broker has it."""
    put_aside = importlib.import_module(f"otel_messaging.{driver.library}").dead_letter
    letter = (message, error or BrokenError("out of stock"), driver.publisher, destination)
    if driver.library == "kafka_python":
        return put_aside(*letter, partition=0, **options).get(timeout=10)
    return await put_aside(*letter, **options)


class Scene:
    """A message that is published, dead-lettered while it is handled, and consumed as a dead letter."""

    def __init__(self, driver):
        self.driver = driver
        self.origin, self.grave = driver.name(), driver.name()

    async def open(self):
        self.listener = await self.driver.listen(self.origin)
        self.undertaker = await self.driver.listen(self.grave)
        return self

    async def play(self, handle=None, error=None, headers=HEADERS):
        """Returns the dead letter's body and headers."""
        await self.driver.publish(self.origin, b"hello", headers)

        async def body(message):
            await bury(self.driver, message, self.grave, error)

        await self.driver.loop(self.listener, 1, handle or body)
        return await self.letter()

    async def letter(self):
        found = []

        def read(message):
            found.append((self.driver.body(message), dict(self.driver.headers(message))))

        await self.driver.loop(self.undertaker, 1, read)
        return found[0]


@pytest.fixture
async def scene(connect):
    async def opened(**arguments):
        return await Scene(await connect(**arguments)).open()

    return opened


def origin_headers(scene):
    """What says where a message came from."""
    return {
        "kafka_python": {
            "dead-letter-original-topic": scene.origin,
            "dead-letter-original-partition": "0",
            "dead-letter-original-offset": "0",
        },
        "aio_pika": {"dead-letter-original-exchange": "", "dead-letter-original-routing-key": scene.origin},
        "nats_py": {"dead-letter-original-subject": scene.origin},
    }[scene.driver.library]


def told_headers(scene):
    return {**origin_headers(scene), "dead-letter-error-type": BROKEN, "dead-letter-error": "out of stock"}


async def test_a_dead_letter_keeps_body_and_headers_and_says_why_it_is_one(scene):
    played = await scene()
    body, headers = await played.play()
    assert headers.pop("traceparent")
    assert (body, headers) == (b"hello", {"tenant": "acme", **told_headers(played)})


async def test_one_trace_leads_from_the_message_to_its_dead_letter(scene, recorder, vocabulary):
    played = await scene()
    await played.play()
    published, buried = recorder.producers(2)
    received, exhumed = recorder.consumers(2)
    verb = WORDS[played.driver.library] if vocabulary != "guide" else "publish"
    taken = "receive" if vocabulary == "guide" else "process"
    assert [span.name for span in (published, received, buried, exhumed)] == [
        f"{verb} {played.origin}",
        f"{taken} {played.origin}",
        f"{verb} {played.grave}",
        f"{taken} {played.grave}",
    ]
    assert [trace_id(span) for span in (received, buried, exhumed)] == [trace_id(published)] * 3
    assert [span.parent.span_id for span in (received, buried, exhumed)] == [
        span_id(published),
        span_id(received),
        span_id(buried),
    ]
    assert shape(buried)["links"] == [span_id(published)]
    event = ("send_to_dead_letter", {"original_topic": played.origin, "error": "out of stock"})
    assert [told for told in shape(received)["events"] if told[0] == "send_to_dead_letter"] == [event]
    success = trace.StatusCode.OK if vocabulary == "guide" else trace.StatusCode.UNSET
    assert {span.status.status_code for span in (received, buried, exhumed)} == {success}


async def test_dead_letters_are_counted_by_destination_and_error(scene, recorder, vocabulary):
    played = await scene()
    await played.play()
    (point,) = recorder.metrics()[COUNTER]
    attributes, value = point
    assert value == 1
    assert attributes["messaging.system"] == played.driver.system
    assert attributes["messaging.destination.name"] == played.origin
    assert attributes["error.type"] == BROKEN


async def test_the_metric_counts_messages(scene, recorder):
    played = await scene()
    await played.play()
    assert (COUNTER, "Sum", "{message}", ()) in recorder.instruments()


async def test_the_dead_letters_span_shows_its_headers_where_that_is_asked_for(scene, recorder):
    played = await scene(capture_headers=["dead-letter-*"])
    await played.play()
    _, exhumed = recorder.consumers(2)
    shown = {name: value for name, value in exhumed.attributes.items() if name.startswith("messaging.header.")}
    assert shown == {f"messaging.header.{name}": text for name, text in told_headers(played).items()}


async def test_a_worker_puts_aside_what_it_processes(scene, recorder):
    played = await scene()

    async def work(message):
        async with process(message):
            await bury(played.driver, message, played.grave)

    tasks = []
    await played.driver.publish(played.origin, b"hello", HEADERS)
    await played.driver.loop(played.listener, 1, lambda message: tasks.append(asyncio.create_task(work(message))))
    await asyncio.gather(*tasks)
    published, buried = recorder.producers(2)
    (processed,) = recorder.spans(f"process {played.origin}")
    assert [event.name for event in processed.events] == ["send_to_dead_letter"]
    assert (processed.parent.span_id, buried.parent.span_id) == (span_id(published), span_id(processed))
    assert [value for _, value in recorder.metrics()[COUNTER]] == [1]


@pytest.mark.parametrize("library", ["nats_py"])
async def test_a_worker_that_is_not_instrumented_tells_the_same(scene, recorder, monkeypatch):
    played = await scene()
    kept = []
    await played.driver.publish(played.origin, b"hello", HEADERS)
    await played.driver.loop(played.listener, 1, kept.append)
    played.driver.instrumentor().uninstrument()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorder.tracer_provider)
    async with process(kept[0]):
        await bury(played.driver, kept[0], played.grave)
    (processed,) = recorder.spans(f"process {played.origin}")
    assert [event.name for event in processed.events] == ["send_to_dead_letter"]


async def test_the_messages_span_is_told_also_inside_a_span_of_the_application(scene, recorder):
    played = await scene()

    async def body(message):
        with recorder.tracer.start_as_current_span("charge"):
            await bury(played.driver, message, played.grave)

    await played.play(body)
    charge, (_, buried) = recorder.span("charge"), recorder.producers(2)
    assert charge.events == ()
    assert buried.parent.span_id == span_id(charge)
    assert "send_to_dead_letter" in [event.name for event in recorder.consumers(2)[0].events]


async def test_a_message_that_was_kept_stays_in_its_trace(scene, recorder):
    played = await scene()
    kept = []
    await played.driver.publish(played.origin, b"hello", HEADERS)
    await played.driver.loop(played.listener, 1, kept.append)
    before = trace.get_current_span()
    await bury(played.driver, kept[0], played.grave)
    assert trace.get_current_span() is before
    await played.letter()
    published, buried = recorder.producers(2)
    received, _ = recorder.consumers(2)
    assert buried.parent.span_id == span_id(published)
    assert buried.links == ()
    assert "send_to_dead_letter" not in [event.name for event in received.events]
    assert [value for _, value in recorder.metrics()[COUNTER]] == [1]


async def test_a_message_that_was_kept_is_linked_from_what_the_application_does(scene, recorder):
    played = await scene()
    kept = []
    await played.driver.publish(played.origin, b"hello", HEADERS)
    await played.driver.loop(played.listener, 1, kept.append)
    with recorder.tracer.start_as_current_span("clean up") as cleaning:
        await bury(played.driver, kept[0], played.grave)
    published, buried = recorder.producers(2)
    assert (buried.parent.span_id, shape(buried)["links"]) == (span_id(cleaning), [span_id(published)])
    (event,) = cleaning.events
    assert dict(event.attributes) == {"original_topic": played.origin, "error": "out of stock"}
    await played.letter()


async def test_a_dead_letter_can_die_again(scene, recorder):
    played = await scene()
    _, first = await played.play()
    again, driver = driver_name(played), played.driver
    listener, found = await driver.listen(again), []
    await driver.publish(played.grave, b"hello", {name: text for name, text in first.items() if name != "traceparent"})

    async def body(message):
        await bury(driver, message, again, ValueError("still out of stock"))

    await driver.loop(played.undertaker, 1, body)
    await driver.loop(listener, 1, lambda message: found.append(dict(driver.headers(message))))
    assert found[0]["dead-letter-error"] == "still out of stock"
    assert found[0]["dead-letter-error-type"] == "ValueError"
    assert played.origin not in found[0].values()
    assert len(found[0]) == len(first)


def driver_name(played):
    return played.driver.name()


@pytest.mark.parametrize("how", ["not instrumented", "suppressed", "excluded"])
async def test_without_telemetry_the_letter_is_sent_all_the_same(scene, recorder, how):
    played = await scene(excluded_destinations=["test-*"] if how == "excluded" else None)
    if how == "not instrumented":
        played.driver.instrumentor().uninstrument()
    with suppress_instrumentation() if how == "suppressed" else trace.use_span(trace.INVALID_SPAN):
        body, headers = await played.play()
    headers.pop("traceparent", None)
    assert (body, headers) == (b"hello", {"tenant": "acme", **told_headers(played)})
    assert recorder.spans() == []
    assert COUNTER not in recorder.metrics()


async def test_without_an_sdk_the_letter_and_the_context_go_on(scene):
    played = await scene(tracer_provider=None, meter_provider=None)
    context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body, headers = await played.play(headers={**HEADERS, "traceparent": context})
    assert (body, headers) == (b"hello", {"tenant": "acme", "traceparent": context, **told_headers(played)})


async def test_without_instrumentation_the_context_of_the_message_goes_on(scene):
    played = await scene()
    played.driver.instrumentor().uninstrument()
    context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    _, headers = await played.play(headers={"traceparent": context})
    assert headers["traceparent"] == context


@pytest.mark.parametrize("broken", ["active", "reasons", "handled_here", "get_current_span"])
async def test_telemetry_that_fails_does_not_stop_the_letter(scene, recorder, lenient, monkeypatch, broken):
    played = await scene()
    module = importlib.import_module(f"otel_messaging.{played.driver.library}.dead_letters")

    def fail(*_args, **_kwargs):
        raise BrokenError("telemetry")

    monkeypatch.setattr(module if broken == "reasons" else dead_letters, broken, fail)
    body, headers = await played.play()
    assert (body, headers["tenant"]) == (b"hello", "acme")
    assert len(recorder.producers(2)) == 2


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (UnspeakableError("x"), None),
        (BrokenError(""), None),
        (BrokenError("one\r\ntwo\0three\x1b[31m"), "one  two three [31m"),
        (BrokenError("lone \ud800"), "lone \\ud800"),
        (BrokenError("x" * 5000), "x" * 1000),
        (KeyError("order"), "'order'"),
        (BrokenError("库存不足"), "库存不足"),
    ],
    ids=["raises", "empty", "lines", "surrogate", "long", "KeyError", "Chinese"],
)
async def test_whatever_an_error_says_the_letter_is_sent(scene, error, shown):
    played = await scene()
    body, headers = await played.play(error=error)
    if shown == "库存不足" and played.driver.library == "nats_py":
        shown = shown.encode("ascii", "backslashreplace").decode()  # old clients lose all headers of other texts
    assert body == b"hello"
    assert headers.get("dead-letter-error") == shown
    assert headers["dead-letter-error-type"].rpartition(".")[2] == type(error).__name__


async def test_a_publish_that_fails_raises_as_it_does_by_itself(scene, recorder):
    played = await scene()
    driver, kept = played.driver, []
    await driver.publish(played.origin, b"hello", HEADERS)
    await driver.loop(played.listener, 1, kept.append)
    await driver.disconnect()

    async def failure(publishing):
        try:
            await publishing
        except Exception as error:
            return type(error), str(error)
        return None

    before = trace.get_current_span()
    found = await failure(bury(driver, kept[0], played.origin))
    assert found == await failure(driver.publish(played.origin, b"hello"))
    assert found is not None
    assert trace.get_current_span() is before
    assert COUNTER not in recorder.metrics()


async def test_a_wrong_argument_is_the_librarys_to_complain_of(scene):
    played = await scene()
    kept = []
    await played.driver.publish(played.origin, b"hello", HEADERS)
    await played.driver.loop(played.listener, 1, kept.append)
    with pytest.raises(TypeError, match="unknown"):
        await bury(played.driver, kept[0], played.grave, unknown=True)


@pytest.mark.parametrize("library", [name for name in DRIVERS if name != "kafka_python"])
async def test_a_letter_that_is_cancelled_leaves_no_context_behind(scene, recorder, monkeypatch):
    played = await scene()
    kept, module, name = [], *played.driver.funnel[:1], played.driver.funnel[1:]
    await played.driver.publish(played.origin, b"hello", HEADERS)
    await played.driver.loop(played.listener, 1, kept.append)
    played.driver.instrumentor().uninstrument()
    started = asyncio.Event()

    async def hang(*_args, **_kwargs):
        started.set()
        await asyncio.sleep(30)

    monkeypatch.setattr(getattr(importlib.import_module(module), name[0]), name[1], hang)
    played.driver.instrumentor().instrument(**recorder.providers)
    current = []

    async def work():
        try:
            await bury(played.driver, kept[0], played.grave)
        finally:
            current.append(trace.get_current_span())

    task = asyncio.create_task(work())
    await asyncio.wait_for(started.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert current == [trace.INVALID_SPAN]
    assert COUNTER not in recorder.metrics()


@pytest.mark.parametrize("library", list(DRIVERS))
def test_an_application_that_puts_nothing_aside_imports_no_client(library):
    program = (
        f"import sys; from otel_messaging.{library} import dead_letter\n"
        "found = {'kafka', 'aio_pika', 'nats'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


ACCEPTED = {
    "kafka_python": ("a ConsumerRecord of kafka-python", "a KafkaProducer after record and error"),
    "aio_pika": ("an IncomingMessage of aio-pika", "an Exchange after message and error"),
    "nats_py": ("a Msg or a RawStreamMsg of nats-py", "a Client or a JetStreamContext after message and error"),
}


async def test_a_wrong_argument_is_refused_in_words_that_say_what_is_accepted(scene):
    played = await scene()
    publisher, grave = played.driver.publisher, played.grave
    put_aside = importlib.import_module(f"otel_messaging.{played.driver.library}").dead_letter

    async def put(*arguments):
        result = put_aside(*arguments)
        return await result if inspect.isawaitable(result) else result

    async def refused(*arguments):
        with pytest.raises(TypeError) as caught:
            await put(*arguments)
        return str(caught.value)

    async def body(message):
        said.append(await refused(BrokenError(), message, publisher, grave))
        said.append(await refused(message, BrokenError(), grave, publisher))

    said = []
    await played.driver.publish(played.origin)
    await played.driver.loop(played.listener, 1, body)
    message, publisher = ACCEPTED[played.driver.library]
    assert said == [
        f"dead_letter() was given 'BrokenError': it takes {message}",
        f"dead_letter() was given 'str': it takes {publisher}",
    ]
