"""Which clients are installed, and what does not work on this Python."""

from __future__ import annotations

import sys
from importlib import metadata

_ALSO = {"kafka-python": "kafka-python-ng"}  # what provides the same module


def installed(name: str) -> tuple[str, str]:
    """A client's distribution, which may be a fork, and its version."""
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        return _ALSO[name], metadata.version(_ALSO[name])


NO_KAFKA = (
    "kafka-python 2.0.2 cannot be imported since Python 3.12: the `six` in it is too old"
    if installed("kafka-python") == ("kafka-python", "2.0.2") and sys.version_info >= (3, 12)
    else None
)
"""Why Kafka cannot be tested here, if so."""
