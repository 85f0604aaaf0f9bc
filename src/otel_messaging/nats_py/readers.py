"""How nats-py's objects are read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from otel_messaging.core import vocabulary as v
from otel_messaging.core.operations import Failure
from otel_messaging.core.propagation import as_text, fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_messaging.core.delivery import Delivery


_MESSAGE_ID = "nats-msg-id"
_INBOX = re.compile(r"\.[0-9A-Za-z]{22}(\.[0-9A-Za-z]+)?$")  # any client's, whatever its prefix is
NUID = re.compile(r"[0-9A-Za-z]{22}$")  # a consumer's name, where the library makes it up
DELIVERED = "$JS.ACK."  # what replies to messages of JetStream begin with
_SERVICE_ERROR = "Nats-Service-Error"
_SERVICE_ERROR_CODE = "Nats-Service-Error-Code"
_SHORT, _LONG = 9, 11  # how many words such a reply has: without and with a domain and an account

Outcome = tuple[Failure | None, v.Facts]


def describe(payload: Any, headers: dict[str, Any] | None) -> v.Facts:
    """What is known of a message: its size, and the id that its publisher has given it."""
    size = len(payload) if type(payload) is bytes or hasattr(payload, "__len__") else None
    return ((v.BODY_SIZE, size), (v.MESSAGE_ID, _message_id(headers) if headers else None))


def _message_id(headers: dict[str, Any]) -> str | None:
    given = as_text(headers.get(_MESSAGE_ID))
    return None if given is None else v.cut(given)


def identify(reply: str | None, headers: dict[str, Any]) -> v.Facts:
    """What tells a message from others of the same fetch: its id, and its place in its stream."""
    facts: v.Facts = ((v.MESSAGE_ID, _message_id(headers)),)
    words = split_reply(reply) if reply and reply.startswith(DELIVERED) else None
    try:
        return facts if words is None else (*facts, (v.NATS_STREAM, words[0]), (v.NATS_SEQUENCE, number(words[3])))
    except ValueError:
        return facts  # not JetStream's


def fold(headers: Any) -> dict[str, Any] | None:
    """Headers with their names in lower case; None where there are none, or they are not what the library takes."""
    try:
        return {name.lower(): value for name, value in headers.items()} if headers else None
    except Exception:
        return None


def sendable(headers: Any) -> Any:
    """Headers that the library sends back to who has sent them, but for a context that it cannot send.

    With its extra ``fast-parse`` it makes lists of values, which it then refuses. Without us there would be no context.
    """
    try:
        ours = fields()
        refused = {name for name, value in headers.items() if isinstance(value, list) and name.lower() in ours}
    except Exception:
        return headers  # the library says itself what is wrong with them
    return {name: value for name, value in headers.items() if name not in refused} or None if refused else headers


def replied(reply: Any) -> Outcome:
    """A service tells in headers that it has failed; the library returns its reply as any other."""
    headers = reply.headers
    if not headers or _SERVICE_ERROR not in headers:
        return None, ()
    code, description = as_text(headers.get(_SERVICE_ERROR_CODE)), as_text(headers[_SERVICE_ERROR])
    return Failure(code or _SERVICE_ERROR, v.cut(description or "")), ()


def acknowledged(acknowledgement: Any) -> Outcome:
    """A stream tells where it has stored a message, or anybody does who has subscribed to the subject."""
    return None, (
        (v.NATS_STREAM, v.named(acknowledgement.stream)),
        (v.NATS_SEQUENCE, v.counted(acknowledgement.seq)),
        (v.NATS_DUPLICATE, True if acknowledgement.duplicate else None),
    )


def peer(client: Any) -> v.Facts:
    """To what address a client is connected, by TCP or through a web socket."""
    transport = client._transport
    connection = getattr(transport, "_io_writer", None) or getattr(transport, "_ws", None)
    return v.peer(connection.get_extra_info("peername")) if connection is not None else ()


def is_reply(subject: str, delivery: Delivery) -> bool:
    """Whether a subject is the inbox that a message, or one that is handled around it, asks to be answered at."""
    return delivery.is_answered_at(subject) and _INBOX.search(subject) is not None


def consumed_from(subject: str, queue: Any, consumer: Any) -> tuple[str, str]:
    """What a subscription gets its messages from, perhaps with wildcards, and the group that shares them.

    A JetStream consumer delivers to a subject made up for it. Without a filter it gets all that its stream has.
    """
    if consumer is None:
        return subject, queue or ""
    filters = consumer.filter_subject or ",".join(getattr(consumer, "filter_subjects", None) or (">",))
    return filters, consumer.deliver_group or consumer.durable_name or ""


def subscribed(subscription: Any) -> tuple[str, str]:
    """The source of a subscription without a callback."""
    jetstream = subscription._jsi
    consumer = jetstream._ccreq if jetstream is not None else None
    return consumed_from(subscription._subject, subscription._queue, consumer)


def stored(words: Sequence[str], behind: int | None, group: str | None) -> v.Facts:
    """What JetStream tells of a message.

    Args:
        words: of its reply subject, as `split_reply` gives them.
        behind: how many messages wait behind it.
        group: what its consumer is called, where that is known already.

    Raises:
        ValueError: the words are not those of a server.
    """
    stream, consumer, attempt, sequence = words[:4]
    return (
        (v.NATS_STREAM, stream),
        (v.NATS_SEQUENCE, number(sequence)),
        (v.ATTEMPT, number(attempt)),
        (v.LAG, behind),
        (v.NATS_GROUP, None if group else consumer),
    )


def number(word: str) -> int:
    """A number in a reply subject, which anybody may have made up.

    Raises:
        ValueError: no server would send it.
    """
    found = int(word)
    if not 0 <= found <= v.LARGEST:
        raise ValueError(f"no number of JetStream: {word:.50}")
    return found


def split_reply(reply: str) -> Sequence[str] | None:
    """The words of a reply subject that tell of a message of JetStream.

    ``$JS.ACK[.<domain>.<account>].<stream>.<consumer>.<deliveries>.<sequence>.<number>.<time>.<pending>[.<token>]``.
    `Msg.metadata` reads them too, but keeps what it has read in the message, which then equals no other.
    """
    words = reply.split(".", _LONG + 1) if len(reply) <= v.LONGEST else ()  # longer than a server's can be
    if len(words) == _SHORT:
        return words[2:]
    return words[4:_LONG] if len(words) >= _LONG else None
