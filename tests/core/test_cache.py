"""The cache is a dictionary with a bound."""

from __future__ import annotations

from otel_messaging.core import cache
from otel_messaging.core.cache import Cache


def test_a_value_is_kept_and_returned():
    kept: Cache[str, int] = Cache()
    assert kept.put("a", 1) == 1
    assert kept.get("a") == 1
    assert kept.get("b") is None


def test_it_never_holds_more_than_its_limit():
    kept: Cache[int, int] = Cache()
    largest = 0
    for number in range(3 * cache.LIMIT):
        kept.put(number, number)
        assert kept.get(number) == number
        largest = max(largest, len(kept))
    assert largest == cache.LIMIT
