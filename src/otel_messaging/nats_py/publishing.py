"""`publish` and `request`, of the client and of JetStream."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from otel_messaging.core.contexts import DELIVERY
from otel_messaging.core.requests import PublishRequest
from otel_messaging.instrumentation.state import find, keep
from otel_messaging.instrumentation.wrapping import Blocks, Method, around

from .client import Client
from .limits import is_too_large, limits_of, size_of
from .nested_calls import NOTHING, Inside, Recorded, Told, calls, here, telling
from .readers import acknowledged, is_reply, replied

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Mapping

    from otel_messaging.core.operations import Publication
    from otel_messaging.core.telemetry import Telemetry
    from otel_messaging.instrumentation.adapter import Adapter

    from .nested_calls import Call


def begin(
    telemetry: Telemetry,
    verb: str,
    owner: Any,
    client: Any,
    subject: Any,
    payload: Any,
    headers: Any,
    arguments: Mapping[str, Any],
) -> Publication | None:
    """Begin to publish.

    Args:
        telemetry: tells of it.
        verb: the library's own word for it.
        owner: what the application calls.
        client: the connection.
        subject: where to.
        payload: what.
        headers: the application's headers.
        arguments: all arguments of the application, for the hook.

    Returns:
        The message on its way, or None if it is not to be told of.
    """
    context = telemetry.outgoing()
    if context is None or not isinstance(subject, str):
        return None
    state = keep(client, telemetry, Client)
    delivery: Any = context.get(DELIVERY)  # a task that its handler has started may answer later
    if state.is_silent(subject) or (delivery is not None and is_reply(subject, delivery)):
        return None
    publication = state.publish(verb, subject, payload, headers, context)
    if telemetry.publish_hook is not None:
        telemetry.tell_publish_hook(publication, PublishRequest(owner, subject, arguments))
    return publication


_PUBLISH = """\
_value = {headers}
if _telling.get() is None:
    _token = _begin(_telemetry, "publish", self, self, {subject}, {payload}, {headers}, {known})
    if _token is not None and _token.carrier:
        _value = _keep(self, _telemetry, _client).add({subject}, {headers}, _token.carrier, {payload})
else:
    _token, _value = _nested(_telemetry, self, {subject}, {payload}, {headers}, {known})
"""


def wrap_publish(nats: Adapter, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`Client.publish` is where every message leaves, the library's own too."""
    method = Method(publish, replaces="headers")
    given = dict(zip(inspect.signature(_arguments).parameters, method.own(_arguments, after=0), strict=True))
    hooked = nats.telemetry.publish_hook is not None
    known = f"_arguments({', '.join(given.values())})" if hooked else "_nothing"
    blocks = Blocks(_PUBLISH.format(known=known, **given), "_token.end()", "_guard(_place, _token.end, _error)")
    return method.replacement(
        blocks,
        _telemetry=nats.telemetry,
        _telling=telling,
        _begin=begin,
        _keep=keep,
        _client=Client,
        _nested=_nested,
        _nothing=NOTHING,
        _arguments=_arguments,
    )


def _arguments(subject: Any, payload: Any, reply: Any, headers: Any) -> dict[str, Any]:
    return {"subject": subject, "payload": payload, "reply": reply, "headers": headers}


def _nested(
    telemetry: Telemetry, client: Any, subject: Any, payload: Any, headers: Any, known: Mapping[str, Any]
) -> tuple[Publication | None, Any]:
    """A message leaves inside of a call, perhaps one of another task that has started this one."""
    told = here()
    if told is not None:
        return None, told.add(keep(client, telemetry, Client), subject, headers, payload)
    publication = begin(telemetry, "publish", client, client, subject, payload, headers, known)
    if publication is None or not publication.carrier:
        return publication, headers
    return publication, keep(client, telemetry, Client).add(subject, headers, publication.carrier, payload)


def requests(nats: Adapter, client: Any, subject: Any, payload: Any, headers: Any, arguments: Any) -> Call | None:
    """`Client.request` publishes and waits for the reply: one operation, which the reply ends."""
    told = here()
    if told is not None:
        return Inside(told.answered)
    publication = begin(nats.telemetry, "request", client, client, subject, payload, headers, arguments)
    return None if publication is None else Recorded(publication, replied)


class _ToStream:
    """A message on its way to a stream, which tells in its answer how large a message may be.

    Args:
        told: the call that sends it.
        own: what is told of, if that call began here.
        connection: the client.
        subject: where to.
        message: its payload, and the application's headers, to which the library may add some.
    """

    def __init__(
        self, told: Told, own: Recorded | None, connection: Any, subject: str, message: tuple[Any, Any]
    ) -> None:
        told.stored = True
        self._told = told
        self._own = own
        self._connection = connection
        self._subject = subject
        self._message = message

    def returned(self, acknowledgement: Any) -> Any:
        """The stream has stored it."""
        try:
            state = find(self._connection)
            if state is not None and state.limits.sizes:
                state.limits.accepted(self._subject, size_of(*self._message), acknowledgement.stream)
        finally:
            if self._own is not None:
                self._own.returned(acknowledgement)
        return acknowledgement

    def raised(self, error: BaseException) -> None:
        """The stream has refused it, or has not answered."""
        try:
            if is_too_large(error):
                stream = json.loads(self._told.answer.data).get("stream")
                limits_of(self._connection).refused(self._subject, size_of(*self._message), stream)
        finally:
            if self._own is not None:
                self._own.raised(error)


def stores(nats: Adapter, jetstream: Any, subject: Any, payload: Any, headers: Any, arguments: Any) -> _ToStream | None:
    """`JetStreamContext.publish` is a request that the stream answers with an acknowledgement."""
    told, own, client = here(), None, jetstream._nc
    if told is None:
        publication = begin(nats.telemetry, "publish", jetstream, client, subject, payload, headers, arguments)
        if publication is None:
            return None
        own = Recorded(publication, acknowledged)
        told = own.told
    return _ToStream(told, own, client, subject, (payload, headers))


class _Promised:
    """A message that a stream will acknowledge later."""

    def __init__(self, publication: Publication, client: Client, subject: str, message: tuple[Any, Any]) -> None:
        self._publication = publication
        self._client = client
        self._subject = subject
        self._message = message
        self._told = Told(publication.carrier)
        self._told.stored = True

    def returned(self, future: Future[Any]) -> Any:
        """The application has a future of the acknowledgement."""
        self._told.end()
        try:
            self._publication.sent = (self._subject, size_of(*self._message))
            self._client.awaits(future, self._publication)
        except BaseException:
            self._publication.end()
            raise
        return future

    def raised(self, error: BaseException) -> None:
        """It was not published."""
        self._told.end()
        self._publication.end(error)


def promises(
    nats: Adapter, jetstream: Any, subject: Any, payload: Any, headers: Any, arguments: Any
) -> _Promised | None:
    """`JetStreamContext.publish_async` returns a future of the acknowledgement."""
    if here() is not None:
        return None
    telemetry, client = nats.telemetry, jetstream._nc
    publication = begin(telemetry, "publish", jetstream, client, subject, payload, headers, arguments)
    if publication is None:
        return None
    return _Promised(publication, keep(client, telemetry, Client), subject, (payload, headers))


def _reply(_nats: Adapter, jetstream: Any, msg: Any) -> tuple[Any, Any]:
    """`JetStreamContext._handle_async_reply` raises what a stream refuses a message with; the future stays as it is."""
    return jetstream, msg


def _refused(token: tuple[Any, Any], error: BaseException) -> None:
    jetstream, reply = token
    state = find(jetstream._nc)
    future = jetstream._publish_async_futures.get(reply.subject.rpartition(".")[2])
    publication = state.unanswered.get(future) if state is not None else None
    if publication is not None and isinstance(error, Exception):
        if is_too_large(error):
            subject, size = publication.sent
            state.limits.refused(subject, size, json.loads(reply.data).get("stream"))
        state.answered(future, error)


wrap_request = calls(requests)
wrap_jetstream_publish = calls(stores)
wrap_publish_async = calls(promises)
wrap_async_reply = around(_reply, failed=_refused)
