"""`record_retry`: what tenacity and stamina try again while a message is handled."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_messaging.patterns import record_retry
from tests.support.recorder import shape

stamina = pytest.importorskip("stamina")
tenacity = pytest.importorskip("tenacity")

COUNT = "retry.count"
BROKEN = f"{__name__}.BrokenError"
RETRIES = [("retry_attempt", {"attempt": number, "error.type": BROKEN}) for number in (1, 2)]


class BrokenError(Exception):
    """What the application raises."""


class Unsteady:
    """Something that fails a number of times before it works."""

    def __init__(self, failures: int):
        self.failures = failures
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise BrokenError(f"failure {self.calls}")
        return "done"

    async def later(self) -> str:
        await asyncio.sleep(0)
        return self()


@pytest.fixture
def hooked():
    """stamina tells us, and whoever it has told before."""
    from stamina import instrumentation

    before = instrumentation.get_on_retry_hooks()
    instrumentation.set_on_retry_hooks([record_retry])
    yield
    instrumentation.set_on_retry_hooks(before)


def with_tenacity(call, **options):
    options = {"stop": tenacity.stop_after_attempt(3), "before_sleep": record_retry, "reraise": True, **options}
    return tenacity.retry(**options)(call)


def with_stamina(call):
    return stamina.retry(on=BrokenError, attempts=3, wait_initial=0.001, wait_jitter=0)(call)


async def consumed(connect, recorder, body, **arguments):
    """The span of a message whose handling is this, and what it comes to."""
    driver = await connect(**arguments)
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    results = []

    async def handle(_message):
        try:
            result = body()
            results.append(await result if asyncio.iscoroutine(result) else result)
        except BrokenError as error:
            results.append(str(error))

    await driver.loop(listener, 1, handle)
    (span,) = recorder.consumers(1)
    return span, results[0]


def told(span):
    """What a message's span says of retries."""
    return span.attributes.get(COUNT), [event for event in shape(span)["events"] if event[0] == "retry_attempt"]


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("way", ["function", "coroutine"])
@pytest.mark.parametrize("tool", [with_tenacity, with_stamina])
async def test_a_retry_is_an_event_and_counted_on_the_messages_span(connect, recorder, vocabulary, tool, way):
    unsteady = Unsteady(failures=2)

    def handle():
        return unsteady()

    async def handle_later():
        return await unsteady.later()

    span, result = await consumed(connect, recorder, tool(handle if way == "function" else handle_later))
    assert (result, unsteady.calls) == ("done", 3)
    assert told(span) == (2, RETRIES)
    assert span.status.status_code is (trace.StatusCode.OK if vocabulary == "guide" else trace.StatusCode.UNSET)


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("tool", [with_tenacity, with_stamina])
async def test_what_fails_to_the_end_has_been_retried_as_often(connect, recorder, tool):
    unsteady = Unsteady(failures=9)
    span, result = await consumed(connect, recorder, tool(lambda: unsteady()))
    assert (result, unsteady.calls) == ("failure 3", 3)
    assert told(span) == (2, RETRIES)


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("tool", [with_tenacity, with_stamina])
async def test_retries_are_counted_by_destination_and_error(connect, recorder, tool, vocabulary):
    unsteady = Unsteady(failures=2)
    span, _ = await consumed(connect, recorder, tool(lambda: unsteady()))
    (point,) = recorder.metrics()["messaging.messages.retried"]
    attributes, value = point
    assert value == 2
    same = ("messaging.system", "messaging.destination.name")
    assert {name: attributes[name] for name in same} == {name: span.attributes[name] for name in same}
    assert attributes["error.type"] == BROKEN
    assert not {"messaging.message.id", "attempt", COUNT} & set(attributes)


async def test_the_metric_counts_retries(connect, recorder):
    unsteady = Unsteady(failures=2)
    await consumed(connect, recorder, with_tenacity(lambda: unsteady()))
    assert ("messaging.messages.retried", "Sum", "{retry}", ()) in recorder.instruments()


async def test_where_nothing_is_retried_nothing_is_told(connect, recorder):
    span, _ = await consumed(connect, recorder, with_tenacity(Unsteady(failures=0).__call__))
    assert told(span) == (None, [])
    assert "messaging.messages.retried" not in recorder.metrics()


@pytest.mark.parametrize("failures", [0, 2])
async def test_as_tenacitys_before_it_tells_of_zero_too(connect, recorder, failures):
    unsteady = Unsteady(failures)
    span, _ = await consumed(connect, recorder, with_tenacity(lambda: unsteady(), before=record_retry))
    assert told(span) == (failures, RETRIES[:failures])
    assert [value for _, value in recorder.metrics().get("messaging.messages.retried", [])] == [failures] * (
        failures > 0
    )


async def test_several_things_that_are_retried_are_counted_together(connect, recorder):
    one, other = Unsteady(failures=2), Unsteady(failures=1)

    def handle():
        with_tenacity(lambda: one())()
        return with_tenacity(lambda: other())()

    span, _ = await consumed(connect, recorder, handle)
    assert told(span) == (3, [*RETRIES, RETRIES[0]])


async def test_a_result_that_is_not_wanted_is_no_error(connect, recorder):
    answers = iter(["no", "yes"])
    wanted = with_tenacity(lambda: next(answers), retry=tenacity.retry_if_result(lambda answer: answer == "no"))
    span, result = await consumed(connect, recorder, wanted)
    assert result == "yes"
    assert told(span) == (1, [("retry_attempt", {"attempt": 1})])


async def test_the_messages_span_is_told_also_inside_a_span_of_the_application(connect, recorder):
    unsteady = Unsteady(failures=1)

    def handle():
        with recorder.tracer.start_as_current_span("charge"):
            return with_tenacity(lambda: unsteady())()

    span, _ = await consumed(connect, recorder, handle)
    assert told(span) == (1, RETRIES[:1])
    assert recorder.span("charge").events == ()


async def test_retries_in_a_thread_with_the_messages_context_are_told(connect, recorder):
    unsteady = Unsteady(failures=1)
    span, _ = await consumed(connect, recorder, lambda: asyncio.to_thread(with_tenacity(lambda: unsteady())))
    assert told(span) == (1, RETRIES[:1])


@pytest.mark.parametrize("when", ["elsewhere", "afterwards", "suppressed"])
async def test_a_retry_that_is_no_messages_is_told_to_nobody(connect, recorder, when):
    def retried():
        unsteady = Unsteady(failures=1)
        return with_tenacity(lambda: unsteady())()

    def suppressed():
        with suppress_instrumentation():
            return retried()

    span, _ = await consumed(connect, recorder, suppressed if when == "suppressed" else lambda: None)
    if when == "elsewhere":
        with recorder.tracer.start_as_current_span("other work"):
            assert retried() == "done"
        assert recorder.span("other work").events == ()
    elif when == "afterwards":
        with trace.use_span(span):
            assert retried() == "done"
    assert told(span) == (None, [])
    assert "messaging.messages.retried" not in recorder.metrics()


async def test_a_hook_that_is_told_nonsense_does_not_disturb_the_application(connect, recorder, lenient, caplog):
    span, result = await consumed(connect, recorder, lambda: record_retry(object()))
    assert result is None
    assert told(span) == (None, [])
    assert [record.getMessage().partition(":")[0] for record in caplog.records if record.name == "otel_messaging"] == [
        "record_retry"
    ]


def test_without_a_message_or_an_sdk_a_retry_is_what_it_was():
    unsteady = Unsteady(failures=2)
    assert with_tenacity(lambda: unsteady(), before=record_retry)() == "done"
    assert unsteady.calls == 3


def test_the_hook_imports_neither_library_nor_a_client():
    program = (
        "import sys; from otel_messaging.patterns import record_retry\n"
        "found = {'tenacity', 'stamina', 'kafka', 'aio_pika', 'nats'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
