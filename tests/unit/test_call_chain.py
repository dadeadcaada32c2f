"""What a call knows of its surroundings: how long it may take, and who makes it."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from duostore.v1 import data_access_pb2, data_access_pb2_grpc, entity_pb2
from duostore_server.rpc.chain import CallChain, Terms
from duostore_server.rpc.permission import Permission
from duostore_server.rpc.server import DATA_ACCESS
from duostore_server.rpc.streams import Streams
from duostore_server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from duostore_server.rpc.chain import Call

CALL_SECONDS = 20.0
HOST = "duostore.test"


class Servicer:
    """Answers every call with nothing and notes what it knew."""

    def __init__(self) -> None:
        self.left: list[float] = []
        self.calls: list[Call] = []
        self.logged: list[dict[str, Any]] = []
        for method in DATA_ACCESS.methods:
            setattr(self, method.name, self._note)

    def _note(self, _request: Message, call: Call) -> bytes:
        self.left.append(call.deadline.remaining())
        self.calls.append(call)
        self.logged.append(structlog.contextvars.get_contextvars())
        return b""


class Certificate:
    """A certificate that is its own authority, and its key; both PEM."""

    def __init__(self, common_name: str | None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.NameAttribute
        attributes = [name(NameOID.ORGANIZATION_NAME, "tests")]
        if common_name is not None:
            attributes.append(name(NameOID.COMMON_NAME, common_name))
        subject = x509.Name(attributes)
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


@contextmanager
def listening(
    servicer: Servicer,
    credentials: grpc.ServerCredentials | None = None,
    permission: Permission | None = None,
) -> Iterator[int]:
    chain = CallChain(
        Metrics(CollectorRegistry()),
        default_deadline=5,
        max_deadline=60,
        stream_deadline=3600,
        streams=Streams(stall=30),
    )
    server = grpc.server(ThreadPoolExecutor(2))
    terms = Terms(permission)
    server.add_generic_rpc_handlers((chain.handlers(DATA_ACCESS, servicer, terms=terms),))
    address = "127.0.0.1:0"
    port = (
        server.add_secure_port(address, credentials)
        if credentials
        else server.add_insecure_port(address)
    )
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@contextmanager
def served(
    servicer: Servicer, permission: Permission | None = None
) -> Iterator[data_access_pb2_grpc.DataAccessStub]:
    with (
        listening(servicer, None, permission) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield data_access_pb2_grpc.DataAccessStub(channel)


@contextmanager
def served_with_tls(
    servicer: Servicer, client: Certificate | None, permission: Permission | None = None
) -> Iterator[data_access_pb2_grpc.DataAccessStub]:
    own = Certificate(HOST)
    credentials = grpc.ssl_server_credentials(
        [(own.key, own.pem)],
        root_certificates=client.pem if client else None,
        require_client_auth=client is not None,
    )
    shown = grpc.ssl_channel_credentials(
        own.pem, client.key if client else None, client.pem if client else None
    )
    options = [("grpc.ssl_target_name_override", HOST)]
    with (
        listening(servicer, credentials, permission) as port,
        grpc.secure_channel(f"127.0.0.1:{port}", shown, options) as channel,
    ):
        yield data_access_pb2_grpc.DataAccessStub(channel)


REQUEST = data_access_pb2.GetRequest(key=entity_pb2.EntityKey(kind="a", id="b"))


def get(stub: data_access_pb2_grpc.DataAccessStub, **metadata: str) -> None:
    named = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    stub.Get(REQUEST, timeout=CALL_SECONDS, metadata=named)


@pytest.mark.parametrize(("asked", "given"), [(None, 5), (2, 2), (30, 30), (3600, 60)])
def test_the_deadline_is_the_callers_within_bounds(asked: float | None, given: float) -> None:
    servicer = Servicer()
    with served(servicer) as stub:
        stub.Get(REQUEST, timeout=asked)
    [left] = servicer.left
    assert given - 1 < left < given + 0.1


@pytest.mark.parametrize("caller", ["billing", "ann@example.com", "a/b:c.d=e+f-g_1", "x" * 128])
def test_callers_may_say_who_they_are(caller: str) -> None:
    servicer = Servicer()
    with served(servicer) as stub:
        get(stub, x_caller=caller, x_request_id="mine-1")
    [call], [logged] = servicer.calls, servicer.logged
    assert (call.origin.caller, call.origin.request_id) == (caller, "mine-1")
    assert logged == {"caller": caller, "request_id": "mine-1", "method": "Get"}


@pytest.mark.parametrize("caller", ["x" * 129, "a b", "a;b", 'a"b'])
def test_a_caller_whose_name_the_audit_would_not_have_is_refused(caller: str) -> None:
    servicer = Servicer()
    with (
        served(servicer) as stub,
        pytest.raises(grpc.RpcError, match="x-caller: may hold") as error,
    ):
        get(stub, x_caller=caller)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert servicer.calls == []


@pytest.mark.parametrize("caller", [None, ""])
def test_a_caller_who_says_nothing_is_nobody(caller: str | None) -> None:
    servicer = Servicer()
    with served(servicer) as stub:
        get(stub, **({} if caller is None else {"x_caller": caller}))
        get(stub)
    first, second = (call.origin for call in servicer.calls)
    assert first.caller == second.caller == ""
    assert len(first.request_id) == 32
    assert first.request_id != second.request_id
    assert all(logged.keys() == {"request_id", "method"} for logged in servicer.logged)


@pytest.mark.parametrize(
    ("name", "caller"),
    [
        ("billing", "billing"),
        ("Jörg Müller", "Jörg Müller"),
        ("a\nb\x85c", "a?b?c"),
        (None, ""),
    ],
)
def test_a_certificate_says_who_calls_whatever_the_caller_says(
    name: str | None, caller: str
) -> None:
    servicer = Servicer()
    with served_with_tls(servicer, Certificate(name)) as stub:
        get(stub, x_caller="admin", x_request_id="mine-1")
    [call] = servicer.calls
    assert (call.origin.caller, call.origin.request_id) == (caller, "mine-1")


def test_without_a_certificate_of_the_client_tls_changes_nothing() -> None:
    servicer = Servicer()
    with served_with_tls(servicer, None) as stub:
        get(stub, x_caller="billing")
    assert servicer.calls[0].origin.caller == "billing"


TOKEN = "correct-horse-battery-staple"


def asked_for(*, token: str | None = None, callers: tuple[str, ...] = ()) -> Permission:
    return Permission(token=token, callers=callers, open=False)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ops", None),
        ("Jörg Müller", None),
        ("a\nb\x85c", None),
        ("op", grpc.StatusCode.PERMISSION_DENIED),
        # As the audit would have the third.
        ("a?b?c", grpc.StatusCode.PERMISSION_DENIED),
        (None, grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_a_certificate_that_is_named_is_permission(
    name: str | None, code: grpc.StatusCode | None
) -> None:
    servicer = Servicer()
    permission = asked_for(callers=("ops", "Jörg Müller", "a\nb\x85c"))
    with served_with_tls(servicer, Certificate(name), permission) as stub:
        if code is None:
            get(stub)
            return
        with pytest.raises(grpc.RpcError) as denied:
            get(stub, x_caller="ops")
    assert denied.value.code() is code
    assert servicer.calls == []


def test_a_token_is_permission_with_a_certificate_and_without_and_tells_nobodys_name() -> None:
    servicer = Servicer()
    permission = asked_for(token=TOKEN)
    with served_with_tls(servicer, Certificate("somebody"), permission) as stub:
        get(stub, authorization=f"Bearer {TOKEN}")
    with served(servicer, permission) as stub:
        get(stub, authorization=f"Bearer {TOKEN}", x_caller="ann")
    assert [call.origin.caller for call in servicer.calls] == ["somebody", "ann"]
    assert TOKEN not in str(servicer.logged)


def test_who_may_not_call_is_told_nothing_else_that_is_wrong() -> None:
    servicer = Servicer()
    with served(servicer, asked_for(token=TOKEN)) as stub:
        with pytest.raises(grpc.RpcError) as unknown:
            get(stub, x_caller="not a name")
        with capture_logs() as logs, pytest.raises(grpc.RpcError) as denied:
            get(stub, x_caller="not a name", authorization="Bearer guess-guess-guess-guess")
        with pytest.raises(grpc.RpcError) as wrong:
            get(stub, x_caller="not a name", authorization=f"Bearer {TOKEN}")
    assert unknown.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert servicer.calls == []
    assert "guess" not in f"{logs} {denied.value}"
