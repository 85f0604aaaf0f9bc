"""Runs the programs of the pipeline under `opentelemetry-instrument`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

PIPELINE = Path(__file__).parent.parent / "pipeline"


class Program:
    """One running program; what it prints goes to a file in `folder`."""

    def __init__(self, name: str, env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [_instrument(), sys.executable, str(PIPELINE / f"{name}.py")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **env, "OTEL_SERVICE_NAME": name},
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while the program runs."""
        return self._process.poll()

    def wait_until_ready(self, timeout: float) -> bool:
        """Wait for the line `ready`, at most `timeout` seconds; return whether it came."""
        end = time.monotonic() + timeout
        while "ready\n" not in self.output:
            if self.exit_code is not None or time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def stop(self) -> None:
        """End the program if it still runs."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _instrument() -> str:
    """Return the launcher of this environment, which need not be on PATH."""
    found = shutil.which("opentelemetry-instrument", path=str(Path(sys.executable).parent))
    return found or "opentelemetry-instrument"
