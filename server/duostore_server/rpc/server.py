"""The gRPC server of one process: its options, services and port."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health, health_pb2

from duostore.v1 import admin_pb2, data_access_pb2
from duostore_server.domain.errors import Store
from duostore_server.rpc.admission import Admission, Room
from duostore_server.rpc.chain import Terms
from duostore_server.rpc.surroundings import HEALTH, HealthService, ReflectionService

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.rpc.admin import Admin
    from duostore_server.rpc.chain import CallChain
    from duostore_server.rpc.data_access import DataAccess
    from duostore_server.rpc.permission import Permission

DATA_ACCESS: Final = data_access_pb2.DESCRIPTOR.services_by_name["DataAccess"]
ADMIN: Final = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
SERVICES: Final = (DATA_ACCESS.full_name, ADMIN.full_name)

# Clients may ping an idle connection this often; gRPC's own limit of five minutes
# cuts off clients that look after their connections.
_MIN_PING_MILLISECONDS: Final = 10_000
_KEEPALIVE_MILLISECONDS: Final = 60_000

# A check takes microseconds; it must not wait for anything else.
_HEALTH_THREADS: Final = 2
_MOST_CHECKS: Final = 100
# A stream of reflection keeps its thread; further ones are refused.
_REFLECTION_STREAMS: Final = 4

# Few ask, and seldom; but they have to be answered whatever the others do.
_ADMIN_THREADS: Final = 2
_MOST_ADMIN_CALLS: Final = 16
# A stream keeps its thread. A check reads as fast as the stores answer; a backfill only looks,
# and whoever wants to end it needs a place beside those who look on.
_ADMIN_STREAMS: Final = {"CheckConsistency": 2, "Backfill": 8}
# All entities of a deployment may have to be looked at.
_ADMIN_STREAM_SECONDS: Final = 24 * 3600.0

# Between saying that it will not serve and refusing calls, so that those who watch its
# health send theirs elsewhere.
_LAME_DUCK_SECONDS: Final = 1.0


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
    query_threads: int,
    export_streams: int,
    drain_timeout: float,
    tls: Tls | None,
    reflect: bool,
    chain: CallChain,
    data_access: DataAccess,
    admin: Admin,
    admin_permission: Permission,
) -> Iterator[Listening]:
    """Serve on ``address`` while the block runs, then drain.

    ``address`` is host:port; port 0 takes a free one. Several processes may serve on
    the same port. Health checks, reflection, Admin, queries and exports have threads of their
    own; ``max_concurrent_rpcs`` queries are held, as many other calls of DataAccess, and
    ``export_streams`` exports: more are refused. Nothing serves, say the health checks, until
    they are told. Draining tells them first, refuses new calls a moment later, ends the
    streams of Admin, and gives what else is under way ``drain_timeout`` seconds.
    """
    with ExitStack() as stack:
        calls = stack.enter_context(Room("rpc", threads=threads, most=max_concurrent_rpcs))
        rooms = {
            "Query": Room("query", threads=query_threads, most=max_concurrent_rpcs),
            "Export": Room("export", threads=export_streams, most=export_streams),
        }
        admin_calls = Room("admin", threads=_ADMIN_THREADS, most=_MOST_ADMIN_CALLS)
        admin_rooms = dict.fromkeys((method.name for method in ADMIN.methods), admin_calls)
        for name, most in _ADMIN_STREAMS.items():
            admin_rooms[name] = Room(f"admin-{name}", threads=most, most=most)
        for room in {*rooms.values(), *admin_rooms.values()}:
            stack.enter_context(room)
        stopping = threading.Event()
        terms = Terms(admin_permission, _ADMIN_STREAM_SECONDS, stopping.is_set)
        checks = stack.enter_context(Room("health", threads=_HEALTH_THREADS, most=_MOST_CHECKS))
        servicer = health.HealthServicer()
        for name in ("", *SERVICES, *(store.value for store in Store)):
            servicer.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        beside: list[HealthService | ReflectionService] = [HealthService(servicer, checks)]
        if reflect:
            streams = stack.enter_context(
                Room("reflection", threads=_REFLECTION_STREAMS, most=_REFLECTION_STREAMS)
            )
            beside.append(ReflectionService((*SERVICES, HEALTH), streams, most=_REFLECTION_STREAMS))
        # Whatever is still open then is cut off, and a stream may be long. A connection whose
        # calls have ended is closed before that.
        grace = max(connection_age_grace, chain.stream_deadline, _ADMIN_STREAM_SECONDS)
        server = grpc.server(
            calls,
            handlers=[
                Admission(chain.handlers(DATA_ACCESS, data_access, rooms), calls, rooms),
                Admission(
                    chain.handlers(ADMIN, admin, admin_rooms, terms), admin_calls, admin_rooms
                ),
                *(service.handlers for service in beside),
            ],
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_connection_age_ms", round(max_connection_age * 1000)),
                ("grpc.max_connection_age_grace_ms", round(grace * 1000)),
                ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_PING_MILLISECONDS),
            ],
        )
        port = _bind(server, address, tls)
        server.start()
        try:
            yield Listening(server, servicer, port)
        finally:
            servicer.enter_graceful_shutdown()
            time.sleep(_LAME_DUCK_SECONDS)
            stopped = server.stop(drain_timeout)
            stopping.set()
            for service in beside:
                service.stop()
            stopped.wait()


def _bind(server: grpc.Server, address: str, tls: Tls | None) -> int:
    if tls is None:
        return server.add_insecure_port(address)
    credentials = grpc.ssl_server_credentials(
        [(tls.key, tls.certificate)],
        root_certificates=tls.client_ca,
        require_client_auth=tls.client_ca is not None,
    )
    return server.add_secure_port(address, credentials)
