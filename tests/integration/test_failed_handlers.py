"""Handlers that fail: what a task that they have started keeps of them while it goes on, which is nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest
from aio_pika.patterns import RPC

from otel_messaging.patterns import batch_publish, process
from tests.support import nats_py
from tests.support.recorder import shape
from tests.support.waiting import until


class BrokenError(Exception):
    """What the application raises."""


class Local:
    """Something in the frame of a handler."""


class Handler:
    """Fails, after it has started a task that goes on for as long as the block lasts."""

    def __init__(self, caplog):
        self.caplog = caplog
        self.over = asyncio.Event()
        self.tasks, self.locals = [], []

    async def handle(self, _message=None, **_arguments):
        local = Local()
        self.locals.append(weakref.ref(local))
        self.tasks.append(asyncio.ensure_future(self.over.wait()))
        await asyncio.sleep(0)  # the task has begun, with the context of the handler
        raise BrokenError("no")

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, _error, _trace):
        if kind is not None:  # skipped
            return
        self.caplog.clear()  # it keeps the exceptions that were logged, and these their frames
        await asyncio.sleep(0)
        gc.collect()
        assert len(self.tasks) == 1
        assert not self.tasks[0].done()
        assert self.locals[0]() is None
        self.over.set()
        await asyncio.gather(*self.tasks)


@pytest.fixture
async def failing(caplog):
    """A handler that fails."""
    return Handler(caplog)


async def filled(driver):
    destination = driver.name()
    listener = await driver.listen(destination)
    await driver.publish(destination)
    return listener


def failure(span):
    found = shape(span)
    return *found["status"], found["attributes"]["error.type"], [name for name, _ in found["events"]]


FAILURE = ("ERROR", "no", f"{__name__}.BrokenError", ["exception"])


@pytest.mark.parametrize("library", ["kafka_python", "aio_pika"])
async def test_a_loop_in_a_block_that_sees_its_exceptions(connect, recorder, failing):
    driver = await connect()
    listener = await filled(driver)
    async with failing:
        with contextlib.suppress(BrokenError):
            await driver.guarded_loop(listener, failing.handle)
    assert failure(recorder.consumers(1)[0]) == FAILURE


@pytest.mark.parametrize("library", ["nats_py"])  # aiormq keeps the last exception of a callback itself
async def test_a_callback(connect, recorder, failing):
    driver = await connect()
    destination = driver.name()
    async with failing:
        await driver.subscribe(destination, failing.handle)
        await driver.publish(destination)
        await until(lambda: recorder.spans(f"receive {destination}"))
        await asyncio.sleep(0.05)  # the library reports it
        driver.errors.clear()
    assert failure(recorder.consumers(1)[0]) == FAILURE


async def test_a_block_around_a_message(connect, recorder, failing):
    driver = await connect()
    message = await driver.first(await filled(driver))
    async with failing:
        with contextlib.suppress(BrokenError):
            async with process(message):
                await failing.handle(message)
    assert failure(recorder.consumers(2)[-1]) == FAILURE


@pytest.mark.parametrize("library", ["aio_pika"])
async def test_a_message_that_processes_itself(connect, recorder, failing):
    driver = await connect()
    queue = await filled(driver)
    async with failing:
        message = await queue.get()
        with contextlib.suppress(BrokenError):
            async with message.process():
                await failing.handle(message)
        del message
    assert failure(recorder.consumers(1)[0])[:3] == FAILURE[:3]


@pytest.mark.parametrize("library", ["aio_pika"])
async def test_a_function_that_is_called_through_a_broker(connect, recorder, failing):
    driver = await connect()
    name = driver.name()
    server = await RPC.create(await driver.connection.channel())
    client = await RPC.create(await driver.connection.channel())
    await server.register(name, failing.handle, auto_delete=True)
    async with failing:
        with contextlib.suppress(BrokenError):
            await client.call(name, {"number": 4})
        await until(lambda: recorder.spans(f"receive {name}"))
    assert failure(recorder.consumers(1)[0])[:3] == FAILURE[:3]


@pytest.mark.parametrize("library", ["nats_py"])
@pytest.mark.skipif(nats_py.VERSION < (2, 9), reason="nats.micro came with nats-py 2.9")
async def test_an_endpoint_of_a_service(connect, recorder, failing):
    import nats.micro

    driver = await connect()
    name = driver.name()
    service = await nats.micro.add_service(driver.client, name="shop", version="0.0.1")
    await service.add_group(name=name).add_endpoint(name="price", handler=failing.handle)
    await driver.client.flush()
    async with failing:
        await driver.client.request(f"{name}.price", b"book", timeout=2)
        await until(lambda: recorder.consumers(1))
    assert failure(recorder.consumers(1)[0])[:3] == FAILURE[:3]
    await service.stop()


async def test_a_block_around_what_is_published(connect, recorder, failing):
    driver = await connect()
    destination = driver.name()
    await driver.listen(destination)
    async with failing:
        with contextlib.suppress(BrokenError):
            async with batch_publish(destination):
                await driver.publish(destination)
                await failing.handle()
    assert failure(recorder.span(f"batch_publish {destination}")) == FAILURE
