"""The base of the instrumentors: versions, settings, patches, and other packages that trace the same library."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from opentelemetry.instrumentation.dependencies import DependencyConflictError, get_dependency_conflicts
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from . import rivals, settings
from .patching import Patches
from .telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Collection

    from opentelemetry.instrumentation.dependencies import DependencyConflict

    from .patching import Patch

_logger = logging.getLogger("otel_messaging")
_active: dict[str, Telemetry] = {}
_TAKEN = ("tracer_provider", "meter_provider", "publish_hook", "consume_hook")


class MessagingInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments one client library.

    ``instrument()`` takes ``tracer_provider``, ``meter_provider``, ``publish_hook(span, request)``,
    ``consume_hook(span, message)`` and the settings of `otel_messaging.core.settings.Settings` as keyword arguments.
    """

    library: ClassVar[str]
    """The name of the adapter's module."""
    entry_point: ClassVar[str]
    """The name that switches it off."""
    requirements: ClassVar[tuple[str, ...]]
    """The distributions that provide the library, any one of which is enough, with the versions supported."""
    patches: ClassVar[tuple[Patch, ...]]
    """What is replaced."""
    adapter: ClassVar[type[Any]]
    """Reads the library's objects."""
    rivals: ClassVar[tuple[rivals.Rival, ...]] = ()
    """Other instrumentations of the same library."""
    _unpatched: Any = None

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
        self._telemetry = Telemetry(self.library, settings.load(kwargs), **_known(kwargs))
        self._adapter = self.adapter(self._telemetry)
        self._patches = Patches(self.patches, self._adapter)
        self._rivalry = rivals.Rivalry(self.rivals, self.entry_point)
        self._rivalry.silence()
        self._patches.apply()
        _active[self.library] = self._telemetry

    def reader(self) -> Any:
        """The adapter that reads the library's objects now: that of the patches, or one of its own without any.

        What the application does by itself is told of in a process that is not instrumented too, to the global
        providers.
        """
        if self._is_instrumented_by_opentelemetry:
            return self._adapter
        if self._unpatched is None:
            self._unpatched = self.adapter(Telemetry(self.library, settings.load({})))
        return self._unpatched

    def _uninstrument(self, **_kwargs: Any) -> None:
        _active.pop(self.library, None)
        self._telemetry.close()
        self._patches.remove()
        self._rivalry.release()


def active(library: str) -> Telemetry | None:
    """The telemetry of a library that is instrumented now.

    Args:
        library: the name of the adapter's module.
    """
    return _active.get(library)


def _known(arguments: dict[str, Any]) -> dict[str, Any]:
    takes = (*_TAKEN, *settings.NAMES)
    unknown = arguments.keys() - set(takes)
    if unknown:
        _logger.warning("instrument() does not know %s; it takes %s", ", ".join(sorted(unknown)), ", ".join(takes))
    return {name: arguments.get(name) for name in _TAKEN}
