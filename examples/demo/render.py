"""Traces as trees and metrics as a table, with rich."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from examples.demo.receiver import Event, Metric, Span

WIDTH = 120
NAMES, GUIDE = 45, 4  # the column after the names; how far each level of the tree indents
COLOURS = {"shop": "cyan", "billing": "yellow", "shipping": "magenta", "mail": "blue"}
SHOWN = (  # the attributes that fit on a line, and what they are called there
    ("messaging.system", ""),
    ("messaging.kafka.destination.partition", "partition"),
    ("messaging.destination.partition.id", "partition"),
    ("messaging.kafka.message.offset", "offset"),
    ("messaging.kafka.offset", "offset"),
    ("messaging.kafka.message.key", "key"),
    ("messaging.rabbitmq.destination.routing_key", "routing_key"),
    ("messaging.message.payload_size_bytes", "bytes"),
)


def show(console: Console, spans: list[Span], metrics: list[Metric]) -> None:
    """Print every trace and every metric."""
    for trace_id in dict.fromkeys(span.trace_id for span in spans):
        console.print(_trace([span for span in spans if span.trace_id == trace_id]))
        console.print()
    console.print(_table(metrics))


def _trace(spans: list[Span]) -> Tree:
    first, last = min(span.start for span in spans), max(span.end for span in spans)
    tree = Tree(Text(f"trace {spans[0].trace_id}  {(last - first) / 1e6:.1f} ms", "bold"), guide_style="dim")
    known = {span.span_id for span in spans}
    for span in spans:
        if span.parent_id not in known:
            _branch(tree, span, spans)
    return tree


def _branch(tree: Tree, span: Span, spans: list[Span], depth: int = 1) -> None:
    node = tree.add(_line(span, NAMES - GUIDE * depth))
    for link in span.links:
        node.add(Text(f"linked to span {link.span_id} of trace {link.trace_id[:8]}", "dim italic"))
    for event in span.events:
        node.add(_event(event))
    for child in spans:
        if child.parent_id == span.span_id:
            _branch(node, child, spans, depth + 1)


def _line(span: Span, name_width: int) -> Text:
    failed = span.status == "ERROR"
    shown = ((label, span.attributes[key]) for key, label in SHOWN if key in span.attributes)
    attributes = " ".join(f"{label}={value}" if label else str(value) for label, value in shown)
    return Text.assemble(
        (f"{span.service:<9}", COLOURS.get(span.service, "white")),
        (f"{span.name:<{name_width}} ", "bold red" if failed else "bold"),
        (f"{span.kind:<9}", "dim"),
        (f"{span.milliseconds:>7.1f} ms  ", "green"),
        (attributes, "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )


def _event(event: Event) -> Text:
    if event.name != "exception":
        return Text(f"event {event.name}", "dim italic")
    kind, message = event.attributes.get("exception.type"), event.attributes.get("exception.message")
    return Text(f"{kind}: {message}", "red")


def _table(metrics: Iterable[Metric]) -> Table:
    table = Table("metric", "service", "destination", "error", title="Metrics", title_justify="left", width=WIDTH)
    table.add_column("count", justify="right")
    table.add_column("average", justify="right")
    ours = (metric for metric in metrics if metric.name.startswith("messaging."))
    for metric in sorted(ours, key=lambda metric: (metric.name, metric.key)):
        destination = str(metric.attributes.get("messaging.destination.name", ""))
        error = Text(str(metric.attributes.get("error.type", "")), "red")
        table.add_row(metric.name, metric.service, destination, error, *_numbers(metric))
    return table


def _numbers(metric: Metric) -> tuple[str, str]:
    if metric.kind != "histogram":
        return f"{metric.total:g}", ""
    average = metric.total / metric.count if metric.count else 0.0
    return str(metric.count), f"{average:.3g} {metric.unit}"
