"""What is installed in this interpreter: versions, clients, entry points, and other packages that do the same."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from .report import Row, Section

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from otel_messaging.instrumentation.conflicts import Rival

OURS = "otel-messaging"
INSTRUMENTORS = "opentelemetry_instrumentor"
_LOADER = "opentelemetry-instrument"
_DISABLED = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
_UNTOLD = {  # clients that are mistaken for those that we know
    "aiokafka": "Kafka",
    "confluent-kafka": "Kafka",
    "pika": "RabbitMQ",
    "nats-core": "NATS",
}


def install(requirement: str, *options: str) -> str:
    """The command that installs something for this interpreter."""
    return shlex.join((sys.executable, "-m", "pip", "install", *options, requirement.replace(" ", "")))


def version(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def interpreter() -> Section:
    """Which Python this is, and whether what starts the application is the same."""
    rows = [
        Row("Python", f"{sys.version.split()[0]}, {sys.executable}"),
        _own(),
        *_copies(),
        _command(),
    ]
    return Section("This interpreter", tuple(rows))


def _own() -> Row:
    folder = Path(__file__).parents[1]
    found = version(OURS)
    if found is None:
        remedy = install(OURS)
        return Row(OURS, f"{folder} is not installed: only a folder, whose entry points nobody finds", remedy)
    return _package(OURS, f", {folder}")


def _copies() -> Iterable[Row]:
    """Distributions that are there more than once, in different versions: the first on the path is used.

    That is how an application is given what it does not have. Whether the first one will do is told with its version.
    """
    found: dict[str, dict[str, str]] = {}
    for distribution in metadata.distributions():
        name = _normal(distribution.metadata["Name"] or "")
        if name in (OURS, "wrapt") or name.startswith("opentelemetry-"):
            found.setdefault(name, {}).setdefault(distribution.version, str(distribution.locate_file("")))
    for name, versions in found.items():
        if len(versions) > 1:
            places = ", then ".join(f"{number} in {place}" for number, place in versions.items())
            remedy = "remove all but one, or mend the order of PYTHONPATH" if name == OURS else ""
            yield Row(f"{name}, copies", f"the first is used: {places}", remedy)


def _command() -> Row:
    path = shutil.which(_LOADER)
    if path is None:
        return Row(_LOADER, "not on PATH")
    found = re.search(rb"(/[^\n\"']*)/python[\d.]*", Path(path).read_bytes()[:400])
    if found is None or _same(Path(found[1].decode(errors="replace")), Path(sys.executable).parent):
        return Row(_LOADER, path)
    beside = Path(sys.executable).with_name(_LOADER)
    return Row(_LOADER, f"{path} belongs to another Python", f"call {beside}, or put its folder first in PATH")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def packages() -> Section:
    """Versions of OpenTelemetry, and whether they fit together."""
    names = sorted({_normal(name) for name in _installed() if _normal(name).startswith("opentelemetry-")} | {"wrapt"})
    core = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation", "wrapt")
    rows = [_package(name) for name in core] + [_package(name) for name in names if name not in core]
    return Section("Packages of OpenTelemetry", tuple(rows))


def _package(name: str, more: str = "") -> Row:
    """A distribution, and whether what it requires is there."""
    found = version(name)
    if found is None:
        return Row(name, "not installed", install(name))
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        other = version(requirement.name)
        if other is None or not requirement.specifier.contains(other, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            return Row(name, f"{found}{more}; requires {wanted}, there is {other or 'none'}", install(wanted))
    return Row(name, f"{found}{more}")


def _installed() -> Iterable[str]:
    return (distribution.metadata["Name"] or "" for distribution in metadata.distributions())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def clients(environ: Mapping[str, str]) -> Section:
    """The client libraries, whether they are supported, and what traces them."""
    disabled = {name.strip() for name in environ.get(_DISABLED, "").split(",") if name.strip()}
    points = [point for point in metadata.entry_points(group=INSTRUMENTORS) if point.value.startswith("otel_messaging")]
    rows = [row for point in points for row in _client(point, disabled)]
    rows += [
        Row(name, f"another client of {system}, not traced by us") for name, system in _UNTOLD.items() if version(name)
    ]
    known = {point.name for point in metadata.entry_points(group=INSTRUMENTORS)} | {"*"}
    if disabled - known:
        rows.append(Row(_DISABLED, f"names what is not installed: {', '.join(sorted(disabled - known))}"))
    if not points:
        rows.append(Row("entry points", "none of ours are found", install(OURS, "--force-reinstall")))
    elif not any(kind is None or _is_installed(kind) for kind in map(_load, points)):
        rows.append(Row("clients", "none is installed for this interpreter", _right_one()))
    return Section("Clients", tuple(rows))


def _right_one() -> str:
    return "run the doctor by the interpreter that runs your program: /its/python -m otel_messaging doctor"


def _client(point: metadata.EntryPoint, disabled: set[str]) -> Iterable[Row]:
    kind = _load(point)
    if kind is None:
        yield Row(point.name, "does not load", f"see why: {shlex.quote(sys.executable)} -c 'import {point.module}'")
        return
    found = _is_installed(kind)
    wanted = {Requirement(text).name: text for text in kind.requirements}
    # As the loader asks.
    fitting = {name for name, number in found.items() if Requirement(wanted[name]).specifier.contains(number)}
    for name, number in found.items():
        if name in fitting:
            yield Row(name, f"{number}, supported")
        else:
            yield Row(name, f"{number}, not supported: {wanted[name]}", install(wanted[name]))
    if not found:
        yield Row(kind.requirements[0].split()[0], "not installed")
    rivals = [rival for rival in kind.rivals if version(rival.package) and rival.entry_point not in disabled]
    yield _entry_point(point, found, bool(fitting), rivals, disabled)
    if found and rivals and not disabled & {"*", point.name}:
        yield from (_rival(rival) for rival in rivals)


def _entry_point(
    point: metadata.EntryPoint, found: dict[str, str], fits: bool, rivals: list[Rival], disabled: set[str]
) -> Row:
    shadow = _shadows(point)
    if shadow:
        return Row(point.name, f"another package has an entry point of this name: {shadow}", f"uninstall {shadow}")
    for name in disabled & {"*", point.name}:
        wanted = found and (name == "*" or not rivals)  # with another one on, this one is off on purpose
        return Row(point.name, f"disabled by {_DISABLED}", f"take {name} out of {_DISABLED}" if wanted else "")
    if not found:
        return Row(point.name, "loads; its client is not installed")
    return Row(point.name, "loads" if fits else "loads; its client's version is not supported")


def _rival(rival: Rival) -> Row:
    text = f"{version(rival.package)} traces the same client; ours keeps it off"
    return Row(rival.package, text, f"add {rival.entry_point} to {_DISABLED}, or uninstall it")


def _shadows(point: metadata.EntryPoint) -> str:
    """The distribution of another entry point of the same name, which would be switched off together with ours."""
    for distribution in metadata.distributions():
        for other in distribution.entry_points:
            if (other.group, other.name) == (INSTRUMENTORS, point.name) and other.value != point.value:
                return str(distribution.metadata["Name"])
    return ""


def _load(point: metadata.EntryPoint) -> Any:
    try:
        return point.load()
    except Exception:
        return None  # the loader would skip it, too


def _is_installed(kind: Any) -> dict[str, str]:
    """The distributions that provide a library, with their versions."""
    names = [Requirement(text).name for text in kind.requirements]
    return {name: number for name in names if (number := version(name)) is not None}
