"""What tests of aio-pika share: its version, and what it raises when a connection breaks."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import aio_pika
import pytest

VERSION = tuple(int(part) for part in version("aio-pika").split(".")[:2])
LOST = (ConnectionError, RuntimeError, aio_pika.exceptions.AMQPException, asyncio.CancelledError, asyncio.TimeoutError)


@pytest.fixture
async def tidy(monkeypatch):
    """Close what aio-pika up to 9 leaves of connections that broke: the collector complains, in another test."""
    opened, connect = [], asyncio.open_connection

    async def open_connection(*args, **kwargs):
        reader, writer = await connect(*args, **kwargs)
        opened.append(writer)
        return reader, writer

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    yield
    for writer in opened:
        writer.transport.abort()
    await asyncio.sleep(0)
