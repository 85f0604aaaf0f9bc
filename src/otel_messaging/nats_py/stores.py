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
from otel_messaging.core.safety import guard
from otel_messaging.instrumentation.closing import closes
from otel_messaging.instrumentation.loops import shared_since
from otel_messaging.instrumentation.state import find, keep
from otel_messaging.instrumentation.wrapping import reading

from .client import Client
from .looping import loops, steps
from .nested_calls import NOTHING, Inside, Told, calls, here, silently
from .readers import fold, split_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.operations import Operation, Publication
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.adapter import Adapter

    from .nested_calls import Call

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

    def begin(self, verb: str, facts: v.Facts, context: Context, answer: Callable[[Any], v.Facts]) -> Stored:
        """Begin a call."""
        publication = self.telemetry.store(self.operation(v.STORE, verb), facts, context)
        return Stored(self, verb, publication, answer)


class Stored(Told):
    """A call that reads or writes a bucket."""

    __slots__ = ("_answer", "_publication", "_reads", "_store")

    def __init__(self, store: Store, verb: str, publication: Publication, answer: Callable[[Any], v.Facts]) -> None:
        carries = store.telemetry.settings.store_context
        self._store = store
        self._answer = answer
        self._reads = carries and verb.startswith("get")
        self._publication: Publication | None = publication
        super().__init__(publication.carrier if carries else NOTHING)

    def carries(self, subject: str) -> Mapping[str, str]:
        """The context goes into entries, and once into an object: not into its chunks, nor into questions."""
        wanted = self.carrier and subject.startswith((_ENTRIES, _META.format(self._store.bucket)))
        return self.carrier if wanted else NOTHING

    def found(self, message: Any) -> None:
        """The library has asked for a stored message, and got it."""
        headers = fold(message.headers) if self._reads else None
        if headers and self._publication is not None:
            self._store.telemetry.found(self._publication, headers)

    def returned(self, result: Any) -> Any:
        """The call has returned what is known to be an answer."""
        self.end()
        facts: v.Facts = ()
        try:
            facts = self._answer(result)
        finally:
            self._finish(None, facts)
        return result

    def raised(self, error: BaseException) -> None:
        """The call has raised an exception. That there is no such value is an answer, and no error."""
        self.end()
        self._finish(None if _is_absence(error) else error, ())

    def _finish(self, error: BaseException | None, facts: v.Facts) -> None:
        publication, self._publication = self._publication, None
        if publication is not None:
            publication.end(error, facts)


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


def _key(key: Any) -> v.Facts:
    return ((v.NATS_KEY, v.named(key)),)


def _value(key: Any, value: Any) -> v.Facts:
    """The key and the value's size."""
    return (*_key(key), (v.BODY_SIZE, len(value) if isinstance(value, (bytes, bytearray, str)) else None))


def _name(name: Any) -> v.Facts:
    return _key(name)


def _no_key() -> v.Facts:
    return ()


def _stores(
    verb: str, details: Callable[..., v.Facts], answer: Callable[[Any], v.Facts]
) -> Callable[[Any, Callable[..., Any]], Callable[..., Any]]:
    """The replacement of a method of a store.

    Args:
        verb: the library's own word for it.
        details: reads what is known from the method's arguments, by their names.
        answer: reads what is known from what it returns.
    """

    def before(nats: Adapter, store: Any, *arguments: Any) -> Stored | None:
        context = nats.telemetry.outgoing() if here() is None else None
        if context is None:
            return None
        return keep(store, nats.telemetry, Store).begin(verb, details(*arguments), context, answer)

    return calls(reading(before, details))


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


def watching(telemetry: Telemetry, callback: Any) -> Any:
    """The callback of a watcher, which makes updates of messages without their headers, but for a note of these."""
    function = getattr(callback, "__qualname__", "")
    if function not in _WATCHING or not telemetry.settings.store_context:
        return callback
    cells = dict(zip(callback.__code__.co_freevars, callback.__closure__, strict=True))
    return partial(_note, keep(cells["watcher"].cell_contents, telemetry, Watched), callback)


async def _note(watched: Watched, callback: Callable[..., Any], message: Any) -> Any:
    guard("watching a bucket", watched.saw, message)
    return await callback(message)


def finds(nats: Adapter, manager: Any) -> Call | None:
    """`JetStreamManager.get_msg` is how a store reads, with the headers; what it gives to the application has none."""
    told = here()
    return Inside(told.found) if isinstance(told, Stored) else silently(nats, manager)


wrap_get_msg = calls(finds)

ENTRIES: dict[str, Any] = {
    "get": _stores("get", _key, _entry),
    "put": _stores("put", _value, _revision),
    "create": _stores("create", _value, _revision),
    "update": _stores("update", _value, _revision),
    "delete": _stores("delete", _key, _nothing),
    "purge": _stores("purge", _key, _nothing),
    "purge_deletes": _stores("purge_deletes", _no_key, _nothing),
    "keys": _stores("keys", _no_key, _several),
    "history": _stores("history", _key, _several),
    "status": _stores("status", _no_key, _nothing),
}
"""The methods of `KeyValue`."""

OBJECTS: dict[str, Any] = {
    "get": _stores("get", _name, _object),
    "get_info": _stores("get_info", _name, _object),
    "put": _stores("put", _name, _object),
    "update_meta": _stores("update_meta", _name, _nothing),
    "delete": _stores("delete", _name, _nothing),
    "list": _stores("list", _no_key, _several),
    "seal": _stores("seal", _no_key, _nothing),
    "status": _stores("status", _no_key, _nothing),
}
"""The methods of `ObjectStore`."""

WATCHERS: dict[str, Any] = {
    "updates": steps(Watched),
    "__anext__": steps(Watched),
    "__aiter__": loops(Watched),
    "stop": closes,
}
"""The methods of watchers, which both have: by `stop`, the last update is handled."""
