"""Methods replaced when their library is imported, and put back exactly as they were."""

from __future__ import annotations

import functools
import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import wrapt

from otel_messaging.core import safety

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_PROXY = getattr(wrapt, "BaseObjectProxy", wrapt.ObjectProxy)  # the base of its function wrappers has two names


class Patch(NamedTuple):
    """One method to replace.

    Attributes:
        module: the module that defines the class.
        owner: the class; of one in another, both with a dot between.
        name: the method.
        wrap: makes the replacement from the adapter and the original. Its docstring says why it is replaced.
        since: whether older versions of the library lack the method, so that its absence is no surprise.
    """

    module: str
    owner: str
    name: str
    wrap: Callable[[Any, Callable[..., Any]], Callable[..., Any]]
    since: str = ""


class Patches:
    """The methods that one instrumentor replaces.

    Args:
        patches: what to replace.
        adapter: given to every `Patch.wrap`.
    """

    def __init__(self, patches: tuple[Patch, ...], adapter: Any) -> None:
        self._patches = patches
        self._adapter = adapter
        self._applied: list[tuple[Any, str, Any, Any]] = []
        self._wanted = True

    def apply(self) -> None:
        """Replace each method now, or as soon as its module is imported."""
        for module in dict.fromkeys(patch.module for patch in self._patches):
            wrapt.register_post_import_hook(self._patch_module, module)

    def remove(self) -> None:
        """Put back what was there, also from below a wrapper that somebody else has put on top."""
        self._wanted = False
        while self._applied:
            _restore(*self._applied.pop())

    def _patch_module(self, module: ModuleType) -> None:
        if not self._wanted:
            return
        for patch in self._patches:
            if patch.module == module.__name__:
                try:
                    self._patch(module, patch)
                except Exception as error:
                    safety.report(f"patching {patch.owner}.{patch.name}", error)

    def _patch(self, module: ModuleType, patch: Patch) -> None:
        owner: Any = module
        for name in patch.owner.split("."):
            owner = getattr(owner, name, None)
        original = owner.__dict__.get(patch.name) if owner is not None else None
        if original is None:
            if not patch.since:
                raise safety.PlainError(f"{patch.module}.{patch.owner}.{patch.name} is not there: not traced")
            return
        replacement = patch.wrap(self._adapter, _method(original, patch.name))
        _disguise(replacement, original)
        setattr(owner, patch.name, replacement)
        self._applied.append((owner, patch.name, original, replacement))


def _disguise(replacement: Any, original: Any) -> None:
    """Make a replacement look like the original to those who inspect it, also with `inspect.getfullargspec`."""
    functools.update_wrapper(replacement, original)
    # A proxy's attributes are those of the original; and one that wraps another method has that one's signature.
    if type(replacement) is FunctionType and type(original) is FunctionType and not hasattr(original, "__wrapped__"):
        replacement.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]


def _method(original: Any, name: str) -> Callable[..., Any]:
    """What was there, as a function that takes the object first.

    What somebody else has put there need not be one: a wrapper of wrapt's tells its owner of the object only when it is
    bound to it, and what cannot be bound, such as a mock, is called without it.
    """
    if type(original) is FunctionType:  # a proxy claims to be one
        return original
    bind = getattr(type(original), "__get__", None)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (original if bind is None else bind(original, self, type(self)))(*args, **kwargs)

    method.__name__ = method.__qualname__ = name
    if hasattr(original, "__wrapped__"):
        method.__wrapped__ = original  # type: ignore[attr-defined]  # which knows the parameters, and whether it is async
    return method


def _restore(owner: Any, name: str, original: Any, replacement: Any) -> None:
    current = owner.__dict__.get(name)
    if current is replacement:
        setattr(owner, name, original)
        return
    # Somebody has wrapped ours. A wrapt proxy can be told what it wraps; inside any other, ours stays and does nothing.
    while isinstance(current, _PROXY):
        if current.__wrapped__ is replacement:
            current.__wrapped__ = original
            return
        current = current.__wrapped__
