"""However a program is started, its messages are traced and its output stays the same."""

from __future__ import annotations

import re
import shutil
import zipapp

import pytest

from tests.programs import FOLDER, ROOT, instrumented, run

CLIENT = {"kafka_python": "kafka", "aio_pika": "aio_pika", "nats_py": "nats"}
INITIALIZE = "from opentelemetry.instrumentation.auto_instrumentation import initialize\ninitialize()\n"
RUN = "import runpy, sys\ndel sys.argv[0]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
ON_UVLOOP = "import asyncio, uvloop\nasyncio.events.new_event_loop = uvloop.new_event_loop\n"
GEVENT = "from gevent import monkey\nmonkey.patch_all()\n"


@pytest.fixture
def start(python, program, destination, environ):
    """Run code and then the program, in one interpreter."""

    def started(code, *command, **variables):
        command = command or (python,)
        return run(*command, "-c", code + RUN, FOLDER / program.file, destination, environ={**environ, **variables})

    return started


@pytest.fixture
def packaged(program, tmp_path):
    """The program as a package, `shop`, in a folder."""
    folder = tmp_path / "apps" / "shop"
    folder.mkdir(parents=True)
    shutil.copy(FOLDER / program.file, folder / "__main__.py")
    return folder.parent


def test_by_opentelemetry_instrument(python, program, destination, environ, expect_one_trace):
    expect_one_trace(run(*instrumented(python), FOLDER / program.file, destination, environ=environ))


def test_as_a_module(python, packaged, destination, environ, expect_one_trace):
    command = (*instrumented(python), "-m", "shop", destination)
    expect_one_trace(run(*command, environ={**environ, "PYTHONPATH": str(packaged)}))


def test_as_a_zipapp(python, packaged, destination, environ, tmp_path, expect_one_trace):
    archive = tmp_path / "shop.pyz"
    zipapp.create_archive(packaged / "shop", archive)
    expect_one_trace(run(*instrumented(python), archive, destination, environ=environ))


def test_by_a_sitecustomize_of_ones_own(python, program, destination, environ, tmp_path, expect_one_trace):
    (tmp_path / "sitecustomize.py").write_text(INITIALIZE)
    environ = {**environ, "PYTHONPATH": str(tmp_path)}
    expect_one_trace(run(python, FOLDER / program.file, destination, environ=environ))


def test_in_a_subprocess(python, program, destination, environ, expect_one_trace):
    code = "import subprocess, sys\nsys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))\n"
    command = (*instrumented(python), "-c", code, FOLDER / program.file, destination)
    expect_one_trace(run(*command, environ=environ))


def test_in_code_before_the_client_is_imported(start, expect_one_trace):
    expect_one_trace(start(INITIALIZE))


def test_in_code_after_the_client_is_imported(start, program, expect_one_trace):
    expect_one_trace(start(f"import {CLIENT[program.library]}\n{INITIALIZE}"))


def test_in_code_in_a_function_in_a_thread(start, program, expect_one_trace):
    code = f"import {CLIENT[program.library]}\nimport threading\n{INITIALIZE.replace('initialize()', '')}"
    expect_one_trace(start(code + "thread = threading.Thread(target=initialize)\nthread.start()\nthread.join()\n"))


def test_in_code_as_the_documentation_has_it(start, expect_one_trace):
    text = (ROOT / "docs" / "switching-it-on" / "in-code.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    expect_one_trace(start(code))


@pytest.mark.parametrize("program", ["aio_pika", "nats_py"], indirect=True)
def test_on_uvloop(start, python, expect_one_trace):
    expect_one_trace(start(ON_UVLOOP, *instrumented(python)))


@pytest.mark.parametrize("program", ["kafka_python"], indirect=True)
def test_on_gevent(start, expect_one_trace):
    expect_one_trace(start(GEVENT + INITIALIZE))


@pytest.mark.parametrize("program", ["kafka_python"], indirect=True)
def test_on_gevent_by_opentelemetry_instrument(start, python, expect_one_trace):
    variable = "OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH"
    expect_one_trace(start("", *instrumented(python), **{variable: "patch_all"}))


def test_optimized_and_isolated_from_the_users_packages(start, python, expect_one_trace):
    """Without docstrings and assertions, which nothing may depend on."""
    expect_one_trace(start("", *instrumented(python), "-OO", "-s"))


NAMES = "import sys; print(*sorted(name for name in sys.modules if name.startswith('otel_messaging.')))"
NEEDED = {
    *("core", "core.finalizers", "core.fork", "core.safety", "core.settings"),
    *(f"instrumentation{name}" for name in ("", ".conflicts", ".instrumentor", ".lazy_imports")),
}


def test_a_program_that_uses_no_broker_imports_nothing_of_the_adapters(python, otlp):
    done = run(*instrumented(python), "-c", NAMES, environ=otlp)
    packages = {"_version", *CLIENT, *NEEDED}
    assert (done.stdout.split(), done.stderr) == (sorted(f"otel_messaging.{name}" for name in packages), "")


def test_a_program_imports_what_its_own_client_needs(python, otlp):
    done = run(*instrumented(python), "-c", f"import nats\n{NAMES}", environ=otlp)
    names = done.stdout.split()
    assert "otel_messaging.nats_py.patches" in names
    assert [
        name for name in names if name.startswith(("otel_messaging.kafka_python.", "otel_messaging.aio_pika."))
    ] == []
