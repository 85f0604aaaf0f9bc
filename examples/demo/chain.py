"""What the demo has to show: each order is one unbroken trace through all services."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from examples.demo.receiver import Receiver, Span


class Hop(NamedTuple):
    """One operation on a message; each is the parent of the next."""

    service: str
    kind: str
    name: str  # in the default vocabulary


KAFKA = (Hop("shop", "PRODUCER", "publish orders"), Hop("billing", "CONSUMER", "receive orders"))
RABBITMQ = (
    Hop("billing", "PRODUCER", "publish invoices"),
    Hop("shipping", "CONSUMER", "receive invoices.shipping"),
)


def expected(*, with_rabbitmq: bool) -> tuple[Hop, ...]:
    """Return the hops of every order, from the shop to the mail."""
    sender = "shipping" if with_rabbitmq else "billing"
    nats = (Hop(sender, "PRODUCER", "publish parcels"), Hop("mail", "CONSUMER", "receive parcels"))
    return KAFKA + (RABBITMQ if with_rabbitmq else ()) + nats


def problems(receiver: Receiver, hops: tuple[Hop, ...], orders: int, *, names: bool = True) -> list[str]:
    """Say in what way the traces are not whole. Without `names`, only services and kinds count."""
    spans = receiver.spans
    roots = [span for span in spans if _is(span, hops[0], names=names) and not span.parent_id]
    found = [] if len(roots) == orders else [f"{len(roots)} of {orders} orders begin a trace in the shop"]
    if len({root.trace_id for root in roots}) != len(roots):
        found.append("two orders share one trace")
    for number, root in enumerate(roots, 1):
        found += (f"order {number}: {what}" for what in _gaps(spans, root, hops[1:], names=names))
    return found + _wrong_errors(spans, orders) + _missing_metrics(receiver, hops)


def _gaps(spans: list[Span], parent: Span, hops: tuple[Hop, ...], *, names: bool) -> Iterator[str]:
    for hop in hops:
        children = [span for span in spans if span.parent_id == parent.span_id and span.trace_id == parent.trace_id]
        matching = [span for span in children if _is(span, hop, names=names)]
        if len(matching) != 1:
            yield f"{len(matching)} spans `{hop.name}` of {hop.service} below `{parent.name}`, instead of one"
            return
        parent = matching[0]


def _is(span: Span, hop: Hop, *, names: bool) -> bool:
    return (span.service, span.kind) == hop[:2] and (span.name == hop.name or not names)


def _wrong_errors(spans: list[Span], orders: int) -> list[str]:
    """Every third order has no address; nothing else may fail."""
    failed = sorted(f"{span.service}: {span.status_message}" for span in spans if span.status == "ERROR")
    wanted = [f"no address for order {number}" for number in range(3, orders + 1, 3)]
    if len(failed) == len(wanted) and all(any(w in f for f in failed) for w in wanted):
        return []
    return [f"failed spans are {failed}, instead of mail's {wanted}"]


def _missing_metrics(receiver: Receiver, hops: tuple[Hop, ...]) -> list[str]:
    silent = {hop.service for hop in hops} - {metric.service for metric in receiver.metrics}
    return [f"no metrics came from {service}" for service in sorted(silent)]
