"""What the ``dead_letter`` functions of the three libraries have in common.

Each publishes a message anew with what says where it came from and why, in headers whose names begin with
``dead-letter-``. They work without an SDK and without an instrumentor too: then a message is published, and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.trace import get_current_span

from otel_messaging.core import propagation, safety
from otel_messaging.core import vocabulary as v
from otel_messaging.core.contexts import attach, get_current
from otel_messaging.core.delivery import handled_here
from otel_messaging.core.operations import error_type_of, text_of
from otel_messaging.instrumentation.instrumentor import active

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.context import Context

    from otel_messaging.core.delivery import Delivery
    from otel_messaging.core.operations import Reporting

PREFIX = "dead-letter-"
ORIGINAL = PREFIX + "original-"
"""What the names of headers begin with that tell of the message as it was."""
ERROR_TYPE = PREFIX + "error-type"
ERROR = PREFIX + "error"
_LONGEST = 1000  # characters of an error's text: no header may make a message too large that was not


def expect(value: Any, fits: bool, wanted: str) -> None:
    """Refuse an argument before anything is sent.

    Args:
        value: the argument.
        fits: whether it will do.
        wanted: what will.

    Raises:
        TypeError: it will not do.
    """
    if not fits:
        raise TypeError(f"dead_letter() was given {type(value).__name__!r}: it takes {wanted}")


def reasons(error: BaseException, encoding: str = "utf-8") -> dict[str, str]:
    """The headers that say why: the error's type, and its text where it has one.

    Args:
        error: why the message could not be handled.
        encoding: what the library's headers can hold; the rest is escaped.

    Returns:
        Short texts of one line.
    """
    texts = {ERROR_TYPE: error_type_of(error), ERROR: text_of(error)}
    return {name: _line(text, encoding) for name, text in texts.items() if text}


def _line(text: str, encoding: str) -> str:
    line = text[:_LONGEST].encode(encoding, "backslashreplace").decode(encoding)
    return "".join(character if character.isprintable() else " " for character in line)[:_LONGEST].strip()


class DeadLetter:
    """A message that is put aside: a ``with`` block around publishing it. Telemetry that fails is not noticed there.

    Inside, the message that is being handled is current. Where none is, because the application has kept the message
    for later, the context that it carries is, so that its trace goes on.

    Args:
        library: the name of the adapter's module.
        system: the value of ``messaging.system``.
        origin: where the message came from: topic, queue or subject.
        headers: its headers, names in lower case.
        error: why it could not be handled.
        concerns: whether what is being handled is this message.
    """

    __slots__ = (
        "_carried",
        "_concerns",
        "_error",
        "_facts",
        "_headers",
        "_library",
        "_origin",
        "_previous",
        "_telemetry",
    )

    def __init__(
        self,
        library: str,
        system: str,
        origin: str,
        headers: Mapping[str, Any] | None,
        error: BaseException,
        concerns: Callable[[Delivery], bool],
    ) -> None:
        self._library = library
        self._telemetry: Reporting | None = None
        self._origin = v.Destination(origin)
        self._facts: v.Facts = ((v.SYSTEM, system),)
        self._headers = headers
        self._error = error
        self._concerns = concerns
        self._carried: Context | None = None
        self._previous: Context | None = None

    def __enter__(self) -> DeadLetter:
        try:
            self._begin()
        except Exception as failure:
            safety.report("dead_letter", failure)
        return self

    def __exit__(self, *_error: object) -> None:
        if self._previous is not None and get_current() is self._carried:
            attach(self._previous)

    def sent(self) -> None:
        """The library has taken it."""
        try:
            if self._telemetry is not None:
                self._telemetry.count(v.DEAD_LETTERED, self._origin, self._facts, self._error)
        except Exception as failure:
            safety.report("dead_letter", failure)

    def _begin(self) -> None:
        delivery = handled_here()
        telemetry = active(self._library) or (delivery.telemetry if delivery is not None else None)
        context = telemetry.active_context() if telemetry is not None else None
        if telemetry is None or context is None:
            return
        span = get_current_span(context)
        if delivery is not None and self._concerns(delivery):
            self._origin, self._facts = delivery.operation.destination, delivery.operation.facts
        if delivery is None and not span.is_recording() and self._headers:
            self._carried = propagation.extract(self._headers, context)
            if self._carried is not context:
                self._previous = context
                attach(self._carried)
        if telemetry.excludes(self._origin):
            return
        self._telemetry = telemetry
        details = {v.DEAD_LETTER_ORIGIN: self._origin.name, v.DEAD_LETTER_ERROR: v.cut(text_of(self._error))}
        (delivery.span if delivery is not None else span).add_event(v.DEAD_LETTER, details)
