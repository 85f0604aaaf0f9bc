"""Key-value and object stores: a span for each call of the application, and one for each update that it watches.

What the library publishes and asks for inside, such as the hundred chunks of an object, belongs to the call.

https://docs.nats.io/nats-concepts/jetstream/key-value-store
https://docs.nats.io/nats-concepts/jetstream/obj_store
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.cache import Cache
from otel_messaging.core.finalizers import finalizer
from otel_messaging.core.safety import guard, report
from otel_messaging.instrumentation.loops import shared_since
from otel_messaging.instrumentation.state import find, keep

from .client import Client
from .looping import loops
from .nested_calls import NOTHING, Told, inherited, telling, wrap_silently
from .readers import fold, split_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.operations import Operation, Publication
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.loops import Held

    from .adapter import Nats

_ABSENT = frozenset({"KeyNotFoundError", "NoKeysError", "ObjectNotFoundError"})
_WATCHING = ("KeyValue.watch.<locals>.watch_updates", "ObjectStore.watch.<locals>.watch_updates")
_ENTRIES, _META = "$KV.", "$O.{}.M."


class Store:
    """What is kept for a bucket."""

    def __init__(self, telemetry: Telemetry, store: Any) -> None:
        self.telemetry = telemetry
        self.client = keep(store._js._nc, telemetry, Client)
        self.bucket = store._name
        self._facts: v.Facts = ()
        self._operations: dict[str, Operation] = {}

    def operation(self, action: v.Action, verb: str) -> Operation:
        """What is the same for all calls of one kind, or for all updates."""
        if self.client.facts() is not self._facts:
            self._facts = self.client.facts()
            self._operations.clear()
        operation = self._operations.get(verb)
        if operation is None:
            facts = (*self._facts, (v.NATS_BUCKET, self.bucket))
            operation = self.telemetry.operation(action, verb, v.Destination(self.bucket), facts)
            self._operations[verb] = operation
        return operation

    def begin(self, verb: str, facts: v.Facts, context: Context) -> Stored:
        """Begin a call."""
        publication = self.telemetry.store(self.operation(v.STORE, verb), facts, context)
        return Stored(self, verb, publication)


class Stored(Told):
    """A call that reads or writes a bucket."""

    __slots__ = ("_publication", "_reads", "_store")

    def __init__(self, store: Store, verb: str, publication: Publication) -> None:
        carries = store.telemetry.settings.store_context
        super().__init__(publication.carrier if carries else NOTHING)
        self._store = store
        self._reads = carries and verb.startswith("get")
        self._publication: Publication | None = publication

    def carries(self, subject: str) -> Mapping[str, str]:
        """The context goes into entries, and once into an object: not into its chunks, nor into questions."""
        wanted = self.carrier and subject.startswith((_ENTRIES, _META.format(self._store.bucket)))
        return self.carrier if wanted else NOTHING

    def found(self, message: Any) -> None:
        """The library has asked for a stored message, and got it."""
        headers = fold(message.headers) if self._reads else None
        if headers and self._publication is not None:
            self._store.telemetry.found(self._publication, headers)

    def finish(self, error: BaseException | None, facts: v.Facts) -> None:
        """The call has returned, or raised. That there is no such value is an answer, and no error."""
        publication, self._publication = self._publication, None
        if publication is not None:
            publication.end(None if error is not None and _is_absence(error) else error, facts)


def _is_absence(error: BaseException) -> bool:
    """Whether an exception says that there is nothing. Of an empty list of objects it is just `NotFoundError`."""
    kind = type(error)
    if kind.__name__ == "NotFoundError":
        return getattr(error, "err_code", None) is None
    return not _ABSENT.isdisjoint(base.__name__ for base in kind.__mro__)


def _revision(revision: Any) -> v.Facts:
    return ((v.NATS_SEQUENCE, v.counted(revision)),)


def _entry(entry: Any) -> v.Facts:
    return (
        (v.NATS_SEQUENCE, v.counted(entry.revision)),
        (v.BODY_SIZE, len(entry.value) if entry.value is not None else None),
    )


def _object(found: Any) -> v.Facts:
    return ((v.BODY_SIZE, v.counted(getattr(found, "info", found).size)),)


def _several(found: Any) -> v.Facts:
    return ((v.BATCH_COUNT, len(found)),)


def _nothing(_answer: Any) -> v.Facts:
    return ()


def _key(key: str) -> Callable[..., v.Facts]:
    """Reads the key, from a method whose first argument it is."""

    def read(*args: Any, **kwargs: Any) -> v.Facts:
        if not args and key not in kwargs:
            raise TypeError(f"missing argument: {key!r}")
        found = args[0] if args else kwargs[key]
        return ((v.NATS_KEY, v.named(found)),)

    return read


def _value(key: Any, value: Any, *_args: Any, **_kwargs: Any) -> v.Facts:
    """Reads the key and the value's size."""
    size = len(value) if isinstance(value, (bytes, bytearray, str)) else None
    return ((v.NATS_KEY, v.named(key)), (v.BODY_SIZE, size))


def _no_key(*_args: Any, **_kwargs: Any) -> v.Facts:
    return ()


def _stores(
    verb: str, arguments: Callable[..., v.Facts], answer: Callable[[Any], v.Facts]
) -> Callable[[Nats, Callable[..., Any]], Callable[..., Any]]:
    """The replacement of a method of a store.

    Args:
        verb: the library's own word for it.
        arguments: reads what is known from the method's arguments.
        answer: reads what is known from what it returns.
    """

    def wrap(nats: Nats, method: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            stored = _begin(nats, verb, self, partial(arguments, *args, **kwargs))
            if stored is None:
                return await method(self, *args, **kwargs)
            try:
                result = await method(self, *args, **kwargs)
            except BaseException as error:
                stored.finish(error, ())
                raise
            finally:
                stored.end()
            stored.finish(None, _read(answer, result))
            return result

        return wrapper

    return wrap


def _begin(nats: Nats, verb: str, store: Any, read: Callable[[], v.Facts]) -> Stored | None:
    try:
        facts = read()
    except TypeError:
        return None  # wrong arguments: the library says so itself
    try:
        context = nats.telemetry.outgoing() if inherited() is None else None
        return None if context is None else keep(store, nats.telemetry, Store).begin(verb, facts, context)
    except Exception as error:
        report(f"{verb} of a bucket", error)
        return None


def _read(answer: Callable[[Any], v.Facts], result: Any) -> v.Facts:
    try:
        return answer(result)
    except Exception as error:
        report("reading what a bucket has", error)
        return ()


class Watched:
    """What is kept for a watcher."""

    def __init__(self, telemetry: Telemetry, watcher: Any) -> None:
        self.telemetry = telemetry
        self.shared = shared_since(find(watcher))  # which loops have
        self._store = keep(watcher._js, telemetry, Store)
        self._store.client.watched.add(self)
        self._writers: Cache[Any, Any] = Cache()

    def saw(self, message: Any) -> None:
        """The library has got a message that it may make an update of."""
        if message.headers:
            self._writers.put(_mark(message), message.headers)

    def hand_out(self, update: Any) -> Delivery | None:
        """The application has an update: an entry, or what is known of an object. Other things tell of the watcher."""
        context = self.telemetry.active_context()
        if context is None or not hasattr(update, "bucket"):
            return None
        if hasattr(update, "key"):
            key, mark, facts = update.key, update.revision, _entry(update)
        else:
            key, mark, facts = update.name, (update.nuid, bool(update.deleted)), _object(update)
        headers = fold(self._writers.pop(mark, None)) if self._writers else None
        operation = self._store.operation(v.PROCESS, "process")
        delivery = self.telemetry.deliver(operation, ((v.NATS_KEY, v.named(key)), *facts), headers, update, context)
        if delivery is not None and self.telemetry.consume_hook is not None:
            self.telemetry.tell_consume_hook(delivery, update)
        return delivery

    def close(self) -> None:
        """The watcher is stopped, perhaps in another task."""
        self.shared.close()

    @finalizer
    def __del__(self) -> None:
        guard("letting go of a watcher", self.close)  # nobody has stopped it, and nobody has it any more


def _mark(message: Any) -> Any:
    """What tells the update that a message is made into from others: a revision, or the parts of an object's state."""
    if message.subject.startswith(_ENTRIES):
        words = split_reply(message.reply)
        return int(words[3]) if words is not None else None
    state = json.loads(message.data or b"{}")  # a marker of the server's own is empty
    return state.get("nuid"), bool(state.get("deleted"))


def watching(nats: Nats, callback: Any) -> Any:
    """The callback of a watcher, which makes updates of messages without their headers, but for a note of these."""
    function = getattr(callback, "__qualname__", "")
    if function not in _WATCHING or not nats.telemetry.settings.store_context:
        return callback
    cells = dict(zip(callback.__code__.co_freevars, callback.__closure__, strict=True))
    return partial(_note, keep(cells["watcher"].cell_contents, nats.telemetry, Watched), callback)


async def _note(watched: Watched, callback: Callable[..., Any], message: Any) -> Any:
    try:
        watched.saw(message)
    except Exception as error:
        report("watching a bucket", error)
    return await callback(message)


def wrap_get_msg(nats: Nats, get: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamManager.get_msg` is how a store reads, with the headers; what it gives to the application has none."""

    silently = wrap_silently(nats, get)

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        told = telling.get()
        if not isinstance(told, Stored) or not told.is_here():
            return await silently(self, *args, **kwargs)
        message = await get(self, *args, **kwargs)
        try:
            told.found(message)
        except Exception as error:
            report("JetStreamManager.get_msg", error)
        return message

    return wrapper


def wrap_update(nats: Nats, advance: Callable[..., Any]) -> Callable[..., Any]:
    """`async for` over a watcher, or `updates()`: an update is handled until the next is asked for."""

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if inherited() is not None:
            return await advance(self, *args, **kwargs)  # `keys` and its like watch, too
        held: Held | None = None
        state = find(self)
        if state is not None:
            held = state.shared.asked()
        update = await advance(self, *args, **kwargs)
        try:
            if nats.telemetry.enabled:
                state = keep(self, nats.telemetry, Watched)
                (held or state.shared.asked()).hold(state.hand_out(update))
        except Exception as error:
            report("a watcher's updates", error)
        return update

    return wrapper


def wrap_stop(_nats: Nats, stop: Callable[..., Any]) -> Callable[..., Any]:
    """A watcher is stopped: its last update is handled."""

    async def wrapper(self: Any) -> Any:
        state = find(self)
        if state is not None:
            guard("a watcher's stop", state.close)
        return await stop(self)

    return wrapper


ENTRIES: dict[str, Any] = {
    "get": _stores("get", _key("key"), _entry),
    "put": _stores("put", _value, _revision),
    "create": _stores("create", _value, _revision),
    "update": _stores("update", _value, _revision),
    "delete": _stores("delete", _key("key"), _nothing),
    "purge": _stores("purge", _key("key"), _nothing),
    "purge_deletes": _stores("purge_deletes", _no_key, _nothing),
    "keys": _stores("keys", _no_key, _several),
    "history": _stores("history", _key("key"), _several),
    "status": _stores("status", _no_key, _nothing),
}
"""The methods of `KeyValue`."""

OBJECTS: dict[str, Any] = {
    "get": _stores("get", _key("name"), _object),
    "get_info": _stores("get_info", _key("name"), _object),
    "put": _stores("put", _key("name"), _object),
    "update_meta": _stores("update_meta", _key("name"), _nothing),
    "delete": _stores("delete", _key("name"), _nothing),
    "list": _stores("list", _no_key, _several),
    "seal": _stores("seal", _no_key, _nothing),
    "status": _stores("status", _no_key, _nothing),
}
"""The methods of `ObjectStore`."""

WATCHERS: dict[str, Any] = {
    "updates": wrap_update,
    "__anext__": wrap_update,
    "__aiter__": loops(Watched),
    "stop": wrap_stop,
}
"""The methods of watchers, which both have."""
