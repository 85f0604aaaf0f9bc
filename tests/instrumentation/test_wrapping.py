"""Replacements of methods: signatures, arguments, and what reaches the application when ours fails."""

from __future__ import annotations

import asyncio
import functools
import inspect
from asyncio import CancelledError

import pytest

from otel_messaging.core import safety
from otel_messaging.instrumentation.wrapping import around


class Client:
    """A client with methods of every form."""

    def send(self, topic, /, value=b"", *more, headers=None, timeout=1.5, **options):
        """Send."""
        if topic == "bad":
            raise OSError(topic)
        return topic, value, more, headers, timeout, options

    async def publish(self, topic, payload=b"", headers=None):
        if topic == "bad":
            raise OSError(topic)
        return topic, payload, headers

    def bare(self):
        return "bare"


def call(method, *args, **kwargs):
    """Call a method of either kind, and wait for it."""
    result = method(Client(), *args, **kwargs)
    return asyncio.run(result) if inspect.isawaitable(result) else result


def outcome(method, args, kwargs):
    try:
        return call(method, *args, **kwargs)
    except TypeError as error:
        return str(error)


def replace(original, *parts, **options):
    return functools.update_wrapper(around(*parts, **options)("adapter", original), original)


def nothing(adapter, owner):
    return None


METHODS = [Client.send, Client.publish, Client.bare]


@pytest.mark.parametrize("original", METHODS)
def test_a_replacement_looks_as_the_original(original):
    made = replace(original, nothing)
    assert inspect.signature(made, follow_wrapped=False) == inspect.signature(original)
    assert inspect.getfullargspec(made) == inspect.getfullargspec(original)
    for name in ("__defaults__", "__kwdefaults__", "__name__", "__qualname__", "__doc__", "__module__"):
        assert getattr(made, name) == getattr(original, name)
    assert inspect.iscoroutinefunction(made) == inspect.iscoroutinefunction(original)


@pytest.mark.parametrize("original", METHODS)
@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3, 4), {"wrong": 1}), ((), {"topic": 1, "wrong": 2})])
def test_arguments_that_the_library_refuses_are_refused_in_its_words(original, args, kwargs):
    assert outcome(original, args, kwargs) == outcome(replace(original, nothing), args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("a",), {}),
        (("a", b"x", 1, 2), {"headers": {"k": "v"}, "other": 3}),
        (("a",), {"timeout": None, "value": b"y"}),
    ],
)
def test_what_is_ours_reads_arguments_by_their_names(args, kwargs):
    seen = []

    def before(adapter, owner, topic, headers, arguments, since_later=7):
        seen.append((adapter, type(owner), topic, headers, arguments, since_later))

    made = replace(Client.send, before)
    assert call(made, *args, **kwargs) == call(Client.send, *args, **kwargs)
    bound = inspect.signature(Client.send).bind(Client(), *args, **kwargs)
    bound.apply_defaults()
    named = {**bound.arguments, **bound.arguments["options"]}
    del named["self"], named["options"]
    assert seen == [("adapter", Client, "a", named["headers"], named, 7)]


@pytest.mark.parametrize("original", [Client.send, Client.publish])
def test_an_argument_is_replaced_and_the_result_too(original):
    made = replace(
        original,
        lambda adapter, owner, headers: ("token", ["ours", headers]),
        lambda token, result: (token, *result),
        replaces="headers",
    )
    assert call(made, "a", headers=1) == ("token", *call(original, "a", headers=["ours", 1]))


@pytest.mark.parametrize("original", [Client.send, Client.publish])
def test_the_librarys_error_is_seen_and_raised(original):
    seen = []
    made = replace(original, lambda adapter, owner: "token", None, lambda token, error: seen.append((token, error)))
    with pytest.raises(OSError, match="bad") as raised:
        call(made, "bad")
    assert seen == [("token", raised.value)]


@pytest.mark.parametrize("original", [Client.send, Client.publish])
@pytest.mark.parametrize("kind", [ValueError, MemoryError, RecursionError, CancelledError])
@pytest.mark.parametrize("where", ["before", "after", "failed"])
def test_an_error_of_ours_reaches_nobody(original, kind, where, lenient, caplog):
    def fail(*args):
        raise kind("ours")

    parts = {"before": lambda adapter, owner: "token", "after": lambda token, result: result, "failed": print}
    parts[where] = (lambda adapter, owner: fail()) if where == "before" else fail
    made = replace(original, parts["before"], parts["after"], parts["failed"])
    assert call(made, "a") == call(original, "a")
    with pytest.raises(OSError, match="bad"):
        call(made, "bad")
    assert [kind.__name__ in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("original", [Client.send, Client.publish])
def test_what_another_package_has_wrapped_is_called_as_ours_was(original):
    calls = []

    @functools.wraps(original)
    def foreign(self, *args, **kwargs):
        calls.append((args, kwargs))
        return original(self, *args, **kwargs)

    made = replace(foreign, lambda adapter, owner, headers: (None, headers), replaces="headers")
    assert call(made, "a", b"x") == call(original, "a", b"x")
    assert calls == [(("a", b"x"), {})]
    changed = replace(foreign, lambda adapter, owner, topic, headers: (None, [topic]), replaces="headers")
    assert call(changed, "a", headers=None) == call(original, "a", headers=["a"])
    assert calls[1:] == [(("a",), {"headers": ["a"]})]
    assert call(changed, "a") == call(original, "a", headers=["a"])


def test_wrong_arguments_for_what_another_package_has_wrapped_are_its_own_matter():
    foreign = functools.wraps(Client.bare)(lambda *args, **kwargs: (args[1:], kwargs))
    made = replace(foreign, nothing)
    assert call(made, 1, x=2) == ((1,), {"x": 2})


def test_what_somebody_has_put_there_without_a_signature_is_read_as_the_librarys_method():
    seen = []

    def before(adapter, owner, topic, value=b"", headers=None, *, since_later=7):
        seen.append((topic, value, since_later))
        return "token", ["ours", headers]

    made = replace(lambda self, *args, **kwargs: (args, kwargs), before, replaces="headers")
    assert call(made, "a", b"x", 1) == (("a", b"x", ["ours", 1]), {})
    assert call(made, topic="a", other=2) == ((), {"topic": "a", "other": 2, "headers": ["ours", None]})
    assert call(made) == ((), {})
    assert seen == [("a", b"x", 7), ("a", b"", 7)]


def test_a_method_without_what_ours_cannot_do_without_is_not_replaced():
    with pytest.raises(safety.PlainError, match=r"Client\.bare has no parameter 'topic'"):
        replace(Client.bare, lambda adapter, owner, topic: None)
    with pytest.raises(safety.PlainError, match=r"Client\.bare has no parameter 'headers'"):
        replace(Client.bare, lambda adapter, owner: None, replaces="headers")


def test_a_traceback_shows_the_replacement():
    made = replace(Client.send, nothing)
    with pytest.raises(OSError, match="bad") as raised:
        call(made, "bad")
    assert "_result = _original(self, topic, value, *more" in str(raised.getrepr())
