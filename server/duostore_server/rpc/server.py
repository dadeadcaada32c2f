"""The gRPC server of one process: its options, services and port."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from duostore.v1 import data_access_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.rpc.chain import CallChain
    from duostore_server.rpc.data_access import DataAccess

DATA_ACCESS: Final = data_access_pb2.DESCRIPTOR.services_by_name["DataAccess"]
SERVICES: Final = (DATA_ACCESS.full_name,)

# Clients may ping an idle connection this often; gRPC's own limit of five minutes
# cuts off clients that look after their connections.
_MIN_PING_MILLISECONDS: Final = 10_000
_KEEPALIVE_MILLISECONDS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate chain and its key in PEM; ``client_ca`` makes clients show theirs."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


@dataclass(frozen=True, slots=True)
class Listening:
    """A server that answers, and its health."""

    server: grpc.Server
    health: health.HealthServicer
    port: int


@contextmanager
def listening(
    *,
    address: str,
    threads: int,
    max_concurrent_rpcs: int,
    max_message_bytes: int,
    max_connection_age: float,
    connection_age_grace: float,
    drain_timeout: float,
    tls: Tls | None,
    reflect: bool,
    chain: CallChain,
    data_access: DataAccess,
) -> Iterator[Listening]:
    """Serve on ``address`` while the block runs, then drain.

    ``address`` is host:port; port 0 takes a free one. Several processes may serve on
    the same port. Draining tells health checkers first, refuses new calls, and gives
    those under way ``drain_timeout`` seconds.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rpc")
    server = grpc.server(
        pool,
        maximum_concurrent_rpcs=max_concurrent_rpcs,
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_connection_age_ms", round(max_connection_age * 1000)),
            ("grpc.max_connection_age_grace_ms", round(connection_age_grace * 1000)),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_PING_MILLISECONDS),
        ],
    )
    server.add_generic_rpc_handlers((chain.handlers(DATA_ACCESS, data_access),))
    servicer = health.HealthServicer(experimental_non_blocking=True)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if reflect:
        names = (*SERVICES, _health_name(), reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    port = _bind(server, address, tls)
    server.start()
    try:
        yield Listening(server, servicer, port)
    finally:
        servicer.enter_graceful_shutdown()
        server.stop(drain_timeout).wait()
        pool.shutdown(wait=True)


def _bind(server: grpc.Server, address: str, tls: Tls | None) -> int:
    if tls is None:
        return server.add_insecure_port(address)
    credentials = grpc.ssl_server_credentials(
        [(tls.key, tls.certificate)],
        root_certificates=tls.client_ca,
        require_client_auth=tls.client_ca is not None,
    )
    return server.add_secure_port(address, credentials)


def _health_name() -> str:
    return health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
