"""What a process keeps while messages go through it, and whether each of them was told of once."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

ROUNDS = 5  # of all ways to consume, each of which leaves the allocator and the client in a state of its own
LEAD = 2_000  # messages that are on their way at once
RSS_MAY_GROW = 5.0  # megabytes, from the second round to the last
OBJECTS_MAY_GROW = 1_000  # from the second round to the last
HEADING = f"{'way':<10}{'messages':>10}{'seconds':>9}{'RSS, MB':>9}{'objects':>10}{'of ours':>9}{'open spans':>12}"


class Spans(SpanProcessor):
    """Counts spans, and takes the fingerprint of their ids: keeping them would itself be what grows.

    Attributes:
        published: of the spans of messages that were sent.
        handled: of the parents of the spans of messages that were handled.
        calls: how many spans tell of a call that has pulled several messages.
        failed: how many spans ended with an error.
        unended: how many spans have begun and not ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.published = Fingerprint()
        self.handled = Fingerprint()
        self.calls = self.failed = self.unended = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        with self._lock:
            self.unended += 1

    def on_end(self, span: Any) -> None:
        with self._lock:
            self.unended -= 1
            self.failed += not span.status.is_ok
            if span.kind is SpanKind.PRODUCER:
                self.published.add(span.context.span_id)
            elif "messaging.batch.message_count" in span.attributes:
                self.calls += 1
            elif span.kind is SpanKind.CONSUMER:
                self.handled.add(span.parent.span_id if span.parent else 0)


class Fingerprint:
    """Of a collection of numbers, in any order: two that have the same are the same, as far as it matters here."""

    def __init__(self) -> None:
        self.count = self._sum = self._squares = 0

    def add(self, number: int) -> None:
        """One more."""
        self.count += 1
        self._sum += number
        self._squares += number * number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Watch:
    """Counts messages, and looks at the process between them.

    Args:
        messages: how many there will be.

    Attributes:
        spans: what was told.
        providers: keyword arguments of `instrument()`.
    """

    def __init__(self, messages: int) -> None:
        self.spans = Spans()
        self.messages = messages
        tracer_provider, self._reader = TracerProvider(), InMemoryMetricReader()
        tracer_provider.add_span_processor(self.spans)
        self.providers = {"tracer_provider": tracer_provider, "meter_provider": MeterProvider([self._reader])}
        self._lead = threading.Semaphore(LEAD)
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._seen = 0
        self._rows: list[tuple[float, int]] = []
        print(HEADING, flush=True)

    def sends(self) -> None:
        """The application is about to send a message: not while too many are on their way."""
        if not self._lead.acquire(timeout=60):
            raise TimeoutError("messages do not arrive")

    def saw(self) -> None:
        """The application has handled a message."""
        self._lead.release()
        with self._lock:
            self._seen += 1

    def look(self, way: str) -> None:
        """Look at the process. Nothing may be on its way: CPython fails where others see a tuple that is being made.

        Args:
            way: how messages were consumed since the last look.
        """
        gc.collect()
        objects = gc.get_objects()
        ours = sum(str(type(one).__module__).startswith("otel_messaging") for one in objects)
        row = (_resident(), len(objects))
        del objects
        self._rows.append(row)
        spent, (resident, count) = time.monotonic() - self._began, row
        figures = f"{resident:>9.1f}{count:>10,}{ours:>9,}{self.spans.unended:>12}"
        print(f"{way:<10}{self._seen:>10,}{spent:>9.1f}{figures}", flush=True)

    def judge(self, bare: bool) -> list[str]:
        """What is wrong, in words, after everything was closed.

        Args:
            bare: nothing was instrumented, and nothing must have been told.
        """
        spans = self.spans
        print(
            f"{spans.published.count:,} publish spans, {spans.handled.count:,} consumer spans, {spans.calls:,} calls, "
            f"{spans.failed:,} failed, {spans.unended:,} open"
        )
        ways = len(self._rows) // ROUNDS
        before, after = self._rows[ways : 2 * ways], self._rows[-ways:]
        memory, objects = (max(row[at] for row in after) - max(row[at] for row in before) for at in (0, 1))
        kept = {
            f"{self._seen:,} messages were handled, of {self.messages:,}": self._seen == self.messages,
            f"{spans.unended:,} spans are open": spans.unended == 0,
            f"RSS has grown by {memory:.1f} MB": memory < RSS_MAY_GROW,
            f"there are {objects:,} objects more": objects < OBJECTS_MAY_GROW,
        }
        told = {} if bare else self.told()
        return [fault for fault, is_right in {**told, **kept}.items() if not is_right]

    def told(self) -> dict[str, bool]:
        """What must be true of spans and metrics, and what to say otherwise."""
        spans, counted = self.spans, self.counted()
        return {
            "not every message has its publish span": spans.published.count == self.messages,
            "publish spans and the parents of consumer spans differ": spans.published == spans.handled,
            f"{spans.failed:,} spans have failed": spans.failed == 0,
            f"metrics have counted {counted}": counted == (self.messages, self.messages),
        }

    def counted(self) -> tuple[int, int]:
        """How many messages were published and consumed, by the metrics."""
        return self._counted("messaging.messages.produced"), self._counted("messaging.messages.consumed")

    def _counted(self, name: str) -> int:
        data = self._reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        found = [metric for scope in scopes for metric in scope.metrics if metric.name == name]
        return sum(point.value for metric in found for point in metric.data.data_points)


def _resident() -> float:
    """The memory of this process, in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
