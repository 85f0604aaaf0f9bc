"""Replacements of a library's methods: with the signature of the original, and one guard around all that is ours.

A replacement is compiled from a template once, when its method is patched. It has exactly the parameters of the method
that it replaces, so that Python itself refuses what the library would refuse, in the library's name, and what is ours
reads the arguments by their names, wherever the application has put them.
"""

from __future__ import annotations

import inspect
import linecache
from inspect import Parameter
from textwrap import indent
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_messaging.core import safety

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ARGUMENTS = "arguments"
"""A parameter of this name is given all of the call's arguments, by their names."""

# Names of ours begin with an underscore: `Method` makes sure that the method has no parameter like that.
_TEMPLATE = """\
{define} {name}({parameters}):
    _token = None
    {remember}
    try:
{begin}
    except _mistakes as _error:
        _report(_place, _error)
    try:
        _result = {call}
    except BaseException as _error:
        if _token is not None:
{failed}
        raise
    if _token is not None:
        try:
{after}
        except _mistakes as _error:
            _report(_place, _error)
    return _result
"""

_FORMS: dict[Any, str] = {
    Parameter.VAR_POSITIONAL: "*{0}",
    Parameter.VAR_KEYWORD: "**{0}",
    Parameter.KEYWORD_ONLY: "{0}={1}",
}

_REST = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


class Blocks(NamedTuple):
    """What is ours in a replacement, as statements.

    Attributes:
        begin: runs before the call, and sets ``_token`` where something is to be done after it.
        after: runs when the call has returned ``_result``.
        failed: runs when the call has raised ``_error``; it must not raise.
    """

    begin: str
    after: str = "pass"
    failed: str = "pass"


def around(
    before: Callable[..., Any],
    after: Callable[[Any, Any], Any] | None = None,
    failed: Callable[[Any, BaseException], Any] | None = None,
    replaces: str = "",
) -> Callable[[Any, Callable[..., Any]], Callable[..., Any]]:
    """Make the replacement of a method from what runs before and after it.

    None of the three can harm the call: an error in one is reported, and the call goes on.

    Args:
        before: called with the adapter, the method's object, and those of the method's arguments that it has a
            parameter of the same name for. One that the installed version's method lacks has its default. Where
            somebody has put a method there that takes anything, its parameters are the method's: so they begin as
            those of the library's method, with the same defaults. It returns a
            token, or None where nothing is to be done after the call; with ``replaces`` a pair of that and what to call
            the method with.
        after: called with the token and the method's result. Returns what the application gets.
        failed: called with the token and the exception that the method has raised.
        replaces: the name of the argument that ``before`` replaces, if it does.

    Returns:
        The `Patch.wrap` of the method.
    """

    def wrap(adapter: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        method = Method(original, replaces)
        given = ", ".join(("_adapter", "self", *method.own(before, after=2)))
        blocks = Blocks(
            begin=f"{'_token, _value' if replaces else '_token'} = _before({given})",
            after="_result = _after(_token, _result)" if after is not None else "pass",
            failed="_guard(_place, _failed, _token, _error)" if failed is not None else "pass",
        )
        return method.replacement(blocks, _before=before, _after=after, _failed=failed, _adapter=adapter)

    return wrap


def reading(before: Callable[..., Any], details: Callable[..., Any]) -> Callable[..., Any]:
    """Have what runs before a call given the arguments that something reads, by its parameters' names.

    Args:
        before: as for `around`: it takes any arguments after the adapter and the object, and hands them on.
        details: reads them.

    Returns:
        The same function ``before``.
    """
    first = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("adapter", "owner")]
    before.__signature__ = inspect.Signature([*first, *inspect.signature(details).parameters.values()])  # type: ignore[attr-defined]
    return before


class Method:
    """A method that is replaced, and how its replacement passes the arguments on.

    A plain function's replacement has the very same parameters. What another package has put around one may look at how
    it was called, and is called just as the application has called ours.

    Args:
        original: the method, as a function that takes the object first.
        replaces: the name of the argument that the replacement gives another value, ``_value``; empty if it does not.

    Raises:
        PlainError: the method has no such parameter; it is told in the log, and the method stays as it is.
    """

    def __init__(self, original: Callable[..., Any], replaces: str = "") -> None:
        inner = inspect.unwrap(original)
        signature = inspect.signature(inner)
        self._original = original
        self._inner = inner
        self._replaces = replaces
        self._signature = signature
        self._parameters = list(signature.parameters.values())
        self._exact = type(original) is FunctionType and inner is original and self._is_plain()
        self._namespace: dict[str, Any] = {
            "_report": safety.report,
            "_guard": safety.guard,
            "_mistakes": safety.MISTAKES,
        }

    def _is_plain(self) -> bool:
        names = [parameter.name for parameter in self._parameters]
        return names[:1] == ["self"] and not any(name.startswith("_") for name in names)

    def own(self, function: Callable[..., Any], after: int) -> list[str]:
        """What a function of ours is called with, as expressions.

        Args:
            function: the function.
            after: how many of its first parameters are not the method's.

        Raises:
            PlainError: the method lacks a parameter that the function cannot do without.
        """
        expressions = []
        parameters = list(inspect.signature(function).parameters.values())[after:]
        if _takes_anything(self._parameters):
            self._read_as(parameters)
        for parameter in parameters:
            name = parameter.name
            if name in self._signature.parameters:
                expression = self._expression(name)
            elif name == ARGUMENTS:
                expression = self._all()
            elif parameter.default is Parameter.empty:
                raise safety.PlainError(f"{self._inner.__qualname__} has no parameter {name!r}")
            else:
                expression = f"_without_{name}"
                self._namespace[expression] = parameter.default
            is_named = parameter.kind is Parameter.KEYWORD_ONLY
            expressions.append(f"{name}={expression}" if is_named else expression)
        return expressions

    def replacement(self, blocks: Blocks, **namespace: Any) -> Callable[..., Any]:
        """Compile the replacement.

        Args:
            blocks: what is ours in it.
            **namespace: what that refers to.
        """
        is_async, replaces = inspect.iscoroutinefunction(self._inner), self._replaces
        if replaces and replaces not in self._signature.parameters:
            raise safety.PlainError(f"{self._inner.__qualname__} has no parameter {replaces!r}")
        name = self._inner.__name__ if self._exact else "method"  # a lambda's is no identifier
        begin = blocks.begin
        if not self._exact:
            if replaces:
                begin += f"\nif _value is not _named[{replaces!r}]:\n    args, kwargs = _put(args, kwargs, _value)"
            begin = f"_named = _bind(self, args, kwargs)\nif _named is not None:\n{indent(begin, '    ')}"
        source = _TEMPLATE.format(
            define="async def" if is_async else "def",
            name=name,
            parameters=self._declared() if self._exact else "self, *args, **kwargs",
            remember=f"_value = {replaces}" if replaces and self._exact else "_value = None",
            begin=indent(begin, " " * 8),
            call=("await " if is_async else "") + f"_original({self._passed()})",
            failed=indent(blocks.failed, " " * 12),
            after=indent(blocks.after, " " * 12),
        )
        self._namespace.update(
            namespace, _original=self._original, _place=self._inner.__qualname__, _bind=self._bind, _put=self._put
        )
        file = f"<otel_messaging: {self._inner.__module__}.{self._inner.__qualname__}>"
        exec(compile(source, file, "exec"), self._namespace)
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
        return self._namespace[name]  # type: ignore[no-any-return]

    def _read_as(self, parameters: list[Parameter]) -> None:
        """Somebody has put a method there that hands all on: its arguments are read by the parameters of ours."""
        owner, rest = Parameter("self", Parameter.POSITIONAL_ONLY), [p for p in self._parameters if p.kind in _REST]
        self._parameters = [owner, *sorted((*parameters, *rest), key=lambda parameter: parameter.kind)]
        self._signature = inspect.Signature(self._parameters)
        self._exact = False

    def _expression(self, name: str) -> str:
        return name if self._exact else f"_named[{name!r}]"

    def _all(self) -> str:
        if not self._exact:
            return "_named"
        named = [parameter for parameter in self._parameters[1:] if parameter.kind is not Parameter.VAR_KEYWORD]
        rest = [f"**{parameter.name}" for parameter in self._parameters if parameter.kind is Parameter.VAR_KEYWORD]
        return "{" + ", ".join([*(f"{parameter.name!r}: {parameter.name}" for parameter in named), *rest]) + "}"

    def _declared(self) -> str:
        """The parameters as they are declared, with the original's defaults."""
        declared = []
        for parameter in self._parameters:
            if parameter.default is not Parameter.empty:
                default = f"_default_{parameter.name}"
                self._namespace[default] = parameter.default
                parameter = parameter.replace(default=_Name(default))
            declared.append(parameter.replace(annotation=Parameter.empty))
        return str(self._signature.replace(parameters=declared, return_annotation=Parameter.empty))[1:-1]

    def _passed(self) -> str:
        """The arguments that the original is called with."""
        if not self._exact:
            return "self, *args, **kwargs"
        passed = []
        for parameter in self._parameters:
            value = "_value" if parameter.name == self._replaces else parameter.name
            passed.append(_FORMS.get(parameter.kind, "{1}").format(parameter.name, value))
        return ", ".join(passed)

    def _bind(self, owner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The arguments by their names, with the original's defaults; None where the library will refuse them."""
        try:
            bound = self._signature.bind(owner, *args, **kwargs)
        except TypeError:
            return None
        bound.apply_defaults()
        named = dict(list(bound.arguments.items())[1:])
        for parameter in self._parameters:
            if parameter.kind is Parameter.VAR_KEYWORD:
                named.update(named.pop(parameter.name, {}))
        return named

    def _put(self, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> tuple[Any, dict[str, Any]]:
        """The arguments with another value for the one that is replaced, given in the way that it was given."""
        index = list(self._signature.parameters).index(self._replaces) - 1
        if index < len(args) and self._replaces not in kwargs:
            return (*args[:index], value, *args[index + 1 :]), kwargs
        return args, {**kwargs, self._replaces: value}


def _takes_anything(parameters: list[Parameter]) -> bool:
    """Whether a method has no parameter of its own but for the object, and takes all that there are."""
    named = [parameter for parameter in parameters if parameter.kind not in _REST]
    return len(named) <= 1 and len(parameters) - len(named) == len(_REST)


class _Name:
    """A name in source code."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name
