"""Exporters of OTLP: where the environment sends spans and metrics to, and whether somebody takes them there.

The variables: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from . import wire
from .report import Row

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX = "OTEL_EXPORTER_OTLP_"
_PORTS = {"grpc": 4317, "http/protobuf": 4318}
OTHER = {"grpc": "http/protobuf", "http/protobuf": "grpc"}
_SWITCH = "set OTEL_EXPORTER_OTLP_PROTOCOL={0}, or use the port for {1} ({2} by default)"


class Target(NamedTuple):
    """Where one signal is sent to.

    Attributes:
        signal: ``traces`` or ``metrics``.
        protocol: ``grpc`` or ``http/protobuf``.
        url: where to, with all that it holds.
        origin: the variable that says so, or ``default``.
        headers: what is sent with it.
        tls: what to encrypt with, or None.
    """

    signal: str
    protocol: str
    url: str
    origin: str
    headers: dict[str, str]
    tls: ssl.SSLContext | None

    def __str__(self) -> str:
        return f"{self.protocol} to {hide(self.url)} ({self.origin})"


def target(signal: str, protocol: str, environ: Mapping[str, str]) -> Target:
    """Read where a signal is sent to.

    Args:
        signal: ``traces`` or ``metrics``.
        protocol: ``grpc`` or ``http/protobuf``.
        environ: the environment variables.

    Raises:
        OSError: a file of certificates cannot be read.
    """
    own, common = f"{_PREFIX}{signal.upper()}_ENDPOINT", f"{_PREFIX}ENDPOINT"
    origin = next((name for name in (own, common) if environ.get(name)), "default")
    url = environ.get(origin, "").strip() or f"http://localhost:{_PORTS[protocol]}"
    if protocol != "grpc" and origin != own:
        url = f"{url.rstrip('/')}/v1/{signal}"
    if protocol == "grpc" and "://" not in url:
        plain = (value("INSECURE", signal, environ) or "false").strip().lower() == "true"
        url = f"{'http' if plain else 'https'}://{url}"
    return Target(
        signal, protocol, url, origin, headers(signal, environ)[0], _tls(url, signal, environ, protocol == "grpc")
    )


def value(name: str, signal: str, environ: Mapping[str, str]) -> str | None:
    """The value of a variable for a signal, or else for all signals."""
    return environ.get(f"{_PREFIX}{signal.upper()}_{name}") or environ.get(f"{_PREFIX}{name}")


def headers(signal: str, environ: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """The headers that are sent with a signal, and how many entries of the variable are none."""
    entries = [entry.strip() for entry in (value("HEADERS", signal, environ) or "").split(",") if entry.strip()]
    pairs = [entry.partition("=") for entry in entries if re.match(r"[!#$%&'*+.^_`|~\w-]+\s*=", entry)]
    return {name.strip().lower(): unquote(text.strip()) for name, _, text in pairs}, len(entries) - len(pairs)


def hide(url: str) -> str:
    """A URL without user, password and query."""
    shown = re.sub(r"//[^/]*@", "//***@", url)
    return re.sub(r"[?#].*", "?***", shown)


def row(target: Target, seconds: float) -> Row:
    """Send an empty request, which holds no telemetry, as the exporter would."""
    try:
        text, remedy = _grpc(target, seconds) if target.protocol == "grpc" else _http(target, seconds)
    except Exception as error:
        text, remedy = wire.why(error), _reach(target)
    return Row(target.signal, f"{target}: {text}", remedy)


def late(target: Target) -> Row:
    """What is told where nobody answers in time."""
    return Row(target.signal, f"{target}: no answer in time", _reach(target))


def _named(target: Target) -> str:
    return f"{_PREFIX}ENDPOINT" if target.origin == "default" else target.origin


def _reach(target: Target) -> str:
    return f"start a receiver there (the OpenTelemetry Collector), or correct {_named(target)}"


def _http(target: Target, seconds: float) -> tuple[str, str]:
    if not target.url.startswith(("http://", "https://")):
        return "no URL", f"begin {target.origin} with http:// or https://"
    sent = {**target.headers, "content-type": "application/x-protobuf"}
    request = urllib.request.Request(target.url, b"", sent)
    https = urllib.request.HTTPSHandler(context=target.tls or ssl.create_default_context())
    try:
        with urllib.request.build_opener(https).open(request, timeout=seconds):
            return "answers", ""
    except urllib.error.HTTPError as error:
        with error:
            wants_tls = b"HTTPS" in error.read(1000)
        return _encrypt(target) if error.code == 400 and wants_tls else _status(error.code)
    except (http.client.HTTPException, ConnectionResetError):
        return _confused(target, seconds)
    except urllib.error.URLError as error:
        if isinstance(error.reason, (http.client.HTTPException, ConnectionResetError)):
            return _confused(target, seconds)
        raise error.reason if isinstance(error.reason, Exception) else error from None


def _status(status: int) -> tuple[str, str]:
    if status == 400:
        return "answers", ""  # it wants no empty request, but it is a receiver
    if status in (401, 403):
        return f"refuses us ({status})", f"correct the credentials in {_PREFIX}HEADERS"
    if status in (404, 405, 415):
        return f"is no receiver of OTLP ({status})", "correct the address: it usually ends with /v1/traces, /v1/metrics"
    return f"answers with an error ({status})", "look into the log of the receiver"


def _encrypt(target: Target) -> tuple[str, str]:
    return "wants TLS", f"begin {_named(target)} with https://"


def _confused(target: Target, seconds: float) -> tuple[str, str]:
    parts = urlsplit(target.url)
    place = wire.Place(parts.hostname or "", parts.port or (443 if target.tls else 80), target.tls)
    if wire.is_grpc(wire.ask(place, wire.GRPC, wire.is_grpc, seconds)):
        return _wrong(target)
    return "does not speak HTTP", _reach(target)


def _grpc(target: Target, seconds: float) -> tuple[str, str]:
    parts = urlsplit(target.url)
    if not parts.hostname:
        return "no address", f"correct {target.origin}: http://host:port, or https:// for TLS"
    place = wire.Place(parts.hostname, parts.port or 443, target.tls)
    try:
        answer = wire.ask(place, wire.GRPC, lambda read: len(read) >= 9, seconds)
    except ssl.SSLCertVerificationError:
        raise
    except ssl.SSLError as error:
        return wire.why(error), f"begin {_named(target)} with http:// where the receiver has no TLS"
    if wire.is_grpc(answer):
        return "answers", ""
    if wire.ask(place, wire.HTTP, lambda read: len(read) >= 5, seconds).startswith(b"HTTP/"):
        return _wrong(target)
    return "does not speak gRPC", _reach(target)


def _wrong(target: Target) -> tuple[str, str]:
    spoken = OTHER[target.protocol]
    return f"speaks {spoken}", _SWITCH.format(spoken, target.protocol, _PORTS[target.protocol])


def _tls(url: str, signal: str, environ: Mapping[str, str], grpc: bool) -> ssl.SSLContext | None:
    if not url.startswith("https:"):
        return None
    context = ssl.create_default_context(cafile=value("CERTIFICATE", signal, environ))
    context.set_alpn_protocols(["h2"] if grpc else ["http/1.1"])
    certificate = value("CLIENT_CERTIFICATE", signal, environ)
    if certificate:
        context.load_cert_chain(certificate, value("CLIENT_KEY", signal, environ))
    return context
