"""Callbacks, and subscriptions as iterators."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.core.safety import guard, report
from otel_messaging.instrumentation.loops import handle, shared_since
from otel_messaging.instrumentation.state import find, keep

from .client import Client
from .looping import loops
from .readers import consumed_from, subscribed
from .stores import watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.telemetry import Telemetry

    from .adapter import Nats


_ACCEPTED_FROM_LIBRARY = ("_auto_ack_callback.<locals>.new_callback", "Endpoint._handle_request")


class _Iterated:
    """What is kept for the iterator of a subscription."""

    def __init__(self, telemetry: Telemetry, iterator: Any) -> None:
        self.telemetry = telemetry
        self.shared = shared_since(find(iterator))  # which loops have
        subscription = iterator._sub
        self.client = keep(subscription._conn, telemetry, Client)
        self.deliveries = self.client.deliveries(*subscribed(subscription))

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


def wrap_subscribe(nats: Nats, subscribe: Callable[..., Any]) -> Callable[..., Any]:
    """`Client.subscribe` takes the callback that messages are handled by, JetStream's push consumers' too."""

    async def wrapper(self: Any, subject: Any, queue: Any = "", cb: Any = None, *args: Any, **kwargs: Any) -> Any:
        callback = cb
        try:
            if cb is not None and nats.telemetry.enabled and isinstance(subject, str) and _is_application(cb):
                client = nats.client(self)
                source = consumed_from(subject, queue, client.consumers.get(subject))
                callback = partial(handle, client.deliveries(*source).hand_out, cb)
            elif cb is not None and nats.telemetry.enabled:
                callback = watching(nats, cb)
        except Exception as error:
            report("Client.subscribe", error)
        return await subscribe(self, subject, queue, callback, *args, **kwargs)

    return wrapper


def wrap_subscribe_bind(nats: Nats, bind: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamContext.subscribe_bind` knows the consumer; `Client.subscribe` inside sees only a made-up subject."""

    async def wrapper(self: Any, stream: Any, config: Any, consumer: Any, *args: Any, **kwargs: Any) -> Any:
        consumers: dict[Any, Any] = {}
        subject = None
        try:
            if nats.telemetry.enabled:
                consumers, subject = nats.client(self._nc).consumers, config.deliver_subject
                consumers[subject] = config
        except Exception as error:
            report("JetStreamContext.subscribe_bind", error)
        try:
            return await bind(self, stream, config, consumer, *args, **kwargs)
        finally:
            consumers.pop(subject, None)

    return wrapper


wrap_aiter = loops(_Iterated)


def wrap_anext(nats: Nats, advance: Callable[..., Any]) -> Callable[..., Any]:
    """`async for` over `Subscription.messages`: a message is handled until the next is asked for."""

    async def wrapper(self: Any) -> Any:
        state = find(self)
        held = state.shared.asked() if state is not None else None
        message = await advance(self)
        try:
            if nats.telemetry.enabled:
                state = keep(self, nats.telemetry, _Iterated)
                (held or state.shared.asked()).hold(state.deliveries.hand_out(message))
        except Exception as error:
            report("Subscription.messages", error)
        return message

    return wrapper


def wrap_cancel(_nats: Nats, cancel: Callable[..., Any]) -> Callable[..., Any]:
    """The iterator of a subscription is cancelled when that is closed, drained or unsubscribed."""

    def wrapper(self: Any) -> Any:
        for state in (find(self), find(self._sub)):
            if state is not None:
                guard("Subscription.messages", state.close)
        return cancel(self)

    return wrapper
