"""Every setting, from a variable and from an argument, and what a bad value does."""

from __future__ import annotations

import logging

import pytest

from otel_messaging.core import settings
from otel_messaging.core.settings import Settings, load

GUIDE = Settings()
SEMCONV = Settings(vocabulary="semconv", consumer_parent="ambient", settle="span")
BOTH = Settings(vocabulary="both", consumer_parent="ambient", settle="span")

GOOD = [
    ("consumer_parent", "message", "message"),
    ("consumer_parent", " Ambient ", "ambient"),
    ("process_spans", "false", False),
    ("process_spans", "TRUE", True),
    ("process_spans", "0", False),
    ("process_spans", "on", True),
    ("settle", "event", "event"),
    ("settle", "span", "span"),
    ("settle", "OFF", "off"),
    ("metrics", "no", False),
    ("metrics", "1", True),
    ("queue_time", "off", False),
    ("lag", "yes", True),
    ("lag", "no", False),
    ("store_context", "true", True),
    ("excluded_destinations", "health", ("health",)),
    ("destination_templates", "devices.*.status, users.*", ("devices.*.status", "users.*")),
    ("excluded_destinations", "health.*, ,audit-?", ("health.*", "audit-?")),
    ("capture_headers", "x-*,tenant", ("x-*", "tenant")),
]
BAD = [
    ("consumer_parent", "parent", "must be one of message, ambient"),
    ("process_spans", "maybe", "must be true or false"),
    ("settle", "events", "must be one of event, span, off"),
    ("metrics", "2", "must be true or false"),
    ("queue_time", "5 s", "must be true or false"),
    ("lag", "-", "must be true or false"),
]


@pytest.mark.parametrize(
    ("opt_in", "expected"),
    [
        (None, GUIDE),
        ("", GUIDE),
        ("http,database", GUIDE),
        ("messaging", SEMCONV),
        (" HTTP , Messaging ", SEMCONV),
        ("messaging/dup", BOTH),
        ("messaging,messaging/dup", BOTH),
        ("messaging/other", GUIDE),
    ],
)
def test_the_vocabulary_decides_the_defaults(opt_in, expected):
    assert load({}, {} if opt_in is None else {settings.OPT_IN: opt_in}) == expected


def test_the_environment_of_the_process_is_read(monkeypatch):
    monkeypatch.setenv("OTEL_PYTHON_MESSAGING_SETTLE", "off")
    assert load({}).settle == "off"


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_a_variable_sets_it(name, value, expected):
    assert getattr(load({}, {f"OTEL_PYTHON_MESSAGING_{name.upper()}": value}), name) == expected


@pytest.mark.parametrize(("name", "value", "expected"), GOOD)
def test_an_argument_sets_it(name, value, expected):
    assert getattr(load({name: value}, {}), name) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("process_spans", False, False),
        ("metrics", True, True),
        ("excluded_destinations", ["a", "b*"], ("a", "b*")),
        ("capture_headers", (name for name in ("a", "b")), ("a", "b")),
        ("capture_headers", (), ()),
    ],
)
def test_an_argument_may_be_a_python_value(name, value, expected):
    assert getattr(load({name: value}, {}), name) == expected


def test_an_argument_wins_over_its_variable():
    assert load({"settle": "off"}, {"OTEL_PYTHON_MESSAGING_SETTLE": "span"}).settle == "off"


def test_none_is_no_argument():
    assert load({"metrics": None}, {"OTEL_PYTHON_MESSAGING_METRICS": "false"}).metrics is False


def test_an_empty_variable_counts_as_not_set(caplog):
    assert load({}, {settings.variable(name): "" for name in settings.NAMES}) == GUIDE
    assert caplog.messages == []


@pytest.mark.parametrize(("name", "value", "remedy"), BAD)
def test_a_bad_variable_is_a_warning_that_says_what_is_used(name, value, remedy, caplog):
    variable = f"OTEL_PYTHON_MESSAGING_{name.upper()}"
    assert load({}, {variable: value}) == GUIDE
    assert caplog.record_tuples == [
        (
            "otel_messaging",
            logging.WARNING,
            f"{variable}={value!r}: {remedy}; using {getattr(GUIDE, name)!r} until it is corrected",
        )
    ]


def test_a_bad_variable_is_told_once_and_a_bad_argument_each_time(caplog):
    for value in ("never", "never", "ever"):
        load({"lag": "maybe"}, {"OTEL_PYTHON_MESSAGING_SETTLE": value})
    told = [message.partition(":")[0] for message in caplog.messages]
    assert told.count("lag='maybe'") == 3
    assert [text for text in told if text != "lag='maybe'"] == [
        "OTEL_PYTHON_MESSAGING_SETTLE='never'",
        "OTEL_PYTHON_MESSAGING_SETTLE='ever'",
    ]


@pytest.mark.parametrize(
    ("name", "value"), [*(bad[:2] for bad in BAD), ("capture_headers", 5), ("capture_headers", [5])]
)
def test_a_bad_argument_leaves_what_the_variable_says(name, value, caplog):
    variables = {
        "OTEL_PYTHON_MESSAGING_CONSUMER_PARENT": "ambient",
        "OTEL_PYTHON_MESSAGING_PROCESS_SPANS": "false",
        "OTEL_PYTHON_MESSAGING_SETTLE": "off",
        "OTEL_PYTHON_MESSAGING_METRICS": "false",
        "OTEL_PYTHON_MESSAGING_QUEUE_TIME": "false",
        "OTEL_PYTHON_MESSAGING_LAG": "false",
        "OTEL_PYTHON_MESSAGING_CAPTURE_HEADERS": "x",
    }
    assert load({name: value}, variables) == load({}, variables)
    (message,) = caplog.messages
    assert message.startswith(f"{name}={value!r}: ")
    assert message.endswith(f"; using {getattr(load({}, variables), name)!r} until it is corrected")


def test_a_default_of_the_conventions_is_what_a_bad_value_leaves(caplog):
    environ = {settings.OPT_IN: "messaging", "OTEL_PYTHON_MESSAGING_SETTLE": "never"}
    assert load({}, environ) == SEMCONV
    assert "using 'span'" in caplog.text


def test_every_setting_but_the_vocabulary_can_be_given():
    assert {"vocabulary", *settings.NAMES} == set(Settings._fields)


def test_it_is_told_where_the_settings_came_from():
    environ = {settings.OPT_IN: "messaging", settings.variable("settle"): "off", settings.variable("lag"): "maybe"}
    warnings = []
    read, origins = settings.read({"metrics": False}, environ, lambda *warning: warnings.append(warning))
    assert read == load({"metrics": False}, {**environ, settings.variable("lag"): ""})
    assert origins == {"vocabulary": settings.OPT_IN, "settle": "OTEL_PYTHON_MESSAGING_SETTLE", "metrics": "metrics"}
    assert [warning[1:3] for warning in warnings] == [("OTEL_PYTHON_MESSAGING_LAG", "maybe")]


@pytest.mark.parametrize("value", ["logs", "logs/dup", "other,logs"])
def test_exceptions_as_logs_are_not_followed_yet_and_one_warning_says_so(value, caplog):
    for _ in range(3):
        assert load({}, {settings.EXCEPTION_SIGNAL: value}) == Settings()
    assert caplog.messages == [
        f"OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN={value!r}: not followed yet, exceptions are recorded as events of spans"
    ]


@pytest.mark.parametrize("value", ["", "spans", "catalogs"])
def test_other_signals_for_exceptions_are_what_is_done_anyway(value, caplog):
    load({}, {settings.EXCEPTION_SIGNAL: value})
    assert caplog.messages == []
