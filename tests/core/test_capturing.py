"""Which headers are recorded, and how much of them."""

from __future__ import annotations

import time

import pytest

from otel_messaging.core.capturing import CONTEXTS, MOST, SECRETS, Capture

EXAMPLES = {name.replace("*[_:-]", "ce_").replace("*", "own") for name in SECRETS + CONTEXTS}


def captured(globs, headers):
    attributes = {}
    Capture(globs).write(headers, attributes)
    return {name.removeprefix("messaging.header."): value for name, value in attributes.items()}


@pytest.mark.parametrize(
    ("globs", "names"),
    [
        (["tenant"], {"tenant"}),
        (["X-*"], {"x-kind", "x-shop"}),
        (["X-Kind", "ten*", "absent"], {"x-kind", "tenant"}),
        (["x-[ks]*"], {"x-kind", "x-shop"}),
        (["tenan?"], {"tenant"}),
        (["*"], {"tenant", "x-kind", "x-shop", "a.b"}),
        (["a.b"], {"a.b"}),
        (["axb"], set()),
    ],
)
def test_headers_are_chosen_by_names_and_globs(globs, names):
    headers = {"tenant": "acme", "x-kind": b"order", "x-shop": ["1", "2"], "a.b": 7}
    assert set(captured(globs, headers)) == names


def test_values_keep_their_types():
    headers = {"text": "a", "bytes": b"b", "list": ["a", "c"], "number": 7, "ratio": 0.5, "flag": True}
    assert captured(["*"], headers) == {"text": "a", "bytes": "b", "list": "c", "number": 7, "ratio": 0.5, "flag": True}
    assert captured(["*"], {"none": None, "nested": [["a"]], "binary": b"\xff", "table": {"a": 1}}) == {}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_what_lets_somebody_in_and_contexts_are_recorded_only_if_they_are_named(name):
    headers = {name: "secret", "tenant": "acme"}
    for globs in (["*"], [f"{name[:-1]}?"], ["tenant", f"*{name}"]):
        assert name not in captured(globs, headers)
    assert captured([name.upper(), "*"], headers) == {name: "secret", "tenant": "acme"}


def test_a_name_that_only_resembles_one_of_these_is_recorded():
    headers = dict.fromkeys(["authorization-level", "cookies", "b3x", "x-tenant", "my-traceparent-copy"], "1")
    assert captured(["*"], headers) == headers


def test_there_is_an_end_to_headers_and_what_is_named_comes_first():
    headers = {**{f"x-{number}": "1" for number in range(10_000)}, "tenant": "acme"}
    found = captured(["x-*", "tenant"], headers)
    assert list(found) == ["tenant", *(f"x-{number}" for number in range(MOST - 1))]


def test_long_values_are_cut_and_long_names_are_left_out():
    assert captured(["*"], {"long": "a" * 900_000, "bytes": b"a" * 900_000}) == {
        "long": "a" * 1024,
        "bytes": "a" * 1024,
    }
    assert captured(["*"], {"a" * 900_000: "1", "a" * 1024: "2"}) == {"a" * 1024: "2"}


def test_a_name_without_end_costs_no_time():
    began = time.perf_counter()
    assert captured(["*a*a*a*b"], {"a" * 900_000: "1"}) == {}
    assert time.perf_counter() - began < 1
