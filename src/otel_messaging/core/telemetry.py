"""Starts the span, the context and the metrics of every operation. Nothing else does."""

from __future__ import annotations

import time
from asyncio import CancelledError
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, set_span_in_context

from otel_messaging._version import __version__

from . import fork, propagation, safety
from . import vocabulary as v
from .cache import Cache
from .capturing import Capture
from .contexts import (
    BATCH,
    DELIVERY,
    SPAN,
    SUPPRESSION,
    Handling,
    attach,
    get_current,
    recording,
    span_context,
    with_span,
)
from .delivery import Delivery, without_ended
from .finalizers import aside, end_aside, finalizing, is_finalizing
from .metrics import Metrics, meter_of
from .operations import UNTOLD, Failure, Moment, Operation, Publication, Pull, Running, Settlement, error_type_of
from .otel_private import METER_PROVIDER, METERS, has_meter_provider, has_no_sdk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from .metrics import Lag
    from .operations import CountsMessages
    from .requests import PublishRequest
    from .settings import Settings


_CANCELLED = "a sampler or a span processor has raised CancelledError"


One = tuple[v.Facts, "Mapping[str, Any] | None"]
"""One message of several: what is known of it alone, and its headers, names in lower case."""


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
        self.vocabulary = v.Vocabulary(settings.vocabulary, settings.destination_templates)
        self._keys = self.vocabulary.single
        self.publish_hook = publish_hook
        self.consume_hook = consume_hook
        scope, schema = f"otel_messaging.{library}", self.vocabulary.schema_url
        self._global = tracer_provider is None and meter_provider is None
        self.metered = meter_provider is not None
        self._queue_time = self._keys[v.QUEUE_TIME] if settings.queue_time else None
        self._linkless = not self.vocabulary.semconv
        self._capture = Capture(settings.capture_headers) if settings.capture_headers else None
        self._current = settings.process_spans
        self._tracer = trace.get_tracer(scope, __version__, tracer_provider, schema)
        meter = meter_of(scope, meter_provider, schema) if settings.metrics else None
        self._metrics = Metrics(meter, self.vocabulary) if meter is not None else None
        self._prepared: Cache[tuple[Any, ...], Operation] = Cache()
        self._servers: set[v.Facts] = set()
        fork.watch(self)

    def disown(self) -> None:
        """In a forked child: the message that is being handled has its context here, too, and its end in the parent."""
        delivery = get_current().get(DELIVERY)
        while isinstance(delivery, Delivery):
            delivery._open = False
            delivery = delivery._outer

    def close(self) -> None:
        """Record nothing more, and hand over what was counted."""
        self.enabled = False
        end_aside()
        if self._metrics is not None:
            self._metrics.close()

    def active_context(self) -> Context | None:
        """The current context; None while instrumentation is off or suppressed, and inside the cyclic collector."""
        if not self.enabled or (finalizing and is_finalizing()):
            return None
        context = get_current()
        if not context:
            if aside:
                end_aside()
            return context
        if not SUPPRESSION.isdisjoint(context) and any(context.get(key) for key in SUPPRESSION):
            return None
        if aside:  # not where it is suppressed, which may be inside an exporter
            end_aside()
            context = get_current()
        if (DELIVERY in context and context[DELIVERY].done) or (BATCH in context and context[BATCH].done):  # type: ignore[attr-defined]
            return without_ended(context)
        return context

    def outgoing(self) -> Context | None:
        """The same, for a message to be published. None also where nobody is told, and there is nothing to pass on."""
        if not self.enabled or (finalizing and is_finalizing()):
            return None
        context = get_current()
        if context:
            return self.active_context()
        if aside:
            end_aside()
        if self._global and has_no_sdk() and propagation.is_standard():
            return None
        return context

    def is_metered(self) -> bool:
        """Whether anybody collects metrics, which the API does not tell."""
        return self.metered or has_meter_provider()

    def operation(self, action: v.Action, verb: str, destination: v.Destination, facts: v.Facts) -> Operation:
        """Prepare an operation.

        Args:
            action: what kind of operation it is.
            verb: the library's own word for it.
            destination: where the messages go to or come from.
            facts: what is the same for all of its messages.
        """
        names = self.vocabulary
        excluded = self.excludes(destination)
        if action is v.PUBLISH and len(self._servers) < 2:
            self._servers.add(v.whereabouts(facts))
        made = None if excluded else self._metrics
        timed = made is not None and self.settings.queue_time and action is not v.PUBLISH and action is not v.SETTLE
        return Operation(
            name=names.span_name(action, verb, destination),
            kind=names.kind(action),
            attributes=names.write({}, names.describe(action, verb, destination, facts)),
            destination=destination,
            facts=facts,
            metrics=made.operation(action, verb, destination, facts) if made is not None else (),
            waiting=made.waiting(verb, destination, facts) if made is not None and timed else None,
            excluded=excluded,
            verb=verb,
        )

    @property
    def whereabouts(self) -> v.Facts:
        """The system and the server that messages are published to; nothing if there are several, or none was yet."""
        return next(iter(self._servers)) if len(self._servers) == 1 else ()

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
        if operation.excluded or (context and self._global and has_no_sdk()):
            around: Any = context.get(SPAN)
            return Publication(self, UNTOLD, INVALID_SPAN, propagation.inject(around or INVALID_SPAN, context))
        if DELIVERY in context:
            operation = self._answering(operation, context)
        attributes = operation.attributes.copy()
        keys = self._keys  # what follows is Vocabulary.write, without a call for facts with one name
        try:
            for fact, value in facts:
                if value is not None:
                    attributes[keys[fact]] = value
        except KeyError:  # a fact with two names, or whose value is converted
            self.vocabulary.write(attributes, facts)
        links: tuple[Link, ...] = ()
        if headers:
            if self._capture is not None:
                self._capture.write(headers, attributes)
            links = self._republished(headers, context)
        try:  # as `_start` does, without a call
            span = self._tracer.start_span(operation.name, context, operation.kind, attributes, links)
        except CancelledError as error:
            raise safety.PlainError(_CANCELLED) from error
        if BATCH in context:
            counting: CountsMessages = context[BATCH]  # type: ignore[assignment]
            return counting.add(self, operation, span, propagation.inject(span, context), facts)
        return Publication(self, operation, span, propagation.inject(span, context))

    def _answering(self, operation: Operation, context: Context) -> Operation:
        """How to publish to where the message being handled asks to be answered at: that name is made up for it.

        Its handling may be over: a task that it has started answers later.
        """
        delivery: Any = context[DELIVERY]
        destination = operation.destination
        if destination.temporary or not delivery.is_answered_at(self.vocabulary.destination(destination)):
            return operation
        if operation.reply is None:
            made_up = destination._replace(temporary=True)
            operation.reply = self.operation(v.PUBLISH, operation.verb, made_up, operation.facts)
        return operation.reply

    def start(self, operation: Operation, context: Context) -> Span | None:
        """Start the span of an operation that is not about one message.

        Args:
            operation: the operation.
            context: what the span is a child of.

        Returns:
            The span; None where nobody is told of it.
        """
        if operation.excluded or (self._global and has_no_sdk()):
            return None
        return self._start(operation, context, operation.attributes.copy())

    def store(self, operation: Operation, facts: v.Facts, context: Context) -> Publication:
        """Begin to read or write a value that the broker keeps, which is no message.

        Args:
            operation: what is the same for every call of this kind.
            facts: what is known of this one.
            context: what the span is a child of.

        Returns:
            The call. For an excluded destination its span does nothing.
        """
        if operation.excluded or (self._global and has_no_sdk()):
            around: Any = context.get(SPAN)
            return Publication(self, UNTOLD, INVALID_SPAN, propagation.inject(around or INVALID_SPAN, context))
        attributes = self.vocabulary.write(operation.attributes.copy(), facts)
        span = self._start(operation, context, attributes)
        return Publication(self, operation, span, propagation.inject(span, context))

    def found(self, publication: Publication, headers: Mapping[str, Any]) -> None:
        """A call has found a value: its span is linked to who has stored it.

        Args:
            publication: the call.
            headers: those of the value, names in lower case.
        """
        writer = span_context(propagation.extract(headers, Context()))
        if writer is not None:
            publication.span.add_link(writer)

    def tell_publish_hook(self, publication: Publication, request: PublishRequest) -> None:
        """Call the application's ``publish_hook``, whatever it does."""
        if self.publish_hook is not None and publication.span.is_recording():
            _call("publish_hook", self.publish_hook, publication, request)

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
        if self._global and has_no_sdk():
            return self._pass_on(headers, message, context) if headers or context else None
        attributes = operation.attributes.copy()
        keys = self._keys  # what follows is Vocabulary.write, without a call for facts with one name
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
        links: tuple[Link, ...] = ()
        if headers and self._capture is not None:
            self._capture.write(headers, attributes)
        usual = propagation.remote(headers) if headers and not context and self._linkless else None
        if usual is not None:  # nothing around, and nothing to link
            parent = Context({SPAN: usual})
        else:
            parent, links = self._correlate(headers, context)
        try:  # as `_start` does, without a call
            span = self._tracer.start_span(operation.name, parent, operation.kind, attributes, links)
        except CancelledError as error:
            raise safety.PlainError(_CANCELLED) from error
        if (
            waited is not None
            and operation.waiting is not None
            and (self.metered or METERS.get(METER_PROVIDER, 0) is not None)
        ):
            operation.waiting[0].record(waited, operation.waiting[1], Context({SPAN: span}))
        delivery = Delivery(self, operation, span, message, context)
        if self._current:
            here = {SPAN: span, DELIVERY: delivery}
            current = Handling(here if usual is not None else {**parent, **here})
            if delivery._outer is not None or delivery._previous is not context:
                delivery.attach(current)
            else:  # the same, in the most usual case
                delivery.token = attach(current)
        else:
            delivery.end()
        return delivery

    def handle(
        self,
        operation: Operation,
        facts: v.Facts,
        messages: Sequence[One],
        message: Any,
        context: Context,
    ) -> Delivery | None:
        """Begin to handle messages where the application says so, and make the context of the first one current.

        Args:
            operation: what is the same for all messages that are handled so.
            facts: what is known of these as a whole.
            messages: each message. It is linked, and what is known of it is on its link, if they are several.
            message: what tells it from others, for `Delivery.message`; a list of that, if they are several.
            context: the current context.

        Returns:
            What is being handled; None when its destination is excluded, or there is nothing to tell or to pass on.
        """
        idle = self._global and has_no_sdk()
        if operation.excluded or (idle and not context and not any(headers for _, headers in messages)):
            return None
        first = messages[0][1]
        usual = propagation.remote(first) if first and not context and not self.vocabulary.semconv else None
        parent, links = self._correlate(first, context) if usual is None else (Context({SPAN: usual}), ())
        span: Any = parent.get(SPAN) or INVALID_SPAN
        if idle:
            operation = UNTOLD
        else:
            attributes = self.vocabulary.write(operation.attributes.copy(), facts)
            if len(messages) > 1:
                parent, links = self._link(messages, context, parent, links)
            elif first and self._capture is not None:
                self._capture.write(first, attributes)
            span = self._start(operation, parent, attributes, links)
        delivery = Delivery(self, operation, span, message, context)
        delivery.attach(Handling({**parent, SPAN: span, DELIVERY: delivery}))
        return delivery

    def receive(
        self,
        operation: Operation,
        facts: v.Facts,
        messages: Sequence[One],
        context: Context,
        began: Moment,
        error: BaseException | None = None,
        shares: Sequence[tuple[Operation, int]] = (),
    ) -> None:
        """Tell of a call that has pulled messages, after it has returned.

        Args:
            operation: what was called.
            facts: what is known of the messages as a whole.
            messages: each message. It is linked, and what is known of it is on its link.
            context: the current context.
            began: when the call began.
            error: what the call raised, if anything.
            shares: where the messages are from several destinations: how many are from each, by the operation that a
                call about it alone would be. They are counted there, since metrics are of one destination.
        """
        if operation.excluded:
            return
        links = self._links(messages)
        attributes = self.vocabulary.write(operation.attributes.copy(), facts)
        parent = with_span(recording(context), context)
        span = self._start(operation, parent, attributes, links, began.time)
        Running(self, operation, span, began.clock)._finish(error, count=0 if shares else len(messages))
        if shares and self.is_metered():
            for share, count in shares:
                for recorder in share.metrics:
                    recorder.record(None, count, None, span)

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

    def lag(self, destination: v.Destination, facts: v.Facts, holds: Callable[[], bool] | None = None) -> Lag | None:
        """A gauge of messages that wait, or None where that is not wanted.

        Args:
            destination: where they wait.
            facts: what else tells them from others: system, group, partition.
            holds: whether the consumer still has what they wait for; always if None.
        """
        if self._metrics is None or not self.settings.lag or self.excludes(destination):
            return None
        return self._metrics.lag(destination, facts, holds)

    def tell_consume_hook(self, delivery: Delivery, message: Any) -> None:
        """Call the application's ``consume_hook``, whatever it does."""
        if self.consume_hook is not None and delivery.span.is_recording():
            _call("consume_hook", self.consume_hook, delivery, message)

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
        span = self._start(settle, get_current(), attributes)
        return Settlement(verb, details, span, Running(self, settle, span, time.perf_counter()))

    def current_delivery(self, context: Context) -> Delivery | None:
        """The message that is being handled in a context."""
        delivery = context.get(DELIVERY)
        return delivery if isinstance(delivery, Delivery) and not delivery.done else None

    def delivery_of(self, message: Any) -> Delivery | None:
        """The handling of a message in the current context, where the message itself tells it from others."""
        delivery = self.current_delivery(get_current())
        while delivery is not None and delivery.message is not message:
            delivery = delivery.before()[1]
        return delivery

    def _start(
        self,
        operation: Operation,
        context: Context,
        attributes: v.Attributes,
        links: Sequence[Link] = (),
        began: int | None = None,
    ) -> Span:
        """Start a span. A sampler or a processor that is cancelled cancels nothing of the application's."""
        try:
            return self._tracer.start_span(operation.name, context, operation.kind, attributes, links, began)
        except CancelledError as error:
            raise safety.PlainError(_CANCELLED) from error

    def _correlate(self, headers: Mapping[str, Any] | None, context: Context) -> tuple[Context, tuple[Link, ...]]:
        """The context of a message's span, and the spans that it is linked to."""
        ambient = recording(context)
        base = baggage.clear(set_span_in_context(INVALID_SPAN, context)) if context else context
        carried = propagation.extract(headers, base) if headers else base
        remote = span_context(carried)
        if remote is None:
            parent = context if carried is base else carried
            return with_span(ambient, parent), ()
        if ambient is None:
            return carried, (Link(remote),) if self.vocabulary.semconv else ()
        if self.settings.consumer_parent == "ambient":
            return with_span(ambient, carried), (Link(remote),)
        links = [Link(remote)] if self.vocabulary.semconv else []
        around = ambient.get_span_context()
        if around.trace_id != remote.trace_id:
            links.append(Link(around))
        return carried, tuple(links)

    def _link(
        self, messages: Sequence[One], context: Context, parent: Context, links: tuple[Link, ...]
    ) -> tuple[Context, tuple[Link, ...]]:
        """The context of the span of several messages, and the spans that it is linked to: those of all messages.

        Args:
            messages: each message.
            context: the current context.
            parent: what it would be for the first message alone.
            links: the same of its links.
        """
        every, linked = [], set()
        for link in (*self._links(messages), *links):
            remote = (link.context.trace_id, link.context.span_id)
            if link.attributes or remote not in linked:  # once, where nothing tells two of the same context apart
                every.append(link)
                linked.add(remote)
        if self.settings.consumer_parent == "ambient":  # several messages have no parent in common
            parent = with_span(recording(context), parent)
        return parent, tuple(every)

    def _links(self, messages: Sequence[One]) -> list[Link]:
        """A link to each message that carries a context, with what is known of it.

        A list: a tuple that a generator is still filling is shown to others by `gc.get_objects`, and then fails.
        """
        links = []
        for facts, headers in messages:
            remote = span_context(propagation.extract(headers, Context())) if headers else None
            if remote is not None:
                links.append(Link(remote, self.vocabulary.write({}, facts) if facts else None))
        return links

    def _pass_on(self, headers: Mapping[str, Any] | None, message: Any, context: Context) -> Delivery:
        """Make a message's context current, of which nobody will be told."""
        usual = propagation.remote(headers) if headers and not context else None
        parent = self._correlate(headers, context)[0] if usual is None else Context({SPAN: usual})
        span: Any = parent.get(SPAN) or INVALID_SPAN
        delivery = Delivery(self, UNTOLD, span, message, context)
        if self.settings.process_spans:
            delivery.attach(Handling({**parent, DELIVERY: delivery}))
        else:
            delivery.end()
        return delivery

    def _republished(self, headers: Mapping[str, Any], context: Context) -> tuple[Link, ...]:
        """A link to the context that a message carried before it was published again."""
        if propagation.fields().isdisjoint(headers):
            return ()
        before = span_context(propagation.extract(headers, Context()))
        now = span_context(context)
        if before is None or (now is not None and now.span_id == before.span_id):
            return ()
        return (Link(before),)


def _call(name: str, hook: Callable[[Span, Any], Any], running: Publication | Delivery, told: Any) -> None:
    """Call a hook. What it raises costs no message, and what interrupts the application there leaves no span open."""
    try:
        hook(running.span, told)
    except safety.MISTAKES as error:
        safety.report(name, error)
    except BaseException as error:
        running.end(error)
        raise
