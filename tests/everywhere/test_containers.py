"""What `deploy/` has for containers: checked by linters and schemas, and followed step by step without an engine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_ENDPOINT

from examples.demo import chain
from tests.programs import FOLDER, PROGRAMS, ROOT, make_environment, run

yaml = pytest.importorskip("yaml", reason="needs the environment of `make test`")
images = pytest.importorskip("tests.support.images", reason="needs the environment of `make test`")

DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
DOCKERFILES = ("Dockerfile", "init-container/Dockerfile")
SERVICES = ("mail", "shipping", "billing", "shop")  # those that listen first


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_has_no_fault_that_its_linter_knows(name):
    if not (BIN / "hadolint").exists():
        pytest.skip("there is no hadolint for this platform")
    run(BIN / "hadolint", DEPLOY / name, environ={})


def test_the_compose_file_is_one():
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml", environ={})


@pytest.mark.parametrize("name", ["deployment.yaml", "without-operator.yaml"])
def test_a_manifest_is_one_of_kubernetes(name):
    run(BIN / "kubernetes-validate", "--strict", DEPLOY / "kubernetes" / name, environ={})


def test_what_the_compose_file_names_is_there(compose):
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= services.keys(), name
        for dependency, how in service.get("depends_on", {}).items():
            assert (how["condition"] == "service_healthy") == ("healthcheck" in services[dependency]), dependency
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert (ROOT / "examples" / service["command"][1]).is_file()
        else:
            assert service["image"].partition(":")[2], f"{name} has no version"
    hosts = {value.split("//")[-1].split("@")[-1].split(":")[0] for value in addresses(services["shop"])}
    assert hosts == {"kafka", "rabbitmq", "nats", "collector"}


def test_the_collector_has_all_that_its_pipelines_name():
    configured = yaml.safe_load((DEPLOY / "collector.yaml").read_text())
    for pipeline in configured["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= configured[kind].keys()


def test_the_manifests_belong_together():
    instrumentation, deployment, by_hand = (
        yaml.safe_load((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
        for name in ("instrumentation", "deployment", "without-operator")
    )
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["instrumentation.opentelemetry.io/inject-python"] == instrumentation["metadata"]["name"]
    pod = by_hand["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["image"] == instrumentation["spec"]["python"]["image"]
    variables = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    mounted = pod["containers"][0]["volumeMounts"][0]["mountPath"]
    assert all(path.startswith(mounted) for path in variables["PYTHONPATH"].split(":"))


def test_the_services_of_the_compose_file_are_one_trace(
    compose, image, receiver, tmp_path, kafka_address, rabbitmq_address, nats_address
):
    here = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka_address,
        "RABBITMQ_URL": rabbitmq_address,
        "NATS_URL": nats_address,
        OTEL_EXPORTER_OTLP_ENDPOINT: receiver.endpoint,
        "ORDERS": "3",
    }
    running = {}
    for name in SERVICES:
        service = compose["services"][name]
        with (tmp_path / name).open("w") as log:
            running[name] = subprocess.Popen(
                [*image.entrypoint, *service["command"]],
                cwd=image.at("."),
                env={**image.environ, **service["environment"], **here, "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=log,
            )
        if name in ("mail", "shipping"):
            wait_for(tmp_path / name, "ready")
    ended = {name: process.wait(60) for name, process in running.items()}
    assert ended == dict.fromkeys(SERVICES, 0), {name: (tmp_path / name).read_text() for name in SERVICES}
    assert chain.problems(receiver, chain.expected(with_rabbitmq=True), 3) == []


@pytest.mark.parametrize("program", ["kafka_python"], indirect=True)
def test_the_init_container_carries_what_an_application_needs(
    carried, program, destination, environ, expect_one_trace, tmp_path
):
    folder, content = tmp_path / "mounted", str(carried.at("/autoinstrumentation"))
    words = [word.replace("/autoinstrumentation", content) for word in carried.command]
    subprocess.run([*words[:-1], folder], check=True)
    python = make_environment(tmp_path / "application", "kafka-python")
    automatic = folder / "opentelemetry" / "instrumentation" / "auto_instrumentation"
    path = {"PYTHONPATH": os.pathsep.join(map(str, (automatic, folder)))}
    expect_one_trace(run(python, FOLDER / PROGRAMS["kafka_python"].file, destination, environ={**environ, **path}))


def test_the_init_container_has_the_folder_that_the_operator_takes_for_musl(carried, tmp_path):
    subprocess.run(["cp", "-r", f"{carried.at('/autoinstrumentation-musl')}/.", tmp_path / "mounted"], check=True)
    assert (tmp_path / "mounted" / "otel_messaging").is_dir()


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The application's image, as a folder."""
    if sys.version_info < (3, 11):
        pytest.skip("the image has aio-pika 10, which needs Python 3.11")
    return images.follow(DEPLOY / "Dockerfile", tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """The init container's image, as a folder."""
    return images.follow(DEPLOY / "init-container" / "Dockerfile", tmp_path_factory.mktemp("carried"))


def addresses(service):
    """The values of variables that are addresses of other services."""
    return [value for name, value in service["environment"].items() if name.endswith(("URL", "SERVERS", "ENDPOINT"))]


def wait_for(log, line):
    for _ in range(600):
        if f"{line}\n" in log.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"{log.name} did not become ready: {log.read_text()}")
