"""Other packages that instrument the same library: one set of spans, ours, and one warning that says how to choose."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import wrapt

from otel_messaging.core import safety

if TYPE_CHECKING:
    from types import ModuleType

_logger = logging.getLogger("otel_messaging")


class Rival(NamedTuple):
    """Another instrumentor of a library.

    Attributes:
        module: the module that defines it.
        instrumentor: its class.
        package: its distribution.
        entry_point: the name that switches it off.
    """

    module: str
    instrumentor: str
    package: str
    entry_point: str


class Rivalry:
    """Keeps other instrumentors of a library silent while ours is on.

    Args:
        rivals: the others.
        entry_point: the name that switches ours off.
    """

    def __init__(self, rivals: tuple[Rival, ...], entry_point: str) -> None:
        self._rivals = {rival.module: rival for rival in rivals}
        self._entry_point = entry_point
        self._silenced: list[tuple[Any, Any, Any]] = []
        self._warned: set[Rival] = set()
        self._wanted = True

    def silence(self) -> None:
        """Undo the others where they are on, and keep them from coming on later."""
        for module in self._rivals:
            wrapt.register_post_import_hook(self._meet, module)

    def release(self) -> None:
        """Let the others work again when they are asked to."""
        self._wanted = False
        for kind, instrument, uninstrument in self._silenced:
            if kind().is_instrumented_by_opentelemetry:
                kind().uninstrument()  # it only believes to be on, and would not hear of being switched on
            kind._instrument = instrument
            kind._uninstrument = uninstrument
        self._silenced.clear()

    def _meet(self, module: ModuleType) -> None:
        rival = self._rivals[module.__name__]
        kind = getattr(module, rival.instrumentor, None)
        if not self._wanted or kind is None:
            return
        try:
            if kind().is_instrumented_by_opentelemetry:
                kind().uninstrument()
                self._warn(rival)
            self._silenced.append((kind, kind._instrument, kind._uninstrument))
            kind._instrument = lambda _self, **_kwargs: self._warn(rival)
            kind._uninstrument = lambda _self, **_kwargs: None  # it would take away somebody else's wrapper
        except Exception as error:
            safety.report(f"silencing {rival.instrumentor}", error)

    def _warn(self, rival: Rival) -> None:
        if rival in self._warned:
            return
        self._warned.add(rival)
        _logger.warning(
            "otel-messaging and %s both instrument this library; spans come from otel-messaging only. "
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=%s silences this warning, "
            "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=%s chooses the other one.",
            rival.package,
            rival.entry_point,
            self._entry_point,
        )
