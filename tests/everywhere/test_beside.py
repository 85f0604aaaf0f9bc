"""Beside the newest official packages: one set of spans by `opentelemetry-instrument`, and the user chooses whose."""

from __future__ import annotations

import re

import pytest

from tests.everywhere.support import CLIENTS, installed
from tests.programs import FOLDER, instrumented, run
from tests.support import clients

THEIRS = {
    "kafka_python": ("kafka", "opentelemetry-instrumentation-kafka-python", "opentelemetry.instrumentation.kafka"),
    "aio_pika": ("aio-pika", "opentelemetry-instrumentation-aio-pika", "opentelemetry.instrumentation.aio_pika"),
    "nats_py": ("nats", "otel-instrumentation-nats", "otel_instrumentation_nats"),
}
if clients.installed("kafka-python")[0] != "kafka-python":
    del THEIRS["kafka_python"]  # the newest one does not load beside a fork
SWITCH = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"


@pytest.fixture(scope="session")
def crowded(environment):
    """An interpreter with this package and the others for the same libraries."""
    return environment(*installed(*CLIENTS), *(package for _, package, _ in THEIRS.values()))


@pytest.fixture
def start(crowded, program, destination, environ):
    if program.library not in THEIRS:
        pytest.skip("the official package does not load beside kafka-python-ng")

    def started(**variables):
        command = (*instrumented(crowded), FOLDER / program.file, destination)
        return run(*command, environ={**environ, **variables})

    return started


def warnings(done):
    return [line for line in done.stderr.splitlines() if "both instrument this library" in line]


def test_ours_alone_is_heard_and_one_warning_for_each_library_says_how_to_choose(program, start, receiver, destination):
    done = start()
    assert done.stdout == "hello traceparent\n"
    assert [span.name for span in receiver.spans] == [f"publish {destination}", f"receive {destination}"]
    assert {span.scope for span in receiver.spans} == {f"otel_messaging.{program.library}"}
    assert len(warnings(done)) == len(THEIRS)
    theirs, package, _ = THEIRS[program.library]
    (warning,) = [line for line in warnings(done) if package in line]
    assert re.search(rf"otel-messaging and {package} .*{SWITCH}={theirs} .*{SWITCH}={program.entry_point} ", warning)


def test_theirs_switched_off(program, start, receiver):
    done = start(**{SWITCH: ",".join(theirs for theirs, _, _ in THEIRS.values())})
    assert {span.scope for span in receiver.spans} == {f"otel_messaging.{program.library}"}
    assert (done.stdout, done.stderr) == ("hello traceparent\n", "")


def test_ours_switched_off(program, start, receiver):
    if program.library == "aio_pika" and clients.installed("aio-pika")[1].startswith("9.1."):
        pytest.skip("the official package fails with aio-pika 9.1")  # RobustChannel has no attribute 'connection'
    done = start(**{SWITCH: program.entry_point})
    _, package, scope = THEIRS[program.library]
    assert receiver.spans
    assert [span.scope for span in receiver.spans if not span.scope.startswith(scope)] == []
    assert not [line for line in warnings(done) if package in line]
