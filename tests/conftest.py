"""Brokers, recorders, and what must hold after every test."""

from __future__ import annotations

import contextlib
import os

import pytest
from opentelemetry import context, trace

from examples import brokers
from otel_messaging.core import safety, settings
from tests.support import clients
from tests.support.desk import desk as desk  # a fixture
from tests.support.drivers import DRIVERS
from tests.support.recorder import Recorder

OPT_IN = {"guide": None, "semconv": "messaging", "both": "messaging/dup"}


def pytest_collection_modifyitems(items):
    """Skip the tests of a client that does not work here: all are named after it.

    `--reruns` is for real brokers, which are late now and then: what uses none has to pass at once.
    """
    for item in items:
        if "real_broker" not in item.fixturenames:
            item.add_marker(pytest.mark.flaky(reruns=0))
        if clients.NO_KAFKA and "kafka" in item.nodeid.lower():
            item.add_marker(pytest.mark.skip(reason=clients.NO_KAFKA))


def _broker(start, needed=True):
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(start())
        except brokers.BrokerUnavailable as error:
            if needed and os.environ.get("CI"):
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))
        yield address


@pytest.fixture(scope="session")
def real_broker():
    """Asked for by whatever starts or uses a real broker."""


@pytest.fixture(scope="session")
def kafka_address(real_broker):
    if os.environ.get("OTEL_MESSAGING_TEST_KAFKA") == "apache":
        from tests.support.kafka_python import APACHE_VERSION  # asks for the version that is installed

        yield from _broker(lambda: brokers.apache_kafka(APACHE_VERSION), needed=False)
    else:
        yield from _broker(brokers.kafka)


@pytest.fixture(scope="session")
def rabbitmq_address(real_broker):
    yield from _broker(brokers.rabbitmq)


@pytest.fixture(scope="session")
def nats_address(real_broker):
    yield from _broker(brokers.nats)


@pytest.fixture(autouse=True)
def guard(monkeypatch):
    """Our own errors fail the test, no setting leaks in, nothing counts as told, and no context is left behind."""
    for variable in list(os.environ):
        if variable.startswith("OTEL_"):
            monkeypatch.delenv(variable)
    monkeypatch.setattr(safety, "strict", True)
    monkeypatch.setattr(safety, "_reported", set())
    monkeypatch.setattr(settings, "_told", set())
    context.attach(context.Context())  # a test that failed may have left one
    yield
    assert context.get_current() == {}
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.fixture
def lenient(monkeypatch):
    """Our own errors are logged, as they are in production."""
    monkeypatch.setattr(safety, "strict", False)


@pytest.fixture
def recorder():
    made = Recorder()
    yield made
    assert [span.name for span in made.open.spans.values()] == [], "spans that never ended"
    made.tracer_provider.shutdown()
    made.meter_provider.shutdown()


@pytest.fixture(params=list(OPT_IN))
def vocabulary(request, monkeypatch):
    """Each vocabulary in turn."""
    if OPT_IN[request.param]:
        monkeypatch.setenv(settings.OPT_IN, OPT_IN[request.param])
    return request.param


@pytest.fixture(params=list(DRIVERS))
def library(request):
    """Each library in turn."""
    return request.param


@pytest.fixture
def instrument(recorder):
    """Switch an instrumentor on, and off again after the test."""
    with contextlib.ExitStack() as stack:

        def switch_on(instrumentor, **arguments):
            instrumentor().instrument(**{**recorder.providers, **arguments})
            assert instrumentor().is_instrumented_by_opentelemetry
            stack.callback(_switch_off, instrumentor)

        yield switch_on


def _switch_off(instrumentor):
    if instrumentor().is_instrumented_by_opentelemetry:
        instrumentor().uninstrument()


@pytest.fixture
async def connect(library, request, instrument, real_broker):
    """Instrument a library, and connect its driver to its broker."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened(**arguments):
            driver = DRIVERS[library](request.getfixturevalue(DRIVERS[library].broker))
            instrument(driver.instrumentor, **arguments)
            await driver.open()
            stack.push_async_callback(driver.close)
            return driver

        yield opened
