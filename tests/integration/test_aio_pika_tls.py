"""aio-pika over TLS, and on a virtual host."""

from __future__ import annotations

import ssl

import aio_pika
import pytest
from aio_pika import Message

from examples import brokers
from otel_messaging import AioPikaInstrumentor
from tests.support.aio_pika import tidy  # noqa: F401 (fixture)
from tests.support.recorder import shape, span_id
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("tidy")


class RabbitMQ(brokers.RabbitMQ):
    """A broker that speaks TLS too, to a user whose password would be noticed, on a virtual host of its own.

    Args:
        certificate: the files of its certificate and its key.
    """

    PASSWORD = "not-to-be-seen"

    def __init__(self, certificate):
        super().__init__()
        self._certificate = certificate
        self.tls_port = brokers.free_port()

    def _settings(self):
        certificate, key = self._certificate
        return [
            *super()._settings(),
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
            f"ssl_options.cacertfile = {certificate}",
            f"ssl_options.certfile = {certificate}",
            f"ssl_options.keyfile = {key}",
            f"default_pass = {self.PASSWORD}",
            "default_vhost = shop",
        ]

    def start(self):
        super().start()
        self._wait_for(self.tls_port, self.hello, b"\x15\x03")  # the alert that this is no TLS

    @property
    def tls_address(self):
        return f"amqps://guest:{self.PASSWORD}@127.0.0.1:{self.tls_port}/shop"


@pytest.fixture(scope="module")
def broker(certificate, real_broker):
    try:
        with RabbitMQ(certificate) as running:
            yield running
    except brokers.BrokerUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("connect", [aio_pika.connect, aio_pika.connect_robust])
async def test_messages_over_tls_are_told_of(instrument, recorder, broker, trusting, connect):
    instrument(AioPikaInstrumentor)
    handled = []
    async with await connect(broker.tls_address, ssl_context=trusting) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("over-tls", auto_delete=True)
        for _ in range(2):
            await channel.default_exchange.publish(Message(bytes(200_000)), queue.name)
        handled.append(await queue.get(no_ack=True))

        async def handle(message):
            handled.append(message)

        await queue.consume(handle, no_ack=True)
        await until(lambda: len(handled) == 2)
    sent = recorder.spans("publish over-tls", count=2)
    received = recorder.spans("receive over-tls", count=2)
    assert {span.parent.span_id for span in received} == {span_id(span) for span in sent}
    for span in (*sent, *received):
        assert (span.attributes["server.address"], span.attributes["server.port"]) == ("127.0.0.1", broker.tls_port)
        assert span.attributes["messaging.rabbitmq.vhost"] == "shop"
        assert broker.PASSWORD not in f"{shape(span)} {span.resource.attributes}"


async def test_a_certificate_that_is_not_trusted_is_refused_as_before(instrument, recorder, broker):
    instrument(AioPikaInstrumentor)
    with pytest.raises((ConnectionError, ssl.SSLError)) as caught:
        await aio_pika.connect(broker.tls_address, ssl_context=ssl.create_default_context())
    assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value)
    assert recorder.spans() == []
