"""Services of nats-py: the endpoint is the destination, and their errors are errors on both sides."""

from __future__ import annotations

import pytest

from tests.support.nats_py import VERSION
from tests.support.recorder import span_id
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(VERSION < (2, 9), reason="nats.micro came with nats-py 2.9")


@pytest.fixture
def library():
    return "nats_py"


@pytest.fixture
async def serve(connect):
    """Start a service with one endpoint."""
    import nats.micro

    services = []

    async def started(handler):
        driver = await connect()
        name = driver.name()
        service = await nats.micro.add_service(driver.client, name="shop", version="0.0.1")
        services.append(service)
        await service.add_group(name=name).add_endpoint(name="price", handler=handler)
        await driver.client.flush()
        return driver, f"{name}.price"

    yield started
    for service in services:
        await service.stop()


async def spans(recorder, vocabulary, subject):
    """Those of the request and of its handling; there are no others."""
    await until(lambda: len(recorder.spans()) >= 2)
    assert len(recorder.spans()) == 2
    guide = vocabulary == "guide"
    asked = recorder.span(f"{'publish' if guide else 'request'} {subject}")
    return asked, recorder.span(f"{'receive' if guide else 'process'} {subject}")


async def test_an_endpoint_is_the_destination(serve, recorder, vocabulary):
    async def handler(request):
        await request.respond(b"19.90")

    driver, subject = await serve(handler)
    assert (await driver.client.request(subject, b"book", timeout=2)).data == b"19.90"
    asked, handled = await spans(recorder, vocabulary, subject)
    assert handled.parent.span_id == span_id(asked)
    assert handled.attributes["messaging.destination.name"] == subject
    assert {span.status.status_code.name for span in (asked, handled)} == {"OK" if vocabulary == "guide" else "UNSET"}


async def test_an_exception_of_a_service_is_an_error_on_both_sides(serve, recorder, vocabulary):
    async def handler(request):
        raise KeyError("book")

    driver, subject = await serve(handler)
    reply = await driver.client.request(subject, timeout=2)
    assert reply.headers["Nats-Service-Error-Code"] == "500"
    asked, handled = await spans(recorder, vocabulary, subject)
    assert handled.attributes["error.type"] == "KeyError"
    assert [event.name for event in handled.events] == ["exception"]
    assert asked.attributes["error.type"] == "500"
    assert (asked.status.status_code.name, asked.status.description) == ("ERROR", "KeyError('book')")


@pytest.mark.parametrize("raised", [True, False])
async def test_a_service_error_is_an_error_on_both_sides(serve, recorder, vocabulary, raised):
    from nats.micro.request import ServiceError

    async def handler(request):
        if raised:
            raise ServiceError("404", "no such book")
        await request.respond_error("404", "no such book")

    driver, subject = await serve(handler)
    await driver.client.request(subject, timeout=2)
    asked, handled = await spans(recorder, vocabulary, subject)
    assert asked.attributes["error.type"] == "404"
    assert asked.status.description == "no such book"
    assert handled.status.status_code.name == "ERROR"
    assert handled.attributes["error.type"] == ("nats.micro.request.ServiceError" if raised else "404")


async def test_of_a_long_error_the_beginning_is_kept(serve, recorder):
    async def handler(request):
        await request.respond_error("4" * 5000, "n" * 5000)

    driver, subject = await serve(handler)
    await driver.client.request(subject, timeout=2)
    asked, handled = await spans(recorder, "guide", subject)
    assert asked.attributes["error.type"] == handled.attributes["error.type"] == "4" * 1024
    assert asked.status.description == handled.status.description == "n" * 1024


async def test_asking_a_service_about_itself_is_silent(serve, recorder):
    async def handler(request):
        await request.respond()

    driver, _ = await serve(handler)
    await driver.client.request("$SRV.PING.shop", timeout=2)
    assert recorder.spans() == []
