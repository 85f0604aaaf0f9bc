"""Helpers for what the libraries do not tell: all optional, and without effect where there is no SDK."""

from .processing import process, process_batch
from .publishing import batch_publish
from .retries import record_retry

__all__ = ["batch_publish", "process", "process_batch", "record_retry"]
