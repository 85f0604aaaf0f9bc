"""Callbacks, and subscriptions as iterators."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.core.safety import guard
from otel_messaging.instrumentation.loops import handle, shared_since
from otel_messaging.instrumentation.state import find, keep
from otel_messaging.instrumentation.wrapping import around

from .client import Client
from .looping import loops, steps
from .readers import consumed_from, subscribed
from .stores import watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.adapter import Adapter


_ACCEPTED_FROM_LIBRARY = ("_auto_ack_callback.<locals>.new_callback", "Endpoint._handle_request")


class _Iterated:
    """What is kept for the iterator of a subscription."""

    def __init__(self, telemetry: Telemetry, iterator: Any) -> None:
        self.telemetry = telemetry
        self.shared = shared_since(find(iterator))  # which loops have
        subscription = iterator._sub
        self.client = keep(subscription._conn, telemetry, Client)
        self.deliveries = self.client.deliveries(*subscribed(subscription))
        self.hand_out = self.deliveries.hand_out

    def close(self) -> None:
        """The subscription is closed, perhaps in another task."""
        self.shared.close()
        self.client.forget(*self.deliveries.source)


def _is_application(callback: Any) -> bool:
    """Whether a callback is the application's, and the library will take it: if not, its own error is raised."""
    function = callback
    if not inspect.iscoroutinefunction(callback):
        function = getattr(callback, "func", None)
        if not inspect.iscoroutinefunction(function):
            return False
    own = (getattr(function, "__module__", None) or "").startswith("nats.")
    return not own or getattr(function, "__qualname__", "").endswith(_ACCEPTED_FROM_LIBRARY)


def subscribes(nats: Adapter, client: Any, subject: Any, queue: Any, cb: Any) -> tuple[None, Any]:
    """`Client.subscribe` takes the callback that messages are handled by, JetStream's push consumers' too."""
    telemetry = nats.telemetry
    if cb is None or not telemetry.enabled:
        return None, cb
    if not isinstance(subject, str) or not _is_application(cb):
        return None, watching(telemetry, cb)
    state = keep(client, telemetry, Client)
    source = consumed_from(subject, queue, state.consumers.get(subject))
    return None, partial(handle, state.deliveries(*source).hand_out, cb)


def binds(nats: Adapter, jetstream: Any, config: Any) -> Callable[[], Any] | None:
    """`JetStreamContext.subscribe_bind` knows the consumer; `Client.subscribe` inside sees only a made-up subject."""
    if not nats.telemetry.enabled:
        return None
    consumers, subject = keep(jetstream._nc, nats.telemetry, Client).consumers, config.deliver_subject
    consumers[subject] = config
    return partial(consumers.pop, subject, None)


def _bound(forget: Callable[[], Any], subscription: Any) -> Any:
    forget()
    return subscription


def _not_bound(forget: Callable[[], Any], _error: BaseException) -> None:
    forget()


def cancels(_nats: Adapter, iterator: Any) -> None:
    """The iterator of a subscription is cancelled when that is closed, drained or unsubscribed."""
    for state in (find(iterator), find(iterator._sub)):
        if state is not None:
            guard("Subscription.messages", state.close)


wrap_subscribe = around(subscribes, replaces="cb")
wrap_subscribe_bind = around(binds, _bound, _not_bound)
wrap_aiter = loops(_Iterated)
wrap_anext = steps(_Iterated)
wrap_cancel = around(cancels)
