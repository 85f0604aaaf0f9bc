"""An error of our own is logged once per place, in one line without its words, and raised only in the tests."""

from __future__ import annotations

import logging
from asyncio import CancelledError

import pytest

from otel_messaging.core import safety
from otel_messaging.core.safety import guard, report


def fail(error):
    raise error


def test_an_error_is_raised_in_the_tests():
    with pytest.raises(ValueError, match="ours"):
        report("here", ValueError("ours"))


def test_an_error_is_logged_once_per_place(lenient, caplog):
    error = ValueError("ours")
    report("here", error)
    report("here", KeyError("again"))
    report("there", error)
    assert [(record.levelno, record.args[0]) for record in caplog.records] == [
        (logging.ERROR, "here"),
        (logging.ERROR, "there"),
    ]
    assert "the call itself was not affected" in caplog.messages[0]


def test_the_line_names_the_error_and_its_origin_and_has_none_of_its_words(lenient, caplog):
    guard("here", fail, ValueError("the message's\nown words"))
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.args[1] == f"ValueError at test_safety.py:{fail.__code__.co_firstlineno + 1}"
    assert "words" not in record.getMessage()


def test_all_of_it_is_logged_for_those_who_ask(lenient, caplog):
    error = ValueError("in its own words")
    with caplog.at_level(logging.DEBUG, "otel_messaging"):
        guard("here", fail, error)
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.DEBUG]
    assert caplog.records[1].exc_info[1] is error


def test_what_we_say_ourselves_is_shown(lenient, caplog):
    report("here", safety.PlainError("call it so"))
    assert "call it so" in caplog.messages[0]


def test_a_cancellation_that_nobody_asked_for_goes_no_further(lenient, caplog):
    guard("here", fail, CancelledError())
    assert [record.args[0] for record in caplog.records] == ["here"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_interrupts_the_application_goes_through(lenient, interrupt):
    with pytest.raises(interrupt):
        guard("here", fail, interrupt())
