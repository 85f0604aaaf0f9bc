"""What is built and published: pure Python, typed, complete, with nothing that does not belong in it."""

from __future__ import annotations

import email
import hashlib
import re
import tarfile
import zipfile

import pytest

from tests.programs import ROOT, run

EXTRAS = {"kafka": "kafka-python", "rabbitmq": "aio-pika", "nats": "nats-py"}


@pytest.fixture
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture
def metadata(wheel, names):
    (path,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(path))


def test_the_wheel_is_pure_python(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_wheel_has_the_sources_and_nothing_else(names):
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    held = {name for name in names if ".dist-info/" not in name}
    assert held == {*sources, "otel_messaging/py.typed"}
    extra = {name.split(".dist-info/")[1] for name in names if ".dist-info/" in name}
    assert extra == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_tree_and_the_sdist_build_the_same_wheel(uv, tmp_path):
    for options in ([], ["--wheel"]):  # without any, the wheel is built from the sdist
        run(uv, "build", "--quiet", *options, "--out-dir", tmp_path / str(options), ROOT, environ={}, timeout=100)
    one, other = tmp_path.glob("*/*.whl")
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


def test_the_sdist_has_the_tests_and_documents_but_nothing_made(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "tests/conftest.py", "entry_points.md"} <= set(
        names
    )
    assert [name for name in names if re.search(r"__pycache__|\.pyc$|\.venv|\.git/|results", name)] == []


def test_no_client_is_needed(metadata):
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.split(r"[^\w.-]", line)[0] for line in required} == {
        "opentelemetry-api",
        "opentelemetry-instrumentation",
        "wrapt",
    }


def test_the_metadata_say_for_whom_it_is(metadata):
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert set(metadata.get_all("Provides-Extra")) == {*EXTRAS, "tenacity", "stamina"}


@pytest.mark.parametrize("extra", list(EXTRAS))
def test_an_extra_brings_its_client_and_no_other(extra, environment, uv):
    python = environment(extras=f"[{extra}]")
    listed = run(uv, "pip", "list", "--quiet", "--python", python, "--format", "freeze", environ={}).stdout
    found = {line.split("==")[0] for line in listed.splitlines()}
    assert found & set(EXTRAS.values()) == {EXTRAS[extra]}


def test_no_extra_brings_no_client(environment, uv):
    listed = run(uv, "pip", "list", "--python", environment(), "--format", "freeze", environ={}).stdout
    assert {line.split("==")[0] for line in listed.splitlines()}.isdisjoint(EXTRAS.values())


def test_types_are_there_for_type_checkers(environment, uv, tmp_path):
    """As a user of the package checks a program: strictly, and without our settings."""
    python = environment("mypy")
    (tmp_path / "shop.py").write_text(
        "from otel_messaging import KafkaPythonInstrumentor, PublishRequest\n"
        "from opentelemetry.trace import Span\n"
        "def hook(span: Span, request: PublishRequest) -> None:\n"
        "    reveal_type(request.destination)\n"
    )
    done = run(python, "-m", "mypy", "--strict", tmp_path / "shop.py", environ={}, timeout=110)
    assert 'Revealed type is "str"' in done.stdout or 'Revealed type is "builtins.str"' in done.stdout
