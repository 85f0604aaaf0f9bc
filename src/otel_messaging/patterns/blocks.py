"""Blocks that the application opens around messages: those that it handles, and those that it publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import INVALID_SPAN

from otel_messaging.core import safety

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from opentelemetry.trace import Span

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.publish_batch import PublishBatch


class Block:
    """A ``with`` or an ``async with`` block.

    It is given the span, which does nothing where nobody is told of it. An exception that leaves the block is recorded
    and goes on. Telemetry that fails is logged, and the block runs without.

    Args:
        call: the name of the function that has made it.
        start: begins what the span tells of; None where nobody is told.
    """

    __slots__ = ("_call", "_running", "_start")

    def __init__(self, call: str, start: Callable[[], Delivery | PublishBatch | None]) -> None:
        self._call = call
        self._start = start
        self._running: Delivery | PublishBatch | None = None

    def __enter__(self) -> Span:
        if self._running is not None:
            raise RuntimeError(f"this block is entered already: call {self._call}() once for each")
        try:
            self._running = self._start()
        except Exception as error:
            safety.report(self._call, error)
        return INVALID_SPAN if self._running is None else self._running.span

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        running, self._running = self._running, None
        if running is not None:  # a generator that is closed was left, as by `break`
            safety.guard(self._call, running.end, None if isinstance(error, GeneratorExit) else error)

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
