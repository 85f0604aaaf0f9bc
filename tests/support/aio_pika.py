"""What tests of aio-pika share: its version, and what it raises when a connection breaks."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import aio_pika
import pytest

VERSION = tuple(int(part) for part in version("aio-pika").split(".")[:2])
LOST = (ConnectionError, RuntimeError, aio_pika.exceptions.AMQPException, asyncio.CancelledError, asyncio.TimeoutError)
careless = pytest.mark.filterwarnings(
    f"{'ignore' if VERSION < (10, 0) else 'error'}::pytest.PytestUnraisableExceptionWarning"
)
"""Up to aio-pika 9 a connection or a channel that broke is left to the garbage collector, which complains."""
