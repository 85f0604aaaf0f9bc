"""Modules that are imported when they are first needed: a program that uses no broker pays for none of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def exports(package: str, **modules: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package that exports names of its modules.

    Args:
        package: the package's name.
        modules: by each name, the module below the package that has it.
    """

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return find


def home(kind: type) -> str:
    """Return the package of an adapter, in whatever distribution: that of the instrumentor's class.

    Args:
        kind: the class, or one that an application has derived from it.
    """
    return next(base.__module__ for base in kind.__mro__ if "library" in vars(base))


class InPatches:
    """An attribute of an instrumentor that the module ``patches`` beside it has, under the same name."""

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, _instrumentor: Any, kind: Any) -> Any:
        return getattr(import_module(f"{home(kind)}.patches"), self._name)
