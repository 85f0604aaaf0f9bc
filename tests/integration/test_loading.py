"""Which instrumentors are loaded, with which of the clients installed and in which versions."""

from __future__ import annotations

import itertools
import json
import sys
import uuid

import pytest

from tests.programs import FOLDER, PROGRAMS, ROOT, instrumented, make_environment, run
from tests.support.clients import installed

CLIENTS = {"kafka_python": installed("kafka-python")[0], "aio_pika": "aio-pika", "nats_py": "nats-py"}
EXTRAS = {"kafka_python": "kafka", "aio_pika": "rabbitmq", "nats_py": "nats"}
SUBSETS = [set(chosen) for size in range(4) for chosen in itertools.combinations(CLIENTS, size)]
QUIET = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


@pytest.mark.parametrize("libraries", SUBSETS, ids=lambda libraries: "+".join(sorted(libraries)) or "none")
def test_exactly_the_installed_clients_are_instrumented(libraries):
    hidden = [CLIENTS[library] for library in CLIENTS if library not in libraries]
    done = run(sys.executable, FOLDER / "instrumentors.py", "--hide", *hidden, environ=QUIET)
    assert json.loads(done.stdout) == {"on": sorted(libraries), "imported": []}
    assert done.stderr == ""


@pytest.fixture
def pretend(tmp_path):
    """Put the metadata of another version of a distribution before those that are installed."""

    def pretended(name, version):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return {"PYTHONPATH": str(tmp_path)}

    return pretended


@pytest.mark.parametrize(
    ("library", "version", "supported"),
    [
        ("kafka_python", "1.4.7", ">=2.0.2"),
        ("kafka_python", "4.0.0", "<4"),
        ("aio_pika", "8.3.0", ">=9.0"),
        ("aio_pika", "11.0.0", "<11"),
        ("nats_py", "2.5.0", ">=2.6"),
        ("nats_py", "3.0.0", "<3"),
    ],
)
def test_a_version_that_is_not_supported_is_skipped_and_the_others_are_not(library, version, supported, pretend):
    environ = {**QUIET, **pretend(CLIENTS[library], version)}
    done = run(*instrumented(), FOLDER / "instrumentors.py", environ=environ)
    assert json.loads(done.stdout)["on"] == sorted(CLIENTS.keys() - {library})
    assert f"{CLIENTS[library]} {version}" in done.stderr
    assert supported in done.stderr.replace(" ", "")
    assert PROGRAMS[library].entry_point in done.stderr
    assert "Traceback" not in done.stderr


def test_the_fork_of_kafka_python_satisfies(pretend):
    environ = {**QUIET, **pretend("kafka-python-ng", "2.2.3")}
    done = run(sys.executable, FOLDER / "instrumentors.py", "--hide", "kafka-python", environ=environ)
    assert "kafka_python" in json.loads(done.stdout)["on"]


@pytest.fixture(scope="module", params=list(CLIENTS))
def alone(request, tmp_path_factory):
    """A library, and the interpreter of an environment that has the client of no other."""
    folder = tmp_path_factory.mktemp(request.param)
    package = f"otel-messaging[{EXTRAS[request.param]}] @ {ROOT.as_uri()}"
    return request.param, make_environment(folder / "venv", package, "opentelemetry-sdk", "opentelemetry-distro")


def test_one_client_alone_is_instrumented(alone):
    library, python = alone
    done = run(*instrumented(python), FOLDER / "instrumentors.py", environ=QUIET)
    assert (json.loads(done.stdout), done.stderr) == ({"on": [library], "imported": []}, "")


def test_one_client_alone_works(alone, request, real_broker):
    library, python = alone
    program = PROGRAMS[library]
    environ = {**QUIET, "OTEL_TRACES_EXPORTER": "console", program.variable: request.getfixturevalue(program.broker)}
    name = f"test-{uuid.uuid4().hex[:12]}"
    done = run(*instrumented(python), FOLDER / program.file, name, environ=environ)
    assert done.stdout.startswith("hello traceparent\n")
    assert f'"publish {name}"' in done.stdout
    assert f'"receive {name}"' in done.stdout


def test_the_fork_of_kafka_python_works(tmp_path, kafka_address):
    packages = ("kafka-python-ng==2.2.3", "opentelemetry-sdk", "opentelemetry-distro")
    python = make_environment(tmp_path / "venv", f"otel-messaging @ {ROOT.as_uri()}", *packages)
    environ = {**QUIET, "OTEL_TRACES_EXPORTER": "console", "KAFKA_BOOTSTRAP_SERVERS": kafka_address}
    name = f"test-{uuid.uuid4().hex[:12]}"
    done = run(*instrumented(python), FOLDER / "kafka_program.py", name, environ=environ)
    assert done.stdout.startswith("hello traceparent\n")
    assert f'"publish {name}"' in done.stdout
    assert f'"receive {name}"' in done.stdout
