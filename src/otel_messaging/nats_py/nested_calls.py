"""Calls that publish inside: what is told of once, and what is not told of."""

from __future__ import annotations

from asyncio import current_task
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from otel_messaging.instrumentation.wrapping import around

from .readers import sendable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_messaging.core.operations import Publication
    from otel_messaging.instrumentation.adapter import Adapter

    from .client import Client
    from .readers import Outcome

NOTHING: dict[str, Any] = {}


class Call(Protocol):
    """A call that is under way."""

    def returned(self, result: Any) -> Any:
        """It has returned. Returns what the application gets."""

    def raised(self, error: BaseException) -> None:
        """It has raised an exception."""


def calls(before: Callable[..., Call | None]) -> Callable[[Any, Callable[..., Any]], Callable[..., Any]]:
    """Make the replacement of a method from what begins a call of it: the `Patch.wrap`."""
    return around(before, _returned, _raised)


def _returned(call: Call, result: Any) -> Any:
    return call.returned(result)


def _raised(call: Call, error: BaseException) -> None:
    call.raised(error)


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

    def answered(self, answer: Any) -> None:
        """What it asks for inside was answered."""
        self.answer = answer

    def returned(self, result: Any) -> Any:
        """The call has returned. Returns what the application gets."""
        self.end()
        return result

    def raised(self, _error: BaseException) -> None:
        """The call has raised an exception."""
        self.end()

    def end(self) -> None:
        """The call is over. Tasks and timers that were made meanwhile keep this, and no more than this."""
        self._task = self.answer = None
        if telling.get() is self:  # by value: a coroutine may be closed in another context than it ran in
            telling.set(None)

    def is_here(self) -> bool:
        """Whether it is this task's call. Tasks that are made meanwhile inherit the variable, and may keep it."""
        return self._task is not None and self._task is current_task()


class Recorded:
    """A call that publishes inside and is told of once. The headers are added inside, where they are complete.

    Args:
        publication: the message on its way.
        read: reads the outcome from what the call returns.
    """

    def __init__(self, publication: Publication, read: Callable[[Any], Outcome]) -> None:
        self._publication = publication
        self._read = read
        self.told = Told(publication.carrier)

    def returned(self, result: Any) -> Any:
        """The call has returned, and its result tells the outcome."""
        self.told.end()
        outcome: Outcome = (None, ())
        try:
            outcome = self._read(result)
        finally:
            self._publication.end(*outcome)
        return result

    def raised(self, error: BaseException) -> None:
        """The call has raised an exception."""
        self.told.end()
        self._publication.end(error)


class Inside(NamedTuple):
    """A call inside of another, which learns from the result."""

    tell: Callable[[Any], None]

    def returned(self, result: Any) -> Any:
        """The call has returned."""
        self.tell(result)
        return result

    def raised(self, error: BaseException) -> None:
        """The call has raised an exception, which the other one will see."""


telling: ContextVar[Told | None] = ContextVar("otel_messaging_nats_telling", default=None)


def here() -> Told | None:
    """The call that publishes inside, if one is under way here."""
    told = telling.get()
    return told if told is not None and told.is_here() else None


def silently(nats: Adapter, _owner: Any) -> Told | None:
    """What is published inside is no message of the application's.

    `Msg.respond` publishes a reply, which belongs to the request. The others ask JetStream for something, under a
    prefix that the application may have chosen.
    """
    return Told(NOTHING) if nats.telemetry.enabled and here() is None else None


wrap_silently = calls(silently)
