"""Every function of ours that runs inside an application's call fails in turn: the application notices nothing."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from opentelemetry.context import Context, attach

import otel_messaging

OURS = str(Path(otel_messaging.__file__).parent)
BARE = {
    # What reports is trusted not to fail, and so is what the interpreter runs when it lets go of an object, or collects
    # garbage: that is told of nowhere but on stderr.
    "report", "guard", "_log", "_origin", "is_finalizing", "finalizer", "__del__", "_watch_collector",
    # What stands in the place of the library's own: a replacement itself, an iterator's step, a callback.
    "wrapper", "handle", "__iter__", "__aiter__", "__next__", "__anext__", "__getattr__", "__class__",
    "__hash__", "__eq__", "__aenter__", "__aexit__",
}  # fmt: skip
"""The functions of ours that have no guard around them, because they are the guard, or the call."""
WRAPPED = ["aio_pika", "nats_py"]
"""The libraries whose replacements are compiled, all of them."""


class Faults:
    """Raises in one of our functions, the next time that it is called in whatever thread."""

    def __init__(self):
        self.seen = {}
        self.code = None
        self.kind = None

    def __call__(self, frame, event, _argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS) and code.co_name not in BARE:
            self.seen.setdefault(code, code.co_qualname if hasattr(code, "co_qualname") else code.co_name)
            if code is self.code:
                self.code = None
                raise self.kind("a mistake of ours")


@pytest.fixture
def faults():
    made = Faults()
    threading.settrace(made)
    sys.settrace(made)
    yield made
    sys.settrace(None)
    threading.settrace(None)


async def play(driver):
    """What an application does with a library, and what it sees: bodies, headers that are its own, and errors."""
    destination, seen = driver.name(), []
    listener = await driver.listen(destination)
    for number in range(3):
        await driver.publish(destination, b"%d" % number, driver.native({"tenant": "a"}))
    own = lambda message: [pair for pair in driver.headers(message) if pair[0] == "tenant"]  # noqa: E731
    await driver.loop(listener, 2, lambda message: seen.append((driver.body(message), own(message))))
    iterator = driver.iterate(listener)
    message = await driver.advance(iterator)
    seen.append((driver.body(message), own(message)))
    await driver.stop(listener, iterator)
    return seen, driver.errors


@pytest.mark.parametrize("library", WRAPPED)
@pytest.mark.parametrize("kind", [ValueError, MemoryError])
async def test_whatever_of_ours_fails_the_application_has_what_it_had(connect, faults, lenient, recorder, kind):
    driver = await connect(consume_hook=lambda span, message: None, publish_hook=lambda span, request: None)
    usual = await play(driver)
    assert usual == ([(b"%d" % number, [("tenant", "a")]) for number in range(3)], [])
    failed = []
    for code, name in list(faults.seen.items()):
        faults.code, faults.kind = code, kind
        sys.settrace(faults)  # a trace function that has raised is forgotten
        try:
            seen = await play(driver)
        except BaseException as error:
            seen = error
        if seen != usual:
            failed.append((f"{Path(code.co_filename).name}:{code.co_firstlineno} {name}", seen))
    recorder.open.spans.clear()  # telemetry may be lost
    attach(Context())
    assert failed == []
