"""Messages that were received, for tests of what the application does with them."""

from __future__ import annotations

import pytest


@pytest.fixture
def receive(connect):
    """Publish messages and loop over them: returns the driver, the destination and the messages.

    `body` is called with each message in the loop.
    """

    async def make(*bodies, body=None, **arguments):
        driver = await connect(**arguments)
        destination, messages = driver.name(), []

        async def handle(message):
            messages.append(message)
            if body is not None:
                await body(message)

        listener = await driver.listen(destination)
        for content in bodies or (b"hello",):
            await driver.publish(destination, content)
        await driver.loop(listener, len(bodies) or 1, handle)
        return driver, destination, messages

    return make
