"""Contexts in and out of messages, through the global propagator only."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import baggage, propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import (
    DEFAULT_TRACE_STATE,
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from . import safety
from .contexts import SPAN
from .headers import harmless, is_sendable
from .otel_private import parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Span

_TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_FLAGS = {f"{flags:02x}": TraceFlags(flags) for flags in range(4)}
_TAILS = {flags: f"-{flags:02x}" for flags in range(4)}
_NOTHING: dict[str, str] = {}
(BAGGAGE,) = baggage.clear(Context())
"""The key of baggage in a context, which the API keeps to itself."""
NAMES = 256
"""How many headers a propagator may look through: some look for a prefix, and copy what they have at each find."""


class _Known(NamedTuple):
    """What is known of the global propagator.

    Attributes:
        propagator: the propagator.
        fields: the headers that it writes, in lower case.
        standard: whether it is W3C trace context and baggage, and nothing else. Then the usual message, which has a
            `traceparent` of version 00 alone, needs none of its generality: that saves a tenth of what a span costs.
    """

    propagator: TextMapPropagator | None
    fields: frozenset[str]
    standard: bool


_known = _Known(None, frozenset(), False)


def _know() -> _Known:
    """What is known of the global propagator, which may be another at any time."""
    global _known
    propagator = propagate.get_global_textmap()
    if _known.propagator is not propagator:
        names = _names(propagator)
        kinds = [type(part) for part in parts_of(propagator)]
        _known = _Known(propagator, names, kinds == [TraceContextTextMapPropagator, W3CBaggagePropagator])
    return _known


def _names(propagator: TextMapPropagator) -> frozenset[str]:
    """The headers that a propagator says it writes, in lower case; none where it fails to say."""
    try:
        return frozenset(name.lower() for name in propagator.fields if isinstance(name, str))
    except safety.MISTAKES as error:
        safety.report("asking a propagator for its fields", error)
        return frozenset()


def as_text(value: Any) -> str | None:
    """A header's value as text: of a list the last, of bytes what they say in UTF-8, None where that is no text."""
    if type(value) is bytes:  # the most usual first
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, (list, tuple)) and value:
        last = value[-1]
        return None if isinstance(last, (list, tuple)) else as_text(last)
    return None


class _HeaderGetter(Getter["Mapping[str, Any]"]):
    """Reads headers whose names were folded to lower case, whatever their values are.

    Nothing that a propagator is given can hurt it, whoever has sent it and whichever propagator it is.
    """

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        if value is None:
            value = carrier.get(key.lower())
        text = as_text(value)
        given = None if text is None else harmless(key, text)
        return None if given is None else [given]

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return [name for name in islice(carrier, NAMES) if len(name) <= NAMES]


_getter = _HeaderGetter()


def is_standard() -> bool:
    """Whether the global propagator is W3C trace context and baggage, which an empty context gives nothing to."""
    return _know().standard


def fields() -> frozenset[str]:
    """The names of the headers that the global propagator writes, in lower case."""
    return _know().fields


def inject(span: Span, context: Context) -> dict[str, str]:
    """The headers that carry a span and the rest of a context. Never to be changed.

    Args:
        span: the span.
        context: what it was started in.

    Returns:
        The headers; none when there is nothing to carry, or the propagator fails.
    """
    try:
        known = _known if _known.propagator is propagate.get_global_textmap() else _know()
        if known.standard and BAGGAGE not in context:
            trace_id, span_id, _, flags, state, valid = span.get_span_context()
            if not valid:
                return _NOTHING
            tail = _TAILS.get(flags)
            if state is DEFAULT_TRACE_STATE and tail is not None:  # hexadecimal by way of bytes takes half as long
                trace_text, span_text = trace_id.to_bytes(16, "big").hex(), span_id.to_bytes(8, "big").hex()
                return {"traceparent": f"00-{trace_text}-{span_text}{tail}"}
        carrier: dict[str, str] = {}
        propagate.get_global_textmap().inject(carrier, set_span_in_context(span, context))
        return carrier if known.standard else _sendable(carrier)
    except safety.MISTAKES as error:
        safety.report("injecting a context", error)
        return {}


def _sendable(carrier: dict[str, str]) -> dict[str, str]:
    """Of what a propagator has written that which every library sends: the rest would cost the message."""
    refused = [name for name, value in carrier.items() if not is_sendable(name, value)]
    if not refused:
        return carrier
    safety.report("injecting a context", safety.PlainError("the propagator has written a header that is no text"))
    return {name: value for name, value in carrier.items() if is_sendable(name, value)}


def remote(headers: Mapping[str, Any]) -> Span | None:
    """The span that headers of the usual form carry and nothing else, or None where `extract` has to look."""
    known = _known if _known.propagator is propagate.get_global_textmap() else _know()
    if not known.standard or "tracestate" in headers or "baggage" in headers:
        return None
    value = headers.get("traceparent")
    if type(value) is bytes:
        value = value.decode("latin-1")  # what is no ASCII does not match
    elif type(value) is not str:
        value = None if value is None else as_text(value)
    found = _TRACEPARENT.fullmatch(value) if value is not None else None
    if found is None:
        return None
    trace_text, span_text, flags = found.groups()
    trace_id, span_id = int(trace_text, 16), int(span_text, 16)
    options = _FLAGS.get(flags)
    if not trace_id or not span_id:
        return None
    if options is None:
        options = TraceFlags(int(flags, 16))
    return NonRecordingSpan(SpanContext(trace_id, span_id, True, options))


def extract(headers: Mapping[str, Any], context: Context) -> Context:
    """The context that headers carry.

    Args:
        headers: a message's headers, names in lower case, values as they came.
        context: what to add it to.

    Returns:
        The context with it, or ``context`` itself when the headers carry none.
    """
    try:
        usual = remote(headers)
        if usual is not None:
            return Context({**context, SPAN: usual})
        # A propagator may answer None: the no-op one of OTEL_PROPAGATORS=none does.
        return propagate.get_global_textmap().extract(headers, context, _getter) or context
    except safety.MISTAKES as error:
        safety.report("extracting a context", error)
        return context
