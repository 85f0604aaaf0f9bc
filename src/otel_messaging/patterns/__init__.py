"""Helpers for what the libraries do not tell: all optional, and without effect where there is no SDK."""

from .retries import record_retry

__all__ = ["record_retry"]
