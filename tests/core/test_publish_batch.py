"""Messages that are published as one: which are counted, until when, and what is current."""

from __future__ import annotations

import contextvars
import gc
import weakref

import pytest
from opentelemetry import trace
from opentelemetry.context import get_current

from otel_messaging.core import vocabulary as v
from otel_messaging.core.publish_batch import PublishBatch
from tests.support.recorder import shape


@pytest.fixture
def shop(desk):
    return desk()


@pytest.fixture
def batch(shop):
    operation = shop.operation(v.BATCH_PUBLISH, "batch_publish")
    span = shop.telemetry.start(operation, get_current())
    return PublishBatch(shop.telemetry, operation, span, get_current())


def told(recorder):
    attributes = shape(recorder.span("batch_publish orders"))["attributes"]
    return attributes["messaging.batch.message_count"], attributes["messaging.batch.total_size_bytes"]


def test_it_ends_when_all_are_answered(shop, batch, recorder):
    messages = [shop.publish(facts=((v.BODY_SIZE, size),)) for size in (1, 2)]
    batch.end()
    messages[1].end()
    assert recorder.spans("batch_publish orders") == []
    messages[0].end()
    assert told(recorder) == (2, 3)


def test_what_is_published_afterwards_is_not_counted_nor_waited_for(shop, batch, recorder):
    inside, elsewhere = shop.publish(), contextvars.copy_context()
    batch.end()
    late = elsewhere.run(shop.publish)
    inside.end()
    assert told(recorder) == (1, 0)
    late.end()


def test_an_answer_is_counted_once(shop, batch, recorder):
    messages = [shop.publish(), shop.publish()]
    batch.end()
    for _ in range(2):
        messages[0].end()
    assert recorder.spans("batch_publish orders") == []
    messages[1].end()
    batch.end()
    assert told(recorder) == (2, 0)


def test_a_size_that_is_known_at_the_end_is_added(shop, batch, recorder):
    message = shop.publish()
    message.end(None, ((v.BODY_SIZE, 7),))
    batch.end()
    assert told(recorder) == (1, 7)


def test_a_failure_that_comes_late_is_told_of(shop, batch, recorder):
    messages = [shop.publish(), shop.publish()]
    batch.end()
    messages[0].end()
    messages[1].end(TimeoutError("no answer"))
    found = shape(recorder.span("batch_publish orders"))
    assert found["events"] == [("message_failed", {"message.index": 1, "error.type": "TimeoutError"})]
    assert found["status"] == ("ERROR", "1 of 2 messages failed")


class Local:
    """Something in the frame that has raised."""


def failing(batch):
    local = Local()
    try:
        raise ValueError("no")
    except ValueError as error:
        batch.end(error)
    return weakref.ref(local)


def test_its_failure_is_recorded_at_once_and_kept_no_longer(shop, batch, recorder):
    message = shop.publish()
    local = failing(batch)
    gc.collect()
    assert local() is None
    batch.end()
    message.end()
    found = shape(recorder.span("batch_publish orders"))
    assert found["status"] == ("ERROR", "no")
    assert found["attributes"]["error.type"] == "ValueError"
    assert [name for name, _ in found["events"]] == ["exception"]


def test_a_span_of_the_application_that_is_still_open_stays_current(batch, recorder):
    def scenario():
        with recorder.tracer.start_as_current_span("job") as job:
            batch.end()
            return trace.get_current_span() is job

    assert contextvars.copy_context().run(scenario)
    batch.end()
    assert get_current() == {}
