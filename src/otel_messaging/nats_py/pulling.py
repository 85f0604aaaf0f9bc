"""`next_msg` and `fetch`: messages that are asked for."""

from __future__ import annotations

import re
import weakref
from asyncio import current_task
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_messaging.core import vocabulary as v
from otel_messaging.core.operations import Moment
from otel_messaging.core.pulls import is_failure
from otel_messaging.instrumentation.loops import watch
from otel_messaging.instrumentation.message_list import Batch, Single
from otel_messaging.instrumentation.state import find, keep
from otel_messaging.instrumentation.wrapping import around

from .client import Client, Deliveries
from .nested_calls import NOTHING, Told, calls, here
from .readers import NUID, describe, fold, identify, split_reply, subscribed

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable

    from opentelemetry.context import Context

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.operations import Operation
    from otel_messaging.core.telemetry import One, Telemetry
    from otel_messaging.instrumentation.adapter import Adapter
    from otel_messaging.instrumentation.loops import HeldByThread


class _Got(NamedTuple):
    """A message that was pulled, and by whom."""

    delivery: Delivery
    task: Callable[[], Task[Any] | None]
    taken: bool
    """Whether out of a list."""


class Asked:
    """What is kept for a subscription that is asked for messages."""

    def __init__(self, telemetry: Telemetry, subscription: Any) -> None:
        self.telemetry = telemetry
        self._client = keep(subscription._conn, telemetry, Client)
        self.source = subscribed(subscription)
        self._bound = False
        self._got: dict[int, _Got] = {}
        self._batches: weakref.WeakKeyDictionary[Any, HeldByThread] = weakref.WeakKeyDictionary()
        watch(self)

    def bind(self, pulling: Any, filters: str | None) -> None:
        """It is that of a pull subscription, whose own subject is made up.

        Args:
            pulling: the pull subscription.
            filters: the subjects that it was made for, if that was seen.
        """
        if not self._bound or filters:
            consumer = pulling._consumer or ""
            self._bound = True
            self.source = (filters or "", "" if NUID.match(consumer) else consumer)

    def call(self, verb: str, subject: str | None) -> Operation:
        """A call that pulls messages, and the subject that they have in common."""
        return self._deliveries(v.PROCESS).call(verb, subject)

    def failing(self, verb: str) -> Operation | None:
        """A call that has failed to get messages, of the subject that all of them have, if there is just one.

        Args:
            verb: the library's own word for it.

        Returns:
            The call; None where its messages are not the application's.
        """
        subject = self.source[0]
        if self._client.is_hidden(subject):
            return None
        return self.call(verb, subject if subject and not re.search("[*>,]", subject) else None)

    def hand_out(self, message: Any, context: Context, began: Moment) -> None:
        """The application has asked for one message, and got it."""
        subject = message.subject
        semconv = self.telemetry.vocabulary.semconv
        if semconv and not self._client.is_hidden(subject):
            headers = fold(message.headers)
            known = describe(message.data, headers)
            self.telemetry.receive(self.call("next_msg", subject), known, [((), headers)], context, began)
        self._pull(self._deliveries(v.PROCESS if semconv else v.DELIVER), message)

    def _pull(self, deliveries: Deliveries, message: Any, taken: bool = False) -> None:
        delivery = deliveries.hand_out(message)
        if delivery is not None and not delivery.done:
            self._got[id(message)] = _Got(delivery, weakref.ref(current_task()), taken)
            self._client.pulled[id(message)] = self

    def _take(self, deliveries: Deliveries, message: Any) -> None:
        """The application has taken a message out of a list that was made for it alone."""
        if _running_task() is not None:
            self._pull(deliveries, message, taken=True)

    def list(self, messages: list[Any], context: Context, began: Moment) -> list[Any]:
        """The application has asked for several messages, and got a list, which is replaced."""
        deliveries = self._deliveries(v.PROCESS)
        seen = [message for message in messages if not self._is_hidden(deliveries, message.subject)]
        if not seen:
            return messages
        subjects = {message.subject for message in seen}
        words = split_reply(seen[0].reply) if seen[0].reply else None
        facts = (
            (v.BATCH_COUNT, len(seen)),
            (v.BATCH_SIZE, sum(len(message.data) for message in seen)),
            (v.NATS_STREAM, words[0] if words is not None else None),
            (v.NATS_GROUP, words[1] if words is not None else None),
        )
        common = seen[0].subject if len(subjects) == 1 else None
        every = [_one(message, common is None) for message in seen]
        call = deliveries.call("fetch", common)
        self.telemetry.receive(call, facts, every, context, began)
        if len(messages) == 1:
            batch: Batch = Single(messages, deliveries.hand_out, partial(self._take, deliveries))
        else:
            batch = Batch(messages, deliveries.hand_out)
        task = current_task()
        if task is not None:
            self._batches[task] = batch.held
        return batch

    def asked(self) -> None:
        """It is asked for the next message: what it gave to the same task, or to tasks now over, is handled."""
        if self._got:
            current = current_task()
            for key, got in tuple(self._got.items()):
                task = got.task()
                if task is None or task is current or task.done():
                    self._end(key)

    def fetches(self) -> None:
        """It is asked for the next list: what the same task handles is handled."""
        task = current_task()
        held = self._batches.pop(task, None) if task is not None else None
        if held is not None:
            held.end()

    def find(self, message: Any) -> Delivery | None:
        """A message, while it is handled."""
        got = self._got.get(id(message))
        return None if got is None else got.delivery

    def took(self, message: Any) -> bool:
        """Whether a message that is handled was taken out of a list."""
        got = self._got.get(id(message))
        return got is not None and got.taken

    def release(self, message: Any) -> None:
        """Somebody else knows when a message is handled."""
        self._got.pop(id(message), None)
        self._client.pulled.pop(id(message), None)

    def settled(self, message: Any) -> None:
        """The broker was told what became of a message."""
        self._end(id(message))

    def close(self) -> None:
        """The subscription is closed, perhaps in another task."""
        for key in tuple(self._got):
            self._end(key)
        for held in tuple(self._batches.values()):
            held.close()
        self._batches.clear()
        self._client.forget(*self.source)

    def switch_off(self, telemetry: Telemetry) -> None:
        """Instrumentation is switched off, perhaps in another task."""
        if self.telemetry is telemetry:
            for key in tuple(self._got):
                self._end(key)

    def _deliveries(self, action: v.Action) -> Deliveries:
        return self._client.deliveries(*self.source, action)

    def _is_hidden(self, deliveries: Deliveries, subject: str) -> bool:
        return self._client.is_hidden(subject) or deliveries.operation(subject).excluded

    def _end(self, key: int) -> None:
        self._client.pulled.pop(key, None)
        got = self._got.pop(key, None)
        if got is not None:
            got.delivery.end()


def _running_task() -> Task[Any] | None:
    """The task that runs here; None in a thread that another one has given its messages to."""
    try:
        return current_task()
    except RuntimeError:
        return None


def _one(message: Any, by_subject: bool) -> One:
    """One message of a list, which its subject tells from others if that is not the same for all."""
    headers = fold(message.headers)
    if not headers:
        return (), None
    facts = identify(message.reply, headers)
    return (*facts, (v.DESTINATION, message.subject)) if by_subject else facts, headers


def asked_for(message: Any) -> Asked | None:
    """What gave a message that was pulled and is handled now."""
    state = find(message._client)
    asked: Asked | None = state.pulled.get(id(message)) if state is not None else None
    return asked


def taking(message: Any) -> Callable[[], None] | None:
    """What leaves the end of a message's handling to who calls it, if that was taken out of a list."""
    asked = asked_for(message)
    return partial(asked.release, message) if asked is not None and asked.took(message) else None


def _ask(subscription: Any) -> None:
    """A subscription is asked for messages: what it gave to the same task before is handled.

    So is what another one to the same subjects gave: some programs subscribe anew for each message.
    """
    state, client = find(subscription), find(subscription._conn)
    if state is not None:
        state.asked()
    if client is not None and client.pulled:
        source = subscribed(subscription)
        for asked in set(client.pulled.values()):
            if asked.source == source:
                asked.asked()


class _Next:
    """A call that asks a subscription for one message."""

    verb = "next_msg"

    def __init__(self, telemetry: Telemetry, owner: Any) -> None:
        self.telemetry = telemetry
        self.owner = owner
        self.began = Moment.now() if telemetry.active_context() is not None else None

    @property
    def subscription(self) -> Any:
        """What is asked; None where the library has none any more."""
        return self.owner

    def state(self) -> Asked:
        """What is kept for it."""
        return keep(self.subscription, self.telemetry, Asked)

    def returned(self, result: Any) -> Any:
        """The application has what it has asked for. Returns what it gets."""
        context = self.telemetry.active_context()
        if self.began is None or context is None:
            return result
        return self.handed_out(result, context, self.began)

    def handed_out(self, message: Any, context: Context, began: Moment) -> Any:
        """What the application gets."""
        self.state().hand_out(message, context, began)
        return message

    def raised(self, error: BaseException) -> None:
        """Asking for messages has raised an exception."""
        context, subscription = self.telemetry.active_context(), self.subscription
        if self.began is None or context is None or subscription is None:
            return
        if is_failure(error, subscription._conn.is_closed or subscription._closed):
            operation = self.state().failing(self.verb)
            if operation is not None:
                self.telemetry.receive(operation, (), (), context, self.began, error)


class _Fetch(_Next):
    """A call that asks a pull subscription for a list. What it does for that inside is the library's own."""

    verb = "fetch"

    def __init__(self, telemetry: Telemetry, owner: Any) -> None:
        super().__init__(telemetry, owner)
        self._told = Told(NOTHING)

    @property
    def subscription(self) -> Any:
        """What is asked; None where it is unsubscribed: the library raises an error."""
        return self.owner._sub

    def state(self) -> Asked:
        """What is kept for it."""
        state = super().state()
        state.bind(self.owner, None)
        return state

    def returned(self, result: Any) -> Any:
        """The application gets a list of our own."""
        self._told.end()
        return super().returned(result)

    def handed_out(self, message: Any, context: Context, began: Moment) -> Any:
        """What the application gets."""
        return self.state().list(message, context, began) if message else message

    def raised(self, error: BaseException) -> None:
        """Asking for messages has raised an exception."""
        self._told.end()
        super().raised(error)


def advances(nats: Adapter, subscription: Any) -> _Next | None:
    """`Subscription.next_msg` gives one message, also that of a push consumer. `fetch` calls it too."""
    if not nats.telemetry.enabled or here() is not None:
        return None
    _ask(subscription)
    return _Next(nats.telemetry, subscription)


def fetches(nats: Adapter, pulling: Any) -> _Fetch | None:
    """`PullSubscription.fetch` gives a list of messages."""
    if not nats.telemetry.enabled or here() is not None:
        return None
    subscription = pulling._sub
    if subscription is not None:
        state = find(subscription)
        if state is not None:
            state.fetches()
        _ask(subscription)
    return _Fetch(nats.telemetry, pulling)


def _pulls(nats: Adapter, _jetstream: Any, subject: Any, config: Any) -> tuple[Telemetry, Any, Any]:
    """`JetStreamContext.pull_subscribe` knows the subjects; what it returns does not."""
    return nats.telemetry, subject, config


def _pulling(token: tuple[Telemetry, Any, Any], pulling: Any) -> Any:
    telemetry, subject, config = token
    if telemetry.enabled:
        filters = ",".join(getattr(config, "filter_subjects", None) or (subject,))
        keep(pulling._sub, telemetry, Asked).bind(pulling, filters)
    return pulling


wrap_next_msg = calls(advances)
wrap_fetch = calls(fetches)
wrap_pull_subscribe = around(_pulls, _pulling)
