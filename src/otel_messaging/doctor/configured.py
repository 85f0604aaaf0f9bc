"""What the environment variables choose: our settings, and those of the SDK that decide whether telemetry is seen."""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase
from importlib import metadata
from typing import TYPE_CHECKING, Any

from otel_messaging.core import settings

from . import otlp, wire
from .installed import install
from .report import Row, Section

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SAMPLER = "OTEL_TRACES_SAMPLER"
_SAMPLERS = ("always_on", "always_off", "traceidratio")
_OTLP = ("otlp", "otlp_proto_grpc", "otlp_proto_http")
_PACKAGES = {
    "grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "http/protobuf": "opentelemetry-exporter-otlp-proto-http",
}
_EXPORTERS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_PREFIX = settings.variable("")
_NAMES_OF_ALL_KINDS = ("orders", "eu.orders-2", "a/b_c", "Ä")


def own(environ: Mapping[str, str]) -> Section:
    """Our settings, and where each came from."""
    bad: dict[str, str] = {}
    read, origins = settings.read(
        {}, environ, lambda _, name, value, error, __: bad.update({name: f"{value!r} {error}"})
    )
    rows = [_vocabulary(read, environ)]
    for name in settings.NAMES:
        text = f"{_show(getattr(read, name))} ({origins.get(name, 'default')})"
        variable = settings.variable(name)
        if variable in bad:
            rows.append(Row(name, f"{text}; {bad[variable]}", f"correct {variable}"))
        else:
            rows.append(Row(name, text, _too_much(read) if name == "excluded_destinations" else ""))
    known = {settings.variable(name) for name in settings.NAMES}
    unknown = [name for name in sorted(environ) if name.startswith(_PREFIX) and name not in known]
    rows += [
        Row(name, "no such setting", f"correct the name; there are {', '.join(sorted(known))}") for name in unknown
    ]
    return Section("Settings", tuple(rows))


def _vocabulary(read: settings.Settings, environ: Mapping[str, str]) -> Row:
    words = [word.strip() for word in environ.get(settings.OPT_IN, "").split(",")]
    odd = [word for word in words if word.lower().startswith("messaging/") and word.lower() != "messaging/dup"]
    origin = settings.OPT_IN if read.vocabulary != "guide" else "default"
    remedy = f"{settings.OPT_IN} takes messaging or messaging/dup" if odd else ""
    return Row("vocabulary", f"{read.vocabulary} ({origin}){f'; {odd[0]} is unknown' if odd else ''}", remedy)


def _too_much(read: settings.Settings) -> str:
    for glob in read.excluded_destinations:
        if all(fnmatchcase(name, glob) for name in _NAMES_OF_ALL_KINDS):
            return f"{glob} is every destination, so that nothing is traced: name those to leave out"
    return ""


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value)


def sdk(environ: Mapping[str, str], seconds: float, in_code: bool) -> Section:
    """The SDK's variables, and whether the receivers of spans and metrics answer.

    Args:
        environ: the environment variables.
        seconds: how long to wait for a receiver.
        in_code: whether the application chooses distro and exporters itself.
    """
    common = (*_disabled(environ), _service(environ), _propagators(environ), *_sampler(environ))
    return Section("SDK", common if in_code else (*common, *_automatic(environ, seconds)))


def _automatic(environ: Mapping[str, str], seconds: float) -> list[Row]:
    """What `opentelemetry-instrument` sets up."""
    distros = [point.name for point in metadata.entry_points(group="opentelemetry_distro")]
    configurators = [point.name for point in metadata.entry_points(group="opentelemetry_configurator")]
    rows = [
        _chosen("distro", "OTEL_PYTHON_DISTRO", distros, environ),
        _chosen("configurator", "OTEL_PYTHON_CONFIGURATOR", configurators, environ),
    ]
    asking, late = [], []
    for signal in ("traces", "metrics"):
        for name in _exporters(signal, environ, distros):
            row = _exporter(signal, name, environ)
            if isinstance(row, Row):
                rows.append(row)
            else:
                asking.append(functools.partial(otlp.row, row, seconds))
                late.append(otlp.late(row))
                rows += _headers(signal, environ)
    rows += _logs(environ, distros)
    return rows + wire.together(asking, seconds, late)


def _logs(environ: Mapping[str, str], distros: list[str]) -> Iterable[Row]:
    """Logs are not ours, but where their exporter is missing nothing else is exported either."""
    for name in _exporters("logs", environ, distros):
        row = _exporter("logs", name, environ)
        if isinstance(row, Row) and row.remedy:
            yield Row(
                "logs", f"{row.value}: OpenTelemetry does not start", f"set OTEL_LOGS_EXPORTER=none, or {row.remedy}"
            )


def _disabled(environ: Mapping[str, str]) -> Iterable[Row]:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield Row("OTEL_SDK_DISABLED", "true: nothing is recorded", "unset OTEL_SDK_DISABLED")


def _chosen(name: str, variable: str, there: list[str], environ: Mapping[str, str]) -> Row:
    wanted = environ.get(variable)
    if not there and name == "distro":
        return Row(name, "none: no exporter is chosen but by variables")
    if not there:
        return Row(name, "none: opentelemetry-instrument starts no SDK", install("opentelemetry-distro"))
    if wanted is not None and wanted not in there:
        return Row(
            name, f"{variable}={wanted} is not installed", f"unset {variable}, or name one of {', '.join(there)}"
        )
    others = "" if len(there) == 1 or wanted else f", the first of {', '.join(there)}"
    return Row(name, f"{wanted or there[0]}{others}")


def _service(environ: Mapping[str, str]) -> Row:
    named = "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    name = environ.get("OTEL_SERVICE_NAME") or ("from OTEL_RESOURCE_ATTRIBUTES" if named else "")
    return Row("service", name or "unknown_service; OTEL_SERVICE_NAME names it")


def _propagators(environ: Mapping[str, str]) -> Row:
    variable, default = "OTEL_PROPAGATORS", "tracecontext,baggage"
    names = [name.strip() for name in (environ.get(variable) or default).split(",")]
    there = {point.name for point in metadata.entry_points(group="opentelemetry_propagator")}
    if "none" in (name.lower() for name in names):
        return Row(
            "propagators", f"none ({variable})", f"unset {variable}: no message carries a context, every trace breaks"
        )
    for name in names:
        if name not in there:
            text = f"{name!r} is not installed ({variable}): opentelemetry-instrument ends before the program begins"
            remedy = f"correct {variable} ({default} is the default), or install the package that has it"
            return Row("propagators", text, remedy)
    return Row("propagators", f"{','.join(names)} ({variable if environ.get(variable) else 'default'})")


def _sampler(environ: Mapping[str, str]) -> Iterable[Row]:
    name = environ.get(_SAMPLER, "").strip()
    kind = name.lower().removeprefix("parentbased_")
    text = f"{name or 'parentbased_always_on'} ({_SAMPLER if name else 'default'})"
    custom = {point.name for point in metadata.entry_points(group="opentelemetry_traces_sampler")}
    if name and name not in custom and kind not in _SAMPLERS:
        yield Row("sampler", f"{text} is unknown; the default is used", f"correct {_SAMPLER}")
    elif kind == "always_off":
        yield Row("sampler", f"{text}: no trace begins here", f"unset {_SAMPLER}")
    elif kind == "traceidratio":
        yield _ratio(text, environ)
    else:
        yield Row("sampler", text)


def _ratio(text: str, environ: Mapping[str, str]) -> Row:
    variable = f"{_SAMPLER}_ARG"
    given = environ.get(variable, "")
    try:
        ratio = float(given)
    except ValueError:
        return Row(
            "sampler", f"{text}; {variable}={given!r} is no number, 1.0 is used", f"set {variable} between 0 and 1"
        )
    if not 0 < ratio <= 1:
        return Row("sampler", f"{text} of {ratio}", f"set {variable} above 0, and not above 1")
    return Row("sampler", f"{text} of {ratio}")


def _exporters(signal: str, environ: Mapping[str, str], distros: list[str]) -> list[str]:
    default = "otlp" if "distro" in distros else ""  # what opentelemetry-distro sets
    names = environ.get(f"OTEL_{signal.upper()}_EXPORTER", default) or ""
    return [name.strip() for name in names.split(",") if name.strip()] or [""]


def _exporter(signal: str, name: str, environ: Mapping[str, str]) -> Row | otlp.Target:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    if name.lower() in ("", "none"):
        how, instead = (f"={name}", "") if name else (" is not set", ", or install opentelemetry-distro, which does")
        remedy = f"set {variable}=otlp{instead}" if signal == "traces" else ""
        return Row(signal, f"not exported ({variable}{how})", remedy)
    if name not in _OTLP:
        known = {point.name for point in metadata.entry_points(group=f"opentelemetry_{signal}_exporter")}
        return Row(
            signal,
            name if name in known else f"{name}: no such exporter",
            "" if name in known else f"correct {variable}",
        )
    protocol = otlp.value("PROTOCOL", signal, environ) or "grpc"
    protocol = {"otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}.get(name, protocol).strip()
    if protocol not in _PACKAGES:
        return Row(signal, f"{protocol!r} is no protocol", "set OTEL_EXPORTER_OTLP_PROTOCOL to grpc or http/protobuf")
    points = metadata.entry_points(group=f"opentelemetry_{signal}_exporter", name=_EXPORTERS[protocol])
    if not points:
        return _absent(signal, protocol)
    if not all(map(_loads, points)):
        return Row(
            signal,
            f"the exporter of OTLP by {protocol} does not load",
            install(_PACKAGES[protocol], "--force-reinstall"),
        )
    try:
        return otlp.target(signal, protocol, environ)
    except OSError as error:
        return Row(
            signal,
            f"certificates: {wire.why(error)}",
            "correct OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE, _CLIENT_KEY",
        )


def _absent(signal: str, protocol: str) -> Row:
    other = otlp.OTHER[protocol]
    instead = ""
    if metadata.entry_points(group=f"opentelemetry_{signal}_exporter", name=_EXPORTERS[other]):
        instead = f"set OTEL_EXPORTER_OTLP_PROTOCOL={other}, whose exporter is installed, or "
    text = f"the exporter of OTLP by {protocol} is not installed"
    return Row(signal, text, f"{instead}{install(_PACKAGES[protocol])}")


def _loads(point: metadata.EntryPoint) -> bool:
    try:
        point.load()
    except Exception:
        return False
    return True


def _headers(signal: str, environ: Mapping[str, str]) -> Iterable[Row]:
    known, odd = otlp.headers(signal, environ)
    remedy = "write OTEL_EXPORTER_OTLP_HEADERS as name=value,name=value" if odd else ""
    if known or odd:
        shown = [f"{name}=***" for name in known] + ["an entry that is no name=value"] * bool(odd)
        yield Row(f"{signal}: headers", ", ".join(shown), remedy)
