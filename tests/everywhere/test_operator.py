"""The package injected into an application that does not know of it, as the Kubernetes operator does.

It lies in a folder of its own, which follows the application's on `PYTHONPATH`:
https://github.com/open-telemetry/opentelemetry-operator/tree/main/autoinstrumentation/python
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.programs import FOLDER, make_environment, run

CLIENTS = {"kafka_python": "kafka-python", "aio_pika": "aio-pika", "nats_py": "nats-py"}
OLDEST = {"kafka_python": "kafka-python==2.0.2", "aio_pika": "aio-pika==9.0.7", "nats_py": "nats-py==2.6.0"}
MIDDLE = {"kafka_python": "kafka-python==2.2.15", "aio_pika": "aio-pika==9.5.8", "nats_py": "nats-py==2.9.1"}
QUIET = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
SDK = ("opentelemetry-distro", "opentelemetry-exporter-otlp-proto-http")
DECORATED = """
import importlib.metadata, sys, wrapt

@wrapt.decorator
def twice(wrapped, instance, args, kwargs):
    return wrapped(*args, **kwargs) * 2

class Shop:
    @twice
    def greet(self, name):
        "Greets."
        return f"hello {name} "

proxy = wrapt.ObjectProxy([1, 2])
print(Shop().greet("you"), Shop.greet.__doc__, proxy == [1, 2], isinstance(proxy, list))
print("otel_messaging" in sys.modules)
"""


@pytest.fixture(scope="session")
def injected(uv, wheel, tmp_path_factory):
    """The folder that is mounted into the application's container."""
    folder = tmp_path_factory.mktemp("injected")
    command = (uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder)
    run(*command, f"otel-messaging @ {wheel.as_uri()}", *SDK, environ={}, timeout=300)
    return folder


@pytest.fixture
def inject(injected):
    """The variables that the operator sets, and perhaps folders of the user's own."""

    def made(*users):
        automatic = injected / "opentelemetry" / "instrumentation" / "auto_instrumentation"
        return {"PYTHONPATH": os.pathsep.join(map(str, (automatic, *users, injected)))}

    return made


@pytest.fixture(scope="session")
def application(tmp_path_factory):
    """An application's environment: clients in some versions, and a wrapt of its own."""
    made = {}

    def application(*clients, python=sys.executable, wrapt="wrapt==1.17.3"):
        key = (*clients, python, wrapt)
        if key not in made:
            folder = tmp_path_factory.mktemp("application") / "venv"
            made[key] = make_environment(folder, *clients, wrapt, interpreter=python)
        return made[key]

    return application


def versions(library):
    """The versions of a client that an application may have: the oldest needs an older Python."""
    return [CLIENTS[library], MIDDLE[library], *([OLDEST[library]] if sys.version_info < (3, 12) else [])]


@pytest.mark.parametrize(
    ("program", "client"),
    [(library, client) for library in CLIENTS for client in versions(library)],
    indirect=["program"],
)
def test_an_application_with_one_client(client, application, inject, program, destination, environ, expect_one_trace):
    command = (application(client), FOLDER / program.file, destination)
    expect_one_trace(run(*command, environ={**environ, **inject()}))


def test_an_application_with_all_clients(application, inject, program, destination, environ, expect_one_trace):
    command = (application(*CLIENTS.values()), FOLDER / program.file, destination)
    expect_one_trace(run(*command, environ={**environ, **inject()}))


def test_an_application_that_removes_what_it_does_not_know_from_its_path(
    application, inject, injected, program, destination, environ, expect_one_trace
):
    """As some launchers do. What is imported later, for its client, is found nevertheless."""
    code = f"import runpy, sys\nsys.path = [path for path in sys.path if not path.startswith({str(injected)!r})]\n"
    run_it = "del sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    command = (application(*CLIENTS.values()), "-c", code + run_it, FOLDER / program.file, destination)
    expect_one_trace(run(*command, environ={**environ, **inject()}))


@pytest.mark.parametrize("library", [None, *CLIENTS])
def test_just_what_is_there_is_instrumented_and_nothing_is_imported(library, application, inject):
    python = application(*([CLIENTS[library]] if library else []))
    done = run(python, FOLDER / "instrumentors.py", environ={**QUIET, **inject()})
    assert (json.loads(done.stdout), done.stderr) == ({"on": [library] if library else [], "imported": []}, "")


@pytest.mark.parametrize("version", ["1.14.1", "1.17.3", "2.0.0"])
def test_the_applications_own_use_of_wrapt_works_as_before(version, application, inject):
    if version == "1.14.1" and sys.version_info >= (3, 12):
        pytest.skip("wrapt 1.14 does not know Python 3.12")
    python = application(wrapt=f"wrapt=={version}")
    plain = run(python, "-c", DECORATED, environ={})
    done = run(python, "-c", DECORATED, environ={**QUIET, **inject()})
    assert plain.stdout == "hello you hello you  Greets. True True\nFalse\n"
    assert (done.stdout, done.stderr) == (plain.stdout.replace("False", "True"), "")


def test_the_users_own_folders_come_first(application, inject, tmp_path):
    (tmp_path / "wrapt_of_mine.py").write_text("answer = 42\n")
    code = "import sys, wrapt_of_mine; print(wrapt_of_mine.answer)"
    done = run(application(), "-c", code, environ={**QUIET, **inject(tmp_path)})
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_an_applications_failure_stays_its_own(application, inject):
    command = [str(application()), "-c", "import sys; print('oops', file=sys.stderr); sys.exit(3)"]
    environ = {**{name: value for name, value in os.environ.items() if "OTEL" not in name}, **QUIET, **inject()}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "oops\n")


def test_what_is_injected_holds_no_client_and_ours_is_pure_python(injected):
    names = {path.name for path in injected.iterdir()}
    assert names.isdisjoint({"kafka", "aio_pika", "aiormq", "nats"})
    assert list((injected / "otel_messaging").rglob("*.so")) == []


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"])
def test_one_folder_serves_every_python(
    version, interpreter, application, inject, program, destination, environ, expect_one_trace
):
    """What was compiled for another Python has a substitute in Python."""
    python = application(*CLIENTS.values(), python=interpreter(version))
    expect_one_trace(run(python, FOLDER / program.file, destination, environ={**environ, **inject()}))
