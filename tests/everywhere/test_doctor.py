"""The doctor in environments where something is missing or too much, and with a receiver that speaks gRPC."""

from __future__ import annotations

import subprocess

import pytest

from tests.programs import ROOT, instrumented, make_environment, run
from tests.support.doctor import COMMAND, problems, rows

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
GRPC = """
import grpc
from concurrent.futures import ThreadPoolExecutor
server = grpc.server(ThreadPoolExecutor(1))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
"""


@pytest.fixture(scope="session")
def make(wheel, tmp_path_factory):
    """Make an environment with the wheel and nothing but what is named."""

    def made(*requirements):
        ours = f"otel-messaging @ {wheel.as_uri()}"
        return make_environment(tmp_path_factory.mktemp("environment") / "venv", ours, *requirements)

    return made


@pytest.fixture(scope="session")
def bare(make):
    """Only the package itself, and a client that is too old."""
    return make("kafka-python==1.4.7")


@pytest.fixture(scope="session")
def crowded(make):
    """The exporter of gRPC, and an official instrumentation beside ours."""
    grpc = "opentelemetry-exporter-otlp-proto-grpc"
    return make("opentelemetry-distro", grpc, "aio-pika", "opentelemetry-instrumentation-aio-pika")


@pytest.fixture
def grpc(crowded):
    """The address of a receiver that speaks gRPC."""
    with subprocess.Popen([str(crowded), "-c", GRPC], stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def test_no_sdk_no_distro_and_a_client_that_is_too_old(bare):
    there = problems(rows(python=bare))
    assert there["opentelemetry-sdk"] == ("not installed", f"{bare} -m pip install opentelemetry-sdk")
    assert there["configurator"][1] == f"{bare} -m pip install opentelemetry-distro"
    assert there["kafka-python"] == (
        "1.4.7, not supported: kafka-python >= 2.0.2, < 4",
        f"{bare} -m pip install 'kafka-python>=2.0.2,<4'",
    )
    assert there["traces"] == (
        "not exported (OTEL_TRACES_EXPORTER is not set)",
        "set OTEL_TRACES_EXPORTER=otlp, or install opentelemetry-distro, which does",
    )
    assert there["SDK"][0] == "none is started: opentelemetry.trace.ProxyTracerProvider records nothing"


def test_the_package_of_the_exporter_is_missing(bare):
    found = rows(python=bare, environ={"OTEL_TRACES_EXPORTER": "otlp"})
    assert found["traces"] == (
        "the exporter of OTLP by grpc is not installed",
        f"{bare} -m pip install opentelemetry-exporter-otlp-proto-grpc",
    )


def test_another_exporter_is_there(python):
    value, remedy = rows(python=python)["traces"]
    assert value == "the exporter of OTLP by grpc is not installed"
    assert remedy.startswith("set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, whose exporter is installed, or ")


def test_the_exporter_of_logs_alone_is_missing(python):
    """OpenTelemetry does not start then, though traces could be exported."""
    environ = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none"}
    value, remedy = rows(python=python, environ=environ)["logs"]
    assert value == "the exporter of OTLP by grpc is not installed: OpenTelemetry does not start"
    assert remedy.startswith("set OTEL_LOGS_EXPORTER=none, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
    assert "logs" not in rows(python=python, environ=environ | {"OTEL_LOGS_EXPORTER": "none"})


def test_no_client_in_this_interpreter(make):
    python = make("opentelemetry-distro")
    value, remedy = rows(python=python)["clients"]
    assert value == "none is installed for this interpreter"
    assert "the interpreter that runs your program" in remedy


def test_a_folder_instead_of_an_installation(uv, tmp_path):
    """As where a program finds the package by its `PYTHONPATH`."""
    python = make_environment(tmp_path / "venv", "opentelemetry-instrumentation", "wrapt")
    found = rows(python=python, environ={"PYTHONPATH": str(ROOT / "src")})
    assert found["otel-messaging"][0].startswith(f"{ROOT / 'src' / 'otel_messaging'} is not installed")
    assert found["entry points"] == (
        "none of ours are found",
        f"{python} -m pip install --force-reinstall otel-messaging",
    )


def test_ours_and_an_official_instrumentation(crowded):
    there = problems(rows(python=crowded))
    value, remedy = there["opentelemetry-instrumentation-aio-pika"]
    assert value.endswith(" traces the same client; ours keeps it off")
    assert remedy == "add aio-pika to OTEL_PYTHON_DISABLED_INSTRUMENTATIONS, or uninstall it"


@pytest.mark.parametrize("disabled", ["aio-pika", "messaging-aio-pika"])
def test_one_of_the_two_is_chosen(crowded, disabled):
    there = problems(rows(python=crowded, environ={"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled}))
    assert {"opentelemetry-instrumentation-aio-pika", "messaging-aio-pika"}.isdisjoint(there)


def test_a_receiver_of_grpc(crowded, grpc):
    found = rows(python=crowded, environ={ENDPOINT: grpc})
    assert found["traces"] == (f"grpc to {grpc} ({ENDPOINT}): answers", "")


def test_http_to_a_receiver_of_grpc(python, grpc):
    environ = {ENDPOINT: grpc, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    value, remedy = rows(python=python, environ=environ)["traces"]
    assert value.endswith(": speaks grpc")
    assert remedy == "set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or use the port for http/protobuf (4318 by default)"


def test_grpc_to_a_receiver_of_http(crowded, receiver):
    value, remedy = rows(python=crowded, environ={ENDPOINT: receiver.endpoint})["traces"]
    assert value.endswith(": speaks http/protobuf")
    assert remedy == "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or use the port for grpc (4317 by default)"


def test_grpc_with_tls_to_a_receiver_without(crowded, grpc):
    """As the exporter does with an address that has no http:// before it."""
    value, remedy = rows(python=crowded, environ={ENDPOINT: grpc.removeprefix("http://")})["traces"]
    assert value.endswith(": does not speak TLS")
    assert remedy == f"begin {ENDPOINT} with http:// where the receiver has no TLS"


def test_the_command_of_another_environment(python, crowded):
    environ = {"PATH": str(crowded.parent)}
    value, remedy = rows(python=python, environ=environ)["opentelemetry-instrument"]
    assert value == f"{crowded.parent / 'opentelemetry-instrument'} belongs to another Python"
    assert remedy == f"call {python.parent / 'opentelemetry-instrument'}, or put its folder first in PATH"


def test_under_the_command_itself(python, receiver):
    """Whose options are variables, too."""
    options = ("--exporter_otlp_endpoint", receiver.endpoint, "--exporter_otlp_protocol", "http/protobuf")
    done = run(instrumented(python)[0], *options, python, *COMMAND, environ={"PATH": str(python.parent)})
    assert done.stdout.endswith("\nNo problem found.\n")
    assert receiver.spans == []
