"""Headers that are recorded: those that the application asks for, and no more of them than a span should hold."""

from __future__ import annotations

import re
from fnmatch import translate
from itertools import islice
from typing import TYPE_CHECKING, Any

from . import propagation
from . import vocabulary as v

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MOST = 64
"""How many headers of a message are recorded: a sender may have written any number."""

SECRETS = ("authorization", "*-authorization", "cookie", "set-cookie", "x-api-key", "x-auth-token")
CONTEXTS = (
    "traceparent",
    "tracestate",
    "baggage",
    "*[_:-]traceparent",
    "*[_:-]tracestate",
    "*[_:-]baggage",
    "b3",
    "x-b3-*",
    "uber-trace-id",
    "uberctx-*",
    "jaeger-*",
    "ot-tracer-*",
    "ot-baggage-*",
    "x-amzn-trace-id",
    "awstraceheader",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-datadog-*",
    "sentry-trace",
    "newrelic",
    "x-instana-*",
    "x-dynatrace",
    "sw8*",
    "diagnostic-id",
    "request-id",
    "correlation-context",
)
"""Names, in lower case, that no glob takes: what lets somebody in, and contexts of any well-known format."""


def _expression(globs: Iterable[str]) -> re.Pattern[str]:
    """What matches any of some globs."""
    return re.compile("|".join(map(translate, globs)))


_WITHHELD = _expression(SECRETS + CONTEXTS)


class Capture:
    """Reads the headers to record.

    Args:
        globs: names of headers and globs of names, in which case does not matter.
    """

    def __init__(self, globs: Iterable[str]) -> None:
        folded = [glob.lower() for glob in globs]
        self._names = tuple(dict.fromkeys(name for name in folded if not re.search(r"[*?\[]", name)))
        globs = [glob for glob in folded if glob not in self._names]
        self._globs = _expression(globs) if globs else None

    def write(self, headers: Mapping[str, Any], attributes: v.Attributes) -> None:
        """Write headers into attributes.

        Args:
            headers: a message's, names in lower case.
            attributes: those of its span.
        """
        for name in islice(self._wanted(headers), MOST):
            value = headers[name]
            if isinstance(value, (bool, int, float)):
                attributes[v.CAPTURED_HEADER + name] = value
            elif (text := propagation.as_text(value)) is not None:
                attributes[v.CAPTURED_HEADER + name] = v.cut(text)

    def _wanted(self, headers: Mapping[str, Any]) -> Iterator[str]:
        """First what is named, whatever else a sender has written."""
        yield from (name for name in self._names if name in headers)
        if self._globs is None:
            return
        others = (name for name in headers if len(name) <= v.LONGEST and self._globs.match(name))
        taken = {*self._names, *propagation.fields()}
        yield from (name for name in others if name not in taken and not _WITHHELD.match(name))
