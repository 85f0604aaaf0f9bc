"""The client libraries that the patterns know. They are told by their messages, and never imported here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.telemetry import Incoming

if TYPE_CHECKING:
    from otel_messaging.core.instrumentor import MessagingInstrumentor


@dataclass(frozen=True)
class Library:
    """A client library. Its adapter, which may use patterns itself, is imported when it is first needed.

    Attributes:
        package: what is imported of it.
        system: the name of its broker, as OpenTelemetry has it.
        name: the name of the adapter's module.
        kind: the name of the instrumentor's class there.
    """

    package: str
    system: str
    name: str
    kind: str

    @cached_property
    def messages(self) -> Any:
        """The module that reads its messages."""
        return import_module(f"otel_messaging.{self.name}.messages")

    @cached_property
    def instrumentor(self) -> MessagingInstrumentor:
        """What instruments it, or does not."""
        return getattr(import_module(f"otel_messaging.{self.name}"), self.kind)()  # type: ignore[no-any-return]


LIBRARIES = (
    Library("kafka", "kafka", "kafka_python", "KafkaPythonInstrumentor"),
    Library("aio_pika", "rabbitmq", "aio_pika", "AioPikaInstrumentor"),
    Library("nats", "nats", "nats_py", "NatsPyInstrumentor"),
)
_BY_PACKAGE = {library.package: library for library in LIBRARIES}
_BY_SYSTEM = {library.system: library for library in LIBRARIES}


def library_of(value: Any) -> Library | None:
    """The library that an object is a message of, if it is one. Stand-ins in tests count as what they stand for."""
    for kind in (*type(value).__mro__, *getattr(value.__class__, "__mro__", ())):
        library = _BY_PACKAGE.get(str(kind.__module__).partition(".")[0])
        if library is not None:
            return library if library.messages.is_message(value) else None
    return None


def library_named(system: str) -> Library:
    """The library of a broker.

    Args:
        system: ``kafka``, ``rabbitmq`` or ``nats``.

    Raises:
        ValueError: it is none of these.
    """
    if system not in _BY_SYSTEM:
        raise ValueError(f"system is one of {', '.join(map(repr, _BY_SYSTEM))}, not {system!r}")
    return _BY_SYSTEM[system]


def library_in_use() -> tuple[Library, bool]:
    """The library that this program uses, and whether that is certain: it may use several."""
    imported = [library for library in LIBRARIES if library.package in sys.modules]
    traced = [library for library in LIBRARIES if library.instrumentor.is_instrumented_by_opentelemetry]
    both = [library for library in traced if library in imported]
    chosen = (*both, *traced, *imported, *LIBRARIES)[0]
    return chosen, imported == [chosen]


def is_headers(value: Any) -> bool:
    """Whether a value has the form of headers: of a mapping, of pairs, or of none at all."""
    if value is None or isinstance(value, Mapping):
        return True
    pairs = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs)


def read_headers(headers: Any, destination: str, system: str) -> Incoming:
    """What is known of a message of which the application has kept just the headers.

    Args:
        headers: as the library gave them.
        destination: where the message came from.
        system: the broker.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    folded = {str(name).lower(): value for name, value in pairs}
    return Incoming(v.Destination(destination), ((v.SYSTEM, system),), (), folded, 0)
