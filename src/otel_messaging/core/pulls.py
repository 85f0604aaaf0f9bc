"""Calls that ask for messages, and loops that do: which of their errors are failures, in every library."""

from __future__ import annotations

from asyncio import QueueEmpty
from asyncio import TimeoutError as AsyncioTimeoutError

_NOTHING_CAME = (TimeoutError, AsyncioTimeoutError, QueueEmpty, StopIteration, StopAsyncIteration)


def is_failure(error: BaseException, closed: bool) -> bool:
    """Whether to tell of an error, once, on a span for the call.

    To be cancelled or interrupted, to run into the timeout that was asked for, and to be closed are no failures of what
    waits.

    Args:
        error: what the call has raised.
        closed: whether the application has closed the client.
    """
    return isinstance(error, Exception) and not closed and not isinstance(error, _NOTHING_CAME)
