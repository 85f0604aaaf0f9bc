"""Versions, arguments, and what switching on and off does, for all three instrumentors."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import operator
import os
import threading

import pytest
from opentelemetry.instrumentation.dependencies import DependencyConflict, DependencyConflictError

from otel_messaging import AioPikaInstrumentor, KafkaPythonInstrumentor, NatsPyInstrumentor
from tests.programs.instrumentors import backport

ALL = [KafkaPythonInstrumentor, AioPikaInstrumentor, NatsPyInstrumentor]


@pytest.fixture(params=ALL, ids=[kind.__name__ for kind in ALL])
def instrumentor(request):
    yield request.param
    if request.param().is_instrumented_by_opentelemetry:
        request.param().uninstrument()


@pytest.fixture
def installed(monkeypatch):
    """Let distributions seem to be installed in the versions given, or not at all."""
    clients = {"kafka-python": None, "kafka-python-ng": None, "aio-pika": None, "nats-py": None}
    for metadata in [importlib.metadata, *backport()]:
        monkeypatch.setattr(metadata.Distribution, "from_name", classmethod(pretending(metadata, clients)))
    return clients


def pretending(metadata, clients):
    real = metadata.Distribution.from_name.__func__

    class Fake(metadata.Distribution):
        def __init__(self, version):
            self.text = f"Metadata-Version: 2.1\nVersion: {version}\n"

        def read_text(self, filename):
            return self.text if filename == "METADATA" else None

        def locate_file(self, path):
            raise NotImplementedError

    def from_name(cls, name):
        if name not in clients:
            return real(cls, name)
        if clients[name] is None:
            raise metadata.PackageNotFoundError(name)
        return Fake(clients[name])

    return from_name


def methods(instrumentor):
    """What the client's classes have under the names that are patched."""
    found = []
    for patch in instrumentor.patches:
        with contextlib.suppress(AttributeError, ModuleNotFoundError):  # older than its `since`
            module = importlib.import_module(patch.module)
            found.append(vars(operator.attrgetter(patch.owner)(module)).get(patch.name))
    return found


def same(before, now):
    return all(one is other for one, other in zip(before, now, strict=True))


SUPPORTED = [
    (KafkaPythonInstrumentor, "kafka-python", ["2.0.2", "2.3.2", "3.0.0", "3.0.12", "3.99"]),
    (KafkaPythonInstrumentor, "kafka-python-ng", ["2.2.3"]),
    (AioPikaInstrumentor, "aio-pika", ["9.0", "9.0.7", "9.6.2", "10.2.1"]),
    (NatsPyInstrumentor, "nats-py", ["2.6.0", "2.16.0"]),
]
UNSUPPORTED = [
    (KafkaPythonInstrumentor, "kafka-python", ["1.4.7", "2.0.1", "4.0.0"]),
    (KafkaPythonInstrumentor, "kafka-python-ng", ["2.2.2", "4.0"]),
    (AioPikaInstrumentor, "aio-pika", ["8.3.0", "11.0"]),
    (NatsPyInstrumentor, "nats-py", ["2.5.0", "3.0.0"]),
]


def each(cases):
    return [(kind, name, version) for kind, name, versions in cases for version in versions]


@pytest.mark.parametrize(("kind", "name", "version"), each(SUPPORTED))
def test_a_supported_version_is_instrumented(kind, name, version, installed, recorder):
    installed[name] = version
    kind().instrument(**recorder.providers)
    assert kind().is_instrumented_by_opentelemetry
    kind().uninstrument()


@pytest.mark.parametrize(("kind", "name", "version"), each(UNSUPPORTED))
def test_another_version_is_an_error_that_names_both(kind, name, version, installed, caplog):
    installed[name] = version
    before = methods(kind)
    kind().instrument()
    assert not kind().is_instrumented_by_opentelemetry
    assert same(before, methods(kind))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"{name} {version}" in record.getMessage()
    assert any(str(part) in record.getMessage() for part in ("2.0.2", "9.0", "2.6", "2.2.3"))


def test_a_missing_client_is_an_error_and_nothing_else(instrumentor, installed, caplog):
    before = methods(instrumentor)
    instrumentor().instrument()
    assert not instrumentor().is_instrumented_by_opentelemetry
    assert same(before, methods(instrumentor))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert instrumentor.requirements[0].split()[0] in record.getMessage()


def test_the_loader_skips_a_missing_client_by_an_exception(instrumentor, installed):
    with pytest.raises(DependencyConflictError):
        instrumentor().instrument(skip_dep_check=True)
    assert not instrumentor().is_instrumented_by_opentelemetry


def test_switching_on_twice_is_once(instrumentor, recorder, caplog):
    instrumentor().instrument(**recorder.providers)
    before = methods(instrumentor)
    instrumentor().instrument(**recorder.providers)
    assert same(before, methods(instrumentor))
    assert "already instrumented" in caplog.text


def test_an_argument_that_is_not_known_is_a_warning_that_lists_those_that_are(instrumentor, recorder, caplog):
    instrumentor().instrument(**recorder.providers, vocabulary="semconv", setle="off")
    assert instrumentor().is_instrumented_by_opentelemetry
    (message,) = caplog.messages
    assert message.startswith(
        "instrument() does not know setle, vocabulary; it takes tracer_provider, meter_provider, "
    )
    for name in ("publish_hook", "consume_hook", "consumer_parent", "process_spans", "settle", "metrics"):
        assert name in message


@pytest.mark.parametrize("tells", [True, False])
def test_a_version_that_is_not_supported_is_told_of_whatever_the_loader_does(tells, installed, monkeypatch, caplog):
    monkeypatch.setattr(DependencyConflict, "_log", lambda *_: None, raising=False)
    if not tells:
        monkeypatch.delattr(DependencyConflict, "_log")
    installed["nats-py"] = "2.5.0"
    with pytest.raises(DependencyConflictError):
        NatsPyInstrumentor().instrument(skip_dep_check=True)
    assert [message.count("nats-py 2.5.0") for message in caplog.messages] == ([] if tells else [1])


def test_each_has_an_instance_of_its_own():
    assert len({id(kind()) for kind in ALL}) == 3


def test_what_it_depends_on_is_what_it_supports(instrumentor):
    assert tuple(instrumentor().instrumentation_dependencies()) == instrumentor.requirements


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("lock", [("_tracing", "_lock"), ("_tracing", "_adapter", "_adding")], ids=".".join)
def test_a_forked_child_waits_for_no_lock_that_a_thread_of_its_parent_has_held(recorder, instrument, lock):
    instrument(KafkaPythonInstrumentor)
    instrumentor = KafkaPythonInstrumentor()
    instrumentor.reader()
    find = operator.attrgetter(".".join(lock))
    holding, done = threading.Event(), threading.Event()

    def hold():
        with find(instrumentor):
            holding.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(10)
    child = os.fork()
    if not child:
        os._exit(0 if find(instrumentor).acquire(timeout=5) else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
