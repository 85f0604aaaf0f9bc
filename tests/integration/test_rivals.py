"""Ours and another instrumentation of the same library in one program, in any order, on real brokers."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.programs import FOLDER, PROGRAMS, ROOT, instrumented, make_environment, run

PACKAGES = {
    "kafka_python": ("opentelemetry-instrumentation-kafka-python", "0.66b1", "kafka"),
    "aio_pika": ("opentelemetry-instrumentation-aio-pika", "0.66b1", "aio-pika"),
    "nats_py": ("otel-instrumentation-nats", "0.1.5", "nats"),
}


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """An interpreter with all clients, this package, and its rivals."""
    ours = f"otel-messaging[kafka,rabbitmq,nats] @ {ROOT.as_uri()}"
    theirs = [f"{package}=={version}" for package, version, _ in PACKAGES.values()]
    return make_environment(
        tmp_path_factory.mktemp("rivals") / "venv", ours, *theirs, "opentelemetry-sdk", "opentelemetry-distro"
    )


@pytest.fixture(params=list(PROGRAMS))
def program(request):
    return PROGRAMS[request.param]


@pytest.fixture
def destination():
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def play(environment, program, destination, request, real_broker):
    """Take the steps of `rivalry.py`; return what each run printed and recorded, and the warnings."""

    def played(*steps):
        environ = {program.variable: request.getfixturevalue(program.broker)}
        done = run(environment, FOLDER / "rivalry.py", FOLDER / program.file, destination, *steps, environ=environ)
        result = json.loads(done.stdout.splitlines()[-1])
        warnings = [line for line in result["log"].splitlines() if line.startswith("otel_messaging: ")]
        return result["runs"], warnings

    return played


def ours(program, destination, number):
    """What a run gives with ours alone."""
    scope, name = f"otel_messaging.{program.library}", f"{destination}-{number}"
    spans = sorted([[scope, f"publish {name}"], [scope, f"receive {name}"]])
    return {"printed": "hello traceparent\n", "spans": spans}


def in_order(found):
    return {**found, "spans": sorted(found["spans"])}


@pytest.mark.parametrize("steps", [("+theirs", "+ours"), ("+ours", "+theirs")], ids=" ".join)
def test_one_set_of_spans_one_context_and_one_warning(program, play, destination, steps):
    (found,), warnings = play(*steps, "run")
    assert in_order(found) == ours(program, destination, 2)
    (warning,) = warnings
    package, _, entry_point = PACKAGES[program.library]
    assert f"otel-messaging and {package} both instrument this library" in warning
    assert f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={entry_point} silences" in warning
    assert f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={program.entry_point} chooses" in warning


@pytest.mark.parametrize(
    "steps",
    [
        ("+theirs", "+ours", "-theirs", "-ours"),
        ("+theirs", "+ours", "-ours", "-theirs"),
        ("+ours", "+theirs", "-theirs", "-ours"),
        ("+ours", "+theirs", "-ours", "-theirs"),
    ],
    ids=" ".join,
)
def test_nothing_is_left_when_both_are_off_again(play, steps):
    (found,), _ = play(*steps, "run")
    assert found == {"printed": "hello\n", "spans": []}


@pytest.mark.parametrize("steps", [("+theirs", "+ours"), ("+ours", "+theirs")], ids=" ".join)
def test_ours_stays_whole_when_theirs_is_switched_off(program, play, destination, steps):
    (found,), _ = play(*steps, "-theirs", "run")
    assert in_order(found) == ours(program, destination, 3)


@pytest.mark.parametrize("steps", [("+theirs", "+ours"), ("+ours", "+theirs")], ids=" ".join)
def test_theirs_works_again_after_ours(program, play, steps):
    (found,), _ = play(*steps, "-ours", "+theirs", "run")
    assert found["printed"].split()[0] == "hello"
    assert found["spans"]
    assert not [scope for scope, _ in found["spans"] if scope.startswith("otel_messaging")]


def test_ours_comes_back(program, play, destination):
    runs, warnings = play("+ours", "run", "+theirs", "-ours", "run", "+ours", "run")
    assert in_order(runs[0]) == ours(program, destination, 1)
    assert runs[1] == {"printed": "hello\n", "spans": []}
    assert in_order(runs[2]) == ours(program, destination, 6)
    assert len(warnings) == 1


def test_both_under_opentelemetry_instrument(environment, program, destination, request, real_broker):
    broker = {program.variable: request.getfixturevalue(program.broker)}
    environ = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    command = (*instrumented(environment), FOLDER / program.file, destination)
    done = run(*command, environ={**environ, **broker})
    assert done.stdout.startswith("hello traceparent\n")
    assert done.stdout.count('"parent_id": ') == done.stdout.count(f' {destination}",\n') == 2
    assert done.stderr.count("both instrument this library") == 3  # one for each library
    package, _, entry_point = PACKAGES[program.library]
    done = run(*command, environ={**environ, **broker, "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": entry_point})
    assert package not in done.stderr
