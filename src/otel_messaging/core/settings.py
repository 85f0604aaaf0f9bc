"""Settings: one table of them, read from keyword arguments of ``instrument()`` and from environment variables."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_logger = logging.getLogger("otel_messaging")

OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
EXCEPTION_SIGNAL = "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN"
_PREFIX = "OTEL_PYTHON_MESSAGING_"
_told: set[tuple[str, Any]] = set()  # of bad variables, in this process


class Settings(NamedTuple):
    """What can be chosen. Each field but ``vocabulary`` is also a keyword argument of ``instrument()``.

    Attributes:
        vocabulary: ``guide``, ``semconv`` or ``both``, from ``OTEL_SEMCONV_STABILITY_OPT_IN``.
        consumer_parent: what a consumer span is the child of: the ``message``, or the ``ambient`` span around the call.
        process_spans: whether a consumer span lasts until the message is handled, or only until it is handed over.
        settle: how acknowledgements appear.
        metrics: whether messages are counted and timed.
        queue_time: whether to record how long a message has waited at the broker, where its timestamp tells.
        lag: whether to record how many messages were waiting behind a message, where the client knows.
        store_context: whether values that the broker keeps, such as those of NATS' buckets, carry a context.
        excluded_destinations: globs of destinations without span and metric.
        destination_templates: globs that stand for the destinations they match, in span names and in metrics.
        capture_headers: globs of header names to record as ``messaging.header.<name>``.
    """

    vocabulary: str = "guide"
    consumer_parent: str = "message"
    process_spans: bool = True
    settle: str = "event"
    metrics: bool = True
    queue_time: bool = True
    lag: bool = True
    store_context: bool = False
    excluded_destinations: tuple[str, ...] = ()
    destination_templates: tuple[str, ...] = ()
    capture_headers: tuple[str, ...] = ()


def _choice(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        word = str(value).strip().lower()
        if word not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return word

    return parse


def _switch(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ValueError("must be true or false")
    return word in ("true", "1", "yes", "on")


def _globs(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else tuple(value)
    if not all(isinstance(part, str) for part in parts):
        raise ValueError("must be names or globs, separated by commas")
    return tuple(part.strip() for part in parts if part.strip())


# What each takes, in words, and what reads it.
_PARSERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "consumer_parent": ("`message` or `ambient`", _choice("message", "ambient")),
    "process_spans": ("`true` or `false`", _switch),
    "settle": ("`event`, `span` or `off`", _choice("event", "span", "off")),
    "metrics": ("`true` or `false`", _switch),
    "queue_time": ("`true` or `false`", _switch),
    "lag": ("`true` or `false`", _switch),
    "store_context": ("`true` or `false`", _switch),
    "excluded_destinations": ("globs, separated by commas", _globs),
    "destination_templates": ("globs, separated by commas", _globs),
    "capture_headers": ("globs, separated by commas", _globs),
}

NAMES = tuple(_PARSERS)
"""The settings that are keyword arguments of ``instrument()`` too."""


def takes(name: str) -> str:
    """The values that a setting takes, in words."""
    return _PARSERS[name][0]


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return _PREFIX + name.upper()


def load(arguments: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Args:
        arguments: keyword arguments of ``instrument()``; they win over variables, and None counts as not given.
        environ: the environment variables.

    Returns:
        The settings in force. A bad value is logged with what is used instead; it never raises.
    """
    signal = environ.get(EXCEPTION_SIGNAL, "")
    if "logs" in re.split("[,/ ]", signal):
        _warn("%s=%r: not followed yet, exceptions are recorded as events of spans", EXCEPTION_SIGNAL, signal)
    return read(arguments, environ, _warn)[0]


def _warn(text: str, source: str, value: Any, *details: Any) -> None:
    """Log a bad value; that of a variable once, though each instrumentor reads it."""
    if source.startswith("OTEL_"):
        if (source, value) in _told:
            return
        _told.add((source, value))
    _logger.warning(text, source, value, *details)


def read(
    arguments: Mapping[str, Any], environ: Mapping[str, str], warn: Callable[..., Any]
) -> tuple[Settings, dict[str, str]]:
    """Read the settings, and tell where they came from.

    Args:
        arguments: as for `load`.
        environ: as for `load`.
        warn: called for each bad value, with a format and its arguments: source, value, error, what is used instead.

    Returns:
        The settings in force, and the variable or the argument of each that is not left at its default.
    """
    values, origins = _defaults(_vocabulary(environ.get(OPT_IN, ""))), {}
    if values["vocabulary"] != "guide":
        origins["vocabulary"] = OPT_IN
    for name, (_, parse) in _PARSERS.items():
        for source, value in ((variable(name), environ.get(variable(name))), (name, arguments.get(name))):
            if value is None or value == "":
                continue
            try:
                values[name] = parse(value)
                origins[name] = source
            except (ValueError, TypeError) as error:
                warn("%s=%r: %s; using %r until it is corrected", source, value, error, values[name])
    return Settings(**values), origins


def _vocabulary(opt_in: str) -> str:
    words = {word.strip().lower() for word in opt_in.split(",")}
    if "messaging/dup" in words:
        return "both"
    return "semconv" if "messaging" in words else "guide"


def _defaults(vocabulary: str) -> dict[str, Any]:
    values = {**Settings._field_defaults, "vocabulary": vocabulary}
    if vocabulary != "guide":
        values.update(consumer_parent="ambient", settle="span")
    return values
