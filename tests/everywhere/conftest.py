"""The package as its users install it: the built wheel in environments of its own, and what arrives over OTLP."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from examples.demo.receiver import Receiver
from tests.everywhere.support import CLIENTS, SDK, SERVERS, installed
from tests.programs import PROGRAMS, ROOT, make_environment, run


@pytest.fixture(scope="session")
def uv():
    found = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if found is None:
        pytest.skip("needs uv, which the environment of `make test` has")
    return found


@pytest.fixture(scope="session")
def interpreter(uv):
    """Find a Python by its version."""

    def found(version):
        if version == ".".join(map(str, sys.version_info[:2])):
            return sys.executable
        command = (uv, "python", "find", "--quiet", "--no-project", "--no-python-downloads", "--system", version)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"there is no Python {version} here")
        return done.stdout.strip()

    return found


@pytest.fixture(scope="session")
def dist(uv, tmp_path_factory):
    """A folder with the sdist of this tree and the wheel that is built from that."""
    folder = tmp_path_factory.mktemp("dist")
    run(uv, "build", "--quiet", "--out-dir", folder, ROOT, environ={}, timeout=300)
    return folder


@pytest.fixture(scope="session")
def wheel(dist):
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory):
    """Make an environment with the wheel and other packages; the same one if it is asked for again."""

    @functools.cache
    def made(*requirements, extras=""):
        ours = f"otel-messaging{extras} @ {wheel.as_uri()}"
        return make_environment(tmp_path_factory.mktemp("environment") / "venv", ours, *SDK, *requirements)

    return made


@pytest.fixture(scope="session")
def python(environment):
    """An interpreter with this package, all the clients, and the servers that run applications."""
    return environment(*installed(*CLIENTS), *SERVERS)


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def otlp(receiver):
    """The variables that send everything to the receiver."""
    return {
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_LOGS_EXPORTER": "none",
    }


@pytest.fixture(params=list(PROGRAMS))
def program(request):
    return PROGRAMS[request.param]


@pytest.fixture
def environ(otlp, program, request, real_broker):
    """The variables of a program that knows its broker and, though not by itself, the receiver."""
    return {**otlp, program.variable: request.getfixturevalue(program.broker)}


@pytest.fixture
def destination():
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def expect_one_trace(receiver, program, destination):
    """What one message gives, however its program was started."""

    def expect(done):
        assert (done.stdout, done.stderr) == ("hello traceparent\n", "")
        publish, receive = receiver.spans
        assert (publish.name, publish.kind, publish.parent_id) == (f"publish {destination}", "PRODUCER", "")
        assert (receive.name, receive.kind, receive.parent_id) == (
            f"receive {destination}",
            "CONSUMER",
            publish.span_id,
        )
        assert {span.scope for span in receiver.spans} == {f"otel_messaging.{program.library}"}
        assert {span.service for span in receiver.spans} == {"shop"}
        counted = {metric.name: (metric.total, metric.count) for metric in receiver.metrics}
        assert counted["messaging.messages.produced"][0] == counted["messaging.messages.consumed"][0] == 1
        assert counted["messaging.processing.duration"][1] == 1

    return expect
