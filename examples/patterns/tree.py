"""The spans of a program as text: what is below what, what is linked, and what has happened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from examples.demo.receiver import Event, Span

SHOWN = (
    "messaging.batch.message_count",
    "messaging.batch.total_size_bytes",
    "messaging.rabbitmq.deaths.queues",
    "messaging.rabbitmq.deaths.reasons",
    "messaging.rabbitmq.deaths.counts",
    "messaging.nats.max_deliveries.sequence",
    "messaging.nats.max_deliveries.deliveries",
    "retry.count",
)
HIDDEN = frozenset({"exception.stacktrace", "exception.escaped"})


def draw(spans: list[Span]) -> str:
    """All traces, one below the other; those that look the same are drawn once."""
    known = {span.span_id: span for span in spans}
    roots = [span for span in spans if span.parent_id not in known]
    return "\n".join(_branches(roots, spans, known, [("", ""), ("", "")]))


def _branches(
    siblings: list[Span], spans: list[Span], known: Mapping[str, Span], guides: list[tuple[str, str]]
) -> Iterator[str]:
    drawn: dict[tuple[str, ...], int] = {}
    for span in siblings:
        lines = tuple(_branch(span, spans, known))
        drawn[lines] = drawn.get(lines, 0) + 1
    for index, (lines, times) in enumerate(drawn.items(), 1):
        first, more = guides[index == len(drawn)]
        yield first + lines[0] + (f"  ({times} times)" if times > 1 else "")
        yield from (more + line for line in lines[1:])


def _branch(span: Span, spans: list[Span], known: Mapping[str, Span]) -> Iterator[str]:
    yield "  ".join((span.name, span.kind, *_outcome(span), *_shown(span.attributes)))
    children = [child for child in spans if child.parent_id == span.span_id]
    guide = "│  " if children else "   "
    linked: dict[str, int] = {}
    for link in span.links:
        name = known[link.span_id].name if link.span_id in known else "another program's span"
        linked[name] = linked.get(name, 0) + 1
    yield from (f"{guide}linked: {name}" + (f"  ({n} times)" if n > 1 else "") for name, n in linked.items())
    yield from (guide + _event(event) for event in span.events)
    yield from _branches(children, spans, known, [("├─ ", "│  "), ("└─ ", "   ")])


def _outcome(span: Span) -> Iterator[str]:
    if span.status == "ERROR":
        yield f"ERROR {span.status_message}"


def _shown(attributes: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name.removeprefix('messaging.')}={_text(attributes[name])}" for name in SHOWN if name in attributes)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _event(event: Event) -> str:
    details = (f"{name}={value}" for name, value in event.attributes.items() if name not in HIDDEN)
    return "  ".join((f"event: {event.name}", *details))
