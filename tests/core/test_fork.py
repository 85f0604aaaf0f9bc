"""A forked child does not wait for threads that it has not."""

from __future__ import annotations

import os
import threading
import warnings

import pytest
from opentelemetry.trace import INVALID_SPAN

from otel_messaging.core import vocabulary as v

FACTS = ((v.SYSTEM, "kafka"),)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_hands_over_what_it_counts_though_a_thread_was_counting_at_the_fork(desk, recorder):
    office = desk()
    (metrics,) = office.operation(v.PUBLISH, "send", facts=FACTS).metrics
    ledger = office.telemetry._metrics._ledger
    holding, done = threading.Event(), threading.Event()

    def hold():
        with ledger._flushing:
            holding.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # since Python 3.12 a fork beside threads is warned of
        child = os.fork()
    if child == 0:
        threading.Timer(5, os._exit, (1,)).start()
        metrics.record(0.25, 1, None, INVALID_SPAN)
        counted = [value for _, value in recorder.metrics()["messaging.messages.produced"]]
        os._exit(0 if counted == [1] else 2)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert status == 0
