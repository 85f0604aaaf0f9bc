"""Asking an address whether it answers, and in which protocol. Nothing waits for longer than it was told to."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GRPC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""What a client of HTTP/2 says first: its preface and empty settings (RFC 9113, section 3.4)."""
HTTP = b"OPTIONS / HTTP/1.0\r\n\r\n"

Result = TypeVar("Result")


class Place(NamedTuple):
    """Where to connect to.

    Attributes:
        host: a name or an address.
        port: of TCP.
        tls: what to encrypt with, or None.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def together(asking: Sequence[Callable[[], Result]], seconds: float, late: Sequence[Result]) -> list[Result]:
    """Ask several things at once.

    Args:
        asking: what to call, each in a thread of its own: not even looking up a name may hold anybody up.
        seconds: how long to wait for all of them.
        late: the result of each, should it not return in time.

    Returns:
        The results, in the same order.
    """
    answers: list[queue.SimpleQueue[Result]] = [queue.SimpleQueue() for _ in asking]
    for ask, answer in zip(asking, answers, strict=True):
        threading.Thread(target=_put, args=(ask, answer), daemon=True).start()
    end = time.monotonic() + seconds
    return [_get(answer, end - time.monotonic(), other) for answer, other in zip(answers, late, strict=True)]


def _put(ask: Callable[[], Result], answer: queue.SimpleQueue[Result]) -> None:
    answer.put(ask())


def _get(answer: queue.SimpleQueue[Result], seconds: float, late: Result) -> Result:
    try:
        return answer.get(timeout=max(seconds, 0.001))
    except queue.Empty:
        return late


def ask(place: Place, question: bytes, enough: Callable[[bytes], bool], seconds: float) -> bytes:
    """Connect, say something, and read.

    Args:
        place: where.
        question: what to say; nothing if empty.
        enough: whether what was read will do.
        seconds: how long to wait for each step.

    Returns:
        What was answered: at most 64 KiB, and less than enough if the other side closed the connection.

    Raises:
        OSError: nobody is there, or nobody answers in time.
    """
    answer = b""
    with socket.create_connection((place.host, place.port), seconds) as plain, _encrypt(plain, place) as connection:
        if question:
            connection.sendall(question)
        try:
            while not enough(answer) and len(answer) < 65536:
                more = connection.recv(4096)
                if not more:
                    break
                answer += more
        except ConnectionResetError:
            pass  # it closed the connection in a hurry
    return answer


def _encrypt(plain: socket.socket, place: Place) -> socket.socket:
    if place.tls is None:
        return plain
    return place.tls.wrap_socket(plain, server_hostname=place.host)


def is_grpc(answer: bytes) -> bool:
    """Whether a server has answered as one of HTTP/2 does: by a frame of settings."""
    return len(answer) >= 9 and answer[3] == 4 and answer[4] in (0, 1)


def protocol(answer: bytes) -> str:
    """Which protocol an answer is in, as far as its first bytes tell; empty where they do not."""
    if is_grpc(answer):
        return "HTTP/2 (gRPC)"
    known = {b"HTTP/": "HTTP", b"INFO ": "NATS", b"AMQP": "AMQP", b"\x15\x03": "TLS", b"-ERR": "NATS or Redis"}
    return next((name for start, name in known.items() if answer.startswith(start)), "")


def why(error: Exception) -> str:
    """What went wrong, in words without addresses, as these may hold credentials."""
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "does not speak TLS"
    return getattr(error, "strerror", None) or type(error).__name__
