"""`dead_letter`: a message that cannot be handled goes to another queue."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from otel_messaging.core.safety import report
from otel_messaging.instrumentation.dead_letters import ORIGINAL, PREFIX, DeadLetter, expect, reasons

from .messages import is_message
from .readers import fold, identify

if TYPE_CHECKING:
    from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

    from otel_messaging.core.delivery import Delivery

# Orders to the broker, not to be given again: where to send copies, and how often it has delivered this one.
_ORDERS = ("CC", "BCC", "x-acquired-count", "x-delivery-count")
_USER = "user-id"
_KEPT = frozenset(ORIGINAL + name.lower() for name in (*_ORDERS, _USER))  # of a letter that dies again


async def dead_letter(
    message: AbstractIncomingMessage,
    error: BaseException,
    exchange: AbstractExchange,
    routing_key: str,
    **options: Any,
) -> Any:
    """Publish a message that cannot be handled to where dead letters go. Acknowledge it afterwards.

    Body, properties and headers are the message's own. Headers say where it came from and why it is here:
    ``dead-letter-original-exchange``, ``dead-letter-original-routing-key``, ``dead-letter-error-type`` and
    ``dead-letter-error``, in place of any that were there. As with `RabbitMQ's own dead letters
    <https://www.rabbitmq.com/docs/dlx#effects>`_ the expiration is left out, for the message would be lost again. What
    would order the broker about has another name: the headers ``CC``, ``BCC``, ``x-acquired-count`` and
    ``x-delivery-count``, and the user id, which has to be the publisher's, become ``dead-letter-original-cc`` and so
    on.

    The message's span gets an event ``send_to_dead_letter``; the new one is its child and linked to the original.

    Args:
        message: the message.
        error: why it could not be handled.
        exchange: what to publish it to, such as ``channel.default_exchange``.
        routing_key: where to; of the default exchange, a queue's name.
        **options: more arguments of `Exchange.publish
            <https://docs.aio-pika.com/apidoc.html#aio_pika.Exchange.publish>`_, such as ``timeout``.

    Returns:
        What ``Exchange.publish`` returns. A message that the broker could not route is returned, not raised.

    Raises:
        TypeError: this is no message that has come from a queue, or no exchange.
        Exception: whatever ``Exchange.publish`` raises.
    """
    expect(message, is_message(message), "an IncomingMessage of aio-pika")
    expect(exchange, hasattr(exchange, "publish"), "an Exchange after message and error")
    sent: Any = copy.copy(message)  # not locked, as the message is when it is settled
    headers = _encodable(message.headers or {})
    sent.headers = headers
    sent.expiration = sent.user_id = None
    try:
        sent.headers = _headers(message, headers, error)
    except Exception as failure:
        report("dead_letter", failure)
    with DeadLetter("aio_pika", "rabbitmq", _origin(message), fold(headers), error, _concerns(message)) as letter:
        result = await exchange.publish(sent, routing_key, **options)
        if getattr(result, "delivery", None) is None:
            letter.sent()
    return result


def _origin(message: Any) -> str:
    return message.exchange or message.routing_key or ""


def _headers(message: Any, headers: dict[str, Any], error: BaseException) -> dict[str, Any]:
    orders = {name: headers[name] for name in _ORDERS if name in headers}
    if message.user_id:
        orders[_USER] = message.user_id
    ours = {name for name in headers if name.startswith(PREFIX)} - _KEPT
    return {
        **{name: value for name, value in headers.items() if name not in orders and name not in ours},
        **{ORIGINAL + name.lower(): value for name, value in orders.items()},
        ORIGINAL + "exchange": message.exchange or "",
        ORIGINAL + "routing-key": message.routing_key or "",
        **reasons(error),
    }


def _encodable(value: Any) -> Any:
    """What the library can send of what it has received: it gives bytes for text that is no Unicode, and takes none."""
    if isinstance(value, dict):
        return {name: _encodable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return bytearray(value) if isinstance(value, bytes) else value


def _concerns(message: Any) -> Any:
    def concerns(delivery: Delivery) -> bool:
        return delivery.handles(identify(message))

    return concerns
