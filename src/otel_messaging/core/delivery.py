"""A message that the application is handling, and how long its context is current."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context

from . import safety
from .contexts import DELIVERY, KINDS, SPAN, SUPPRESSION, Handling, attach, get_current, recording, renew
from .finalizers import finalizing, is_finalizing, put_aside
from .operations import _NOTHING, UNTOLD, Failure, Moment, Operation, Running

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .operations import Reporting


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
        telemetry: Reporting,
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
                if self._outer is None and type(current) is Handling:
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
    def telemetry(self) -> Reporting | None:
        """Who is told of the message; None where nobody is."""
        return self._telemetry if self._open else None

    def is_told_to(self, telemetry: Reporting) -> bool:
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
            previous = self._previous if self._outer is None else self.before()[0]
            suppressed = {key: value for key, value in current.items() if key in SUPPRESSION}
            attach(Context({**previous, **suppressed}) if suppressed else previous)  # it goes on, around more messages
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
