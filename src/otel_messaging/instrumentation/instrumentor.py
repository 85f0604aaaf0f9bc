"""The base of the instrumentors: versions, settings, patches, and other packages that trace the same library."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import wrapt
from opentelemetry.instrumentation.dependencies import DependencyConflictError, get_dependency_conflicts
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from otel_messaging.core import fork, safety, settings

from . import conflicts
from .lazy_imports import InPatches

if TYPE_CHECKING:
    from collections.abc import Collection

    from opentelemetry.instrumentation.dependencies import DependencyConflict

    from otel_messaging.core.telemetry import Telemetry

    from .patching import Patches

_logger = logging.getLogger("otel_messaging")
_active: dict[str, _Tracing] = {}
_TAKEN = ("tracer_provider", "meter_provider", "publish_hook", "consume_hook")


class MessagingInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments one client library.

    ``instrument()`` takes ``tracer_provider``, ``meter_provider``, ``publish_hook(span, request)``,
    ``consume_hook(span, message)`` and the settings of `otel_messaging.core.settings.Settings` as keyword arguments.
    """

    library: ClassVar[str]
    """The name of the adapter's module."""
    system: ClassVar[str]
    """The broker that the library speaks to, as ``messaging.system`` names it."""
    entry_point: ClassVar[str]
    """The name that switches it off."""
    requirements: ClassVar[tuple[str, ...]]
    """The distributions that provide the library, any one of which is enough, with the versions supported."""
    package: ClassVar[str]
    """The package that the application imports of the library. Whoever does not, has nothing of the adapter either."""
    patches = InPatches()
    """What is replaced: each a `otel_messaging.instrumentation.patching.Patch`."""
    adapter = InPatches()
    """The class that reads the library's objects."""
    rivals: ClassVar[tuple[conflicts.Rival, ...]] = ()
    """Other instrumentations of the same library."""
    _unpatched: _Tracing | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """The supported versions of the library, in the notation of requirements files."""
        return self.requirements

    def _check_dependency_conflicts(self) -> DependencyConflict | None:
        return get_dependency_conflicts((), self.requirements)

    def _instrument(self, **kwargs: Any) -> None:
        # `opentelemetry-instrument` leaves this check to us: see pyproject.toml.
        conflict = self._check_dependency_conflicts()
        if conflict is not None:
            if not hasattr(conflict, "_log") and (conflict.found or conflict.found_any):
                _logger.error("%s: %s", self.entry_point, conflict)  # older loaders tell nobody
            raise DependencyConflictError(conflict)
        self._tracing = _active[self.library] = _Tracing(type(self), settings.load(kwargs), _known(kwargs))
        self._rivalry = conflicts.Rivalry(self.rivals, self.entry_point)
        self._rivalry.silence()
        wrapt.register_post_import_hook(self._tracing.patch, self.package)

    def reader(self) -> Any:
        """The adapter that reads the library's objects now: that of the patches, or one of its own without any.

        What the application does by itself is told of in a process that is not instrumented too, to the global
        providers.
        """
        if self._is_instrumented_by_opentelemetry:
            return self._tracing.adapter()
        if self._unpatched is None:
            self._unpatched = _Tracing(type(self), settings.load({}), {})
        return self._unpatched.adapter()

    def _uninstrument(self, **_kwargs: Any) -> None:
        _active.pop(self.library, None)
        self._tracing.close()
        self._rivalry.release()


class _Tracing:
    """What is in force from ``instrument()`` to ``uninstrument()``. Nothing is made before the library is imported.

    Args:
        kind: the instrumentor.
        chosen: the settings in force.
        arguments: the other arguments of `Telemetry`.
    """

    def __init__(self, kind: type[MessagingInstrumentor], chosen: settings.Settings, arguments: dict[str, Any]) -> None:
        self._kind = kind
        self._chosen = chosen
        self._arguments = arguments
        self._lock = threading.RLock()
        self._adapter: Any = None
        self._patches: Patches | None = None
        self._closed = False
        fork.watch(self)

    def disown(self) -> None:
        """In a forked child, which has none of the threads that may have held the lock."""
        self._lock = threading.RLock()

    def adapter(self) -> Any:
        """What reads the library's objects, made when it is first needed."""
        with self._lock:
            if self._adapter is None:
                from otel_messaging.core.telemetry import Telemetry

                telemetry = Telemetry(self._kind.library, self._chosen, **self._arguments)
                self._adapter = self._kind.adapter(telemetry)
            return self._adapter

    def patch(self, _package: Any) -> None:
        """The library was imported."""
        try:
            with self._lock:
                if not self._closed:
                    from .patching import Patches

                    self._patches = Patches(self._kind.patches, self.adapter())
                    self._patches.apply()
        except Exception as error:
            safety.report(f"instrumenting {self._kind.library}", error)

    def close(self) -> None:
        """Put back what was there, and tell of nothing more."""
        with self._lock:
            self._closed = True
            if self._adapter is not None:
                _switch_off(self._adapter.telemetry)
            if self._patches is not None:
                self._patches.remove()


def _switch_off(telemetry: Telemetry) -> None:
    """Record nothing more: what is handled ends first, since it is counted, too."""
    from .loops import switch_off

    telemetry.enabled = False
    switch_off(telemetry)
    telemetry.close()


def active(library: str) -> Telemetry | None:
    """The telemetry of a library that is instrumented now.

    Args:
        library: the name of the adapter's module.
    """
    tracing = _active.get(library)
    return None if tracing is None else tracing.adapter().telemetry


def _known(arguments: dict[str, Any]) -> dict[str, Any]:
    takes = (*_TAKEN, *settings.NAMES)
    unknown = arguments.keys() - set(takes)
    if unknown:
        _logger.warning("instrument() does not know %s; it takes %s", ", ".join(sorted(unknown)), ", ".join(takes))
    return {name: arguments.get(name) for name in _TAKEN}
