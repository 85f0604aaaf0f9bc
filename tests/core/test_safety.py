"""An error of our own is logged once per place, and raised only in the tests."""

from __future__ import annotations

import logging

import pytest

from otel_messaging.core.safety import report


def test_an_error_is_raised_in_the_tests():
    with pytest.raises(ValueError, match="ours"):
        report("here", ValueError("ours"))


def test_an_error_is_logged_once_per_place(lenient, caplog):
    error = ValueError("ours")
    report("here", error)
    report("here", KeyError("again"))
    report("there", error)
    assert [(record.levelno, record.args, record.exc_info[1]) for record in caplog.records] == [
        (logging.ERROR, ("here",), error),
        (logging.ERROR, ("there",), error),
    ]
    assert "the call itself was not affected" in caplog.messages[0]
