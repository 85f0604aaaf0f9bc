"""The current context, and what is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import context as runtime
from opentelemetry.context import Context, create_key
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

from .otel_private import attach as attach
from .otel_private import get_current as get_current
from .otel_private import reset_variable as _reset

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

DELIVERY = create_key("otel-messaging-delivery")
"""The key of the message that is being handled, a `Delivery`."""
BATCH = create_key("otel-messaging-batch")
"""The key of what counts the messages that are published, as `PublishBatch` does."""


class Handling(Context):
    """The context of a message that is handled. What the application derives from it is of the API's own class."""


class Batching(Context):
    """The same of messages that are published as one."""


KINDS = {DELIVERY: Handling, BATCH: Batching}
"""The contexts that `DELIVERY` and `BATCH` are put into."""

# The API keeps these keys to itself; a context that holds nothing else tells them.
(SPAN,) = set_span_in_context(INVALID_SPAN, Context())


def _suppression_keys() -> frozenset[str]:
    token = runtime.attach(Context())  # this may be the first import, and suppressed itself
    try:
        with suppress_instrumentation():
            return frozenset(get_current())
    finally:
        runtime.detach(token)


SUPPRESSION = _suppression_keys()


def renew(token: Any) -> Any:
    """Find out whether a token of `attach` is of this task or thread: none that it has started can give it back.

    Args:
        token: the token; None if there is none.

    Returns:
        A token in its place, since each can be given back once; None where it is another's, or nobody can know.
    """
    if token is None or _reset is None:
        return None
    current = get_current()
    try:
        _reset(token)
    except (ValueError, RuntimeError):
        return None
    return attach(current)


def recording(context: Context) -> Span | None:
    """The span around a call, unless it is over or was never told of: a task has the context of whoever started it."""
    span: Any = context.get(SPAN)
    return span if span is not None and span.is_recording() else None


def span_context(context: Context) -> SpanContext | None:
    """That of the span in a context, if it is valid."""
    span: Any = context.get(SPAN)
    if span is None:
        return None
    found: SpanContext = span.get_span_context()
    return found if found.is_valid else None


def with_span(span: Span | None, context: Context) -> Context:
    """A context with just this span in it, or with none."""
    if context.get(SPAN) is span:
        return context
    return set_span_in_context(INVALID_SPAN if span is None else span, context)
