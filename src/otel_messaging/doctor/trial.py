"""What `opentelemetry-instrument` does here, tried in a process of its own that exports nothing and runs no program."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report import Row, Section

if TYPE_CHECKING:
    from collections.abc import Mapping

TITLE = "A start by opentelemetry-instrument, tried without exporters"
_LONGEST = 30.0  # seconds
_SILENT = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
_SEE = "see what it says: opentelemetry-instrument python -c pass"
_PROGRAM = """
import json, logging, sys
from importlib.metadata import entry_points

class Keep(logging.Handler):
    said = []

    def emit(self, record):
        kind = record.exc_info[0] if record.exc_info else None
        self.said.append(record.getMessage() + (f": {kind.__name__}" if kind else ""))

try:
    logging.getLogger("opentelemetry").addHandler(Keep(logging.ERROR))
    from opentelemetry.instrumentation.auto_instrumentation import initialize
    initialize()
    from opentelemetry import trace
    provider = type(trace.get_tracer_provider())
    points = [p for p in entry_points(group="opentelemetry_instrumentor") if p.value.startswith("otel_messaging")]
    on = [p.name for p in points if p.load()().is_instrumented_by_opentelemetry]
    # A version that is not supported is told where the clients are.
    refused = tuple(f"{p.name} instruments " for p in points)
    said = [text for text in Keep.said if not text.startswith(refused)]
    told = {"sdk": f"{provider.__module__}.{provider.__qualname__}", "on": sorted(on), "said": said}
except Exception as error:
    told = {"sdk": "", "on": [], "said": [*Keep.said, f"OpenTelemetry cannot be imported: {type(error).__name__}"]}
print(json.dumps(told), file=open(sys.argv[1], "w"))
"""


def section(environ: Mapping[str, str]) -> Section:
    """Try it.

    Args:
        environ: the environment variables of the application.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "told.json")
        if not _run(answer, environ):
            return Section(TITLE, (Row("start", f"not ready after {_LONGEST:.0f} s", _SEE),))
        if not answer.exists():
            return Section(TITLE, (Row("start", "it ended by itself", _SEE),))
        return Section(TITLE, tuple(_rows(json.loads(answer.read_text()))))


def _run(answer: Path, environ: Mapping[str, str]) -> bool:
    """Run the program, and tell whether it has ended in time."""
    # Its answer is in a file: what it has started might keep a pipe open for ever.
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, answer],
        env={**environ, **_SILENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(_LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def _rows(told: dict[str, Any]) -> list[Row]:
    said = [text[:300] for text in told["said"][:5]]
    if told["sdk"].startswith("opentelemetry.sdk."):
        first = Row("SDK", told["sdk"])
    else:  # one problem, with what was said of it
        why = said.pop(0) if said else f"{told['sdk']} records nothing"
        first = Row("SDK", f"none is started: {why}", f"mend what is marked above, or {_SEE}")
    on = Row("entry points that are on", ", ".join(told["on"]) or "none of ours")
    return [first, on, *(Row(f"error {number}", text, _SEE) for number, text in enumerate(said, 1))]
