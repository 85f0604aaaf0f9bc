"""What the programs charge orders with: a bank that is too busy for one order, twice, and refuses another."""

from collections import Counter

from tenacity import retry, retry_if_exception_type, wait_fixed

from otel_messaging.patterns import record_retry

_asked: Counter[bytes] = Counter()
_again = retry(retry=retry_if_exception_type(ConnectionError), wait=wait_fixed(0.05), before_sleep=record_retry)


def _ask(order: bytes) -> None:
    _asked[order] += 1
    if order == b"order 1" and _asked[order] < 3:
        raise ConnectionError("the bank is busy")
    if order == b"order 2":
        raise ValueError("the card was refused")
    print("paid", order.decode(), flush=True)


@_again
def charge(order: bytes) -> None:
    """Charge an order, and try again while the bank is busy.

    Raises:
        ValueError: the card was refused.
    """
    _ask(order)


@_again
async def charge_later(order: bytes) -> None:
    """The same for coroutines."""
    _ask(order)
