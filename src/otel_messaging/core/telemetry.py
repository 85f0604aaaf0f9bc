"""Starts and finishes the span, the context and the metrics of every operation. Nothing else does."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import baggage, metrics, trace
from opentelemetry import context as runtime
from opentelemetry.context import Context, create_key
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import _internal as meters
from opentelemetry.trace import INVALID_SPAN, Link, Status, StatusCode, set_span_in_context

from otel_messaging._version import __version__

from . import forking, propagation, safety
from . import vocabulary as v
from .cache import Cache
from .metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.trace import Span, SpanContext, TracerProvider

    from .metrics import Lag, OperationMetrics
    from .publish_batch import PublishBatch
    from .settings import Settings

_DELIVERY = create_key("otel-messaging-delivery")
BATCH = create_key("otel-messaging-batch")
"""The key of what counts the messages that are published, as `PublishBatch` does."""
_OK = Status(StatusCode.OK)
_UNSET = StatusCode.UNSET  # an enumeration's member is slow to look up

# What the API's own functions call: two calls less, several times per message.
_runtime = getattr(runtime, "_RUNTIME_CONTEXT", runtime)
_variable = getattr(_runtime, "_current_context", None) if type(_runtime) is ContextVarsRuntimeContext else None
get_current: Callable[[], Context] = _runtime.get_current if _variable is None else _variable.get
attach: Callable[[Context], Any] = _runtime.attach if _variable is None else _variable.set

# The API keeps these keys to itself; a context that holds nothing else tells them.
(_SPAN,) = set_span_in_context(INVALID_SPAN, Context())


def _suppression_keys() -> frozenset[str]:
    token = runtime.attach(Context())  # this may be the first import, and suppressed itself
    try:
        with suppress_instrumentation():
            return frozenset(get_current())
    finally:
        runtime.detach(token)


_SUPPRESSION = _suppression_keys()


@dataclass(frozen=True)
class PublishRequest:
    """What ``publish_hook`` is told of a message that is about to be sent.

    Attributes:
        client: what sends it: a ``KafkaProducer``, an aio-pika ``Exchange``, a NATS client or JetStream context.
        destination: topic, exchange or subject.
        arguments: the application's own arguments, under the library's own names. Change nothing in it.
    """

    client: Any
    destination: str
    arguments: Mapping[str, Any]


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


class Incoming(NamedTuple):
    """What is known of a message outside of the consumer that it has come from."""

    destination: v.Destination
    common: v.Facts
    """What is the same for all messages of the same source."""
    facts: v.Facts
    """What is known of this one."""
    headers: Mapping[str, Any] | None
    """Names in lower case."""
    size: int
    """Of its body, in bytes; 0 where it is not known."""
    identity: Any = None
    """What tells it from others, for `Delivery.message`."""
    delivery: Delivery | None = None
    """Its handling, if that has begun already."""


class Pull(NamedTuple):
    """What pulling one message is: in the guide its handling alone, in the conventions a call and then the handling."""

    receive: Operation | None
    handle: Operation


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
        "settles",
        "timed",
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
        self.settles: dict[str, Operation] = {}


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
        self._open = False
        try:
            span = self.span
            try:
                if span.is_recording():
                    names = self._telemetry.vocabulary
                    if facts:
                        _tell(span, names, facts)
                    if error is not None:
                        _record(span, error)
                    elif names.ok_on_success and (self._hidden or _is_unset(span)):
                        span.set_status(_OK)
            finally:
                span.end(None if stopped is None else stopped.time)
            if self.operation.metrics and (
                self._telemetry._metered or getattr(meters, "_METER_PROVIDER", 0) is not None
            ):
                self._count(error, stopped, count)
        except Exception as failure:
            safety.report("ending a span", failure)  # without its name: subjects may be made up per message

    def _count(self, error: BaseException | Failure | None, stopped: Moment | None, count: int) -> None:
        operation = self.operation
        seconds, started = None, self._started
        if operation.timed and started is not None:
            seconds = (time.perf_counter() if stopped is None else stopped.clock) - started
        error_type = None if error is None else error_type_of(error)
        for recorder in operation.metrics:
            recorder.record(seconds, count, error_type)


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


class Delivery(Running):
    """A message that the application is handling: its span, and how long its context is current.

    Attributes:
        message: what tells this message from others, as the adapter chose it; a list of that, where several are handled
            at once; None once it is handled.
        done: whether the message is handled.
    """

    __slots__ = ("_error", "_outer", "_previous", "_stopped", "_where", "done", "message")

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
        self._open = operation is not _UNTOLD
        self.operation = operation
        self.span = span
        self.message = message
        self.done = False
        outer: Delivery | None = None
        if _DELIVERY in previous:
            previous, outer = _unhandled(previous)
            if outer is not None:  # where two consumers are asked in turn, those handled would follow one another
                outer._previous, outer._outer = outer.before()
        self._previous: Context = previous
        self._outer: Delivery | None = outer
        self._error: BaseException | Failure | None = None
        self._stopped: Moment | None = None
        self._where: tuple[Any, int] | None = None

    def end(self, error: BaseException | None = None) -> None:
        """The message is handled. Harmless when called twice.

        Args:
            error: the exception that handling it raised, if any.
        """
        current = get_current()
        if current.get(_DELIVERY) is self:  # also if it was ended before, but in another context
            if self._outer is None and current.get(_SPAN) is self.span:
                attach(self._previous)  # as below, in the most usual case
            else:
                self._restore(current)
        if self.done:
            return
        self.done = True
        self.message = None
        if self._open:
            self._finish(self._error if error is None else error, (), self._stopped)

    def fail(self, error: BaseException | Failure) -> None:
        """An exception was seen while the message is handled, which the application may yet catch.

        Args:
            error: the exception.
        """
        self._error = error

    @property
    def telemetry(self) -> Telemetry | None:
        """Who is told of the message; None where nobody is."""
        return self._telemetry if self._open else None

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
        current = get_current()
        if current.get(_DELIVERY) is self:
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
            if current.get(_SPAN) is not self.span and _recording(current) is not None:
                return
            attach(self._previous if self._outer is None else self.before()[0])
        except Exception as error:  # the span need not be the SDK's
            safety.report("restoring a context", error)

    def before(self) -> tuple[Context, Delivery | None]:
        """The context from before this message, and the message that is handled in it."""
        previous, outer = self._previous, self._outer
        while outer is not None and outer.done:  # messages of two consumers may end in any order
            previous, outer = outer._previous, outer._outer
        return previous, outer


class Telemetry:
    """Everything that one instrumentor needs to tell of messages.

    Args:
        library: the name of the adapter's module, for the instrumentation scope.
        settings: the settings in force.
        tracer_provider: where spans go; the global one if None.
        meter_provider: where metrics go; the global one if None.
        publish_hook: called with the span and a `PublishRequest` before a message is sent.
        consume_hook: called with the span and the library's message before it is handled.
    """

    def __init__(
        self,
        library: str,
        settings: Settings,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        publish_hook: Callable[[Span, PublishRequest], Any] | None = None,
        consume_hook: Callable[[Span, Any], Any] | None = None,
    ) -> None:
        self.enabled = True
        self.settings = settings
        self.vocabulary = v.Vocabulary(settings.vocabulary)
        self._keys = self.vocabulary.single
        self.publish_hook = publish_hook
        self.consume_hook = consume_hook
        scope, schema = f"otel_messaging.{library}", self.vocabulary.schema_url
        self._global = tracer_provider is None and meter_provider is None
        self._metered = meter_provider is not None
        self._queue_time = self._keys[v.QUEUE_TIME] if settings.queue_time else None
        self._linkless = not self.vocabulary.semconv
        self._captures = bool(settings.capture_headers)
        self._current = settings.process_spans
        self._tracer = trace.get_tracer(scope, __version__, tracer_provider, schema)
        meter = metrics.get_meter(scope, __version__, meter_provider, schema)
        self._metrics = Metrics(meter, self.vocabulary) if settings.metrics else None
        self._prepared: Cache[tuple[Any, ...], Operation] = Cache()
        forking.watch(self)

    def disown(self) -> None:
        """In a forked child: the message that is being handled has its context here, too, and its end in the parent."""
        delivery = get_current().get(_DELIVERY)
        while isinstance(delivery, Delivery):
            delivery._open = False
            delivery = delivery._outer
        if self._metrics is not None:
            self._metrics.disown()

    def close(self) -> None:
        """Tell of nothing more, and hand over what was counted."""
        self.enabled = False
        if self._metrics is not None:
            self._metrics.flush()

    def context(self) -> Context | None:
        """The current context; None while instrumentation is off or suppressed."""
        if not self.enabled:
            return None
        context = get_current()
        if context and not _SUPPRESSION.isdisjoint(context) and any(context.get(key) for key in _SUPPRESSION):
            return None
        return context

    def outgoing(self) -> Context | None:
        """The same, for a message to be published. None also where nobody is told, and there is nothing to pass on."""
        if not self.enabled:
            return None
        context = get_current()
        if context:
            return self.context()
        if self._global and getattr(trace, "_TRACER_PROVIDER", 0) is None and _is_idle() and propagation.is_standard():
            return None
        return context

    def is_metered(self) -> bool:
        """Whether anybody collects metrics, which the API does not tell."""
        return self._metered or getattr(meters, "_METER_PROVIDER", 0) is not None

    def operation(self, action: v.Action, verb: str, destination: v.Destination, facts: v.Facts) -> Operation:
        """Prepare an operation.

        Args:
            action: what kind of operation it is.
            verb: the library's own word for it.
            destination: where the messages go to or come from.
            facts: what is the same for all of its messages.
        """
        names = self.vocabulary
        made = self._metrics
        timed = made is not None and self.settings.queue_time and action is not v.PUBLISH and action is not v.SETTLE
        return Operation(
            name=names.span_name(action, verb, destination),
            kind=names.kind(action),
            attributes=names.write({}, names.describe(action, verb, destination, facts)),
            destination=destination,
            facts=facts,
            metrics=made.operation(action, verb, destination, facts) if made is not None else (),
            waiting=made.waiting(action, verb, destination, facts) if made is not None and timed else None,
            excluded=self.excludes(destination),
        )

    def prepared(self, action: v.Action, verb: str, destination: v.Destination, facts: v.Facts) -> Operation:
        """The same, kept for those who ask again."""
        key = (action.operation, action.type, action.word, verb, destination, facts)  # cheaper than the action's hash
        return self._prepared.get(key) or self._prepared.put(key, self.operation(action, verb, destination, facts))

    def publish(
        self, operation: Operation, facts: v.Facts, headers: Mapping[str, Any] | None, context: Context
    ) -> Publication:
        """Begin to publish a message.

        Args:
            operation: what is the same for every message that goes this way.
            facts: what is known of this one.
            headers: the headers that it has already, names in lower case.
            context: what the span is a child of.

        Returns:
            The message on its way. For an excluded destination its span does nothing, and the context is passed on.
        """
        if operation.excluded or (context and self._global and _is_idle()):
            around: Any = context.get(_SPAN)
            return Publication(self, _UNTOLD, INVALID_SPAN, propagation.inject(around or INVALID_SPAN, context))
        attributes = operation.attributes.copy()
        keys = self._keys
        try:
            for fact, value in facts:
                if value is not None:
                    attributes[keys[fact]] = value
        except KeyError:  # a fact with two names, or whose value is converted
            self.vocabulary.write(attributes, facts)
        links: tuple[Link, ...] = ()
        if headers:
            self._capture(headers, attributes)
            links = self._republished(headers, context)
        span = self._tracer.start_span(operation.name, context, operation.kind, attributes, links)
        if BATCH in context:
            counting: PublishBatch = context[BATCH]  # type: ignore[assignment]
            return counting.add(self, operation, span, propagation.inject(span, context), facts)
        return Publication(self, operation, span, propagation.inject(span, context))

    def start(self, operation: Operation, context: Context) -> Span | None:
        """Start the span of an operation that is not about one message.

        Args:
            operation: the operation.
            context: what the span is a child of.

        Returns:
            The span; None where nobody is told of it.
        """
        if operation.excluded or (self._global and _is_idle()):
            return None
        return self._tracer.start_span(operation.name, context, operation.kind, operation.attributes.copy())

    def store(self, operation: Operation, facts: v.Facts, context: Context) -> Publication:
        """Begin to read or write a value that the broker keeps, which is no message.

        Args:
            operation: what is the same for every call of this kind.
            facts: what is known of this one.
            context: what the span is a child of.

        Returns:
            The call. For an excluded destination its span does nothing.
        """
        if operation.excluded or (self._global and _is_idle()):
            around: Any = context.get(_SPAN)
            return Publication(self, _UNTOLD, INVALID_SPAN, propagation.inject(around or INVALID_SPAN, context))
        attributes = self.vocabulary.write(operation.attributes.copy(), facts)
        span = self._tracer.start_span(operation.name, context, operation.kind, attributes)
        return Publication(self, operation, span, propagation.inject(span, context))

    def found(self, publication: Publication, headers: Mapping[str, Any]) -> None:
        """A call has found a value: its span is linked to who has stored it.

        Args:
            publication: the call.
            headers: those of the value, names in lower case.
        """
        writer = _span_context(propagation.extract(headers, Context()))
        if writer is not None:
            publication.span.add_link(writer)

    def tell_publish_hook(self, publication: Publication, request: PublishRequest) -> None:
        """Call the application's ``publish_hook``, whatever it does."""
        if self.publish_hook is not None and publication.span.is_recording():
            try:
                self.publish_hook(publication.span, request)
            except Exception as error:
                safety.report("publish_hook", error)

    def deliver(  # noqa: C901 (per message: a call would cost more than the branch it hides)
        self,
        operation: Operation,
        facts: v.Facts,
        headers: Mapping[str, Any] | None,
        message: Any,
        context: Context,
        waited: float | None = None,
    ) -> Delivery | None:
        """Begin to handle a message, and make its context current.

        Args:
            operation: what is the same for every message that comes this way.
            facts: what is known of this one.
            headers: its headers, names in lower case.
            message: what tells it from others, for `Delivery.message`.
            context: the current context.
            waited: how long it has waited at the broker, in seconds, if that is known.

        Returns:
            The message being handled; None when its destination is excluded.
        """
        if operation.excluded:
            return None
        if self._global and getattr(trace, "_TRACER_PROVIDER", 0) is None and _is_idle():
            return self._pass_on(headers, message, context) if headers or context else None
        attributes = operation.attributes.copy()
        keys = self._keys
        try:
            for fact, value in facts:
                if value is not None:
                    attributes[keys[fact]] = value
        except KeyError:  # a fact with two names, or whose value is converted
            self.vocabulary.write(attributes, facts)
        if waited is not None and self._queue_time is not None:
            if waited < 0.0:  # clocks differ
                waited = 0.0
            attributes[self._queue_time] = waited
            if operation.waiting is not None and (self._metered or getattr(meters, "_METER_PROVIDER", 0) is not None):
                operation.waiting[0].record(waited, operation.waiting[1])
        links: tuple[Link, ...] = ()
        if headers and self._captures:
            self._capture(headers, attributes)
        usual = propagation.remote(headers) if headers and not context and self._linkless else None
        if usual is not None:  # nothing around, and nothing to link
            parent = Context({_SPAN: usual})
        else:
            parent, links = self._correlate(headers, context)
        span = self._tracer.start_span(operation.name, parent, operation.kind, attributes, links)
        delivery = Delivery(self, operation, span, message, context)
        if self._current:
            here = {_SPAN: span, _DELIVERY: delivery}
            attach(Context(here if usual is not None else {**parent, **here}))
        else:
            delivery.end()
        return delivery

    def handle(
        self,
        operation: Operation,
        facts: v.Facts,
        messages: Sequence[Mapping[str, Any] | None],
        message: Any,
        context: Context,
    ) -> Delivery | None:
        """Begin to handle messages where the application says so, and make the context of the first one current.

        Args:
            operation: what is the same for all messages that are handled so.
            facts: what is known of these.
            messages: the headers of each message, names in lower case. Each is linked, if they are several.
            message: what tells it from others, for `Delivery.message`; a list of that, if they are several.
            context: the current context.

        Returns:
            What is being handled; None when its destination is excluded, or there is nothing to tell or to pass on.
        """
        idle = self._global and _is_idle()
        if operation.excluded or (idle and not context and not any(messages)):
            return None
        usual = propagation.remote(messages[0]) if messages[0] and not context and not self.vocabulary.semconv else None
        parent, links = self._correlate(messages[0], context) if usual is None else (Context({_SPAN: usual}), ())
        span: Any = parent.get(_SPAN) or INVALID_SPAN
        if idle:
            operation = _UNTOLD
        else:
            attributes = self.vocabulary.write(operation.attributes.copy(), facts)
            if len(messages) > 1:
                parent, links = self._link(messages, context, parent, links)
            elif messages[0]:
                self._capture(messages[0], attributes)
            span = self._tracer.start_span(operation.name, parent, operation.kind, attributes, links)
        delivery = Delivery(self, operation, span, message, context)
        attach(Context({**parent, _SPAN: span, _DELIVERY: delivery}))
        return delivery

    def receive(
        self,
        operation: Operation,
        facts: v.Facts,
        messages: Sequence[Mapping[str, Any] | None],
        context: Context,
        began: Moment,
        error: BaseException | None = None,
        shares: Sequence[tuple[Operation, int]] = (),
    ) -> None:
        """Tell of a call that has pulled messages, after it has returned.

        Args:
            operation: what was called.
            facts: what is known of the messages as a whole.
            messages: the headers of each message, names in lower case. Each is linked.
            context: the current context.
            began: when the call began.
            error: what the call raised, if anything.
            shares: where the messages are from several destinations: how many are from each, by the operation that a
                call about it alone would be. They are counted there, since metrics are of one destination.
        """
        if operation.excluded:
            return
        remotes = (_span_context(propagation.extract(headers, Context())) for headers in messages if headers)
        # A list: a tuple that a generator is still filling is shown to others by `gc.get_objects`, and then fails.
        links = [Link(remote) for remote in remotes if remote is not None]
        attributes = self.vocabulary.write(operation.attributes.copy(), facts)
        parent = _with_span(_recording(context), context)
        span = self._tracer.start_span(operation.name, parent, operation.kind, attributes, links, began.time)
        Running(self, operation, span, began.clock)._finish(error, count=0 if shares else len(messages))
        if shares and self.is_metered():
            for share, count in shares:
                for recorder in share.metrics:
                    recorder.record(None, count, None)

    def pull(self, verb: str, destination: v.Destination, facts: v.Facts) -> Pull:
        """Prepare to pull single messages.

        Args:
            verb: the library's own word for it.
            destination: where the messages come from.
            facts: what is the same for all of them.
        """
        if not self.vocabulary.semconv:
            return Pull(None, self.operation(v.DELIVER, "process", destination, facts))
        receive = self.operation(v.RECEIVE, verb, destination, facts)
        return Pull(receive, self.operation(v.PROCESS, "process", destination, facts))

    def excludes(self, destination: v.Destination) -> bool:
        """Whether nobody wants to be told of a destination."""
        return any(fnmatchcase(destination.name, glob) for glob in self.settings.excluded_destinations)

    def count(
        self, name: str, destination: v.Destination, facts: v.Facts, error: BaseException | Failure | None
    ) -> None:
        """Count a message that could not be handled.

        Args:
            name: of the counter: ``RETRIED`` or ``DEAD_LETTERED`` of the vocabulary.
            destination: where the message came from.
            facts: what is the same for all messages from there.
            error: why it could not be handled, if that is known.
        """
        if self._metrics is not None and self.is_metered():
            self._metrics.count(name, destination, facts, None if error is None else error_type_of(error))

    def lag(self, facts: v.Facts, holds: Callable[[], bool] | None = None) -> Lag | None:
        """A gauge of messages that wait, or None where that is not wanted.

        Args:
            facts: what they wait for: system, destination, group, partition.
            holds: whether the consumer still has what they wait for; always if None.
        """
        return self._metrics.lag(facts, holds) if self._metrics is not None and self.settings.lag else None

    def tell_consume_hook(self, delivery: Delivery, message: Any) -> None:
        """Call the application's ``consume_hook``, whatever it does."""
        if self.consume_hook is not None and delivery.span.is_recording():
            try:
                self.consume_hook(delivery.span, message)
            except Exception as error:
                safety.report("consume_hook", error)

    def settle(
        self, verb: str, operation: Operation, delivery: Delivery | None, facts: v.Facts, details: v.Attributes
    ) -> Settlement | None:
        """Begin to tell the broker what became of a message.

        Args:
            verb: the library's own word for it.
            operation: how the message came.
            delivery: the message, while it is handled.
            facts: what is known of the message.
            details: what is told, under the names that are recorded.

        Returns:
            The settlement, or None where it is not to be seen.
        """
        mode = self.settings.settle
        if operation.excluded or mode == "off":
            return None
        if mode == "event":
            return Settlement(verb, details, delivery.span, None) if delivery is not None else None
        settle = operation.settles.get(verb)
        if settle is None:
            settle = operation.settles[verb] = self.operation(v.SETTLE, verb, operation.destination, operation.facts)
        attributes = self.vocabulary.write({**settle.attributes, **details}, facts)
        span = self._tracer.start_span(settle.name, get_current(), settle.kind, attributes)
        return Settlement(verb, details, span, Running(self, settle, span, time.perf_counter()))

    def current_delivery(self, context: Context) -> Delivery | None:
        """The message that is being handled in a context."""
        delivery = context.get(_DELIVERY)
        return delivery if isinstance(delivery, Delivery) and not delivery.done else None

    def delivery_of(self, message: Any) -> Delivery | None:
        """The handling of a message in the current context, where the message itself tells it from others."""
        delivery = self.current_delivery(get_current())
        while delivery is not None and delivery.message is not message:
            delivery = delivery.before()[1]
        return delivery

    def _correlate(self, headers: Mapping[str, Any] | None, context: Context) -> tuple[Context, tuple[Link, ...]]:
        """The context of a message's span, and the spans that it is linked to."""
        ambient = _recording(context)
        base = baggage.clear(set_span_in_context(INVALID_SPAN, context)) if context else context
        carried = propagation.extract(headers, base) if headers else base
        remote = _span_context(carried)
        if remote is None:
            parent = context if carried is base else carried
            return _with_span(ambient, parent), ()
        if ambient is None:
            return carried, (Link(remote),) if self.vocabulary.semconv else ()
        if self.settings.consumer_parent == "ambient":
            return _with_span(ambient, carried), (Link(remote),)
        links = [Link(remote)] if self.vocabulary.semconv else []
        around = ambient.get_span_context()
        if around.trace_id != remote.trace_id:
            links.append(Link(around))
        return carried, tuple(links)

    def _link(
        self,
        messages: Sequence[Mapping[str, Any] | None],
        context: Context,
        parent: Context,
        links: tuple[Link, ...],
    ) -> tuple[Context, tuple[Link, ...]]:
        """The context of the span of several messages, and the spans that it is linked to: those of all messages.

        Args:
            messages: the headers of each message, names in lower case.
            context: the current context.
            parent: what it would be for the first message alone.
            links: the same of its links.
        """
        remotes = (_span_context(propagation.extract(headers, Context())) for headers in messages if headers)
        every = [*(Link(remote) for remote in remotes if remote is not None), *links]
        distinct = {(link.context.trace_id, link.context.span_id): link for link in every}
        if self.settings.consumer_parent == "ambient":  # several messages have no parent in common
            parent = _with_span(_recording(context), parent)
        return parent, tuple(distinct.values())

    def _pass_on(self, headers: Mapping[str, Any] | None, message: Any, context: Context) -> Delivery:
        """Make a message's context current, of which nobody will be told."""
        usual = propagation.remote(headers) if headers and not context else None
        parent = self._correlate(headers, context)[0] if usual is None else Context({_SPAN: usual})
        span: Any = parent.get(_SPAN) or INVALID_SPAN
        delivery = Delivery(self, _UNTOLD, span, message, context)
        if self.settings.process_spans:
            attach(Context({**parent, _DELIVERY: delivery}))
        else:
            delivery.end()
        return delivery

    def _republished(self, headers: Mapping[str, Any], context: Context) -> tuple[Link, ...]:
        """A link to the context that a message carried before it was published again."""
        if propagation.fields().isdisjoint(headers):
            return ()
        before = _span_context(propagation.extract(headers, Context()))
        now = _span_context(context)
        if before is None or (now is not None and now.span_id == before.span_id):
            return ()
        return (Link(before),)

    def _capture(self, headers: Mapping[str, Any], attributes: v.Attributes) -> None:
        globs = self.settings.capture_headers
        if not globs:
            return
        hidden = propagation.fields()
        for name, value in headers.items():
            if name not in hidden and any(fnmatchcase(name, glob.lower()) for glob in globs):
                shown = value if isinstance(value, (bool, int, float)) else propagation.as_text(value)
                if shown is not None:
                    attributes[v.CAPTURED_HEADER + name] = shown


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
        try:
            details = self._details if error is None else {**self._details, v.ERROR_TYPE: error_type_of(error)}
            self._span.add_event(self._verb, details)
        except Exception as failure:
            safety.report(f"recording {self._verb!r}", failure)


_UNTOLD = Operation("", trace.SpanKind.PRODUCER, {}, v.Destination(""), (), (), None, excluded=True)


def handled_here() -> Delivery | None:
    """The message that is being handled in the current context, of whatever library, if anybody is told of it."""
    delivery = get_current().get(_DELIVERY)
    return delivery if isinstance(delivery, Delivery) and delivery._open and not delivery.done else None


def _same(one: Any, other: Any) -> bool:
    """Whether a message is another, by what tells them from others: itself, or a tuple of what is equal."""
    return one is other or (type(other) is tuple and bool(one == other))


def _is_idle() -> bool:
    """Whether there is no SDK: what is told of goes nowhere. The API has no cheap way to ask."""
    return getattr(trace, "_TRACER_PROVIDER", 0) is None and getattr(meters, "_METER_PROVIDER", 0) is None


def _recording(context: Context) -> Span | None:
    """The span around a call, unless it is over or was never told of: a task has the context of whoever started it."""
    span: Any = context.get(_SPAN)
    return span if span is not None and span.is_recording() else None


def _unhandled(context: Context) -> tuple[Context, Delivery | None]:
    """A context without the messages whose handling was ended elsewhere, and the message that is handled in it.

    Their contexts would follow one another for ever, where one task asks for messages and another one settles them.
    """
    delivery = context.get(_DELIVERY)
    if not isinstance(delivery, Delivery) or not delivery.done:
        return context, delivery if isinstance(delivery, Delivery) else None
    span = context.get(_SPAN)
    if span is not delivery.span and isinstance(span, trace.Span) and span.is_recording():
        return context, None  # the application's own span, still open
    return delivery.before()


def forget_handled() -> None:
    """Bring back the context from before messages that are current here, but whose handling was ended elsewhere."""
    try:
        context = get_current()
        before, _ = _unhandled(context)
        if before is not context:
            attach(before)
    except Exception as error:
        safety.report("restoring a context", error)


def _same_place(code: Any, one: int, other: int) -> bool:
    """Whether two instructions are of the same expression.

    Since Python 3.12 an exception that is thrown into an ``await``, as a cancellation is, leaves it by another
    instruction than the one that its traceback names.
    """
    if one == other or sys.version_info < (3, 12):
        return one == other
    places = list(code.co_positions())  # an instruction is two bytes
    return bool(places[one // 2] == places[other // 2])


def _span_context(context: Context) -> SpanContext | None:
    span: Any = context.get(_SPAN)
    if span is None:
        return None
    found: SpanContext = span.get_span_context()
    return found if found.is_valid else None


def _with_span(span: Span | None, context: Context) -> Context:
    """A context with just this span in it, or with none."""
    if context.get(_SPAN) is span:
        return context
    return set_span_in_context(INVALID_SPAN if span is None else span, context)


def error_type_of(error: BaseException | Failure) -> str:
    """The value of ``error.type``."""
    if isinstance(error, Failure):
        return error.type
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def text_of(error: BaseException) -> str:
    """What an exception says; nothing, where it is one of those that cannot even do that."""
    try:
        return str(error)
    except Exception:
        return ""


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


def _record(span: Span, error: BaseException | Failure) -> None:
    span.set_attribute(v.ERROR_TYPE, error_type_of(error))
    if isinstance(error, Failure):
        span.set_status(Status(StatusCode.ERROR, error.message))
        return
    span.set_status(Status(StatusCode.ERROR, text_of(error)))
    try:
        span.record_exception(error)
    except Exception as failure:  # the SDK asks the exception what it says, and some cannot tell
        safety.report("recording an exception", failure)
