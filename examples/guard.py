"""Runs a command for as long as its caller is alive: `python guard.py FOLDER COMMAND...`.

Standard input is the lifeline. `s` on it stops the command, `k` kills it. Its end means that the caller is gone,
even by SIGKILL: the command is stopped, and FOLDER is removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

GRACE = 15.0  # seconds between the polite signal and SIGKILL


def main(folder: str, *command: str) -> int:
    """Run the command to its end, or until the lifeline says otherwise; return its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_hold, args=(child,), daemon=True).start()
    code = child.wait()
    if _caller_is_gone.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return code


_caller_is_gone = threading.Event()


def _hold(child: subprocess.Popen[bytes]) -> None:
    # os.read and not sys.stdin: a thread blocked in the latter breaks the interpreter's shutdown.
    wish = os.read(0, 1)
    if not wish:
        _caller_is_gone.set()
    if wish == b"k":
        child.kill()
    else:
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
