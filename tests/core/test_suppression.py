"""Suppressed instrumentation is suppressed from the first import on."""

import subprocess
import sys

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
