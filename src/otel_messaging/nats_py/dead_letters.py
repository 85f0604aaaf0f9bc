"""`dead_letter`: a message that cannot be handled goes to another subject."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from otel_messaging.core.propagation import as_text
from otel_messaging.core.safety import guard, report
from otel_messaging.instrumentation.dead_letters import ORIGINAL, PREFIX, DeadLetter, expect, reasons

from .limits import is_too_large, limits_of, size_of
from .messages import is_message
from .readers import DELIVERED, fold, split_reply

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext
    from nats.js.api import PubAck, RawStreamMsg

    from otel_messaging.core.delivery import Delivery

_ORDER = "nats-"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
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
    none, and a message that would be too large for the server goes without ours. What a stream allows is learnt when it
    refuses a message: that raises, and later ones to the same stream go without ours where they would be as large.

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
    kept = {name: text for name, text in headers.items() if not name.lower().startswith((_ORDER, PREFIX))}
    told, data = _told(message, error, publisher, subject, headers, kept), message.data or b""
    with DeadLetter("nats_py", "nats", message.subject, fold(headers), error, _concerns(message)) as letter:
        try:
            result = await publisher.publish(subject, data, headers=told or None, **options)
        except Exception as failure:
            if is_too_large(failure):
                guard("dead_letter", _learn, publisher, subject, size_of(data, kept))
            raise
        letter.sent()
    return result


def _sendable(headers: Any) -> dict[str, str]:
    """What the library takes of headers that it has received, whoever has sent them."""
    texts = {name.strip(): as_text(value) for name, value in (headers or {}).items()}
    return {name: text for name, text in texts.items() if text is not None and _NAME.fullmatch(name)}


def _told(
    message: Any, error: BaseException, publisher: Any, subject: str, headers: dict[str, str], kept: dict[str, str]
) -> dict[str, str]:
    """The headers to send: those that are kept, and ours where they do no harm."""
    try:
        orders = {name.lower(): text for name, text in headers.items() if name.lower().startswith(_ORDER)}
        told = {
            **kept,
            **{name: text for name, text in headers.items() if name.lower().startswith(ORIGINAL + _ORDER)},
            **{ORIGINAL + name: text for name, text in orders.items()},
            **_origin(message),
            **reasons(error, "ascii"),
        }
        if _fits(publisher, subject, size_of(message.data or b"", told)):
            return told
    except Exception as failure:
        report("dead_letter", failure)
    return kept


def _origin(message: Any) -> dict[str, str]:
    stream, sequence = getattr(message, "stream", None), getattr(message, "seq", None)
    reply = getattr(message, "reply", None)
    words = split_reply(reply) if reply and reply.startswith(DELIVERED) else None
    if words is not None:
        stream, sequence = words[0], words[3]
    found = {"subject": message.subject, "stream": stream, "sequence": sequence}
    return {ORIGINAL + name: str(value) for name, value in found.items() if value is not None}


def _fits(publisher: Any, subject: str, size: int) -> bool:
    """Whether a server takes headers at all, and so many: what is too large closes the connection for good."""
    client = getattr(publisher, "_nc", publisher)
    server, limit = getattr(client, "_server_info", None), getattr(client, "_max_payload", None)
    if not isinstance(server, dict) or not isinstance(limit, int):
        return True  # what stands for a client, in a test
    if not server.get("headers") or size + _ROOM > limit:
        return False
    return size <= limits_of(client).lower(limit, subject, publisher is not client)


def _learn(publisher: Any, subject: str, size: int) -> None:
    limits_of(getattr(publisher, "_nc", publisher)).refused(subject, size)


def _concerns(message: Any) -> Any:
    def concerns(delivery: Delivery) -> bool:
        return delivery.handles(message)

    return concerns
