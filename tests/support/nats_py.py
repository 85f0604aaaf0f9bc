"""What the tests of nats-py share: servers with a configuration, clients, and what they put on the wire."""

from __future__ import annotations

import contextlib
import importlib.metadata
import uuid

import pytest

from examples import brokers
from otel_messaging import NatsPyInstrumentor

VERSION = tuple(int(part) for part in importlib.metadata.version("nats-py").split(".")[:2])

needs_fixed_drain = pytest.mark.skipif(VERSION < (2, 12), reason="drain() did not wait for callbacks before 2.12")


class Server(brokers.Nats):
    """A server of a test's own.

    Args:
        config: the text of its configuration file.
        credentials: `user:password`, for the address.
    """

    def __init__(self, config: str = "", credentials: str = ""):
        super().__init__()
        (self.folder / "conf").write_text(config)
        self._credentials = credentials and credentials + "@"

    @property
    def address(self):
        return f"nats://{self._credentials}127.0.0.1:{self.port}"

    def _launch(self):
        storage = ("-js", "-sd", str(self.folder / "jetstream"))
        listen = ("-a", "127.0.0.1", "-p", str(self.port))
        self._spawn(brokers.nats_binary(), "-c", str(self.folder / "conf"), *listen, *storage)


@contextlib.contextmanager
def server(config: str = "", credentials: str = ""):
    """A running server; the test is skipped where none can be had."""
    try:
        made = Server(config, credentials)
        with made:
            yield made
    except brokers.BrokerUnavailable as error:
        pytest.skip(str(error))


@contextlib.asynccontextmanager
async def client(*addresses: str, **options):
    """A connected client, whose `errors` are those that it has reported."""
    import nats

    errors = []

    async def error_cb(error):
        errors.append(error)

    made = await nats.connect(list(addresses), **{"error_cb": error_cb, "reconnect_time_wait": 0.05, **options})
    made.errors = errors
    try:
        yield made
    finally:
        await made.close()


def on_the_wire(connection) -> list[bytes]:
    """The commands that a client sends from now on."""
    commands, send = [], connection._send_command

    async def record(command, *args, **kwargs):
        commands.append(bytes(command))
        await send(command, *args, **kwargs)

    connection._send_command = record
    return commands


async def flushed(connection) -> None:
    """Wait until the server has got all commands. The library's PING may overtake those that came just before it."""
    await connection.flush()
    await connection.flush()


def fresh() -> str:
    """A subject that nobody else uses: other tests may run on the same server."""
    return f"test-{uuid.uuid4().hex[:12]}"


async def outcome(call):
    """What a call comes to: what it returns, or the type and text of what it raises."""
    try:
        return await call()
    except Exception as error:
        return type(error), str(error)


def traceparent(span) -> str:
    """The header that carries a span."""
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


async def twice(instrument, address: str, scenario):
    """What a scenario comes to with us and without us."""
    instrument(NatsPyInstrumentor)
    async with client(address) as connection:
        traced = await scenario(connection)
    NatsPyInstrumentor().uninstrument()
    async with client(address) as connection:
        return traced, await scenario(connection)
