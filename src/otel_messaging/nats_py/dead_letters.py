"""`dead_letter`: a message that cannot be handled goes to another subject."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from otel_messaging.core.propagation import as_text
from otel_messaging.core.safety import report
from otel_messaging.patterns.dead_letters import ORIGINAL, PREFIX, DeadLetter, expect, reasons

from .messages import is_message
from .publishing import is_too_large
from .reading import DELIVERED, fold, split_reply

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext
    from nats.js.api import PubAck, RawStreamMsg

    from otel_messaging.core.operations import Delivery

_ORDER = "nats-"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LINE = len(": \r\n")
_ROOM = 200  # bytes, for a context


async def dead_letter(
    message: Msg | RawStreamMsg,
    error: BaseException,
    publisher: Client | JetStreamContext,
    subject: str,
    **options: Any,
) -> PubAck | None:
    """Publish a message that cannot be handled to a subject for dead letters. Acknowledge or terminate it afterwards.

    Data and headers are the message's own. Headers say where it came from and why it is here:
    ``dead-letter-original-subject``, ``dead-letter-original-stream`` and ``dead-letter-original-sequence`` where a
    stream has it, ``dead-letter-error-type`` and ``dead-letter-error``, in place of any that were there. Headers that
    order a server about have another name: ``Nats-Msg-Id``, by which a stream would take the message for a duplicate,
    becomes ``dead-letter-original-nats-msg-id``, and so do all that begin with ``Nats-``. Servers without headers get
    none, and a message that would be too large goes without ours.

    The message's span gets an event ``send_to_dead_letter``; the new one is its child and linked to the original.

    Args:
        message: the message; also one from ``get_msg``, as the advisory of maximum deliveries asks for.
        error: why it could not be handled.
        publisher: what to publish it with: JetStream to be sure that a stream has it, or a client.
        subject: where to.
        **options: more arguments of `publish
            <https://nats-io.github.io/nats.py/modules.html#nats.js.JetStreamContext.publish>`_, such as ``timeout``.

    Returns:
        What ``publish`` returns: of JetStream the stream's acknowledgement.

    Raises:
        TypeError: this is no message, or nothing that publishes one.
        Exception: whatever ``publish`` raises.
    """
    expect(message, is_message(message), "a Msg or a RawStreamMsg of nats-py")
    expect(publisher, hasattr(publisher, "publish"), "a Client or a JetStreamContext after message and error")
    headers = _sendable(message.headers)
    letters = _letters(message, error, publisher, headers)
    with DeadLetter("nats_py", "nats", message.subject, fold(headers), error, _concerns(message)) as letter:
        result = await _send(publisher, subject, message.data or b"", letters, options)
        letter.sent()
    return result


def _sendable(headers: Any) -> dict[str, str]:
    """What the library takes of headers that it has received, whoever has sent them."""
    texts = {name.strip(): as_text(value) for name, value in (headers or {}).items()}
    return {name: text for name, text in texts.items() if text is not None and _NAME.fullmatch(name)}


async def _send(publisher: Any, subject: str, data: Any, letters: list[Any], options: dict[str, Any]) -> Any:
    try:
        return await publisher.publish(subject, data, headers=letters[0], **options)
    except Exception as error:
        if letters[0] is letters[-1] or not is_too_large(error):
            raise
    return await publisher.publish(subject, data, headers=letters[-1], **options)


def _letters(message: Any, error: BaseException, publisher: Any, headers: dict[str, str]) -> list[Any]:
    """The headers to send, and those to send if they are too large."""
    kept = {name: text for name, text in headers.items() if not name.lower().startswith((_ORDER, PREFIX))}
    try:
        orders = {name.lower(): text for name, text in headers.items() if name.lower().startswith(_ORDER)}
        told = {
            **kept,
            **{name: text for name, text in headers.items() if name.lower().startswith(ORIGINAL + _ORDER)},
            **{ORIGINAL + name: text for name, text in orders.items()},
            **_origin(message),
            **reasons(error, "ascii"),
        }
        if _fits(getattr(publisher, "_nc", publisher), told, message.data):
            return [told, kept or None]
    except Exception as failure:
        report("dead_letter", failure)
    return [kept or None]


def _origin(message: Any) -> dict[str, str]:
    stream, sequence = getattr(message, "stream", None), getattr(message, "seq", None)
    reply = getattr(message, "reply", None)
    words = split_reply(reply) if reply and reply.startswith(DELIVERED) else None
    if words is not None:
        stream, sequence = words[0], words[3]
    found = {"subject": message.subject, "stream": stream, "sequence": sequence}
    return {ORIGINAL + name: str(value) for name, value in found.items() if value is not None}


def _fits(client: Any, headers: dict[str, str], data: Any) -> bool:
    """Whether a server takes headers at all, and these: what is too large closes the connection for good."""
    server, limit = getattr(client, "_server_info", None), getattr(client, "_max_payload", None)
    if not isinstance(server, dict) or not isinstance(limit, int):
        return True  # what stands for a client, in a test
    size = len(data or b"") + sum(len(name) + len(text.encode()) + _LINE for name, text in headers.items())
    return bool(server.get("headers")) and size + _ROOM <= limit


def _concerns(message: Any) -> Any:
    def concerns(delivery: Delivery) -> bool:
        return delivery.handles(message)

    return concerns
