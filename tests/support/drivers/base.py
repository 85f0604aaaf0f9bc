"""The form of a driver."""

from __future__ import annotations

import inspect
import uuid
from typing import Any, ClassVar


class Driver:
    """An application of one library, connected to one broker.

    Attributes:
        library: the name of the adapter's module.
        system: the value of `messaging.system`.
        instrumentor: the instrumentor's class.
        broker: the fixture that gives the broker's address.
        verb: the library's word for publishing, in the conventions.
        callbacks: whether messages can be handled by a callback.
        settles: the library's word for accepting a message, or None.
        funnel: the method that every message leaves by: module, class, name.
        ascii_headers: whether the installed version loses headers that are not ASCII.
    """

    library: ClassVar[str]
    system: ClassVar[str]
    instrumentor: ClassVar[Any]
    broker: ClassVar[str]
    verb: ClassVar[str] = "publish"
    callbacks: ClassVar[bool] = True
    settles: ClassVar[str | None] = None
    funnel: ClassVar[tuple[str, str, str]]
    ascii_headers: ClassVar[bool] = False

    def __init__(self, address: str):
        self.address = address
        self.errors: list[BaseException] = []

    def name(self) -> str:
        """A destination that nobody else uses."""
        return f"test-{uuid.uuid4().hex[:12]}"

    async def open(self) -> None:
        """Connect. Called after the library is instrumented."""

    async def close(self) -> None:
        """Disconnect, and end what is left."""

    async def listen(self, destination: str) -> Any:
        """Be ready to consume a destination by a loop; called before anything is published there."""
        raise NotImplementedError

    async def publish(self, destination: str, body: bytes = b"body", headers: Any = None) -> None:
        """Publish one message and wait until the broker has it, where the library lets one wait.

        `headers` are a dictionary of texts, or what `native` makes of one, which is passed on as it is.
        """
        raise NotImplementedError

    def native(self, headers: dict[str, Any]) -> Any:
        """Headers in the library's own form."""
        return dict(headers)

    def odd_headers(self) -> list[Any]:
        """Headers that the library takes, named as a context and with values that are none, in its own form."""
        return []

    @property
    def publisher(self) -> Any:
        """The object that has the method `funnel`."""
        raise NotImplementedError

    def asked(self, request: Any) -> tuple[str, bytes, Any]:
        """Destination, body and headers, as a publish hook is told of them."""
        return request.destination, request.arguments["payload"], request.arguments["headers"]

    async def disconnect(self) -> None:
        """Close what publishes, so that publishing fails."""
        raise NotImplementedError

    async def loop(self, listener: Any, count: int, body: Any, after: Any = None) -> None:
        """Loop over `count` messages and leave by `break`.

        `body(message)` may be a coroutine function, and may raise; `after()` is called right behind the loop.
        """
        raise NotImplementedError

    async def first(self, listener: Any) -> Any:
        """Leave a loop by `return`, with its first message."""
        raise NotImplementedError

    async def drain(self, listener: Any, count: int, body: Any, after: Any = None) -> None:
        """Loop over `count` messages and go on until the loop ends by itself, in the library's own way."""
        raise NotImplementedError

    async def guarded_loop(self, listener: Any, body: Any) -> None:
        """Loop once inside a `with` block of the library, which sees what the body raises; skip if it has none."""
        raise NotImplementedError

    def generator(self, listener: Any) -> Any:
        """An asynchronous generator of the application's own around a loop, in the library's `with` block if any."""
        raise NotImplementedError

    def iterate(self, listener: Any) -> Any:
        """An iterator that `advance` takes: a loop, step by step."""
        raise NotImplementedError

    async def advance(self, iterator: Any) -> Any:
        """The next message of an iterator."""
        raise NotImplementedError

    async def stop(self, listener: Any, iterator: Any) -> None:
        """Close a consumer and its iterator."""
        raise NotImplementedError

    async def subscribe(self, destination: str, handler: Any) -> Any:
        """Have each message handled by a coroutine function, if the library has callbacks.

        What the library reports of exceptions in it ends up in `errors`.
        """
        raise NotImplementedError

    async def interrupt(self, subscription: Any) -> None:
        """Have the library cancel the handler that is running."""
        raise NotImplementedError

    def published(self, vocabulary: str, destination: str, body: bytes) -> dict[str, Any]:
        """All attributes of the span of `publish`, but for message ids, offsets and sequence numbers."""
        raise NotImplementedError

    def consumed(self, vocabulary: str, destination: str, body: bytes) -> dict[str, Any]:
        """All attributes of the span of a consumed message, but for message ids, offsets and delivery tags."""
        raise NotImplementedError

    varying: ClassVar[frozenset[str]] = frozenset()
    """The attributes that `published` and `consumed` leave out: present, but not known beforehand."""

    def varying_types(self, vocabulary: str) -> dict[str, str]:
        """The types of those attributes on a consumed message."""
        raise NotImplementedError

    def body(self, message: Any) -> bytes:
        """The body of a message."""
        raise NotImplementedError

    def headers(self, message: Any) -> list[tuple[str, Any]]:
        """The headers of a message, as they came over the wire, values as text where they are text."""
        raise NotImplementedError


async def call(body: Any, message: Any) -> None:
    """Call a loop body that may be a coroutine function."""
    result = body(message)
    if inspect.isawaitable(result):
        await result


def both(vocabulary: str, guide: dict[str, Any], semconv: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a vocabulary; of both, the conventions win where the names are the same."""
    chosen = {"guide": guide, "semconv": semconv, "both": {**guide, **semconv}}
    return {key: value for key, value in chosen[vocabulary].items() if value is not None}
