"""The client libraries that have an adapter here, found by their entry points, and told apart by their messages."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Mapping
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from otel_messaging.core import safety
from otel_messaging.core import vocabulary as v
from otel_messaging.core.requests import Incoming
from otel_messaging.instrumentation.instrumentor import MessagingInstrumentor
from otel_messaging.instrumentation.lazy_imports import home

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_logger = logging.getLogger("otel_messaging")
_ambiguous: set[str] = set()  # the names that were warned of, in this process
_GROUP, _PREFIX = "opentelemetry_instrumentor", "messaging-"


class Library:
    """A client library, by its adapter, whose modules are imported when they are first needed.

    Args:
        kind: the instrumentor's class, in the adapter's package, of whatever distribution.

    Attributes:
        package: what is imported of the library.
        system: the name of its broker, as OpenTelemetry has it.
        name: the name of the adapter.
    """

    def __init__(self, kind: type[MessagingInstrumentor]) -> None:
        self._kind = kind
        self.package = kind.package
        self.system = kind.system
        self.name = kind.library

    @functools.cached_property
    def messages(self) -> Any:
        """The module that reads its messages."""
        return import_module(f"{home(self._kind)}.messages")

    @property
    def instrumentor(self) -> MessagingInstrumentor:
        """What instruments it, or does not."""
        return self._kind()

    @property
    def is_imported(self) -> bool:
        """Whether the program has imported it."""
        return self.package in sys.modules

    @property
    def is_traced(self) -> bool:
        """Whether it is instrumented now."""
        return bool(self.instrumentor.is_instrumented_by_opentelemetry)


@functools.cache
def libraries() -> tuple[Library, ...]:
    """Every library that an installed distribution has an adapter for, in the order of their entry points' names.

    Such an entry point of the group ``opentelemetry_instrumentor`` is called ``messaging-...``.
    """
    points = {point.name: point for point in metadata.entry_points(group=_GROUP) if point.name.startswith(_PREFIX)}
    kinds = [_load(points[name]) for name in sorted(points)]
    return tuple(Library(kind) for kind in kinds if kind is not None)


def _load(point: EntryPoint) -> type[MessagingInstrumentor] | None:
    try:
        kind = point.load()
        return kind if issubclass(kind, MessagingInstrumentor) else None
    except Exception as error:  # another distribution's mistake is not this one's end
        safety.report(f"loading the adapter {point.name}", error)
        return None


def library_of(value: Any) -> Library | None:
    """Return the library that an object is a message of, if it is one.

    Stand-ins in tests count as what they stand for.
    """
    for kind in (*type(value).__mro__, *getattr(value.__class__, "__mro__", ())):
        package = str(kind.__module__).partition(".")[0]
        for library in libraries():
            if library.package == package:
                return library if library.messages.is_message(value) else None
    return None


def library_named(name: str) -> Library:
    """Return the library that speaks to a broker: the one that is instrumented, where there are several.

    If several are, one is taken, and a warning says once what to name instead: who instruments a program is often not
    who wrote it, and must not break it.

    Args:
        name: a value of ``messaging.system``, or the name of an adapter, such as ``kafka_python``.

    Raises:
        ValueError: there is none.
    """
    known = [library for library in libraries() if name in (library.system, library.name)]
    if not known:
        systems = ", ".join(map(repr, sorted({library.system for library in libraries()})))
        raise ValueError(f"system is one of {systems}, not {name!r}")
    traced = [library for library in known if library.is_traced]
    chosen = (*traced, *(library for library in known if library.is_imported), *known)[0]
    if len(traced) > 1 and name not in _ambiguous:
        _ambiguous.add(name)
        names = " or ".join(f"system={library.name!r}" for library in traced)
        _logger.warning("system=%r: several libraries for it are instrumented; give %s; taking the first", name, names)
    return chosen


def library_in_use() -> tuple[Library, bool]:
    """Return the library that this program uses, and whether its broker is certain: the program may use several."""
    imported = [library for library in libraries() if library.is_imported]
    traced = [library for library in libraries() if library.is_traced]
    both = [library for library in traced if library.is_imported]
    chosen = (*both, *traced, *imported, *libraries())[0]
    return chosen, {library.system for library in imported} == {chosen.system}


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
