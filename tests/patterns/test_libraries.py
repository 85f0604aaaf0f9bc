"""Which library a helper uses, where a program has several."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from otel_messaging.patterns import libraries


def library(name, traced=False, imported=False, system="kafka"):
    return SimpleNamespace(name=name, system=system, is_traced=traced, is_imported=imported)


@pytest.fixture
def known(monkeypatch):
    """Let the program have these libraries."""
    monkeypatch.setattr(libraries, "_ambiguous", set())
    return lambda *some: monkeypatch.setattr(libraries, "libraries", lambda: some)


def test_every_adapter_is_found_by_its_entry_point():
    found = {(one.name, one.package, one.system) for one in libraries.libraries()}
    assert found == {
        ("kafka_python", "kafka", "kafka"),
        ("aio_pika", "aio_pika", "rabbitmq"),
        ("nats_py", "nats", "nats"),
    }


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        ({}, {}, "one"),
        ({}, {"imported": True}, "two"),
        ({"imported": True}, {"traced": True}, "two"),
        ({"traced": True}, {"imported": True}, "one"),
    ],
)
def test_of_two_libraries_for_one_broker_the_instrumented_one_is_used(known, caplog, first, second, chosen):
    known(library("one", **first), library("two", **second), library("three", traced=True, system="nats"))
    assert libraries.library_named("kafka").name == chosen
    assert libraries.library_named("two").name == "two"
    assert caplog.records == []


def test_where_two_are_instrumented_a_warning_says_once_what_to_name(known, caplog):
    known(library("one", traced=True), library("two", traced=True))
    assert [libraries.library_named("kafka").name for _ in range(2)] == ["one", "one"]
    (warning,) = caplog.messages
    assert "give system='one' or system='two'" in warning
    assert libraries.library_named("two").name == "two"
    assert len(caplog.messages) == 1


def test_an_adapter_that_does_not_load_takes_no_other_with_it(monkeypatch, lenient, caplog):
    broken = SimpleNamespace(name="messaging-broken", load=lambda: 1 / 0)
    foreign = SimpleNamespace(name="messaging-foreign", load=lambda: object)
    ours = next(
        one for one in libraries.metadata.entry_points(group="opentelemetry_instrumentor") if "nats" in one.name
    )
    monkeypatch.setattr(libraries.metadata, "entry_points", lambda group: [broken, foreign, ours])
    assert [one.name for one in libraries.libraries.__wrapped__()] == ["nats_py"]
    assert "messaging-broken" in caplog.text
