"""Loops over lists of messages that only the cyclic collector lets go of. Prints how many spans and durations ended."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading

from opentelemetry.context import Context, attach, get_current

from otel_messaging.core import vocabulary as v
from otel_messaging.core.settings import Settings
from otel_messaging.core.telemetry import Telemetry
from otel_messaging.instrumentation.message_list import Batch
from tests.support.recorder import Recorder

recorder = Recorder()
telemetry = Telemetry("test", Settings(), **recorder.providers)
operation = telemetry.operation(v.PROCESS, "process", v.Destination("orders"), ())


class Job:
    """Owns the generator that it is the owner of: a cycle."""

    def __init__(self):
        self.batch = Batch(["a", "b"], lambda message: telemetry.deliver(operation, (), None, message, get_current()))
        self.messages = self._loop()

    def _loop(self):
        for message in self.batch:  # noqa: UP028 (as it is written)
            yield message


def begin():
    next(Job().messages)
    attach(Context())


def report(before=0):
    durations = recorder.metrics()["messaging.processing.duration"]
    print(len(recorder.spans()), sum(count for _, count in durations) - before)


def lock():
    """The collector runs while this thread has every lock of the SDK's aggregations."""
    telemetry.deliver(operation, (), None, None, get_current()).end()
    recorder.metrics()
    recorder.exporter.clear()
    begin()
    locks = [each._lock for each in gc.get_objects() if type(each).__name__ == "_ExplicitBucketHistogramAggregation"]
    assert locks
    with contextlib.ExitStack() as held:
        for each in locks:
            held.enter_context(each)
        gc.collect()
    report(before=1)


def reader():
    """A thread collects metrics all the time."""
    over = threading.Event()

    def collect():
        while not over.is_set():
            recorder.metrics()

    thread = threading.Thread(target=collect)
    thread.start()
    gc.set_threshold(1)
    sys.setswitchinterval(1e-5)
    for _ in range(500):
        begin()
    over.set()
    thread.join()
    gc.collect()
    report()


def at_exit():
    """What was put aside ends at exit, before the SDK is shut down."""
    recorder.open.shutdown = lambda: print(len(recorder.spans()))
    begin()
    gc.collect()


def at_the_end():
    """Modules are emptied while a loop is still suspended."""
    job = Job()
    next(job.messages)
    sys.modules["kept"] = job


{"lock": lock, "reader": reader, "exit": at_exit, "end": at_the_end}[sys.argv[1]]()
