"""Suppressed instrumentation is suppressed from the first import on."""

import subprocess
import sys

from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation

PROGRAM = """
from opentelemetry.instrumentation.utils import suppress_instrumentation

with suppress_instrumentation():
    from otel_messaging.core.settings import load
    from otel_messaging.core.telemetry import Telemetry

    telemetry = Telemetry("kafka_python", load({}))
    assert telemetry.active_context() is None
assert telemetry.active_context() is not None
"""


def test_it_is_known_also_if_it_was_in_force_when_this_was_imported():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)


def test_it_goes_on_around_messages_that_end_in_it(desk, recorder):
    office, before = desk(), get_current()
    first = office.deliver()
    with suppress_instrumentation():  # as around a generator that is asked for the next message
        first.end()
        assert office.telemetry.active_context() is None
        assert trace.get_current_span() is trace.INVALID_SPAN
    assert office.telemetry.active_context() is before
    recorder.spans("receive orders", count=1)
