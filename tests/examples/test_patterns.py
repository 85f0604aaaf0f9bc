"""The programs of `examples/patterns` are short, and give the traces that the documents show."""

import re
from pathlib import Path

import pytest

from examples.demo.receiver import Event, Link, Span
from examples.patterns.__main__ import FOLDER, PROGRAMS, library, run
from examples.patterns.tree import draw

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "patterns.md").read_text()
BROKERS = {"kafka_python": "kafka_address", "aio_pika": "rabbitmq_address", "nats_py": "nats_address"}


def documented(program):
    """The tree below the link to a program."""
    link = rf"\(\.\./examples/patterns/{program}\.py\)"
    found = re.search(link + r".*?^```text\n(.*?)\n```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/patterns.md shows no tree of {program}"
    return found[1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_gives_the_tree_that_is_documented(program, request, real_broker):
    assert run(program, request.getfixturevalue(BROKERS[library(program)])) == documented(program)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_has_less_than_forty_lines(program):
    assert len((FOLDER / f"{program}.py").read_text().splitlines()) < 40


def span(name, own, parent="", **changed):
    given = {"kind": "PRODUCER", "status": "OK", "status_message": "", "attributes": {}, "events": (), "links": ()}
    return Span(
        "", "", name, trace_id="1", span_id=own, parent_id=parent, start=0, end=1, resource={}, **{**given, **changed}
    )


def test_a_tree_shows_what_is_below_what_and_how_often():
    spans = [span("a", "1"), span("b", "2", "1"), span("b", "3", "1"), span("c", "4", "1"), span("d", "5", "4")]
    assert draw(spans) == "a  PRODUCER\n├─ b  PRODUCER  (2 times)\n└─ c  PRODUCER\n   └─ d  PRODUCER"


def test_a_tree_shows_links_events_errors_and_counts():
    events = (Event("retry", {"attempt": 1}),)
    links = (Link("1", "1", {}), Link("1", "9", {}))
    failed = {"status": "ERROR", "status_message": "no", "attributes": {"retry.count": 2}}
    spans = [span("a", "1"), span("b", "2", "1", events=events, links=links, **failed), span("c", "3", "2")]
    assert draw(spans).splitlines() == [
        "a  PRODUCER",
        "└─ b  PRODUCER  ERROR no  retry.count=2",
        "   │  linked: a",
        "   │  linked: another program's span",
        "   │  event: retry  attempt=1",
        "   └─ c  PRODUCER",
    ]
