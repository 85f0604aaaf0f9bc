"""The layers of the package: who may import whom, and what may stand where."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import otel_messaging

PACKAGE = Path(otel_messaging.__file__).parent
LIBRARIES = sorted(path.parent.name for path in PACKAGE.glob("*/patches.py"))
ENGINE = {"core", "instrumentation", "systems"}
ALLOWED = {
    "core": {"core"},
    "instrumentation": {"core", "instrumentation"},
    "systems": {"core", "systems"},
    "patterns": {"core", "instrumentation", "patterns"},
    **{library: {*ENGINE, library} for library in LIBRARIES},
}
"""Which parts a part of the package may import. The doctor may look at all of them."""
CIRCULAR = {"kafka_python"}
"""The libraries whose modules still import one another in circles, for types."""
VERSION = "_version"


def modules():
    """Each module of the package: its name below the package, and its tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(path.read_text())


MODULES = dict(modules())


def imports(name, tree):
    """The modules of the package that a module imports, wherever and for whatever in it: names below the package."""
    package = name if any(other.startswith(f"{name}.") for other in MODULES) or not name else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            source = absolute(package, node)
            if source is not None:
                for alias in node.names:
                    inner = f"{source}.{alias.name}".strip(".")
                    yield inner if inner in MODULES else source


def is_ours(name):
    return name.partition(".")[0] == "otel_messaging"


def absolute(package, node):
    """Where a `from ... import` takes from, below the package; None for another package."""
    if not node.level:
        return (node.module or "").partition(".")[2] if is_ours(node.module or "") else None
    parts = package.split(".") if package else []
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


GRAPH = {name: sorted(set(imports(name, tree)) - {name}) for name, tree in MODULES.items()}


def part_of(name):
    return name.partition(".")[0]


def test_the_parts_of_the_package_are_these():
    parts = {part_of(name) for name in MODULES}
    assert parts == {"", "__main__", VERSION, "doctor", *ALLOWED}


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_part_imports_only_what_lies_below_it(part):
    found = {
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if part_of(name) == part and part_of(other) not in ALLOWED[part] | {VERSION}
    }
    assert found == set()


def test_modules_do_not_import_one_another_in_a_circle():
    """Not even for types: what needs the type of its user is two things."""
    left, before = {name: set(others) for name, others in GRAPH.items() if part_of(name) not in CIRCULAR}, None
    while left != before:  # what imports none of them, and what none of them imports, is in no circle
        before = left
        wanted = set().union(*left.values())
        left = {name: inner for name, others in left.items() if name in wanted and (inner := others & left.keys())}
    assert {name: sorted(others) for name, others in left.items()} == {}


def test_names_of_attributes_stand_in_the_vocabulary_only():
    found = [
        f"{name}:{node.lineno}: {node.value!r}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("messaging.")
        if name != "core.vocabulary"
    ]
    assert found == []


def test_spans_are_started_in_the_core_only():
    found = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith(("start_span", "start_as_current_span"))
        if part_of(name) not in ("core", "doctor")
    ]
    assert found == []


def private_names(tree):
    """Where a module reaches into OpenTelemetry's private parts, as lines."""
    theirs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opentelemetry"):
            theirs.update(alias.asname or alias.name for alias in node.names)
            if any(part.startswith("_") for part in node.module.split(".")) or any(
                alias.name.startswith("_") for alias in node.names
            ):
                yield node.lineno
    for node in ast.walk(tree):
        owner, name = None, ""
        if isinstance(node, ast.Attribute):
            owner, name = node.value, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            owner, name = node.args[0], getattr(node.args[1], "value", "")
        if isinstance(owner, ast.Name) and owner.id in theirs and str(name).startswith("_") and name[:2] != "__":
            yield node.lineno


def test_private_parts_of_opentelemetry_are_used_in_one_module_only():
    found = [
        f"{name}:{line}"
        for name, tree in MODULES.items()
        for line in private_names(tree)
        if name != "core.otel_private" and part_of(name) != "doctor"
    ]
    assert found == []


def test_an_adapter_is_not_named_outside_of_it():
    """An adapter may be in another distribution: nothing below it, and no helper, may know its name."""
    found = [
        f"{name}:{node.lineno}: {node.value}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in LIBRARIES
        if part_of(name) in ENGINE | {"patterns"}
    ]
    assert found == []


@pytest.mark.parametrize("package", ["", "patterns", *LIBRARIES])
def test_every_public_name_is_there(package):
    module = importlib.import_module(f"otel_messaging.{package}".rstrip("."))
    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []
