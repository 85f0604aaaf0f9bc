"""Until when a message is being handled: what one consumer has handed out, and the loops over it."""

from __future__ import annotations

import sys
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

from otel_messaging.core import safety

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.telemetry import Telemetry


class Holder(Protocol):
    """What has handed out messages that are handled now."""

    def switch_off(self, telemetry: Telemetry) -> None:
        """Instrumentation is switched off: what a telemetry tells of is handled."""


_CALLBACK = "calling back with a message"
_TAKEN = object()
_holders: set[weakref.ref[Any]] = set()


def watch(holder: Holder) -> None:
    """Have something end what it has handed out when instrumentation is switched off, if it is still there."""
    _holders.add(weakref.ref(holder, _holders.discard))


def switch_off(telemetry: Telemetry) -> None:
    """Instrumentation is switched off: what was handed out is handled, in whichever task or thread.

    The context from before is back here at once, and in other tasks and threads when a loop there takes its next step.
    A callback that runs keeps its span until it returns, and so does a block that the application has opened by itself:
    their ends are seen anyway, and the application may have the span in its hands.
    """
    for reference in _holders.copy():
        holder = reference()
        if holder is not None:
            safety.guard("switching off", holder.switch_off, telemetry)


class Held:
    """The message that one consumer has handed out last, until it is handled.

    Attributes:
        delivery: that message, if any.
        entered: whether a ``with`` block around the consumer will show us the exceptions of its body.
        asker: the loop that is asking for a message, as a token of it.
    """

    __slots__ = ("__weakref__", "_owner", "asker", "delivery", "entered")

    def __init__(self) -> None:
        watch(self)
        self.delivery: Delivery | None = None
        self.entered = False
        self.asker: object = None
        self._owner: object = None

    def hold(self, delivery: Delivery | None) -> None:
        """The application has a message. What it had before, if two asked at the same time, is handled."""
        if self.delivery is not None:
            self.end()
        self.delivery = delivery
        self._owner, self.asker = self.asker, None

    def take(self, delivery: Delivery | None) -> None:
        """The application has a message without a loop: it is handled until the consumer is asked, as a pulled one."""
        self.asker = _TAKEN
        self.hold(delivery)

    def took(self, delivery: Delivery) -> bool:
        """Whether a message that is handled came so."""
        return self.delivery is delivery and self._owner is _TAKEN

    def release(self) -> None:
        """Somebody else knows when the message is handled."""
        self.delivery = None

    def end(self, error: BaseException | None = None) -> None:
        """The consumer was asked for another message, or closed."""
        delivery = self.delivery
        if delivery is not None:
            self.delivery = None
            delivery.end(error)

    def close(self) -> None:
        """The consumer was closed, perhaps in another task: that of the message has its context back once it asks."""
        if self.delivery is not None:
            self.delivery.end()

    def switch_off(self, telemetry: Telemetry) -> None:
        """Instrumentation is switched off, perhaps in another task."""
        if self.delivery is not None and self.delivery.is_told_to(telemetry):
            self.close()

    def exit(self, error: BaseException | None) -> None:
        """The ``with`` block around the consumer has ended, perhaps by an exception."""
        self.entered = False
        if self.delivery is not None:
            self.end(error if self.delivery.concerns(error) else None)

    def leave(self, owner: object, where: tuple[Any, int]) -> None:
        """A loop was left. The message is handled, if it was this loop that had asked for it."""
        if self.delivery is None or self._owner is not owner:
            return
        if self.entered and not self.delivery.done:
            self.delivery.leave(where)
            self._owner = None
        else:
            self.end()

    def ask(self, owner: object) -> bool:
        """A loop asks for a message, and has handled the one before.

        Returns:
            Whether it is to hold the next one: not while another loop is in its body.
        """
        delivery = self.delivery
        if delivery is not None:
            if self._owner is not owner and self._owner is not None and not delivery.done:
                return False
            self.end()
        self.asker = owner
        return True

    def is_left(self) -> bool:
        """Whether the message's loop was left, and nothing but the end of its span is to come."""
        return self.delivery is not None and self._owner is None


class HeldByThread:
    """What each thread has of something that threads may share, as `Held` tells of one: no thread meets another's.

    What follows is about the thread that asks, except where it says otherwise.
    """

    __slots__ = ("_entered", "parts")

    def __init__(self) -> None:
        self._entered = False
        self.parts: dict[int, Held] = {}
        """By the numbers of threads. What is called per message looks itself."""

    def part(self) -> Held:
        """What this thread has."""
        held = self.parts.get(get_ident())
        if held is None:
            held = self.parts[get_ident()] = Held()
            held.entered = self._entered
        return held

    @property
    def delivery(self) -> Delivery | None:
        """The message that this thread has."""
        return self.part().delivery

    @property
    def entered(self) -> bool:
        """Whether a ``with`` block around the consumer will show us the exceptions of its body, in all threads."""
        return self._entered

    @entered.setter
    def entered(self, entered: bool) -> None:
        self._entered = entered
        for held in tuple(self.parts.values()):
            held.entered = entered

    def end(self) -> None:
        """The consumer was asked for more."""
        self.part().end()

    def is_left(self) -> bool:
        """Whether the loop was left that had asked for the message."""
        return self.part().is_left()

    def leave(self, owner: object, where: tuple[Any, int]) -> None:
        """A loop was left, perhaps by another thread than those that have asked."""
        for held in tuple(self.parts.values()):
            held.leave(owner, where)

    def exit(self, error: BaseException | None) -> None:
        """The ``with`` block has ended, perhaps by an exception, which is not that of loops in other threads."""
        self.entered = False
        here = self.part()
        for held in tuple(self.parts.values()):
            held.exit(error if held is here or held.is_left() else None)

    def close(self) -> None:
        """The consumer was closed: no thread handles anything of it any more."""
        for held in tuple(self.parts.values()):
            held.close()


class _Loop:
    """What a loop over a consumer holds instead of the consumer itself.

    The interpreter lets go of it the moment the loop is left, by ``break`` or an exception too, and the consumer
    itself would not notice. In all else it behaves as the consumer does.
    """

    __slots__ = ("__weakref__", "_consumer", "_held", "_token")

    def __init__(self, consumer: Any, held: Held) -> None:
        own = object.__setattr__
        own(self, "_consumer", consumer)
        own(self, "_held", held)
        own(self, "_token", object())  # not the loop itself, which nothing may keep

    def __getattr__(self, name: str) -> Any:
        if name in _Loop.__slots__:
            raise AttributeError(name)  # making it has failed: it would look for the consumer in the consumer
        return getattr(self._consumer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._consumer, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._consumer, name)

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        return self._consumer.__reduce_ex__(protocol)  # type: ignore[no-any-return]

    @property
    def __class__(self) -> type:
        return type(self._consumer)

    @__class__.setter
    def __class__(self, kind: type) -> None:
        raise TypeError("__class__ assignment is not supported")

    def __eq__(self, other: object) -> bool:
        return self is other or bool(self._consumer == other)

    def __hash__(self) -> int:
        return hash(self._consumer)

    def __repr__(self) -> str:
        return repr(self._consumer)

    def __del__(self, is_exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_exiting():
            return
        try:
            self._held.leave(self._token, caller())
        except Exception as error:
            safety.report("leaving a loop", error)


def caller() -> tuple[Any, int]:
    """The code that lets go of a loop whose ``__del__`` calls this, and the index of its instruction."""
    try:
        frame = sys._getframe(2)
    except ValueError:
        return None, 0  # a thread does that ends
    return frame.f_code, frame.f_lasti


class Loop(_Loop):
    """A ``for`` loop over a consumer."""

    __slots__ = ()

    def __iter__(self) -> Loop:
        return self

    def __next__(self) -> Any:
        held = self._held
        try:
            held.end()  # also where instrumentation was switched off, and the consumer itself does not
        except safety.MISTAKES as error:
            safety.report("for", error)
        held.asker = self._token
        consumer = self._consumer
        del self  # an error that the library keeps keeps this frame, which must not keep the loop
        return type(consumer).__next__(consumer)

    def __enter__(self) -> Any:
        return self._consumer.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._consumer.__exit__(*error)


class AsyncLoop(_Loop):
    """An ``async for`` loop over a consumer."""

    __slots__ = ()

    def __aiter__(self) -> AsyncLoop:
        return self

    def __anext__(self) -> Awaitable[Any]:
        self._held.asker = self._token
        return self._consumer.__anext__()  # type: ignore[no-any-return]

    def __aenter__(self) -> Awaitable[Any]:
        return self._consumer.__aenter__()  # type: ignore[no-any-return]

    def __aexit__(self, *error: Any) -> Awaitable[Any]:
        return self._consumer.__aexit__(*error)  # type: ignore[no-any-return]


class Shared:
    """What one iterator has handed out: to each loop over it, of which there may be several, and to who asks without.

    Attributes:
        asking: where to hold what is handed out next; None for what nobody loops over.
    """

    __slots__ = ("_left", "_loops", "_pulled", "asking")

    def __init__(self) -> None:
        self._pulled = Held()
        self._loops: set[Held] = set()
        self._left: Held | None = None
        self.asking: Held | None = None

    def loop(self, iterator: Any) -> AsyncLoop:
        """A loop over the iterator."""
        held = _HeldByLoop(self)
        held.entered = self._pulled.entered
        self._loops.add(held)
        return _SharedLoop(iterator, held)

    def asked(self) -> Held:
        """Somebody asks for a message, and has handled the one before: where to hold it."""
        held, self.asking = self.asking or self._pulled, None
        held.end()
        if self._left is not None:
            self._left.end()
            self._left = None
        return held

    def enter(self) -> None:
        """A ``with`` block around the iterator will show the exceptions of its body."""
        for held in (self._pulled, *self._loops):
            held.entered = True

    def exit(self, error: BaseException | None) -> None:
        """The ``with`` block has ended, perhaps by an exception, which is not that of loops in other tasks."""
        self._pulled.exit(error)
        left, self._left = self._left, None
        if left is not None:
            left.exit(error)
        for held in tuple(self._loops):
            held.entered = False
            held.close()

    def close(self) -> None:
        """The iterator was closed, perhaps in another task."""
        for held in (self._pulled, *self._loops):
            held.close()

    def _leave(self, held: Held) -> None:
        self._loops.discard(held)
        if held.delivery is not None:
            if self._left is not None:
                self._left.end()
            self._left = held


def shared_since(before: Any) -> Shared:
    """What an iterator has handed out, also before instrumentation was switched off and on again.

    Args:
        before: what was kept for the iterator until then, which shares it no more and may be collected at any time;
            None if there is nothing.
    """
    if before is None:
        return Shared()
    shared: Shared = before.shared
    before.shared = Shared()
    return shared


class _HeldByLoop(Held):
    """What one loop of several over an iterator has."""

    __slots__ = ("shared",)

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared

    def leave(self, owner: object, where: tuple[Any, int]) -> None:
        super().leave(owner, where)
        self.shared._leave(self)


class _SharedLoop(AsyncLoop):
    """One ``async for`` loop of several over an iterator."""

    __slots__ = ()

    def __anext__(self) -> Awaitable[Any]:
        held = self._held
        try:
            held.end()  # here, where the message was handled: the answer may be awaited in another task
        except safety.MISTAKES as error:
            safety.report("async for", error)
        held.shared.asking = held
        return super().__anext__()


async def handle(
    begin: Callable[[Any], Delivery | None], callback: Callable[[Any], Awaitable[Any]], message: Any
) -> Any:
    """Call a callback with a message, and keep the message's span current meanwhile.

    Args:
        begin: starts to handle a message, and returns None where nobody is told of that.
        callback: the application's.
        message: what the callback is called with.

    Returns:
        What the callback returns.

    Raises:
        BaseException: whatever the callback raises.
    """
    delivery = None
    try:
        delivery = begin(message)
    except safety.MISTAKES as error:
        safety.report(_CALLBACK, error)
    try:
        result = await callback(message)
    except BaseException as error:
        if delivery is not None:
            safety.guard(_CALLBACK, delivery.end, error)
        raise
    if delivery is not None:
        try:
            delivery.end()
        except safety.MISTAKES as error:
            safety.report(_CALLBACK, error)
        delivery.token = None  # the tasks that the callback has started keep the delivery, and need not keep this
    return result
