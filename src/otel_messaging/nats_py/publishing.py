"""`publish` and `request`, of the client and of JetStream."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.core.safety import guard, report
from otel_messaging.instrumentation.state import find

from .limits import is_too_large, limits_of, size_of
from .nested_calls import NOTHING, Told, acknowledged, here, inherited, tell, telling
from .services import replied

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.operations import Publication

    from .adapter import Nats
    from .limits import Limits


def wrap_publish(nats: Nats, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`Client.publish` is where every message leaves, the library's own too."""
    hooked = nats.telemetry.publish_hook is not None

    async def wrapper(
        self: Any, subject: Any, payload: Any = b"", reply: Any = "", headers: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        publication, sent = None, headers
        try:
            told = here() if telling.get() is not None else None
            if told is not None:
                sent = told.add(nats.client(self), subject, headers, payload)
            else:
                known = _arguments(subject, payload, reply, headers) if hooked else NOTHING
                publication = nats.begin("publish", self, self, subject, payload, headers, known)
                if publication is not None and publication.carrier:
                    sent = nats.client(self).add(subject, headers, publication.carrier, payload)
        except Exception as error:
            report("Client.publish", error)
        try:
            if args or kwargs:
                result = await publish(self, subject, payload, reply, sent, *args, **kwargs)
            else:
                result = await publish(self, subject, payload, reply, sent)
        except BaseException as error:
            if publication is not None:
                publication.end(error)
            raise
        if publication is not None:
            publication.end()
        return result

    return wrapper


def _arguments(subject: Any, payload: Any, reply: Any, headers: Any) -> dict[str, Any]:
    return {"subject": subject, "payload": payload, "reply": reply, "headers": headers}


def wrap_request(nats: Nats, request: Callable[..., Any]) -> Callable[..., Any]:
    """`Client.request` publishes and waits for the reply: one operation, which the reply ends."""

    async def wrapper(
        self: Any,
        subject: Any,
        payload: Any = b"",
        timeout: Any = 0.5,
        old_style: Any = False,
        headers: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        publication = told = None
        try:
            told = here()
            if told is None:
                others = {"timeout": timeout, "old_style": old_style, **kwargs}
                arguments = {"subject": subject, "payload": payload, "headers": headers, **others}
                publication = nats.begin("request", self, self, subject, payload, headers, arguments)
        except Exception as error:
            report("Client.request", error)
        call = partial(request, self, subject, payload, timeout, old_style, headers, *args, **kwargs)
        if told is None:
            return await tell(publication, call, replied)
        told.answer = answer = await call()
        return answer

    return wrapper


def _begin(
    nats: Nats, jetstream: Any, subject: Any, payload: Any, stream: Any, headers: Any, others: dict[str, Any]
) -> Publication | None:
    """Begin to publish to a stream; None inside a call that is told of already."""
    try:
        if inherited() is None:
            arguments = {"subject": subject, "payload": payload, "stream": stream, "headers": headers, **others}
            return nats.begin("publish", jetstream, jetstream._nc, subject, payload, headers, arguments)
    except Exception as error:
        report("JetStreamContext.publish", error)
    return None


def wrap_jetstream_publish(nats: Nats, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamContext.publish` is a request that the stream answers with an acknowledgement."""

    async def wrapper(
        self: Any,
        subject: Any,
        payload: Any = b"",
        timeout: Any = None,
        stream: Any = None,
        headers: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        publication = _begin(nats, self, subject, payload, stream, headers, {"timeout": timeout, **kwargs})
        call = partial(publish, self, subject, payload, timeout, stream, headers, *args, **kwargs)
        call = partial(_learn, self._nc, call, subject, payload, headers)
        return await tell(publication, call, acknowledged)

    return wrapper


async def _learn(connection: Any, call: Callable[[], Any], subject: Any, payload: Any, headers: Any) -> Any:
    """Make a call that a stream answers, and learn from the answer how large a message may be."""
    told = here()
    if told is None:
        return await call()
    told.stored = True
    try:
        acknowledgement = await call()
    except Exception as error:
        if is_too_large(error):
            guard("JetStreamContext.publish", _refused, connection, subject, (payload, headers), told.answer)
        raise
    state = find(connection)
    if state is not None and state.limits.sizes:
        guard("JetStreamContext.publish", _accepted, state.limits, subject, (payload, headers), acknowledgement)
    return acknowledgement


def _refused(connection: Any, subject: str, message: tuple[Any, Any], reply: Any) -> None:
    limits_of(connection).refused(subject, size_of(*message), json.loads(reply.data).get("stream"))


def _accepted(limits: Limits, subject: str, message: tuple[Any, Any], acknowledgement: Any) -> None:
    limits.accepted(subject, size_of(*message), acknowledgement.stream)


def wrap_publish_async(nats: Nats, publish: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamContext.publish_async` returns a future of the acknowledgement."""

    async def wrapper(
        self: Any,
        subject: Any,
        payload: Any = b"",
        wait_stall: Any = None,
        stream: Any = None,
        headers: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        publication = _begin(nats, self, subject, payload, stream, headers, {"wait_stall": wait_stall, **kwargs})
        if publication is None:
            return await publish(self, subject, payload, wait_stall, stream, headers, *args, **kwargs)
        told = Told(publication.carrier)
        told.stored = True
        try:
            future = await publish(self, subject, payload, wait_stall, stream, headers, *args, **kwargs)
        except BaseException as error:
            publication.end(error)
            raise
        finally:
            told.end()
        try:
            publication.sent = (subject, size_of(payload, headers))
            nats.client(self._nc).awaits(future, publication)
        except Exception as error:
            publication.end()
            report("JetStreamContext.publish_async", error)
        return future

    return wrapper


def wrap_async_reply(_nats: Nats, handle_reply: Callable[..., Any]) -> Callable[..., Any]:
    """`JetStreamContext._handle_async_reply` raises what a stream refuses a message with; the future stays as it is."""

    async def wrapper(self: Any, msg: Any) -> Any:
        try:
            return await handle_reply(self, msg)
        except Exception as error:
            guard("JetStreamContext.publish_async", _fail, self, msg, error)
            raise

    return wrapper


def _fail(jetstream: Any, reply: Any, error: Exception) -> None:
    """A stream has refused a message."""
    state = find(jetstream._nc)
    future = jetstream._publish_async_futures.get(reply.subject.rpartition(".")[2])
    publication = state.unanswered.get(future) if state is not None else None
    if publication is not None:
        if is_too_large(error):
            subject, size = publication.sent
            state.limits.refused(subject, size, json.loads(reply.data).get("stream"))
        state.answered(future, error)
