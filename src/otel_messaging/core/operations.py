"""What has begun and will end: messages that are published and handled, calls about them, their acknowledgement."""

from __future__ import annotations

import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import _internal as meters
from opentelemetry.trace import Status, StatusCode

from . import safety
from . import vocabulary as v
from .contexts import DELIVERY, KINDS, SPAN, attach, get_current, recording, renew
from .finalizers import finalizing, is_finalizing, put_aside

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram
    from opentelemetry.trace import Span

    from .metrics import OperationMetrics
    from .telemetry import Telemetry

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


class Running:
    """An operation that has begun: its span, and when it began.

    Its subclasses, made for every message, set these attributes themselves: a call to here would cost as much again.
    """

    __slots__ = ("_open", "_started", "_telemetry", "operation", "span")

    _hidden = False
    """Whether the application cannot have set the span's status, since it has never seen it."""

    def __init__(self, telemetry: Telemetry, operation: Operation, span: Span, started: float) -> None:
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
        if not self._open:
            return
        if finalizing and is_finalizing():
            put_aside(self._finish, portable(error), facts, stopped or Moment.now(), count)
            return
        self._open = False
        try:
            span, ended = self.span, None
            if self.operation.metrics and (
                self._telemetry._metered or getattr(meters, "_METER_PROVIDER", 0) is not None
            ):  # before the span ends: processors and exporters take their time
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

    def __init__(self, telemetry: Telemetry, operation: Operation, span: Span, carrier: dict[str, str]) -> None:
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


class Lasting(Running):
    """An operation whose context is current as long as it lasts, in the task or thread that has begun it.

    Attributes:
        done: whether it is over.
        token: what `attach` has returned for its context; None where it ends nowhere but in this task or thread.
    """

    __slots__ = ("_previous", "done", "token")

    _previous: Context
    done: bool
    token: Any

    def attach(self, context: Context) -> None:
        """Make its context current."""
        attach(_NOTHING)  # a token keeps what it replaces: contexts of operations would follow one another for ever
        self.token = attach(context)

    def before(self) -> tuple[Context, Delivery | None]:
        """The context from before it, and the message that is handled in that."""
        delivery = self._previous.get(DELIVERY)
        return self._previous, delivery if isinstance(delivery, Delivery) else None


class Delivery(Lasting):
    """A message that the application is handling: its span, and how long its context is current.

    Attributes:
        message: what tells this message from others, as the adapter chose it; a list of that, where several are handled
            at once; None once it is handled.
        reply_to: where the message asks to be answered at, if it does. The adapter says so.
    """

    __slots__ = ("_error", "_outer", "_stopped", "_where", "message", "reply_to")

    def __init__(
        self,
        telemetry: Telemetry,
        operation: Operation,
        span: Span,
        message: Any,
        previous: Context,
    ) -> None:
        self._telemetry = telemetry
        self._started = time.perf_counter() if operation.timed else 0.0
        self._open = operation is not UNTOLD
        self.operation = operation
        self.span = span
        self.message = message
        self.reply_to: str | None = None
        self.done = False
        outer: Delivery | None = None
        if DELIVERY in previous:
            previous, outer = _unhandled(previous)
            if outer is not None:  # where two consumers are asked in turn, those handled would follow one another
                outer._previous, outer._outer = outer.before()
        self._previous = previous
        self._outer: Delivery | None = outer
        self.token = None
        self._error: BaseException | Failure | None = None
        self._stopped: Moment | None = None
        self._where: tuple[Any, int] | None = None

    def end(self, error: BaseException | None = None) -> None:
        """The message is handled. Harmless when called twice.

        Args:
            error: the exception that handling it raised, if any. A generator that was left has raised nothing.
        """
        if finalizing and is_finalizing():
            put_aside(forget_handled)
        else:
            current = get_current()
            if current.get(DELIVERY) is self:  # also if it was ended before, but in another context
                if self._outer is None and current.get(SPAN) is self.span:
                    attach(self._previous)  # as below, in the most usual case
                else:
                    self._restore(current)
        if self.done:
            return
        self.done = True
        seen, self.message, self._error = self._error, None, None  # tasks that were started meanwhile keep this object
        if self._open:
            self._finish(seen if error is None or isinstance(error, GeneratorExit) else error, (), self._stopped)

    def fail(self, error: BaseException | Failure) -> None:
        """An exception was seen while the message is handled, which the application may yet catch.

        Args:
            error: the exception. A generator that was left has raised nothing.
        """
        if not self.done and not isinstance(error, GeneratorExit):
            self._error = error

    @property
    def telemetry(self) -> Telemetry | None:
        """Who is told of the message; None where nobody is."""
        return self._telemetry if self._open else None

    def is_told_to(self, telemetry: Telemetry) -> bool:
        """Whether it is a telemetry that has begun it, even where that tells nobody."""
        return self._telemetry is telemetry

    @property
    def failed(self) -> bool:
        """Whether that was seen."""
        return self._error is not None

    @property
    def several(self) -> bool:
        """Whether it is the handling of several messages at once."""
        return type(self.message) is list

    def handles(self, message: Any) -> bool:
        """Whether it is the handling of a message, or of several with this one among them.

        Args:
            message: what tells it from others.
        """
        return any(_same(one, message) for one in (self.message if self.several else (self.message,)))

    def untime(self) -> None:
        """The application says itself how long it handles the message: that is not recorded twice."""
        self._started = None

    def leave(self, where: tuple[Any, int]) -> None:
        """The loop was left: what follows is not handling. The span waits for an exception to pass.

        Args:
            where: the code, and the index of the instruction in it, that left the loop.
        """
        if self.done or self._stopped is not None:
            return
        self._stopped = Moment.now()
        self._where = where
        if finalizing and is_finalizing():
            return
        current = get_current()
        if current.get(DELIVERY) is self:
            self._restore(current)

    def concerns(self, error: BaseException | None) -> bool:
        """Whether an exception was raised while the message was handled, and not after its loop was left."""
        if error is None or self._where is None:
            return error is not None
        code, instruction = self._where
        entry = error.__traceback__
        while entry is not None:
            if entry.tb_frame.f_code is code and _same_place(code, entry.tb_lasti, instruction):
                return True
            entry = entry.tb_next
        return False

    def _restore(self, current: Context) -> None:
        """Bring back the context that was there before, unless the application has put a span of its own in our place.

        By value, not by token: a token can be given back only where it was taken, and messages are handled in one task
        and asked for in another.
        """
        try:
            if current.get(SPAN) is not self.span and recording(current) is not None:
                return
            attach(self._previous if self._outer is None else self.before()[0])
        except safety.MISTAKES as error:  # the span need not be the SDK's
            safety.report("restoring a context", error)

    def is_answered_at(self, name: str) -> bool:
        """Whether a name is where this message, or one that is handled around it, asks to be answered at.

        Args:
            name: of a destination; where a vocabulary composes names, the address is the last part.
        """
        delivery: Delivery | None = self
        while delivery is not None:
            address = delivery.reply_to
            if address is not None and (name == address or name.endswith(f":{address}")):
                return True
            delivery = delivery._outer
        return False

    def before(self) -> tuple[Context, Delivery | None]:
        """The context from before this message, and the message that is handled in it."""
        previous, outer = self._previous, self._outer
        while outer is not None and outer.done:  # messages of two consumers may end in any order
            previous, outer = outer._previous, outer._outer
        return previous, outer


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
            self._span.add_event(self._verb, details, at)
        except safety.MISTAKES as failure:
            safety.report(f"recording {self._verb!r}", failure)


def handled_here() -> Delivery | None:
    """The message that is being handled in the current context, of whatever library, if anybody is told of it."""
    delivery = get_current().get(DELIVERY)
    return delivery if isinstance(delivery, Delivery) and delivery._open and not delivery.done else None


def forget_handled() -> None:
    """Bring back the context from before messages that were handled here, but whose handling was ended elsewhere."""
    if finalizing and is_finalizing():
        return
    try:
        without_ended(get_current())
    except safety.MISTAKES as error:  # the span need not be the SDK's
        safety.report("restoring a context", error)


def without_ended(current: Context) -> Context:
    """The context to go on in, where messages that were handled here are over, and their contexts are still here.

    A generator that was left leaves them, and whatever ends a message elsewhere. What is over here is nobody's parent;
    a task that its handler has started goes on in its trace.

    Args:
        current: the current context. That from before the messages is brought back, unless the application has put
            something of its own over theirs.
    """
    for key, kind in KINDS.items():
        lasted: Any = current.get(key)
        if lasted is None or not lasted.done:
            continue
        token = renew(lasted.token)
        if token is None:
            continue
        lasted.token = token
        before, _ = lasted.before()
        if type(current) is kind:
            attach(before)
            return without_ended(before)
        own = {name: value for name, value in current.items() if name != key and value is not lasted.span}
        return Context({**before, **own})
    return current


def _unhandled(context: Context) -> tuple[Context, Delivery | None]:
    """A context without the messages whose handling was ended elsewhere, and the message that is handled in it.

    Their contexts would follow one another for ever, where one task asks for messages and another one settles them.
    """
    delivery = context.get(DELIVERY)
    if not isinstance(delivery, Delivery) or not delivery.done:
        return context, delivery if isinstance(delivery, Delivery) else None
    span = context.get(SPAN)
    if span is not delivery.span and isinstance(span, trace.Span) and span.is_recording():
        return context, None  # the application's own span, still open
    return delivery.before()


def _same(one: Any, other: Any) -> bool:
    """Whether a message is another, by what tells them from others: itself, or a tuple of what is equal."""
    return one is other or (type(other) is tuple and bool(one == other))


def _same_place(code: Any, one: int, other: int) -> bool:
    """Whether two instructions are of the same expression.

    Since Python 3.12 an exception that is thrown into an ``await``, as a cancellation is, leaves it by another
    instruction than the one that its traceback names.
    """
    if one == other or sys.version_info < (3, 12):
        return one == other
    places = list(code.co_positions())  # an instruction is two bytes
    return bool(places[one // 2] == places[other // 2])


def error_type_of(error: BaseException | Failure) -> str:
    """The value of ``error.type``."""
    if isinstance(error, Failure):
        return error.type
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


def _shortened(error: BaseException, text: str, short: str) -> v.Attributes:
    """What is recorded of an exception instead of what the SDK would, which is all that it says, and twice."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {v.EXCEPTION_MESSAGE: short, v.EXCEPTION_STACKTRACE: trace.replace(text, short)}


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
    short = v.cut(text)
    span.set_status(Status(StatusCode.ERROR, short))
    if isinstance(error, Failure):
        return
    try:
        span.record_exception(error, None if short == text else _shortened(error, text, short))
    except safety.MISTAKES as failure:  # the SDK asks the exception what it says, and some cannot tell
        safety.report("recording an exception", failure)
