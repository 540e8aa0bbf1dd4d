"""Kubeconfigs: tokens are understood, other ways in are named, and a cluster is who it says."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from werkzeug.serving import make_server

from tests.kit.fakes.puzl import NAMESPACE, FakePuzl
from tidemill.plan.offers import Demand
from tidemill.providers import http
from tidemill.providers.base import UnusableError
from tidemill.providers.kubeconfig import read_kubeconfig
from tidemill.providers.puzl import Puzl
from tidemill.providers.trouble import ProviderError, Trouble


def make_certificate(folder: Path) -> tuple[str, str]:
    """A cluster's own certificate for loopback, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tide")])
    now = dt.datetime.now(dt.UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "ca.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(paths[0]), str(paths[1])


@contextmanager
def serve_encrypted(fake: FakePuzl, folder: Path) -> Iterator[str]:
    """Have it answer on loopback, with a certificate that no usual authority signed."""
    server = make_server("127.0.0.1", 0, fake, ssl_context=make_certificate(folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def connect(fake: FakePuzl, **config: Any) -> Puzl:
    path = fake.kubeconfig(token=fake.KEY, **config)
    return Puzl.connect({"PUZL_KUBECONFIG": str(path), "PUZL_USD_PER_GPU_HOUR": "1.25"})


def test_a_cluster_is_believed_for_its_own_authority_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "PAUSE_S", 0.01)
    fake = FakePuzl(tmp_path)
    with serve_encrypted(fake, tmp_path) as server:
        pem = (tmp_path / "ca.pem").read_bytes()
        inline = {"certificate-authority-data": base64.b64encode(pem).decode()}
        for cluster in (inline, {"certificate-authority": "ca.pem"}):
            client = connect(fake, server=server, cluster=cluster)
            assert client.offers(Demand())
            client.close()
        stranger = connect(fake, server=server)
        with pytest.raises(ProviderError, match="CERTIFICATE_VERIFY_FAILED") as told:
            stranger.offers(Demand())
        stranger.close()
    assert told.value.trouble is Trouble.unreachable


def test_the_current_context_counts(tmp_path: Path) -> None:
    access = read_kubeconfig(FakePuzl(tmp_path).kubeconfig(token="tide"))  # noqa: S106
    assert (access.server, access.namespace) == ("https://cluster.invalid", NAMESPACE)
    assert (access.token, access.trust) == ("tide", None)


def test_a_token_may_be_in_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("tide\n", encoding="utf-8")
    access = read_kubeconfig(FakePuzl(tmp_path).kubeconfig(tokenFile="token"))
    assert access.token == "tide"  # noqa: S105


@pytest.mark.parametrize(
    ("user", "named"),
    [
        ({"client-certificate-data": "eA==", "client-key-data": "eA=="}, "a client certificate"),
        ({"exec": {"command": "aws"}}, "a program that makes tokens"),
        ({"username": "me", "password": "x"}, "a password"),
        ({}, "no token"),
    ],
)
def test_other_ways_in_are_named(tmp_path: Path, user: dict[str, Any], named: str) -> None:
    with pytest.raises(UnusableError, match=f"wants {named}") as told:
        read_kubeconfig(FakePuzl(tmp_path).kubeconfig(**user))
    assert "token" in told.value.remedy


def test_who_takes_any_certificate_is_refused(tmp_path: Path) -> None:
    careless = {"insecure-skip-tls-verify": True}
    with pytest.raises(UnusableError, match="insecure-skip-tls-verify"):
        connect(FakePuzl(tmp_path), cluster=careless)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not YAML"),
        ("", "all of it is missing"),
        ("clusters: []", "current-context is missing"),
        ("{current-context: a, clusters: [], contexts: [], users: []}", "names what is not in it"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UnusableError, match=reason):
        read_kubeconfig(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match=r"No such file or directory: .*missing"):
        read_kubeconfig(tmp_path / "missing")


def test_an_authority_that_is_no_certificate_is_said(tmp_path: Path) -> None:
    wrong = {"certificate-authority-data": base64.b64encode(b"tide").decode()}
    with pytest.raises(UnusableError, match="authority is no certificate"):
        connect(FakePuzl(tmp_path), cluster=wrong)
