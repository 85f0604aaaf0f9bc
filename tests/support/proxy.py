"""A wire between a client and its broker that can be held still or cut."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes both ways, until told otherwise.

    Args:
        address: the URL of the broker.
    """

    def __init__(self, address: str):
        self._url = urlsplit(address)
        self._answers = asyncio.Event()
        self._answers.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.resume()
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        """Where the client connects."""
        port = self._server.sockets[0].getsockname()[1]
        return self._url._replace(netloc=f"{self._url.username}:{self._url.password}@127.0.0.1:{port}").geturl()

    def hold(self) -> None:
        """Keep the broker's answers back."""
        self._answers.clear()

    def resume(self) -> None:
        """Let the answers pass again."""
        self._answers.set()

    def cut(self) -> None:
        """Break all connections, as a network would."""
        while self._writers:
            self._writers.pop().transport.abort()

    def refuse(self) -> None:
        """Break all connections, and take no new ones."""
        self._port = self._server.sockets[0].getsockname()[1]
        self._server.close()
        self.cut()

    async def accept(self) -> None:
        """Take connections again."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def _accept(self, reader, writer):
        self._writers.append(writer)
        self._watch(asyncio.current_task())
        from_broker, to_broker = await asyncio.open_connection(self._url.hostname, self._url.port or 5672)
        self._writers.append(to_broker)
        for copy in (self._copy(reader, to_broker), self._copy(from_broker, writer, self._answers)):
            self._watch(asyncio.ensure_future(copy))

    def _watch(self, task):
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy(self, reader, writer, gate=None):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if gate is not None:
                    await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
