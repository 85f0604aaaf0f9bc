"""What tests of aio-pika share: its version, and what it raises when a connection breaks."""

from __future__ import annotations

import asyncio
import gc
from importlib.metadata import version

import aio_pika
import pytest

VERSION = tuple(int(part) for part in version("aio-pika").split(".")[:2])
LOST = (ConnectionError, RuntimeError, aio_pika.exceptions.AMQPException, asyncio.CancelledError, asyncio.TimeoutError)


@pytest.fixture
async def tidy(monkeypatch):
    """Close what aio-pika up to 9 leaves of connections that broke: the collector complains, in another test.

    That is writers, and since 9.5 channels, which are collected with an error once the loop is closed.
    """
    opened, connect = [], asyncio.open_connection

    async def open_connection(*args, **kwargs):
        reader, writer = await connect(*args, **kwargs)
        opened.append(writer)
        return reader, writer

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    yield
    if VERSION < (10,):
        for writer in opened:
            writer.transport.abort()
        for thing in gc.get_objects():
            if issubclass(type(thing), aio_pika.Channel):
                thing.__del__()
    await asyncio.sleep(0)
