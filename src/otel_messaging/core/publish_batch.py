"""Messages that the application publishes as one: counted together, and their failures told of in one place."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from . import fork, safety
from . import vocabulary as v
from .contexts import BATCH, Batching, attach, get_current
from .delivery import Lasting
from .finalizers import finalizing, is_finalizing, put_aside
from .operations import Failure, Moment, Publication, error_type_of, portable, record

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from .operations import Operation, Reporting


class PublishBatch(Lasting):
    """What is published by whoever has its context, until it is closed: in several tasks and threads, of any library.

    Its span ends when it is closed and all of its messages are answered, whichever is later: brokers may answer when
    the application has gone on.

    Args:
        telemetry: tells of it.
        operation: what kind of operation it is.
        span: its span, made current.
        context: the current context.
    """

    __slots__ = (
        "__weakref__",
        "_awaited",
        "_error",
        "_failures",
        "_lock",
        "_number",
        "_size",
        "_whereabouts",
    )

    def __init__(self, telemetry: Reporting, operation: Operation, span: Span, context: Context) -> None:
        super().__init__(telemetry, operation, span, time.perf_counter())
        self._lock = threading.Lock()
        self.done = False
        self._number = self._awaited = self._size = 0
        self._failures: list[str] = []
        self._whereabouts: set[v.Facts] = set()
        self._error: Failure | None = None
        self._previous = context
        self.attach(Batching({**trace.set_span_in_context(span, context), BATCH: self}))
        fork.watch(self)

    def disown(self) -> None:
        """In a forked child: what it publishes is counted nowhere, and the span ends in the parent."""
        self._lock = threading.Lock()
        self._open, self.done = False, True

    def add(
        self, telemetry: Reporting, operation: Operation, span: Span, carrier: dict[str, str], facts: v.Facts
    ) -> Publication:
        """One more message is on its way.

        Args:
            telemetry: of the library that publishes it.
            operation: how it is published.
            span: its own span.
            carrier: the headers to send with it.
            facts: what is known of it.
        """
        size, whereabouts = dict(facts).get(v.BODY_SIZE), v.whereabouts(operation.facts)
        with self._lock:
            if self.done:  # a task that was started inside goes on
                return Publication(telemetry, operation, span, carrier)
            index = self._number
            self._number += 1
            self._awaited += 1
            self._size += size or 0
            self._whereabouts.add(whereabouts)
        return _Member(telemetry, operation, span, carrier, self, index, size is not None)

    def answered(self, index: int, size: int, error: BaseException | Failure | None, stopped: Moment | None) -> None:
        """The broker has answered one message, or will not.

        Args:
            index: which one, in the order of their beginnings, from 0.
            size: of its body in bytes, where that was not known before.
            error: what went wrong, if anything did.
            stopped: when that really was, if it was before.
        """
        if error is not None:
            details: v.Attributes = {v.MESSAGE_INDEX: index, v.ERROR_TYPE: error_type_of(error)}
            self.span.add_event(v.MESSAGE_FAILED, details, None if stopped is None else stopped.time)
        with self._lock:
            self._size += size
            self._awaited -= 1
            if error is not None:
                self._failures.append(error_type_of(error))
            over = self.done and not self._awaited
        if over:
            self._conclude(self._error, stopped)

    def end(self, error: BaseException | Failure | None = None, stopped: Moment | None = None) -> None:
        """The application has published all. Harmless when called twice.

        Args:
            error: what it has raised, if anything.
            stopped: when that really was, if it was before.
        """
        if finalizing and is_finalizing():
            put_aside(self.end, portable(error), Moment.now())
            return
        current = get_current()
        if current.get(BATCH) is self:
            self._restore(current)
        if self.done:
            return
        if self._awaited and error is not None:  # now, since tasks that were started meanwhile keep this object
            safety.guard("recording an exception", record, self.span, error)
            error = portable(error)
        with self._lock:
            self.done, over = True, not self._awaited
            self._error = portable(error)
        if over:
            self._conclude(error, stopped)

    def _restore(self, current: Context) -> None:
        """Bring back the context from before by value, as `Delivery` does."""
        span = trace.get_current_span(current)
        if span is self.span or not span.is_recording():
            attach(self._previous)

    def _conclude(self, error: BaseException | Failure | None, stopped: Moment | None) -> None:
        if error is None and self._failures:
            error = Failure(self._failures[0], f"{len(self._failures)} of {self._number} messages failed")
        shared = self._shared()
        self._finish(error, (*shared, (v.BATCH_COUNT, self._number), (v.BATCH_SIZE, self._size)), stopped)

    def _shared(self) -> v.Facts:
        """Where all messages went to. Metrics tell that, even if it was not known when the batch began."""
        if not self._whereabouts:
            return ()
        first, *others = self._whereabouts
        shared = tuple(fact for fact in first if all(fact in other for other in others))
        if shared != self.operation.facts:
            batch = self.operation.destination
            self.operation = self._telemetry.prepared(v.BATCH_PUBLISH, "batch_publish", batch, shared)
        return shared


class _Member(Publication):
    """One message of several."""

    __slots__ = ("_batch", "_index", "_sized")

    def __init__(
        self,
        telemetry: Reporting,
        operation: Operation,
        span: Span,
        carrier: dict[str, str],
        batch: PublishBatch,
        index: int,
        sized: bool,
    ) -> None:
        super().__init__(telemetry, operation, span, carrier)
        self._batch = batch
        self._index = index
        self._sized = sized

    def is_counted(self) -> bool:
        """The batch lasts until it is answered."""
        return True

    def end(
        self,
        error: BaseException | Failure | None = None,
        facts: v.Facts = (),
        stopped: Moment | None = None,
        count: int = 1,
    ) -> None:
        """The broker has answered, or will not."""
        if not self._open:
            return
        if finalizing and is_finalizing():
            put_aside(self.end, portable(error), facts, stopped or Moment.now(), count)
            return
        self._finish(error, facts, stopped, count)
        try:
            size: Any = None if self._sized else dict(facts).get(v.BODY_SIZE)
            self._batch.answered(self._index, size or 0, error, stopped)
        except Exception as failure:
            safety.report("ending a span", failure)
