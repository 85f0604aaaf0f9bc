"""What has begun and will end: messages that are published and handled, calls about them, their acknowledgement."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode

from . import safety
from . import vocabulary as v
from .finalizers import finalizing, is_finalizing, put_aside
from .otel_private import METER_PROVIDER, METERS

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram
    from opentelemetry.trace import Span

    from .metrics import OperationMetrics

_CHAINED = 64
"""How many exceptions that one was raised from are looked at for long texts."""
_OK = Status(StatusCode.OK)
_NOTHING = Context()
_UNSET = StatusCode.UNSET  # an enumeration's member is slow to look up


class Failure(NamedTuple):
    """A failure that is no exception, such as a message that the broker returned."""

    type: str
    message: str


class Moment(NamedTuple):
    """A point in time, to tell later of what began or ended at it."""

    clock: float
    """By the performance counter, in seconds."""
    time: int
    """Since the epoch, in nanoseconds."""

    @classmethod
    def now(cls) -> Moment:
        """This moment."""
        return cls(time.perf_counter(), time.time_ns())

    @classmethod
    def since(cls, began: int) -> Moment:
        """A moment of which only the time was noted, which costs less, in nanoseconds since the epoch."""
        return cls(time.perf_counter() - (time.time_ns() - began) / 1e9, began)


class Operation:
    """All that is the same for every message that goes one way: made once and kept, so that messages cost less."""

    __slots__ = (
        "attributes",
        "destination",
        "excluded",
        "facts",
        "kind",
        "metrics",
        "name",
        "reply",
        "settles",
        "timed",
        "verb",
        "waiting",
    )

    def __init__(
        self,
        name: str,
        kind: trace.SpanKind,
        attributes: v.Attributes,
        destination: v.Destination,
        facts: v.Facts,
        metrics: tuple[OperationMetrics, ...],
        waiting: tuple[Histogram, v.Attributes] | None,
        excluded: bool,
        verb: str = "",
    ) -> None:
        self.name = name
        self.kind = kind
        self.attributes = attributes
        self.destination = destination
        self.facts = facts
        self.metrics = metrics
        self.timed = any(recorder.timed for recorder in metrics)
        self.waiting = waiting
        self.excluded = excluded
        self.verb = verb
        self.settles: dict[str, Operation] = {}
        self.reply: Operation | None = None
        """The same where it answers the message that is being handled, made when it first does."""


UNTOLD = Operation("", trace.SpanKind.PRODUCER, {}, v.Destination(""), (), (), None, excluded=True)
"""That of a message of which nobody is told."""


class Reporting(Protocol):
    """What an operation that has begun, and a helper that finds it, need of the telemetry in force."""

    vocabulary: v.Vocabulary
    publish_hook: Any
    metered: bool

    def is_metered(self) -> bool:
        """Return whether anybody collects metrics."""

    def active_context(self) -> Context | None:
        """Return the current context; None while instrumentation is off or suppressed."""

    def excludes(self, destination: v.Destination) -> bool:
        """Return whether a destination is excluded."""

    def prepared(self, action: v.Action, verb: str, destination: v.Destination, facts: v.Facts) -> Operation:
        """Return an operation, made when it is first asked for."""

    def count(
        self, name: str, destination: v.Destination, facts: v.Facts, error: BaseException | Failure | None
    ) -> None:
        """Count a message that could not be handled."""


class Running:
    """An operation that has begun: its span, and when it began.

    Its subclasses, made for every message, set these attributes themselves: a call to here would cost as much again.
    """

    __slots__ = ("_open", "_started", "_telemetry", "operation", "span")

    _hidden = False
    """Whether the application cannot have set the span's status, since it has never seen it."""

    def __init__(self, telemetry: Reporting, operation: Operation, span: Span, started: float) -> None:
        self._telemetry = telemetry
        self._started: float | None = started  # by the performance counter, in seconds; 0 where it does not matter
        self._open = True
        self.operation = operation
        self.span = span

    def _finish(
        self,
        error: BaseException | Failure | None = None,
        facts: v.Facts = (),
        stopped: Moment | None = None,
        count: int = 1,
    ) -> None:
        """End the span and count. Harmless when called twice; never raises.

        Args:
            error: what went wrong, if anything did.
            facts: what became known since the start.
            stopped: when the operation really ended, if that was before.
            count: how many messages it was about.
        """
        if finalizing and self._open and is_finalizing():
            put_aside(self._finish, portable(error), facts, stopped or Moment.now(), count)
            return
        if not self._open:  # and no call before it is noted: two threads may be here
            return
        self._open = False
        try:
            span, ended = self.span, None
            if self.operation.metrics and (self._telemetry.metered or METERS.get(METER_PROVIDER, 0) is not None):
                # Before the span ends: processors and exporters take their time.
                ended = time.perf_counter() if stopped is None else stopped.clock
            try:
                if span.is_recording():
                    names = self._telemetry.vocabulary
                    if facts:
                        _tell(span, names, facts)
                    if error is not None:
                        record(span, error)
                    elif names.ok_on_success and (self._hidden or _is_unset(span)):
                        span.set_status(_OK)
            finally:
                span.end(None if stopped is None else stopped.time)
            if ended is not None:
                self._count(error, ended, count)
        except safety.MISTAKES as failure:
            safety.report("ending a span", failure)  # without its name: subjects may be made up per message

    def _count(self, error: BaseException | Failure | None, ended: float, count: int) -> None:
        seconds = None if self._started is None else ended - self._started
        error_type = None if error is None else error_type_of(error)
        for recorder in self.operation.metrics:
            recorder.record(seconds, count, error_type, self.span)


class Publication(Running):
    """A message on its way to the broker.

    Attributes:
        carrier: the headers to send with it; empty when there is nothing to send.
        sent: what the library has made of the message, where the adapter wants to look at it at the end.
    """

    __slots__ = ("_hidden", "carrier", "sent")

    def __init__(self, telemetry: Reporting, operation: Operation, span: Span, carrier: dict[str, str]) -> None:
        self._telemetry = telemetry
        self._started = time.perf_counter() if operation.timed else 0.0
        self._open = True
        self.operation = operation
        self.span = span
        self.carrier = carrier
        self.sent: Any = None
        self._hidden = telemetry.publish_hook is None

    def is_counted(self) -> bool:
        """Whether it matters what becomes of the message where its span is not recorded."""
        return self._telemetry.is_metered()

    end = Running._finish
    """The broker has answered, or will not."""


class CountsMessages(Protocol):
    """What the messages that are published in a context are counted by."""

    def add(
        self, telemetry: Reporting, operation: Operation, span: Span, carrier: dict[str, str], facts: v.Facts
    ) -> Publication:
        """Return one more message that is on its way."""


class Settlement:
    """An acknowledgement on its way: a span of its own, or an event on the message's span."""

    __slots__ = ("_details", "_running", "_span", "_verb")

    def __init__(self, verb: str, details: v.Attributes, span: Span, running: Running | None) -> None:
        self._verb = verb
        self._details = details
        self._span = span
        self._running = running

    def end(self, error: BaseException | Failure | None = None) -> None:
        """It was told, or telling it failed.

        Args:
            error: what telling it raised, or what else went wrong, if anything.
        """
        if self._running is not None:
            self._running._finish(error)
            return
        details = self._details if error is None else {**self._details, v.ERROR_TYPE: error_type_of(error)}
        if finalizing and is_finalizing():
            put_aside(self._tell, details, time.time_ns())
        else:
            self._tell(details, None)

    def _tell(self, details: v.Attributes, at: int | None) -> None:
        try:
            if self._span.is_recording():  # what consumes the message may have been closed meanwhile
                self._span.add_event(self._verb, details, at)
        except safety.MISTAKES as failure:
            safety.report(f"recording {self._verb!r}", failure)


def error_type_of(error: BaseException | Failure) -> str:
    """The value of ``error.type``."""
    if isinstance(error, Failure):
        return v.cut(error.type)
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def portable(error: BaseException | Failure | None) -> Failure | None:
    """What is to be told of an error, without the frames that it keeps and all that is in them."""
    return Failure(error_type_of(error), v.cut(text_of(error))) if isinstance(error, BaseException) else error


def text_of(error: BaseException) -> str:
    """What an exception says; nothing, where it is one of those that cannot even do that."""
    try:
        return str(error)
    except safety.MISTAKES:
        return ""


def _shortened(error: BaseException) -> v.Attributes | None:
    """What is recorded of an exception instead of what the SDK would, which is all that it says, and twice.

    And all that the exceptions say which it was raised from. None where nothing of that is long.
    """
    texts = [text for one in _chain(error) for text in (text_of(one), *_notes(one))]
    short = {text: v.cut(text) for text in texts if v.cut(text) != text}
    if not short:
        return None
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for text in sorted(short, key=len, reverse=True):  # one may be a part of another
        trace = trace.replace(text, short[text])
    return {
        v.EXCEPTION_MESSAGE: v.cut(text_of(error)),
        v.EXCEPTION_STACKTRACE: trace.encode(errors="replace").decode(),
    }


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and those that its traceback shows with it; of very many the first."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting and len(found) < _CHAINED:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and not any(one is other for other in found):
            found.append(one)
            waiting += (one.__cause__, one.__context__, *getattr(one, "exceptions", ()))
    return found


def _notes(error: BaseException) -> list[str]:
    return [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]


def _is_unset(span: Span) -> bool:
    """Whether the application has not set a status itself."""
    status = getattr(span, "status", None)
    return status is None or status.status_code is _UNSET


def _tell(span: Span, names: v.Vocabulary, facts: v.Facts) -> None:
    """Tell a span what became known since its start."""
    if len(facts) > 2:  # to look at a mapping costs the SDK as much as two attributes
        span.set_attributes(names.write({}, facts))
        return
    keys = names.single
    try:
        for fact, value in facts:
            if value is not None:
                span.set_attribute(keys[fact], value)
    except KeyError:  # as in `Telemetry.publish`
        span.set_attributes(names.write({}, facts))


def record(span: Span, error: BaseException | Failure) -> None:
    """Record what went wrong. What an exception says may be a whole message: of a long text the beginning is kept."""
    span.set_attribute(v.ERROR_TYPE, error_type_of(error))
    text = error.message if isinstance(error, Failure) else text_of(error)
    span.set_status(Status(StatusCode.ERROR, v.cut(text)))
    if isinstance(error, Failure):
        return
    try:
        span.record_exception(error, _shortened(error))
    except safety.MISTAKES as failure:  # the SDK asks the exception what it says, and some cannot tell
        safety.report("recording an exception", failure)


class Pull(NamedTuple):
    """What pulling one message is: in the guide its handling alone, in the conventions a call and then the handling."""

    receive: Operation | None
    handle: Operation
