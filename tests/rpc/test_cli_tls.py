from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.client_commands import duostore
from tests.support.recording_service import HEALTHY, RecordingService, serving

if TYPE_CHECKING:
    from pathlib import Path

NAME = "duostore.test"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for the name, which is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def _credentials(pair: tuple[Path, Path], *, ask: bool) -> grpc.ServerCredentials:
    certificate, key = pair[0].read_bytes(), pair[1].read_bytes()
    return grpc.ssl_server_credentials(
        [(key, certificate)],
        root_certificates=certificate if ask else None,
        require_client_auth=ask,
    )


def test_a_service_is_called_by_tls(pair: tuple[Path, Path]) -> None:
    certificate = str(pair[0])
    with serving(RecordingService(), credentials=_credentials(pair, ask=False)) as served:
        served.health.set("", HEALTHY)
        command = ("health", "--service", "", "--target", served.address)
        trusting = ("--tls", "--ca-file", certificate, "--server-name", NAME)
        assert duostore(*command, *trusting).stdout == "duostore  SERVING\n"
        by_environment = {
            "DUOSTORE_TLS": "1",
            "DUOSTORE_CA_FILE": certificate,
            "DUOSTORE_SERVER_NAME": NAME,
        }
        assert duostore(*command, **by_environment).exit_code == 0
        assert duostore(*command).exit_code == 1, "no plain text"
        assert duostore(*command, "--tls", "--server-name", NAME).exit_code == 1, "not trusted"
        assert duostore(*command, "--tls", "--ca-file", certificate).exit_code == 1, "another name"


def test_a_service_may_ask_who_calls(pair: tuple[Path, Path]) -> None:
    certificate, key = map(str, pair)
    with serving(RecordingService(), credentials=_credentials(pair, ask=True)) as served:
        served.health.set("", HEALTHY)
        command = (
            *("health", "--service", "", "--target", served.address),
            *("--tls", "--ca-file", certificate, "--server-name", NAME),
        )
        assert duostore(*command).exit_code == 1
        shown = ("--cert-file", certificate, "--key-file", key)
        assert duostore(*command, *shown).exit_code == 0
