"""What is read from the interpreter's bytecode: at which instruction a frame is. Each Python has its own."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import sys
import sysconfig

import pytest

from otel_messaging.core.delivery import _same_place
from otel_messaging.instrumentation.loops import caller
from otel_messaging.instrumentation.message_list import Batch
from tests.support.waiting import until

NO_COMPREHENSION = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="a comprehension was a function, whose frame in the traceback keeps the loop"
)
FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
HOT = 5_000  # rounds, after which every Python has specialized a loop, and compiled it if it does


class Loop:
    """An iterator that notes where it was let go of, as those of ours do."""

    def __init__(self, where):
        self.where = where

    def __iter__(self):
        return self

    def __next__(self):
        return 1

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        return 1

    def __del__(self):
        self.where.append(caller())


def passes(error, where):
    """Whether the traceback of an error has an entry of the place where a loop was let go of."""
    code, instruction = where
    entry, found = error.__traceback__, False
    while entry is not None:
        found = found or (entry.tb_frame.f_code is code and _same_place(code, entry.tb_lasti, instruction))
        entry = entry.tb_next
    return found


def fail():
    raise ValueError("body")


def raised_in_the_body(where):
    for _ in Loop(where):
        raise ValueError("body")


def called_in_the_body(where):
    for _ in Loop(where):
        fail()


def in_a_block_in_the_body(where):
    for _ in Loop(where):
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.nullcontext())
            fail()


def in_an_inner_loop(where):
    for _ in Loop(where):
        for _ in range(3):
            fail()


def in_a_comprehension(where):
    return [fail() for _ in Loop(where)]


def after_many_rounds(where):
    for count, _ in enumerate(Loop(where)):
        if count == HOT:
            fail()


def through_a_generator(where):
    def generator():
        for _ in Loop(where):
            yield fail()

    list(generator())


FAILING = [
    raised_in_the_body,
    called_in_the_body,
    in_a_block_in_the_body,
    in_an_inner_loop,
    pytest.param(in_a_comprehension, marks=NO_COMPREHENSION),
    after_many_rounds,
    through_a_generator,
]


@pytest.mark.parametrize("failing", FAILING)
def test_an_exception_leaves_a_loop_where_its_traceback_says(failing):
    where = []
    with pytest.raises(ValueError, match="body") as caught:
        failing(where)
    assert len(where) == 1
    assert passes(caught.value, where[0])


async def awaited_in_the_body(where):
    for _ in Loop(where):
        await asyncio.sleep(5)


async def awaited_deep_in_the_body(where):
    async def nap():
        await asyncio.sleep(5)

    for _ in Loop(where):
        await nap()


async def in_an_asynchronous_loop(where):
    async for _ in Loop(where):
        await asyncio.sleep(5)


async def in_an_asynchronous_block(where):
    async for _ in Loop(where):
        async with contextlib.AsyncExitStack():
            await asyncio.sleep(5)


async def in_an_asynchronous_comprehension(where):
    return [await asyncio.sleep(5) async for _ in Loop(where)]


CANCELLED = [
    awaited_in_the_body,
    awaited_deep_in_the_body,
    in_an_asynchronous_loop,
    in_an_asynchronous_block,
    pytest.param(in_an_asynchronous_comprehension, marks=NO_COMPREHENSION),
]


async def cancelled(waiting, where):
    """The error that a cancelled coroutine was left by."""
    errors = []

    async def run():
        try:
            await waiting(where)
        except asyncio.CancelledError as error:
            errors.append(error)

    task = asyncio.ensure_future(run())
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await task
    return errors[0]


@pytest.mark.parametrize("waiting", CANCELLED)
async def test_a_cancellation_leaves_a_loop_where_its_traceback_says(waiting):
    where = []
    error = await cancelled(waiting, where)
    assert len(where) == 1
    assert passes(error, where[0])


def by_break(where):
    for _ in Loop(where):
        break
    fail()


def by_break_after_many_rounds(where):
    for count, _ in enumerate(Loop(where)):
        if count == HOT:
            break
    fail()


def caught_in_the_body(where):
    for _ in Loop(where):
        with contextlib.suppress(ValueError):
            fail()
        break
    fail()


def caught_around_the_loop(where):
    try:
        for _ in Loop(where):
            raise KeyError
    except KeyError:
        pass
    fail()


@pytest.mark.parametrize("leaving", [by_break, by_break_after_many_rounds, caught_in_the_body, caught_around_the_loop])
def test_an_exception_after_a_loop_is_told_from_one_in_it(leaving):
    where = []
    with pytest.raises(ValueError, match="body") as caught:
        leaving(where)
    assert len(where) == 1
    assert not passes(caught.value, where[0])


async def test_an_exception_after_an_asynchronous_loop_is_told_from_one_in_it():
    async def leaving(where):
        async for _ in Loop(where):
            break
        await asyncio.sleep(5)

    where = []
    error = await cancelled(leaving, where)
    assert len(where) == 1
    assert not passes(error, where[0])


@pytest.mark.skipif(FREE, reason="a thread that has not made an object leaves it to the one that has")
async def test_a_thread_without_a_frame_lets_go_of_a_loop_nowhere():
    where = []
    loops = [Loop(where)]
    _thread.start_new_thread(loops.clear, ())
    assert await until(lambda: where) == [(None, 0)]


# Lists.


class Handling:
    """Stands for a message being handled."""

    def __init__(self):
        self.done = False

    def end(self, error=None):
        self.done = True

    def concerns(self, error):
        return False

    def leave(self, where):
        self.done = True


def handled(take, messages=(1, 2, 3)):
    """How many messages of a list are handled by what takes them."""
    begun = []

    def begin(message):
        begun.append(message)
        return Handling()

    take(Batch(list(messages), begin))
    return len(begun)


def loop(batch):
    for _ in batch:
        pass


def loop_in_a_generator(batch):
    for message in batch:
        yield message, None


def unpack(batch):
    return [*batch]


def test_a_loop_is_seen_however_often_it_has_run():
    assert handled(loop, range(HOT)) == HOT
    assert [handled(loop) for _ in range(50)] == [3] * 50
    assert [handled(lambda batch: loop(loop_in_a_generator(batch))) for _ in range(50)] == [3] * 50


def test_what_takes_all_at_once_is_seen_however_often_it_has_run():
    assert [handled(unpack) for _ in range(50)] == [0] * 50
    assert [handled(list) for _ in range(50)] == [0] * 50


@pytest.mark.parametrize("before", ["for message in batch:", "for message in (message for message in batch):"])
def test_a_loop_is_seen_however_long_its_body_is(before):
    for length in (10, 100, 300, 40_000):  # the argument of its instruction has one, two and three bytes
        body = "\n".join(["    message = message"] * length)
        program = compile(f"{before}\n{body}", "program", "exec")
        assert handled(lambda batch, program=program: exec(program, {"batch": batch})) == 3


@contextlib.contextmanager
def traced():
    """What debuggers and coverage do."""
    before = sys.gettrace()

    def trace(_frame, _event, _argument):
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def monitored():
    """What they do since Python 3.12, which writes other instructions into the code."""
    monitoring = sys.monitoring
    tool, events = monitoring.PROFILER_ID, monitoring.events
    monitoring.use_tool_id(tool, "test")
    watched = events.LINE | events.INSTRUCTION | events.BRANCH | events.JUMP | events.CALL | events.RAISE
    for event in (events.LINE, events.INSTRUCTION, events.BRANCH, events.JUMP, events.CALL, events.RAISE):
        monitoring.register_callback(tool, event, lambda *_: None)
    monitoring.set_events(tool, watched)
    try:
        yield
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)


WATCHES = [traced, *([monitored] if sys.version_info >= (3, 12) else [])]


@pytest.mark.parametrize("watch", WATCHES)
def test_a_program_that_is_watched_is_seen_alike(watch):
    with watch():
        assert handled(loop) == 3
        assert handled(lambda batch: loop(loop_in_a_generator(batch))) == 3
        assert handled(unpack) == 0
        where = []
        with pytest.raises(ValueError, match="body") as caught:
            called_in_the_body(where)
        assert passes(caught.value, where[0])
