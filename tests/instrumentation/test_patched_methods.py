"""What is patched in the clients that are installed, as they define it: an upgrade of a client shows as a difference.

`patched_methods/` has a file for each version of a client in which something changed. After having looked at what a
difference means for the adapter, write it down with `UPDATE_SNAPSHOTS=1 pytest tests/core/test_patched_methods.py`.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import os
from pathlib import Path

import pytest
from packaging.version import Version

from otel_messaging import AioPikaInstrumentor, KafkaPythonInstrumentor, NatsPyInstrumentor
from tests.support.clients import installed

FOLDER = Path(__file__).with_name("patched_methods")
INSTRUMENTORS = {
    "kafka-python": KafkaPythonInstrumentor,
    "aio-pika": AioPikaInstrumentor,
    "nats-py": NatsPyInstrumentor,
}
NAMES = ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__")
DEFAULTS = ("__defaults__", "__kwdefaults__")
COMPILED = {"aio-pika", "nats-py"}
"""The libraries whose replacements have the parameters of the originals, all of them."""


def find(patch):
    """What the class of a patch has under its name, or None."""
    try:
        module = importlib.import_module(patch.module)
        return vars(operator.attrgetter(patch.owner)(module)).get(patch.name)
    except (AttributeError, ModuleNotFoundError):
        return None


def describe(patch):
    """One line: `async` or not, where it is, and its parameters with their defaults."""
    path, method = f"{patch.module}.{patch.owner}.{patch.name}", find(patch)
    if method is None:
        return f"{path}: absent before {patch.since}"
    signature = inspect.signature(method)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    coroutine = "async " if inspect.iscoroutinefunction(method) else ""
    return f"{coroutine}{path}{signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"


def written(distribution, version):
    """The newest file that is not newer than a version."""
    files = FOLDER.glob(f"{distribution}-[0-9]*.txt")
    files = {Version(path.stem.removeprefix(f"{distribution}-")): path for path in files}
    known = [candidate for candidate in files if candidate <= version]
    return files[max(known)] if known else None


@pytest.mark.parametrize("distribution", list(INSTRUMENTORS))
def test_what_is_patched_is_what_was_written_down(distribution):
    found = "".join(f"{describe(patch)}\n" for patch in INSTRUMENTORS[distribution].patches)
    distribution, version = installed(distribution)
    path = written(distribution, Version(version))
    if os.environ.get("UPDATE_SNAPSHOTS") and (path is None or path.read_text() != found):
        path = FOLDER / f"{distribution}-{version}.txt"
        path.write_text(found)
    assert path is not None, f"nothing is written down for {distribution} {version}"
    assert found == path.read_text(), f"{distribution} {version} differs from {path.name}"


@pytest.mark.parametrize("distribution", list(INSTRUMENTORS))
def test_every_replacement_looks_like_the_original(distribution, instrument):
    patches = INSTRUMENTORS[distribution].patches
    originals = {patch: find(patch) for patch in patches}
    instrument(INSTRUMENTORS[distribution])
    for patch, original in originals.items():
        if original is None:
            continue
        now = find(patch)
        assert now is not original
        assert inspect.signature(now) == inspect.signature(original)
        assert inspect.getfullargspec(now) == inspect.getfullargspec(original)
        assert inspect.iscoroutinefunction(now) == inspect.iscoroutinefunction(original)
        names = (*NAMES, *(DEFAULTS if distribution in COMPILED else ()))
        assert [getattr(now, name) for name in names] == [getattr(original, name) for name in names]


@pytest.mark.parametrize("distribution", list(INSTRUMENTORS))
def test_every_original_is_back(distribution, instrument):
    kind = INSTRUMENTORS[distribution]
    originals = {patch: find(patch) for patch in kind.patches}
    instrument(kind)
    kind().uninstrument()
    assert [patch for patch, original in originals.items() if find(patch) is not original] == []


@pytest.mark.parametrize("distribution", list(INSTRUMENTORS))
def test_nothing_is_patched_twice(distribution):
    places = [(patch.module, patch.owner, patch.name) for patch in INSTRUMENTORS[distribution].patches]
    assert len(places) == len(set(places))
