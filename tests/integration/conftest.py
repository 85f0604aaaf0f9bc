"""A certificate of our own, for brokers that speak TLS."""

from __future__ import annotations

import shutil
import ssl
import subprocess

import pytest

CERTIFICATE = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
FOR = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of our own for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    paths = {"-keyout": folder / "key.pem", "-out": folder / "certificate.pem"}
    tool = ["openssl", *CERTIFICATE, *FOR, *(str(part) for pair in paths.items() for part in pair)]
    subprocess.run(tool, check=True, capture_output=True)
    return paths["-out"], paths["-keyout"]


@pytest.fixture(scope="module")
def trusting(certificate):
    """What a client needs to trust it."""
    return ssl.create_default_context(cafile=str(certificate[0]))
