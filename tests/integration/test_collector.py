"""Loops that only the cyclic collector lets go of, perhaps while its thread has a lock of the SDK."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading

import pytest
from opentelemetry import context

from otel_messaging.aio_pika import adapter, iterating, rpc, settling
from otel_messaging.instrumentation.settling import settled, settling_failed
from otel_messaging.instrumentation.wrapping import around
from otel_messaging.nats_py import nested_calls
from tests.support.recorder import shape


class Impatient:
    """A lock of the SDK, that does not hang where it would wait for itself."""

    def __init__(self):
        self._lock = threading.Lock()

    def __enter__(self):
        assert self._lock.acquire(timeout=2), "waits for itself"

    def __exit__(self, *_error):
        self._lock.release()


class Owner:
    """What owns the loop that it is the owner of: a cycle."""

    def __init__(self, loop):
        self.loop, self.self = loop, self


@pytest.fixture
def locked(recorder):
    """Collect garbage while this thread has the locks of the SDK's metrics, as it has during an export."""

    def collect():
        recorder.metrics()  # the aggregations are made at the first value
        kinds = ("_ExplicitBucketHistogramAggregation", "_SumAggregation")
        aggregations = [each for each in gc.get_objects() if type(each).__name__ in kinds]
        assert aggregations
        with contextlib.ExitStack() as held:
            for aggregation in aggregations:
                aggregation._lock = held.enter_context(_entered(Impatient()))
            gc.collect()

    return collect


@contextlib.contextmanager
def _entered(lock):
    with lock:
        yield lock


async def test_an_iterator_in_a_cycle_is_collected_while_metrics_are_exported(connect, recorder, locked):
    driver = await connect()
    destination = driver.name()
    listener = await driver.listen(destination)
    for _ in range(2):
        await driver.publish(destination)
    iterator = driver.iterate(listener)
    await driver.advance(iterator)
    await driver.advance(iterator)
    context.attach(context.Context())
    Owner(iterator)
    del iterator
    locked()
    recorder.consumers(1)
    assert dict(recorder.metrics()["messaging.processing.duration"][0][0])["messaging.destination.name"] == destination
    spans = recorder.consumers(2)
    assert [shape(span)["status"] for span in spans] == [("OK", None)] * 2


async def forever(self, message=None, exc_val=None):
    await asyncio.sleep(0)


class Telemetry:
    """Is told of nothing."""

    enabled = True

    def active_context(self):
        return None


class Adapter:
    telemetry = Telemetry()
    message = None

    def handled(self, message):
        return message


def lasting(before):
    return around(before, settled, settling_failed)(Adapter(), forever)


BEGINNINGS = {
    "a call": (rpc.at_work, lambda: lasting(rpc.calls)(None)),
    "an answer": (rpc.at_work, lambda: lasting(rpc.answers)(None)),
    "the end of a block": (
        adapter.leaving,
        lambda: lasting(settling.leaves_process)(Adapter(), exc_val=ValueError()),
    ),
    "the end of an iterator": (
        adapter.giving_back,
        lambda: iterating.wrap_close(Adapter(), forever).__get__(Adapter(), Adapter)(),
    ),
    "what is not told of": (nested_calls.telling, lambda: nested_calls.wrap_silently(Adapter(), forever)(Adapter())),
}


@pytest.mark.parametrize("way", BEGINNINGS)
async def test_what_is_left_of_a_coroutine_is_closed_in_anybodys_context(way):
    variable, begin = BEGINNINGS[way]
    initial = variable.get()
    left, here = contextvars.copy_context(), contextvars.copy_context()
    abandoned, running = begin(), begin()
    left.run(abandoned.send, None)
    here.run(running.send, None)
    assert left[variable] is not here[variable]
    set_here = here[variable]
    here.run(abandoned.close)
    assert here[variable] is set_here
    with contextlib.suppress(StopIteration):
        here.run(running.send, None)
    assert here[variable] is initial
