"""`publish` and `request`, of the client and of JetStream."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from otel_messaging.core.safety import report
from otel_messaging.core.state import find

from .services import replied
from .telling import NOTHING, Told, acknowledged, here, inherited, tell, telling

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_messaging.core.operations import Publication

    from .adapter import Nats
    from .telling import Sent

_TOO_LARGE = 10054  # JetStream's code for a message that crosses the limit of its stream


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
        publication = None
        try:
            if inherited() is None:
                others = {"timeout": timeout, "old_style": old_style, **kwargs}
                arguments = {"subject": subject, "payload": payload, "headers": headers, **others}
                publication = nats.begin("request", self, self, subject, payload, headers, arguments)
        except Exception as error:
            report("Client.request", error)
        call = partial(request, self, subject, payload, timeout, old_style, headers, *args, **kwargs)
        return await tell(publication, call, replied)

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
        return await tell(publication, partial(_fit, self._nc, call), acknowledged)

    return wrapper


async def _fit(connection: Any, call: Callable[[], Any]) -> Any:
    """Make a call whose message a stream refuses if it is too large: with a context in it, it is sent again without.

    The stream has neither stored the first one nor noted its id.
    """
    try:
        return await call()
    except Exception as error:
        told = telling.get()
        sent = told.sent if told is not None and is_too_large(error) else None
        if told is None or sent is None or sent.carrying is sent.headers:
            raise
        told.carrier = NOTHING
        _learn(connection, sent)
    return await call()


def is_too_large(error: Exception) -> bool:
    """Whether a stream has refused a message for its size, and not stored it."""
    return getattr(error, "err_code", None) == _TOO_LARGE


def _learn(connection: Any, sent: Sent) -> None:
    state = find(connection)
    if state is not None:
        state.learn(sent)


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
        try:
            future = await publish(self, subject, payload, wait_stall, stream, headers, *args, **kwargs)
        except BaseException as error:
            publication.end(error)
            raise
        finally:
            sent = told.sent
            told.end()
        try:
            publication.sent = sent.kept() if sent is not None else None
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
            if not await _mended(self, msg, error):
                raise

    return wrapper


async def _mended(jetstream: Any, reply: Any, error: Exception) -> bool:
    """Whether a message was sent again that a stream has refused. If not, its span tells of that."""
    try:
        state = find(jetstream._nc)
        future = jetstream._publish_async_futures.get(reply.subject.rpartition(".")[2])
        publication = state.unanswered.get(future) if state is not None else None
        if publication is None:
            return False
        if is_too_large(error) and await _sent_again(jetstream._nc, publication, reply.subject):
            return True
        state.answered(future, error)
    except Exception as failure:
        report("JetStreamContext.publish_async", failure)
    return False


async def _sent_again(connection: Any, publication: Publication, inbox: str) -> bool:
    """Whether a message that a stream has found too large was sent again without a context, for it to answer again."""
    sent, publication.sent = publication.sent, None
    if sent is None:
        return False
    _learn(connection, sent)
    told = Told(NOTHING)
    try:
        await connection.publish(sent.subject, sent.payload, inbox, sent.headers)
    except Exception:
        return False
    finally:
        told.end()
    return True
