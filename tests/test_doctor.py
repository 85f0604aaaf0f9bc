"""The doctor, with the problems that it is for: each is made for real."""

from __future__ import annotations

import contextlib
import http.server
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from examples import brokers
from examples.demo.receiver import Receiver
from tests.programs import environment_of
from tests.support.doctor import COMMAND, doctor, problems, rows

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HTTP = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_SERVICE_NAME": "shop"}


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def healthy(receiver):
    """Variables with which nothing is wrong."""
    return {**HTTP, ENDPOINT: receiver.endpoint}


@contextlib.contextmanager
def answering(status, body=b""):
    """A server of HTTP that answers every request in one way, and keeps what it was sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.sent.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.sent = []
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield server, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def silent():
    """The port of a server that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed():
    """A port where nobody is."""
    return brokers.free_port()


def certificate(folder):
    """A certificate of nobody's, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    made = folder / "cert.pem", folder / "key.pem"
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost")
    subprocess.run([*command, "-out", made[0], "-keyout", made[1]], check=True, capture_output=True)
    return made


def test_where_nothing_is_wrong_it_says_so_and_ends_with_0(healthy):
    done = doctor(environ=healthy)
    assert done.stdout.endswith("\nNo problem found.\n")
    assert (done.returncode, done.stderr) == (0, "")


def test_it_tells_what_is_there_and_in_force(healthy, receiver):
    found = rows(
        environ={**healthy, "OTEL_PYTHON_MESSAGING_SETTLE": "off", "OTEL_SEMCONV_STABILITY_OPT_IN": "messaging"}
    )
    assert problems(found) == {}
    assert found["Python"][0] == f"{sys.version.split()[0]}, {sys.executable}"
    assert found["messaging-nats-py"][0] == "loads"
    assert found["nats-py"][0].endswith(", supported")
    assert found["vocabulary"][0] == "semconv (OTEL_SEMCONV_STABILITY_OPT_IN)"
    assert found["settle"][0] == "off (OTEL_PYTHON_MESSAGING_SETTLE)"
    assert found["consumer_parent"][0] == "ambient (default)"
    assert found["propagators"][0] == "tracecontext,baggage (default)"
    assert found["traces"][0] == f"http/protobuf to {receiver.endpoint}/v1/traces ({ENDPOINT}): answers"
    assert found["metrics"][0] == f"http/protobuf to {receiver.endpoint}/v1/metrics ({ENDPOINT}): answers"
    assert found["SDK"][0] == "opentelemetry.sdk.trace.TracerProvider"
    assert found["service"][0] == "shop"


def test_whoever_has_read_enough_may_close_the_pipe(healthy):
    command = f"{sys.executable} {' '.join(COMMAND)} | head -1"
    done = subprocess.run(["/bin/sh", "-c", command], env=environment_of(healthy), capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"This interpreter\n", b"")


def test_it_changes_nothing(healthy, receiver, tmp_path):
    doctor(environ=healthy, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (receiver.spans, receiver.metrics) == ([], [])


def test_what_happens_at_a_start_is_not_exported_by_the_start_that_is_tried(healthy, receiver, tmp_path):
    points = "[opentelemetry_post_instrument]\nchatty = chatty:talk\n"
    talk = "from opentelemetry import trace\ndef talk():\n    trace.get_tracer('x').start_span('hello').end()\n"
    (tmp_path / "chatty.py").write_text(talk)
    assert problems(rows(environ={**healthy, **distribution(tmp_path, "chatty", "1.0", points)})) == {}
    assert receiver.spans == []


def test_the_table_has_80_columns(healthy):
    done = doctor("nats://127.0.0.1:1", environ={**healthy, "OTEL_TRACES_SAMPLER": "always_off"})
    lines = [line for line in done.stdout.splitlines() if len(line) > 80]
    assert [line for line in lines if len(line.split()) > 2] == []  # a path or an address that is longer
    assert done.stdout.isascii()
    assert re.search(r"\n! sampler +always_off \(OTEL_TRACES_SAMPLER\): no trace\n +begins here\n    what", done.stdout)
    assert "    what to do: unset OTEL_TRACES_SAMPLER\n" in done.stdout
    assert done.stdout.endswith("\n2 problems found, marked with !.\n")
    assert done.returncode == 1


def test_in_code_only_what_concerns_such_a_program_is_looked_at(closed):
    environ = {ENDPOINT: f"http://127.0.0.1:{closed}", "OTEL_PYTHON_DISTRO": "aws"}
    found = rows("--in-code", environ=environ)
    assert problems(found) == {}
    assert found.keys() >= {"propagators", "sampler", "settle", "nats-py", "opentelemetry-sdk"}
    assert found.keys().isdisjoint({"distro", "configurator", "traces", "SDK"})


PROBLEMS = [
    ({"OTEL_SDK_DISABLED": " True"}, "OTEL_SDK_DISABLED", "nothing is recorded", "unset OTEL_SDK_DISABLED"),
    ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, "sampler", "no trace begins", "unset OTEL_TRACES_SAMPLER"),
    ({"OTEL_TRACES_SAMPLER": "always"}, "sampler", "unknown; the default is used", "correct OTEL_TRACES_SAMPLER"),
    (
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"},
        "sampler",
        "of 0.0",
        "set OTEL_TRACES_SAMPLER_ARG above 0",
    ),
    (
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "ten"},
        "sampler",
        "'ten' is no number, 1.0 is used",
        "set OTEL_TRACES_SAMPLER_ARG between 0 and 1",
    ),
    ({"OTEL_PROPAGATORS": "none"}, "propagators", "none", "unset OTEL_PROPAGATORS"),
    ({"OTEL_TRACES_EXPORTER": "none"}, "traces", "not exported", "set OTEL_TRACES_EXPORTER=otlp"),
    ({"OTEL_TRACES_EXPORTER": "jaeger"}, "traces", "no such exporter", "correct OTEL_TRACES_EXPORTER"),
    ({"OTEL_METRICS_EXPORTER": "statsd"}, "metrics", "no such exporter", "correct OTEL_METRICS_EXPORTER"),
    ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http"}, "traces", "no protocol", "grpc or http/protobuf"),
    ({"OTEL_PYTHON_DISTRO": "aws"}, "distro", "not installed", "unset OTEL_PYTHON_DISTRO"),
    ({"OTEL_PYTHON_CONFIGURATOR": "aws"}, "configurator", "not installed", "unset OTEL_PYTHON_CONFIGURATOR"),
    (
        {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "redis, messaging-nats-py"},
        "messaging-nats-py",
        "disabled by",
        "take messaging-nats-py out of OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
    ),
    (
        {"OTEL_PYTHON_MESSAGING_SETTLE": "never"},
        "settle",
        "event (default); 'never' must be one of event, span, off",
        "correct OTEL_PYTHON_MESSAGING_SETTLE",
    ),
    ({"OTEL_PYTHON_MESSAGING_SETLE": "off"}, "OTEL_PYTHON_MESSAGING_SETLE", "no such setting", "correct the name"),
    (
        {"OTEL_PYTHON_MESSAGING_EXCLUDED_DESTINATIONS": "health,*"},
        "excluded_destinations",
        "health,*",
        "* is every destination",
    ),
    ({"OTEL_SEMCONV_STABILITY_OPT_IN": "messaging/new"}, "vocabulary", "messaging/new is unknown", "messaging/dup"),
    (
        {"OTEL_EXPORTER_OTLP_HEADERS": "my secret"},
        "traces: headers",
        "no name=value",
        "write OTEL_EXPORTER_OTLP_HEADERS",
    ),
    (
        {ENDPOINT: "https://127.0.0.1:1", "OTEL_EXPORTER_OTLP_CERTIFICATE": "missing.pem"},
        "traces",
        "No such file",
        "correct OTEL_EXPORTER_OTLP_CERTIFICATE",
    ),
    ({ENDPOINT: "127.0.0.1:4318"}, "traces", "no URL", f"begin {ENDPOINT} with http:// or https://"),
    ({ENDPOINT: "http://nobody.invalid"}, "traces", "no such host", f"correct {ENDPOINT}"),
]


@pytest.mark.parametrize(("variables", "name", "value", "remedy"), PROBLEMS, ids=[" ".join(row[0]) for row in PROBLEMS])
def test_a_variable_that_hides_spans_is_a_problem(healthy, variables, name, value, remedy):
    found = rows("--timeout", "10", environ={**healthy, **variables})
    assert value in found[name][0]
    assert remedy in found[name][1]


def test_all_instrumentations_disabled(healthy):
    found = rows(environ={**healthy, "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"})
    assert set(problems(found)) == {"messaging-kafka-python", "messaging-aio-pika", "messaging-nats-py"}
    assert found["entry points that are on"][0] == "none of ours"


def test_a_propagator_that_is_not_installed_stops_opentelemetry_but_not_the_doctor(healthy):
    found = rows(environ={**healthy, "OTEL_PROPAGATORS": "b33"})
    assert set(problems(found)) == {"propagators", "SDK"}
    text = "'b33' is not installed (OTEL_PROPAGATORS): opentelemetry-instrument ends before the program begins"
    assert found["propagators"][0] == text
    assert found["messaging-nats-py"][0] == "loads"
    assert found["SDK"][0] == "none is started: OpenTelemetry cannot be imported: ValueError"


def test_a_disabled_instrumentation_that_is_not_there_is_told(healthy):
    found = rows(environ={**healthy, "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "nats-py,redis"})
    assert found["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] == ("names what is not installed: nats-py, redis", "")


def test_metrics_need_not_be_exported(healthy):
    assert problems(rows(environ={**healthy, "OTEL_METRICS_EXPORTER": "none"})) == {}


def test_a_receiver_that_is_not_there(closed):
    found = rows(environ={**HTTP, ENDPOINT: f"http://127.0.0.1:{closed}"})
    remedy = f"start a receiver there (the OpenTelemetry Collector), or correct {ENDPOINT}"
    url = f"http/protobuf to http://127.0.0.1:{closed}/v1"
    assert problems(found) == {
        "traces": (f"{url}/traces ({ENDPOINT}): connection refused", remedy),
        "metrics": (f"{url}/metrics ({ENDPOINT}): connection refused", remedy),
    }


def test_what_never_answers_holds_nobody_up(silent):
    began = time.monotonic()
    found = rows(
        "--timeout", "0.5", f"nats://127.0.0.1:{silent}", environ={**HTTP, ENDPOINT: f"http://127.0.0.1:{silent}"}
    )
    assert time.monotonic() - began < 15  # the trial start takes most of it
    assert set(problems(found)) == {"traces", "metrics", f"nats://127.0.0.1:{silent}"}
    assert all("no answer in time" in value for value, _ in problems(found).values())


def test_what_never_comes_to_an_end_holds_nobody_up():
    def drip(server):
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                while True:
                    connection.sendall(b"I")
                    time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        port = server.getsockname()[1]
        found = rows("--timeout", "0.5", f"nats://127.0.0.1:{port}", environ={"OTEL_TRACES_EXPORTER": "none"})
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert found[f"nats://127.0.0.1:{port}"][0] == "no answer in time"


def test_an_exporter_may_name_its_protocol_itself(healthy, receiver):
    variables = {"OTEL_TRACES_EXPORTER": "otlp_proto_http", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}
    found = rows(environ={**healthy, **variables})
    assert found["traces"] == (f"http/protobuf to {receiver.endpoint}/v1/traces ({ENDPOINT}): answers", "")


@pytest.mark.parametrize(
    ("status", "body", "value", "remedy"),
    [
        (404, b"", "is no receiver of OTLP (404)", "correct the address"),
        (401, b"", "refuses us (401)", "correct the credentials in OTEL_EXPORTER_OTLP_HEADERS"),
        (500, b"", "answers with an error (500)", "look into the log of the receiver"),
        (400, b"Client sent an HTTP request to an HTTPS server.", "wants TLS", f"begin {ENDPOINT} with https://"),
    ],
)
def test_a_receiver_that_refuses(status, body, value, remedy):
    with answering(status, body) as (_, url):
        found = rows(environ={**HTTP, ENDPOINT: url})
    assert value in found["traces"][0]
    assert remedy in found["traces"][1]


def test_each_signal_has_its_own_address_and_headers(receiver):
    own = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "{url}/custom",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "Api-Key=a%20b",
        "OTEL_EXPORTER_OTLP_HEADERS": "other=1",
    }
    with answering(200) as (server, url):
        variables = {name: value.format(url=url) for name, value in own.items()}
        found = rows(environ={**HTTP, ENDPOINT: receiver.endpoint, **variables})
    assert problems(found) == {}
    assert found["traces"][0].endswith(f"{url}/custom (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT): answers")
    assert found["traces: headers"][0] == "api-key=***"
    assert found["metrics: headers"][0] == "other=***"
    ((path, headers),) = server.sent
    assert (path, headers["api-key"], headers["content-type"]) == ("/custom", "a b", "application/x-protobuf")


def test_tls_that_is_not_trusted(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    with answering(200) as (server, _):
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = f"https://localhost:{server.server_port}"
        refused = rows(environ={**HTTP, ENDPOINT: url})
        trusted = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "cert.pem")}
        taken = rows(environ={**HTTP, ENDPOINT: url, **trusted})
    assert "certificate refused: self" in refused["traces"][0]
    assert problems(taken) == {}


def test_the_three_brokers_answer(healthy, kafka_address, rabbitmq_address, nats_address):
    found = rows(f"kafka://{kafka_address}", rabbitmq_address, nats_address, environ=healthy)
    assert problems(found) == {}
    rabbitmq = rabbitmq_address.rpartition("@")[2].strip("/")
    assert found[f"kafka://{kafka_address}"][0] == "answers as Kafka; credentials were not tried"
    assert found[f"amqp://{rabbitmq}"][0] == "answers as AMQP 0-9-1; credentials were not tried"
    assert found[nats_address][0].startswith("answers as NATS 2.")


def test_a_broker_that_is_not_there(healthy, closed):
    found = rows(f"kafka://127.0.0.1:{closed}", "amqp://nobody.invalid", environ=healthy)
    assert {name: value for name, (value, _) in problems(found).items()} == {
        f"kafka://127.0.0.1:{closed}": "connection refused",
        "amqp://nobody.invalid:5672": "no such host",
    }


@pytest.mark.parametrize(
    ("scheme", "value"),
    [("kafka", "answers as NATS, not as Kafka"), ("amqp", "answers as NATS, not as AMQP 0-9-1"), ("amqps", "TLS")],
)
def test_another_broker_has_the_port(healthy, nats_address, scheme, value):
    address = nats_address.replace("nats", scheme)
    (row,) = problems(rows(address, environ=healthy)).values()
    assert value in row[0]
    assert "port" in row[1]


@pytest.mark.usefixtures("real_broker")
def test_a_server_of_nats_without_headers(healthy, tmp_path, closed):
    (tmp_path / "nats.conf").write_text(f"listen: 127.0.0.1:{closed}\nno_header_support: true\n")
    with contextlib.ExitStack() as stack:
        try:
            command = (brokers.nats_binary(), "-c", tmp_path / "nats.conf")
        except brokers.BrokerUnavailable as error:
            pytest.skip(str(error))
        server = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(server.terminate)
        wait_for_port(closed)
        (row,) = problems(rows(f"nats://127.0.0.1:{closed}", environ=healthy)).values()
    assert row[0].endswith("without headers")
    assert "contexts travel in headers" in row[1]


def wait_for_port(port):
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    pytest.fail("the server did not start")


@pytest.mark.usefixtures("real_broker")
def test_a_broker_that_wants_tls(healthy, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    with answering(200) as (server, _):
        server.socket = context.wrap_socket(server.socket, server_side=True)
        (row,) = problems(rows(f"kafka://127.0.0.1:{server.server_port}", environ=healthy)).values()
    assert row[1]


SECRET = "geheim"


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_credentials_are_shown(form):
    with answering(401) as (server, _):
        url = f"http://me:{SECRET}@127.0.0.1:{server.server_port}/x?key={SECRET}#{SECRET}"
        environ = {**HTTP, ENDPOINT: url, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url}
        environ["OTEL_EXPORTER_OTLP_HEADERS"] = f"authorization=Bearer%20{SECRET},{SECRET} alone"
        done = doctor(
            *form, f"amqp://me:{SECRET}@127.0.0.1:1/{SECRET}?{SECRET}", f"nats://{SECRET}@h.invalid", environ=environ
        )
    assert done.returncode == 1
    assert "authorization=***" in done.stdout
    assert "***@127.0.0.1" in done.stdout
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (f"amqp://me:{SECRET}/x@host",),
        (f"kafka://me:{SECRET}@a:1,b:2",),
        (f"redis://me:{SECRET}@host",),
        ("nats://",),
        ("localhost:9092",),
        ("--timeout", "0"),
        ("--timeout", "soon"),
        ("--verbose",),
    ],
)
def test_wrong_usage_ends_with_2(arguments):
    done = doctor(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr
    assert SECRET not in done.stderr


def test_no_command_is_wrong_usage():
    done = subprocess.run([sys.executable, *COMMAND[:2]], env=environment_of({}), capture_output=True, check=False)
    assert done.returncode == 2


def distribution(folder, name, version, entry_points=""):
    """What a package manager leaves of a package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)
    return {"PYTHONPATH": str(folder)}


def test_another_version_comes_first_on_the_path(healthy, tmp_path):
    """What a `PYTHONPATH` does to a program that has the package already."""
    found = rows(environ={**healthy, **distribution(tmp_path, "opentelemetry-api", "1.0")})
    there = problems(found)
    assert found["opentelemetry-api, copies"][0].startswith(f"the first is used: 1.0 in {tmp_path}, then ")
    assert there["opentelemetry-sdk"][0].endswith(", there is 1.0")
    assert there["otel-messaging"][1] == f"{sys.executable} -m pip install 'opentelemetry-api>=1.37'"


def test_a_second_copy_that_will_do_is_told_and_no_problem(healthy, tmp_path):
    """As where an operator puts the package beside an application."""
    found = rows(environ={**healthy, **distribution(tmp_path, "wrapt", "1.16")})
    assert found["wrapt, copies"][0].startswith(f"the first is used: 1.16 in {tmp_path}, then ")
    assert problems(found) == {}


def test_a_second_copy_of_ours_is_a_problem(healthy, tmp_path):
    there = problems(rows(environ={**healthy, **distribution(tmp_path, "otel-messaging", "0.0.1")}))
    assert there["otel-messaging, copies"][1] == "remove all but one, or mend the order of PYTHONPATH"


def test_a_wrapt_that_is_too_old(healthy, tmp_path):
    there = problems(rows(environ={**healthy, **distribution(tmp_path, "wrapt", "1.10")}))
    assert there["otel-messaging"][0].endswith("; requires wrapt<3,>=1.14, there is 1.10")


def test_a_client_in_a_version_that_is_not_supported(healthy, tmp_path):
    found = rows(environ={**healthy, **distribution(tmp_path, "nats-py", "1.0")})
    remedy = f"{sys.executable} -m pip install 'nats-py>=2.6,<3'"
    assert problems(found) == {"nats-py": ("1.0, not supported: nats-py >= 2.6, < 3", remedy)}
    assert found["messaging-nats-py"][0] == "loads; its client's version is not supported"
    assert "messaging-nats-py" not in found["entry points that are on"][0]


def test_another_package_has_an_entry_point_of_our_name(healthy, tmp_path):
    points = "[opentelemetry_instrumentor]\nmessaging-nats-py = elsewhere:Other\n"
    found = rows(environ={**healthy, **distribution(tmp_path, "other-nats", "1.0", points)})
    assert found["messaging-nats-py"] == (
        "another package has an entry point of this name: other-nats",
        "uninstall other-nats",
    )


def test_another_instrumentation_that_stops_all_others(healthy, tmp_path):
    points = "[opentelemetry_instrumentor]\na-bad-one = a_bad_one:Bad\n"
    (tmp_path / "a_bad_one.py").write_text("raise ValueError('no')\n")
    found = rows(environ={**healthy, **distribution(tmp_path, "a-bad-one", "1.0", points)})
    assert problems(found)["error 1"][0] == "Instrumenting of a-bad-one failed: ValueError"


def test_a_client_that_we_do_not_trace(healthy, tmp_path):
    found = rows(environ={**healthy, **distribution(tmp_path, "aiokafka", "0.12.0")})
    assert found["aiokafka"] == ("another client of Kafka, not traced by us", "")


def test_the_command_belongs_to_another_interpreter(healthy, tmp_path):
    command = tmp_path / "opentelemetry-instrument"
    command.write_text("#!/elsewhere/bin/python3\n")
    command.chmod(0o755)
    (row,) = problems(rows(environ={**healthy, "PATH": str(tmp_path)})).values()
    beside = Path(sys.executable).with_name("opentelemetry-instrument")
    assert row == (f"{command} belongs to another Python", f"call {beside}, or put its folder first in PATH")
