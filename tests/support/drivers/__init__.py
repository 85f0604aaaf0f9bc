"""What the shared suite does with each library, said once per library.

A driver publishes and consumes as an application would. All are awaited, so that one suite serves the synchronous
library and the asynchronous ones; what blocks, blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .aio_pika import AioPikaDriver
from .kafka_python import KafkaPythonDriver
from .nats_py import NatsPyDriver

if TYPE_CHECKING:
    from .base import Driver

DRIVERS: dict[str, type[Driver]] = {
    driver.library: driver for driver in (KafkaPythonDriver, AioPikaDriver, NatsPyDriver)
}

CALLBACKS = [name for name, driver in DRIVERS.items() if driver.callbacks]
"""The libraries whose messages can be handled by a callback."""
