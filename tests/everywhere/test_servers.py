"""Servers with several workers: every span and count of every worker arrives, and none twice."""

from __future__ import annotations

import collections
import contextlib
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from tests.programs import FOLDER, environment_of, instrumented

GUNICORN = (
    "-m",
    "gunicorn",
    "--no-control-socket",
    "--chdir",
    FOLDER,
    "--workers",
    "2",
    "--graceful-timeout",
    "10",
    "--bind",
)
COMMANDS = {
    "gunicorn": (*GUNICORN, "127.0.0.1:{port}", "wsgi:app"),
    "gunicorn --preload": (*GUNICORN, "127.0.0.1:{port}", "--preload", "wsgi:app"),
    "gunicorn --threads": (*GUNICORN, "127.0.0.1:{port}", "--threads", "3", "wsgi:app"),
    "gunicorn with uvicorn": (*GUNICORN, "127.0.0.1:{port}", "-k", "uvicorn_worker.UvicornWorker", "asgi:app"),
    "gunicorn with gevent": (*GUNICORN, "127.0.0.1:{port}", "--worker-class", "gevent", "wsgi:app"),
    "uvicorn": ("-m", "uvicorn", "--app-dir", FOLDER, "--workers", "2", "--port", "{port}", "asgi:app"),
}
# The SDK has to find gevent's threads and locks from the start.
VARIABLES = {"gunicorn with gevent": {"OTEL_PYTHON_AUTO_INSTRUMENTATION_EXPERIMENTAL_GEVENT_PATCH": "patch_all"}}
# A worker of uvicorn is ended by the signal that it was sent: its exit handlers, the SDK's among them, do not run.
OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "200"}


@pytest.fixture
def environ(otlp, kafka_address, rabbitmq_address, nats_address):
    return {
        **otlp,
        "KAFKA_BOOTSTRAP_SERVERS": kafka_address,
        "RABBITMQ_URL": rabbitmq_address,
        "NATS_URL": nats_address,
    }


@pytest.fixture
def serve(python, environ):
    """Run a server, give its address, and have it stop of its own accord."""

    @contextlib.contextmanager
    def served(command, **variables):
        port = free_port()
        parts = [str(part).format(port=port) for part in (*instrumented(python), *COMMANDS[command])]
        process = subprocess.Popen(
            parts,
            env=environment_of({**environ, **VARIABLES.get(command, {}), **variables}),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield f"http://127.0.0.1:{port}"
            process.terminate()
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, said
        threads_of_the_sdk = "gevent" in command  # they complain when they end in a forked child
        assert not re.search("otel_messaging|Failed" if threads_of_the_sdk else "Traceback", said), said

    return served


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(url):
    """The process id of the worker that answers, once there is one."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url) as answer:
            return answer.read().decode()
        time.sleep(0.05)
    raise AssertionError("nobody answers")


def ask_two(url):
    """How many requests each worker has answered, when each of two has answered some."""
    answered = collections.Counter()
    while len(answered) < 2 or min(answered.values()) < 2:
        assert answered.total() < 500, answered
        answered[ask(url)] += 1
    return answered


def counts(receiver, verb):
    """How many messages were produced or consumed, by system and destination."""
    return {
        (metric.attributes["messaging.system"], metric.attributes["messaging.destination.name"]): metric.total
        for metric in receiver.metrics
        if metric.name == f"messaging.messages.{verb}"
    }


@pytest.mark.parametrize("command", [name for name, parts in COMMANDS.items() if parts[-1] == "wsgi:app"])
def test_wsgi(command, serve, destination, receiver):
    with serve(command) as address:
        answered = ask_two(f"{address}/{destination}")
    spans = collections.Counter(span.name for span in receiver.spans)
    assert spans == {f"publish {destination}-{worker}": number for worker, number in answered.items()}
    assert len({span.span_id for span in receiver.spans}) == answered.total()
    expected = {("kafka", f"{destination}-{worker}"): number for worker, number in answered.items()}
    assert counts(receiver, "produced") == expected


@pytest.mark.parametrize("command", [name for name, parts in COMMANDS.items() if parts[-1] == "asgi:app"])
def test_asgi(command, serve, destination, receiver):
    with serve(command, **OFTEN) as address:
        answered = ask_two(f"{address}/{destination}")
        total = 2 * answered.total()
        assert receiver.wait_for(lambda receiver: len(receiver.spans) == 2 * total == 2 * consumed(receiver), 20)
    expect_chains(receiver, destination, answered)


def test_asgi_that_flushes_at_its_end(serve, destination, receiver):
    with serve("uvicorn", FLUSH="1") as address:
        answered = ask_two(f"{address}/{destination}")
    expect_chains(receiver, destination, answered)


def expect_chains(receiver, destination, answered):
    """One trace for each request: through NATS, and then through RabbitMQ."""
    traces = collections.defaultdict(list)
    for span in receiver.spans:
        traces[span.trace_id].append(span)
    assert len(traces) == answered.total()
    for spans in traces.values():
        name = spans[0].attributes["messaging.destination.name"]
        told = [(span.name, span.attributes["messaging.system"]) for span in spans]
        verbs = (("publish", "nats"), ("receive", "nats"), ("publish", "rabbitmq"), ("receive", "rabbitmq"))
        assert told == [(f"{verb} {name}", system) for verb, system in verbs]
        assert [span.parent_id for span in spans] == ["", *(span.span_id for span in spans[:-1])]
    expected = {
        (system, f"{destination}-{worker}"): number
        for worker, number in answered.items()
        for system in ("nats", "rabbitmq")
    }
    assert counts(receiver, "produced") == counts(receiver, "consumed") == expected


def consumed(receiver):
    return sum(counts(receiver, "consumed").values())


def test_what_was_sent_before_the_fork_is_told_once(serve, destination, receiver):
    greeting = f"{destination}-greeting"
    with serve("gunicorn --preload", GREET=greeting) as address:
        answered = ask_two(f"{address}/{destination}")
    names = [span.name for span in receiver.spans]
    assert names.count(f"publish {greeting}") == 1
    assert len(names) == 1 + answered.total()
    assert counts(receiver, "produced")["kafka", greeting] == 1
