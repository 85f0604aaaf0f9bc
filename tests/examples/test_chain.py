"""The demo's verdict: it accepts whole traces only, and says what is missing."""

from dataclasses import replace

import pytest

from examples.demo import chain
from examples.demo.receiver import Metric, Span

HOPS = chain.expected(with_rabbitmq=True)


class Received:
    """What a receiver holds."""

    def __init__(self, spans):
        self.spans = spans
        services = {hop.service for hop in HOPS}
        self.metrics = [Metric(service, "", "messages", "", "sum", {}, 1, 0) for service in services]


@pytest.fixture
def spans():
    """Three orders; the mail for the third one failed."""
    orders = [trace(number) for number in (1, 2, 3)]
    orders[2][-1] = replace(orders[2][-1], status="ERROR", status_message="ValueError: no address for order 3")
    return [span for order in orders for span in order]


def trace(number: int) -> list[Span]:
    ids = [f"{number}{index}" for index in range(len(HOPS))]
    parents = ["", *ids]
    return [
        Span(hop.service, "", hop.name, hop.kind, str(number), own, parent, 0, 1, "OK", "", {}, (), (), {})
        for hop, own, parent in zip(HOPS, ids, parents, strict=False)
    ]


def test_whole_traces_have_no_problems(spans):
    assert chain.problems(Received(spans), HOPS, 3) == []


@pytest.mark.parametrize("index", range(len(HOPS)))
def test_every_missing_span_is_noticed(spans, index):
    del spans[index]
    assert chain.problems(Received(spans), HOPS, 3)


@pytest.mark.parametrize("index", range(1, len(HOPS)))
def test_a_span_of_another_trace_is_noticed(spans, index):
    spans[index] = replace(spans[index], trace_id="another")
    problem = chain.problems(Received(spans), HOPS, 3)[0]
    assert HOPS[index].name in problem


def test_a_repeated_span_is_noticed(spans):
    spans.append(replace(spans[1], span_id="again"))
    assert chain.problems(Received(spans), HOPS, 3) == [
        "order 1: 2 spans `receive orders` of billing below `publish orders`, instead of one"
    ]


def test_other_names_are_noticed_unless_they_are_asked_for(spans):
    spans = [replace(span, name=span.name.replace("receive", "process")) for span in spans]
    assert chain.problems(Received(spans), HOPS, 3)
    assert not chain.problems(Received(spans), HOPS, 3, names=False)


def test_a_failure_that_is_not_shown_is_noticed(spans):
    spans[-1] = replace(spans[-1], status="OK")
    assert "no address for order 3" in chain.problems(Received(spans), HOPS, 3)[0]


def test_a_service_without_metrics_is_noticed(spans):
    received = Received(spans)
    received.metrics = [metric for metric in received.metrics if metric.service != "mail"]
    assert chain.problems(received, HOPS, 3) == ["no metrics came from mail"]
