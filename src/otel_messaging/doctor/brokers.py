"""Brokers: whether they answer, in their own protocol and without their clients."""

from __future__ import annotations

import functools
import json
import ssl
import struct
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from . import wire
from .report import Row, Section

if TYPE_CHECKING:
    from collections.abc import Callable

_UNUSED = "credentials were not tried"
_KAFKA_ID = b"otel"  # a correlation id, which the broker repeats
_KAFKA = b"\x00\x12\x00\x00" + _KAFKA_ID + b"\x00\x06doctor"  # ApiVersions, version 0
_AMQP = b"AMQP\x00\x00\x09\x01"
_CONNECTION_START = b"\x00\x0a\x00\x0a"  # class 10, method 10


class Broker(NamedTuple):
    """A broker to ask.

    Attributes:
        scheme: of its address.
        place: where it is.
    """

    scheme: str
    place: wire.Place

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"


def parse(address: str) -> Broker:
    """Read the address of a broker.

    Args:
        address: ``kafka://host:port``, ``kafka+ssl://``, ``amqp://``, ``amqps://``, ``nats://`` or ``tls://`` (NATS). A
            user, a password and a virtual host are passed over.

    Raises:
        ValueError: it is not such an address. The message does not repeat it, as it may hold a password.
    """
    kinds = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
    scheme, separator, _ = address.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"a broker's address is a URL that begins with one of {kinds}")
    port, encrypted, _ = _SCHEMES[scheme]
    try:
        parts = urlsplit(address)
        port = parts.port or port
        host = parts.hostname
    except ValueError:
        host = None
    if not host:
        raise ValueError(f"this {scheme}:// address has no host or no proper port; give one address for each broker")
    return Broker(scheme, wire.Place(host, port, _any_certificate() if encrypted else None))


def section(brokers: list[Broker], seconds: float) -> Section | None:
    """Ask brokers whether they answer.

    Args:
        brokers: whom to ask.
        seconds: how long to wait.
    """
    if not brokers:
        return None
    asking = [functools.partial(_ask, broker, seconds) for broker in brokers]
    late = [Row(str(broker), "no answer in time", _reach(broker)) for broker in brokers]
    return Section("Brokers", tuple(wire.together(asking, seconds, late)))


def _ask(broker: Broker, seconds: float) -> Row:
    try:
        return Row(str(broker), *_SCHEMES[broker.scheme][2](broker.place, seconds))
    except ssl.SSLError as error:
        return Row(str(broker), wire.why(error), "use the port with TLS, or the scheme without")
    except Exception as error:
        return Row(str(broker), wire.why(error), _reach(broker))


def _reach(broker: Broker) -> str:
    return f"start the broker, correct host and port, or let this machine reach {broker.place}"


def _kafka(place: wire.Place, seconds: float) -> tuple[str, str]:
    answer = wire.ask(place, struct.pack(">i", len(_KAFKA)) + _KAFKA, lambda read: len(read) >= 8, seconds)
    return (f"answers as Kafka; {_UNUSED}", "") if answer[4:8] == _KAFKA_ID else _other("Kafka", answer)


def _amqp(place: wire.Place, seconds: float) -> tuple[str, str]:
    answer = wire.ask(place, _AMQP, lambda read: len(read) >= 11, seconds)
    if answer[:1] == b"\x01" and answer[7:11] == _CONNECTION_START:
        return f"answers as AMQP 0-9-1; {_UNUSED}", ""
    return _other("AMQP 0-9-1", answer)


def _nats(place: wire.Place, seconds: float) -> tuple[str, str]:
    answer = wire.ask(place, b"", lambda read: b"\r\n" in read, seconds)
    if not answer.startswith(b"INFO "):
        return _other("NATS", answer)
    info = json.loads(answer[5:].partition(b"\r\n")[0])
    version = "".join(sign for sign in str(info.get("version", "?")) if sign.isprintable())[:20]
    if not info.get("headers"):
        return f"answers as NATS {version}, without headers", "use NATS 2.2 or newer: contexts travel in headers"
    stored = "with" if info.get("jetstream") else "without"
    return f"answers as NATS {version}, {stored} JetStream; {_UNUSED}", ""


def _other(wanted: str, answer: bytes) -> tuple[str, str]:
    spoken = wire.protocol(answer)
    if spoken == "TLS":
        return "wants TLS", "use the encrypted scheme: kafka+ssl://, amqps:// or tls://"
    if spoken:
        return f"answers as {spoken}, not as {wanted}", "correct the port: another server has it"
    if not answer:
        return (
            f"closes the connection when it is spoken to as {wanted}",
            "correct the port, or use TLS if it wants that",
        )
    return f"does not answer as {wanted}", "correct the port: another server has it"


def _any_certificate() -> ssl.SSLContext:
    """TLS without a look at the certificate: nothing secret is said, and the client has settings of its own."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# scheme: port, whether TLS comes first, how to ask: what was found, and what to do
_SCHEMES: dict[str, tuple[int, bool, Callable[[wire.Place, float], tuple[str, str]]]] = {
    "kafka": (9092, False, _kafka),
    "kafka+ssl": (9093, True, _kafka),
    "amqp": (5672, False, _amqp),
    "amqps": (5671, True, _amqp),
    "nats": (4222, False, _nats),
    "tls": (4222, False, _nats),  # NATS introduces itself before it encrypts
}
