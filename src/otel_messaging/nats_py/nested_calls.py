"""Calls that publish inside: what is told of once, and what is not told of."""

from __future__ import annotations

from asyncio import current_task
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.operations import Failure
from otel_messaging.core.safety import report

from .readers import sendable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_messaging.core.operations import Publication

    from .adapter import Nats
    from .client import Client

NOTHING: dict[str, Any] = {}
Outcome = tuple[Failure | None, v.Facts]


class Told:
    """A call that publishes inside what is told of already, or is not told of at all.

    Attributes:
        carrier: the headers to add to what it publishes.
        stored: whether a stream will answer that.
        answer: what was answered last.
    """

    __slots__ = ("_task", "answer", "carrier", "stored")

    def __init__(self, carrier: Mapping[str, str]) -> None:
        self.carrier = carrier
        self.stored = False
        self.answer: Any = None
        self._task: Any = current_task()
        telling.set(self)

    def add(self, client: Client, subject: str, headers: Any, payload: Any) -> Any:
        """The headers of what it publishes, with those to add."""
        carrier = self.carries(subject)
        if not carrier:
            return sendable(headers) if headers else headers
        return client.add(subject, headers, carrier, payload, self.stored)

    def carries(self, _subject: str) -> Mapping[str, str]:
        """The headers to add to what it publishes to a subject."""
        return self.carrier

    def end(self) -> None:
        """The call has returned. Tasks and timers that were made meanwhile keep this, and no more than this."""
        self._task = self.answer = None
        if telling.get() is self:  # by value: a coroutine may be closed in another context than it ran in
            telling.set(None)

    def is_here(self) -> bool:
        """Whether it is this task's call. Tasks that are made meanwhile inherit the variable, and may keep it."""
        return self._task is not None and self._task is current_task()


telling: ContextVar[Told | None] = ContextVar("otel_messaging_nats_telling", default=None)


def inherited() -> Mapping[str, str] | None:
    """The headers to add to what is published now, if a call around it is told of, or is not to be."""
    told = here()
    return None if told is None else told.carrier


def here() -> Told | None:
    """The call that publishes inside, if one is under way here."""
    told = telling.get()
    return told if told is not None and told.is_here() else None


def acknowledged(acknowledgement: Any) -> Outcome:
    """A stream tells where it has stored a message, or anybody does who has subscribed to the subject."""
    return None, (
        (v.NATS_STREAM, v.named(acknowledgement.stream)),
        (v.NATS_SEQUENCE, v.counted(acknowledgement.seq)),
        (v.NATS_DUPLICATE, True if acknowledgement.duplicate else None),
    )


async def tell(publication: Publication | None, call: Callable[[], Any], read: Callable[[Any], Outcome]) -> Any:
    """Make a call that publishes inside, and tell of it once. The headers are added inside, where they are complete."""
    if publication is None:
        return await call()
    told = Told(publication.carrier)
    try:
        answer = await call()
    except BaseException as error:
        publication.end(error)
        raise
    finally:
        told.end()
    outcome: Outcome = (None, ())
    try:
        outcome = read(answer)
    except Exception as error:
        report("reading an answer", error)
    finally:
        publication.end(*outcome)
    return answer


def wrap_silently(nats: Nats, method: Callable[..., Any]) -> Callable[..., Any]:
    """What is published inside is no message of the application's.

    `Msg.respond` publishes a reply, which belongs to the request. The others ask JetStream for something, under a
    prefix that the application may have chosen.
    """

    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not nats.telemetry.enabled or inherited() is not None:
            return await method(self, *args, **kwargs)
        told = Told(NOTHING)
        try:
            return await method(self, *args, **kwargs)
        finally:
            told.end()

    return wrapper
