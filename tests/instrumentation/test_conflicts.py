"""Other instrumentors of a library are kept silent while ours is on, whenever they come and go."""

from __future__ import annotations

import sys
import types

import pytest
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from otel_messaging.instrumentation.conflicts import Rival, Rivalry


@pytest.fixture
def rival(tmp_path, monkeypatch):
    """Another instrumentor's class, in a module that can be imported."""

    class Other(BaseInstrumentor):
        calls = []  # noqa: RUF012

        def instrumentation_dependencies(self):
            return ()

        def _instrument(self, **kwargs):
            self.calls.append(("on", kwargs))

        def _uninstrument(self, **kwargs):
            self.calls.append(("off", kwargs))

    name = f"rival_{tmp_path.name.replace('-', '_')}"
    module = types.ModuleType(name)
    module.Other = Other
    monkeypatch.setitem(sys.modules, name, module)
    return Other


@pytest.fixture
def rivalry(rival):
    (name,) = [name for name, module in sys.modules.items() if getattr(module, "Other", None) is rival]
    return Rivalry((Rival(name, "Other", "other-package", "other"),), "messaging-ours")


WARNING = (
    "otel-messaging and other-package both instrument this library; spans come from otel-messaging only. "
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=other silences this warning, "
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=messaging-ours chooses the other one."
)


def test_one_that_is_never_switched_on_is_no_news(rival, rivalry, caplog):
    rivalry.silence()
    rivalry.release()
    assert (rival.calls, caplog.messages) == ([], [])


def test_one_that_was_on_before_is_switched_off(rival, rivalry, caplog):
    rival().instrument()
    rivalry.silence()
    assert [call for call, _ in rival.calls] == ["on", "off"]
    assert not rival().is_instrumented_by_opentelemetry
    assert caplog.messages == [WARNING]


def test_one_that_comes_later_stays_off(rival, rivalry, caplog):
    rivalry.silence()
    rival().instrument()
    assert rival.calls == []
    assert caplog.messages == [WARNING]


def test_the_warning_is_given_once(rival, rivalry, caplog):
    rival().instrument()
    rivalry.silence()
    for _ in range(2):
        rival().instrument()
        rival().uninstrument()
    assert caplog.messages == [WARNING]


def test_one_that_never_came_on_takes_nothing_away(rival, rivalry):
    rivalry.silence()
    rival().instrument()
    rival().uninstrument()
    assert rival.calls == []


@pytest.mark.parametrize("switched_on", [False, True])
def test_once_ours_is_off_it_works_again(rival, rivalry, switched_on):
    rivalry.silence()
    if switched_on:
        rival().instrument()
    rivalry.release()
    assert rival.calls == []
    rival().instrument(tracer_provider=None)
    rival().uninstrument()
    assert rival.calls == [("on", {"tracer_provider": None}), ("off", {})]


def test_one_that_is_imported_once_ours_is_off_is_left_alone(rival, rivalry, monkeypatch, tmp_path):
    (name,) = rivalry._rivals
    module = sys.modules.pop(name)
    rivalry.silence()
    rivalry.release()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{name}.py").write_text("Other = None\n")
    __import__(name).Other = module.Other
    rival().instrument()
    assert rival.calls == [("on", {})]
    rival().uninstrument()


def test_a_rival_that_cannot_be_switched_off_does_not_stop_ours(rival, rivalry, lenient, caplog):
    rival().instrument()
    rival._uninstrument = lambda self, **kwargs: 1 / 0
    rivalry.silence()
    assert "silencing Other" in caplog.text


def test_another_version_without_that_class_is_left_alone(rivalry, rival):
    (name,) = rivalry._rivals
    del sys.modules[name].Other
    rivalry.silence()
    rivalry.release()
