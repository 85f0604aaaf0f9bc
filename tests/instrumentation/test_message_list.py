"""Lists of messages: who opens a span for each by taking them, and that they are lists in all else."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import pytest

from otel_messaging.instrumentation.message_list import Batch, Single


class Handling:
    """Stands for a message being handled."""

    def __init__(self, message, log):
        self.message, self.log, self.done = message, log, False

    def end(self, error=None):
        if not self.done:
            self.done = True
            self.log.append(f"end {self.message}")

    def concerns(self, error):
        return error is not None

    def leave(self, where):
        self.log.append(f"leave {self.message}")


@pytest.fixture
def log():
    return []


@pytest.fixture
def batch(log):
    def begin(message):
        log.append(f"begin {message}")
        return Handling(message, log)

    return Batch(["a", "b", "c"], begin)


ALL = ["begin a", "end a", "begin b", "end b", "begin c", "end c"]


def generator(batch):
    yield from batch


LOOPS = {
    "for": lambda batch: batch,
    "enumerate": enumerate,
    "chain": lambda batch: itertools.chain(batch, []),
    "chain.from_iterable": lambda batch: itertools.chain.from_iterable([batch]),
    "yield from": generator,
    "a generator expression": lambda batch: (message for message in batch),
    "map": lambda batch: map(str, batch),
    "zip": lambda batch: zip(itertools.count(), batch, strict=False),
    "islice": lambda batch: itertools.islice(batch, 3),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_handles_each_message_in_its_turn(batch, log, loop):
    for _ in LOOPS[loop](batch):
        log.append("body")
    assert [entry for entry in log if entry != "body"] == ALL
    assert log[:4] == ["begin a", "body", "end a", "begin b"]


def test_a_comprehension_handles_each_message(batch, log):
    assert [message.upper() for message in batch] == ["A", "B", "C"]
    assert log == ALL


TAKEN_AT_ONCE = {
    "list": list,
    "tuple": tuple,
    "sorted": sorted,
    "reversed": lambda batch: list(reversed(batch)),
    "star": lambda batch: [*batch],
    "slice": lambda batch: batch[:],
    "sum of lists": lambda batch: list(batch) + [],
    "extend": lambda batch: [].extend(batch),
    "list of chain": lambda batch: list(itertools.chain(batch)),
    "in": lambda batch: "b" in batch,
    "index": lambda batch: batch.index("b"),
    "subscript": lambda batch: (batch[0], batch[-1]),
    "max": max,
    "join": ",".join,
    "next": lambda batch: next(iter(batch)),
    "json": json.dumps,
}


@pytest.mark.parametrize("take", TAKEN_AT_ONCE)
def test_what_takes_all_at_once_handles_nothing(batch, log, take):
    TAKEN_AT_ONCE[take](batch)
    assert log == []


def test_unpacking_handles_nothing(batch, log):
    first, second, third = batch
    assert [first, second, third] == ["a", "b", "c"]
    assert log == []


def test_a_process_pool_s_map_handles_nothing(batch, log):
    with ThreadPool(2) as pool:  # takes lists as the pool of processes does
        assert pool.map(str.upper, batch) == ["A", "B", "C"]
    assert log == []


def test_an_executor_s_map_handles_nothing_either(batch, log):
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(str.upper, batch)) == ["A", "B", "C"]
    assert log == []


def test_no_message_is_handled_twice(batch, log):
    for _ in range(2):
        for _ in batch:
            pass
    assert log == ALL


def test_a_loop_that_was_left_is_taken_up_by_the_next(batch, log):
    for _ in batch:
        break
    assert log == ["begin a", "end a"]
    for _ in batch:
        pass
    assert log == ALL


def test_an_exception_ends_the_handling(batch, log):
    with contextlib.suppress(ZeroDivisionError):
        for _ in batch:
            raise ZeroDivisionError
    assert log == ["begin a", "end a"]


def test_a_loop_inside_the_body_leaves_the_message_alone(batch, log):
    for message in batch:
        log.append("look")
        assert any(other == message for other in batch)
        log.append("seen")
    assert log[:4] == ["begin a", "look", "seen", "end a"]
    assert [entry for entry in log if entry not in ("look", "seen")] == ALL


def test_a_suspended_generator_lets_go_when_it_is_closed(batch, log):
    messages = generator(batch)
    next(messages)
    messages.close()
    assert log == ["begin a", "end a"]


def test_a_loop_inside_a_with_block_waits_for_the_block_to_end(batch, log):
    batch.held.entered = True
    for _ in batch:
        break
    assert log == ["begin a", "leave a"]
    batch.held.exit(None)
    assert log == ["begin a", "leave a", "end a"]


def test_a_loop_inside_a_with_block_is_taken_up_by_the_next(batch, log):
    batch.held.entered = True
    for _ in batch:
        break
    for _ in batch:
        pass
    assert log == ["begin a", "leave a", *ALL[1:]]


def test_threads_that_share_a_list_handle_no_message_twice(log):
    begun = []

    def begin(message):
        begun.append(message)
        return Handling(message, log)

    batch = Batch([f"{number}" for number in range(2000)], begin)
    start = threading.Barrier(4)

    def loop():
        start.wait()
        for _ in batch:
            pass

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == len(set(begun))
    assert len(log) == len(begun)
    assert batch.held.delivery is None


@pytest.mark.parametrize("shared", ["list", "iterator"])
def test_threads_that_share_a_list_each_handle_a_message_until_they_ask_for_the_next(log, shared):
    beginning, inside = threading.Barrier(2), threading.Barrier(2)
    taken, seen = {}, []

    def begin(message):
        taken[threading.get_ident()] = message
        beginning.wait(5)  # both threads have asked, and neither has its message
        return Handling(message, log)

    batch = Batch(["a", "b"], begin)
    source = [iter(batch) if shared == "iterator" else batch]

    def loop():
        for message in source[0]:
            if taken.get(threading.get_ident()) == message:
                inside.wait(5)
                seen.append(list(log))
                inside.wait(5)
                break

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == [[], []]
    source.clear()
    assert sorted(log) == ["end a", "end b"]


def test_a_with_block_of_one_thread_ends_what_the_others_have_without_its_exception(log):
    entered, left = threading.Event(), threading.Event()
    ended = []

    class Ending(Handling):
        def end(self, error=None):
            ended.append((self.message, error))
            super().end(error)

    batch = Batch(["a", "b"], lambda message: Ending(message, log))
    batch.held.entered = True

    def loop():
        for _ in batch:
            entered.set()
            left.wait(5)
            break

    thread = threading.Thread(target=loop)
    thread.start()
    entered.wait(5)
    error = ValueError("here")
    for message in batch:
        if message == "b":
            batch.held.exit(error)
            break
    left.set()
    thread.join()
    assert ended[:2] == [("a", None), ("b", error)]


@pytest.fixture
def single(log):
    def begin(message):
        log.append(f"begin {message}")
        return Handling(message, log)

    return Single(["a"], begin, lambda message: log.append(f"take {message}"))


def unpacked(batch):
    (message,) = batch
    return message


def unpacked_with_a_rest(batch):
    message, *rest = batch
    assert rest == []
    return message


def matched(batch):
    match batch:
        case [message]:
            return message


TAKEN_OUT = {
    "subscript": lambda batch: batch[0],
    "last": lambda batch: batch[-1],
    "pop": lambda batch: batch.pop(),
    "pop the first": lambda batch: batch.pop(0),
    "unpacking": unpacked,
    "unpacking with a rest": unpacked_with_a_rest,
    "match": matched,
}


@pytest.mark.parametrize("take", TAKEN_OUT)
def test_one_message_is_handled_from_the_moment_that_it_is_taken_out(single, log, take):
    assert TAKEN_OUT[take](single) == "a"
    assert log == ["take a"]


@pytest.mark.parametrize("take", TAKEN_OUT)
def test_one_message_is_handled_once_however_it_is_taken(single, log, take):
    kept = single[0]
    for message in single:
        assert message is kept
    TAKEN_OUT[take](single)
    assert log == ["take a"]


@pytest.mark.parametrize("loop", LOOPS)
def test_one_message_is_handled_by_a_loop_as_several_are(single, log, loop):
    for _ in LOOPS[loop](single):
        single[0]
        log.append("body")
    assert log == ["begin a", "body", "end a"]
    single.pop()
    assert log == ["begin a", "body", "end a"]


LOOKED_AT = {
    **{name: look for name, look in TAKEN_AT_ONCE.items() if name not in ("subscript", "index")},
    "len": len,
    "bool": bool,
    "equal": lambda batch: batch == ["a"],
    "print": print,
    "repr": repr,
    "first slice": lambda batch: batch[:1],
    "last slice": lambda batch: batch[-1:],
    "arguments": lambda batch: print(*batch),
}


@pytest.mark.parametrize("look", LOOKED_AT)
def test_to_look_at_a_list_of_one_or_to_copy_it_handles_nothing(single, log, look):
    LOOKED_AT[look](single)
    assert log == []


def test_what_a_list_of_one_does_not_have_is_not_handled(single, log):
    with pytest.raises(IndexError, match="list index out of range"):
        single[1]
    with pytest.raises(TypeError, match="list indices must be integers or slices, not str"):
        single["a"]
    with pytest.raises(IndexError, match="pop index out of range"):
        single.pop(1)
    assert log == []
    assert single.pop() == "a"
    with pytest.raises(IndexError, match="pop from empty list"):
        single.pop()


def test_one_message_that_the_application_handles_with_others_is_not_handled_by_itself(single, log):
    single.claim()
    assert single[0] == "a"
    assert log == []


COPIES = {
    "pickle": lambda batch: pickle.loads(pickle.dumps(batch)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "slice": lambda batch: batch[:],
    "list.copy": lambda batch: batch.copy(),
    "plus": lambda batch: batch + [],
}


@pytest.mark.parametrize("made", COPIES)
def test_a_copy_of_a_list_of_one_is_a_plain_list(single, log, made):
    found = COPIES[made](single)
    assert type(found) is list
    assert found == ["a"]
    assert log == []


@pytest.mark.parametrize("made", COPIES)
def test_a_copy_is_a_plain_list(batch, made):
    found = COPIES[made](batch)
    assert type(found) is list
    assert found == ["a", "b", "c"]


def test_its_pickle_is_that_of_a_plain_list(batch):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert b"otel" not in pickle.dumps(batch, protocol)


def test_it_is_a_list(batch):
    assert isinstance(batch, list)
    assert batch == ["a", "b", "c"]
    assert repr(batch) == repr(["a", "b", "c"])
    assert len(batch) == 3
    batch.sort(reverse=True)
    batch.append("d")
    assert batch == ["c", "b", "a", "d"]


ITERATOR = {
    "pickle": lambda iterator: list(pickle.loads(pickle.dumps(iterator))),
    "copy": lambda iterator: list(copy.copy(iterator)),
    "deepcopy": lambda iterator: list(copy.deepcopy(iterator)),
    "__reduce__": lambda iterator: iterator.__reduce__()[0] is iter and iterator.__reduce__()[1:],
    "__setstate__": lambda iterator: iterator.__setstate__(1) or list(iterator),
    "__length_hint__": lambda iterator: iterator.__length_hint__(),
}


@pytest.mark.parametrize("taken", [0, 1, 3, 4], ids=["new", "begun", "at its end", "exhausted"])
@pytest.mark.parametrize("use", ITERATOR)
def test_its_iterator_is_saved_and_restored_as_that_of_a_plain_list(batch, use, taken):
    def used(messages):
        iterator = iter(messages)
        for _ in range(taken):
            next(iterator, None)
        return ITERATOR[use](iterator)

    assert used(batch) == used(["a", "b", "c"])


def test_a_copy_of_its_iterator_goes_its_own_way(batch, log):
    iterator = iter(batch)
    next(iterator)
    copied = copy.copy(iterator)
    assert next(iterator) == "b"
    for message in copied:
        log.append(message)
    assert log == ["begin b", "b", "end b", "begin c", "c", "end c"]


def test_what_is_no_position_is_refused_as_by_that_of_a_plain_list(batch):
    with pytest.raises(TypeError) as expected:
        iter([]).__setstate__("1")
    with pytest.raises(TypeError) as found:
        iter(batch).__setstate__("1")
    assert str(found.value) == str(expected.value)
