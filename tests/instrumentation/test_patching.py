"""Methods are replaced when their module is there, and put back whoever else has wrapped them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import subprocess
import sys
import textwrap
from unittest import mock

import pytest
import wrapt

from otel_messaging.instrumentation.patching import Patch, Patches


def shout(adapter, method):
    """Replaced because whispers are hard to hear."""

    def wrapper(self, *args, **kwargs):
        adapter.append(args)
        return method(self, *args, **kwargs).upper()

    return wrapper


def shout_later(adapter, method):
    """The same for a coroutine function."""

    async def wrapper(self, *args, **kwargs):
        return (await method(self, *args, **kwargs)).upper()

    return wrapper


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The name of a module that can be imported, and is not yet."""
    name = f"library_{tmp_path.name.replace('-', '_')}"
    source = """
    class Client:
        def say(self, text, *, again: int = 1) -> str:
            "Say it."
            return text * again

        async def say_later(self, text):
            return text

    class Shy(Client):
        def say(self, text):
            return super().say(text[:1])
    """
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def patches(library):
    """The patches of `Client`, not applied yet."""
    return Patches((Patch(library, "Client", "say", shout), Patch(library, "Client", "say_later", shout_later)), [])


@pytest.fixture
def client_class(library):
    return __import__(library).Client


def wrapped_by_wrapt(calls):
    @wrapt.decorator
    def theirs(method, instance, args, kwargs):
        calls.append((instance, args))
        return method(*args, **kwargs)

    return theirs


def test_a_module_is_not_imported_for_its_patches(library, patches):
    patches.apply()
    assert library not in sys.modules
    patches.remove()


def test_a_module_is_patched_as_it_is_imported(library, patches):
    patches.apply()
    assert __import__(library).Client().say("a") == "A"
    patches.remove()


def test_a_module_that_is_there_is_patched_at_once(client_class, patches):
    client = client_class()
    patches.apply()
    assert client.say("a") == "A"
    patches.remove()


def test_removing_puts_back_the_very_function(client_class, patches):
    before = dict(vars(client_class))
    patches.apply()
    patches.remove()
    assert all(vars(client_class)[name] is before[name] for name in ("say", "say_later"))


def test_removed_before_the_import_nothing_is_patched(library, patches):
    patches.apply()
    patches.remove()
    client = __import__(library).Client
    assert client().say("a") == "a"
    assert not hasattr(client.say, "__wrapped__")


def test_removing_twice_is_harmless(client_class, patches):
    patches.apply()
    patches.remove()
    client_class.say = replacement = lambda self: "theirs"
    patches.remove()
    assert client_class.say is replacement


def test_it_can_be_patched_again(client_class, library):
    for _ in range(2):
        patches = Patches((Patch(library, "Client", "say", shout),), [])
        patches.apply()
        assert client_class().say("a") == "A"
        patches.remove()
        assert client_class().say("a") == "a"


def test_a_replacement_looks_like_the_original(client_class, patches):
    original, later = client_class.say, client_class.say_later
    patches.apply()
    for before, now in ((original, client_class.say), (later, client_class.say_later)):
        assert now is not before
        assert inspect.signature(now) == inspect.signature(before)
        assert inspect.iscoroutinefunction(now) == inspect.iscoroutinefunction(before)
        for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"):
            assert getattr(now, name) == getattr(before, name)
    patches.remove()


def test_a_subclass_reaches_the_replacement(client_class, patches, library):
    patches.apply()
    assert __import__(library).Shy().say("ab") == "A"
    patches.remove()


def test_a_wrapper_of_wrapts_on_top_stays_when_ours_goes(client_class, patches):
    original, calls, ours = client_class.say, [], patches._adapter
    patches.apply()
    client_class.say = wrapped_by_wrapt(calls)(vars(client_class)["say"])
    patches.remove()
    client = client_class()
    assert client.say("a") == "a"
    assert calls == [(client, ("a",))]
    assert ours == []
    assert vars(client_class)["say"].__wrapped__ is original


def test_two_wrappers_of_wrapts_on_top_stay_when_ours_goes(client_class, patches):
    calls, ours = [], patches._adapter
    patches.apply()
    for _ in range(2):
        client_class.say = wrapped_by_wrapt(calls)(vars(client_class)["say"])
    patches.remove()
    assert client_class().say("a") == "a"
    assert (len(calls), ours) == (2, [])


def test_a_closure_on_top_stays_and_ours_below_it(client_class, patches):
    patches.apply()
    inner = client_class.say

    @functools.wraps(inner)
    def closure(self, *args):
        return f"<{inner(self, *args)}>"

    client_class.say = closure
    patches.remove()
    assert client_class.say is closure
    assert client_class().say("a") == "<A>"


def test_a_wrapper_of_wrapts_below_is_told_of_the_object(client_class, patches):
    calls = []
    client_class.say = wrapped_by_wrapt(calls)(client_class.say)
    wrapper = vars(client_class)["say"]
    patches.apply()
    client = client_class()
    assert client.say("a", again=2) == "AA"
    assert calls == [(client, ("a",))]
    patches.remove()
    assert vars(client_class)["say"] is wrapper


async def test_an_asynchronous_wrapper_of_wrapts_below_is_told_of_the_object(client_class, patches):
    calls = []
    client_class.say_later = wrapped_by_wrapt(calls)(client_class.say_later)
    patches.apply()
    client = client_class()
    assert await client.say_later("a") == "A"
    assert calls == [(client, ("a",))]
    patches.remove()


def test_a_mock_below_is_called_as_without_us(client_class, patches):
    with mock.patch.object(client_class, "say", return_value="a") as say:
        patches.apply()
        assert client_class().say("b", again=2) == "A"
        say.assert_called_once_with("b", again=2)
        patches.remove()
        assert client_class.say is say


def test_a_method_that_came_later_may_be_missing(client_class, library):
    patches = Patches((Patch(library, "Client", "new", shout, since="2.0"), Patch(library, "New", "x", shout, "3")), [])
    patches.apply()
    patches.remove()


def test_a_method_that_should_be_there_is_reported_and_the_others_are_patched(client_class, library, lenient, caplog):
    patches = Patches((Patch(library, "Client", "gone", shout), Patch(library, "Client", "say", shout)), [])
    patches.apply()
    assert client_class().say("a") == "A"
    assert "patching Client.gone" in caplog.text
    assert f"{library}.Client.gone is not there: not traced" in caplog.text
    patches.remove()


def test_an_inherited_method_is_not_taken_for_the_classes_own(client_class, library, lenient, caplog):
    Patches((Patch(library, "Shy", "say_later", shout_later),), []).apply()
    assert "say_later" not in vars(__import__(library).Shy)
    assert "Shy.say_later is not there" in caplog.text


@pytest.mark.parametrize("statement", ["import otel_messaging", "import otel_messaging; {all}"])
def test_importing_and_instrumenting_imports_no_client(statement):
    names = ("KafkaPythonInstrumentor", "AioPikaInstrumentor", "NatsPyInstrumentor")
    switched_on = "; ".join(f"otel_messaging.{name}().instrument()" for name in names)
    check = "import sys; print(sorted({'kafka', 'aio_pika', 'aiormq', 'nats'} & set(sys.modules)))"
    code = f"{statement.format(all=switched_on)}\n{check}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_coroutines_are_recognised_through_a_replacement(client_class, patches):
    patches.apply()
    assert asyncio.run(client_class().say_later("a")) == "A"
    patches.remove()
