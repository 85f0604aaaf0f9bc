"""What is kept for an object lives on it, and belongs to one telemetry."""

from __future__ import annotations

import gc
import weakref

from otel_messaging.instrumentation.state import find, keep


class Owner:
    pass


class Kept:
    def __init__(self, telemetry, owner):
        self.telemetry = telemetry


def test_it_is_made_once():
    owner, telemetry = Owner(), object()
    state = keep(owner, telemetry, Kept)
    assert keep(owner, telemetry, Kept) is state
    assert find(owner) is state


def test_it_is_made_anew_for_another_telemetry():
    owner = Owner()
    first, second = object(), object()
    before = keep(owner, first, Kept)
    after = keep(owner, second, Kept)
    assert after is not before
    assert find(owner) is after
    assert after.telemetry is second


def test_nothing_is_found_where_nothing_is_kept():
    assert find(Owner()) is None


def test_it_goes_with_its_owner():
    owner = Owner()
    state = weakref.ref(keep(owner, object(), Kept))
    del owner
    gc.collect()
    assert state() is None


def test_it_belongs_to_the_object_and_not_to_its_class():
    first, second = Owner(), Owner()
    keep(first, object(), Kept)
    assert find(second) is None
