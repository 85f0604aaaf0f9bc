"""The recipe for another library, followed word by word: its files, in a copy of the package, and a client to trace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import FOLDER, ROOT, environment_of

RECIPE = ROOT / "docs" / "adding-a-library.md"
PROGRAM = """
import logging
logging.raiseExceptions = True
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otel_messaging.core import safety
from ADAPTER import ToymqInstrumentor

safety.strict = True
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
ToymqInstrumentor().instrument(tracer_provider=provider)

import toymq
from opentelemetry import trace

def show():
    for span in exporter.get_finished_spans():
        parent = format(span.parent.span_id, "x") if span.parent else None
        print(span.name, span.kind.name, span.status.status_code.name, dict(span.attributes))
        print(parent, format(span.context.span_id, "x"))
    exporter.clear()

"""


@pytest.fixture(scope="module", params=["otel_messaging.toymq", "toymq_telemetry"])
def adapter(request):
    """Where the adapter is: in this package, or in a distribution of its own."""
    return request.param


@pytest.fixture(scope="module")
def package(tmp_path_factory, adapter):
    """A folder with this package, the recipe's files, the client, and what says that they are installed."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(ROOT / "src" / "otel_messaging", folder / "otel_messaging")
    files = re.findall(r"^### `src/([^`]*)`$.*?^```python\n(.*?)^```$", RECIPE.read_text(), re.MULTILINE | re.DOTALL)
    for name, code in files:
        path = folder / name.replace("otel_messaging/toymq", adapter.replace(".", "/"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    assert len(files) == 6
    shutil.copy(FOLDER / "toymq.py", folder)
    _install(folder, "toymq")
    _install(
        folder, "toymq-telemetry", f"[opentelemetry_instrumentor]\nmessaging-toymq = {adapter}:ToymqInstrumentor\n"
    )
    return folder


def _install(folder, name, entry_points=""):
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def run(package, adapter):
    """Run code in a process where the client is instrumented, and return the lines that it printed."""

    def ran(code):
        environ = environment_of({"PYTHONPATH": os.pathsep.join((str(package), str(ROOT)))})
        command = [sys.executable, "-W", "error", "-c", PROGRAM.replace("ADAPTER", adapter) + code]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return ran


def test_one_trace_from_the_publisher_to_the_loop(run):
    publish, ids, receive, own, current, after = run("""
headers = {"tenant": "a"}
toymq.Producer().send("orders", b"hello", headers)
assert headers == {"tenant": "a"}
for message in toymq.Consumer("orders"):
    inside = trace.get_current_span().get_span_context()
    break
after = trace.get_current_span() is trace.INVALID_SPAN
assert message.headers["tenant"] == "a"
show()
print(format(inside.span_id, "x"))
print(after)
""")
    facts = "{'messaging.operation': '%s', 'messaging.destination.name': 'orders', 'messaging.system': 'toymq', "
    size = "'messaging.message.payload_size_bytes': 5}"
    assert publish == f"publish orders PRODUCER OK {facts % 'publish'}{size}"
    assert receive == f"receive orders CONSUMER OK {facts % 'receive'}{size}"
    assert own.split() == [ids.split()[1], current]
    assert (ids.split()[0], after) == ("None", "True")


def test_the_librarys_own_errors_reach_the_application(run):
    publish, _ = run("""
try:
    toymq.Producer().send("orders", "no bytes")
except TypeError as error:
    assert str(error) == "a body is bytes"
show()
""")
    assert publish.startswith("publish orders PRODUCER ERROR")
    assert "'error.type': 'TypeError'" in publish


def test_a_closed_consumer_leaves_nothing_behind(run):
    lines = run("""
producer, consumer = toymq.Producer(), toymq.Consumer("orders")
producer.send("orders", b"")
next(consumer)
consumer.close()
assert trace.get_current_span() is trace.INVALID_SPAN
show()
""")
    assert [line.split(" OK")[0] for line in lines[::2]] == ["publish orders PRODUCER", "receive orders CONSUMER"]


def test_a_mistake_of_ours_reaches_nobody(run):
    lines = run("""
from otel_messaging.instrumentation.loops import Held
logging.disable()
safety.strict = False
producer, consumer = toymq.Producer(), toymq.Consumer("orders")
for _ in range(2):
    producer.send("orders", b"")
next(consumer)
done = []
for name in ("end", "hold", "close"):
    setattr(Held, name, lambda self, *_, name=name: done.append(name) or 1 / 0)
next(consumer)
consumer.close()
print(*done, consumer.open)
""")
    assert lines == ["end hold close False"]


def test_switched_off_everything_is_as_it_was(run):
    assert (
        run("""
before = toymq.Producer.send
ToymqInstrumentor().uninstrument()
assert toymq.Producer.send is not before
toymq.Producer().send("orders", b"")
(message,) = toymq.Consumer("orders")
assert message.headers == {}
show()
""")
        == []
    )


def test_the_helpers_know_its_messages(run):
    process, _ = run("""
from otel_messaging.patterns import process

with process(toymq.Message("orders", b"hello", {})):
    pass
show()
""")
    assert process.startswith("process orders CONSUMER OK")
    assert "'messaging.system': 'toymq'" in process


def test_the_recipe_is_written_as_the_rest(package, adapter):
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("needs ruff, which the environment of `make test` has")
    config = ("--config", ROOT / "pyproject.toml", package / adapter.replace(".", "/"))
    for command in (("check", *config), ("format", "--check", *config)):
        done = subprocess.run([ruff, *command, "--no-cache"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
