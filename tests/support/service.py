"""A whole service, `duostore serve`, over stores that a test gives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, LiteralString, Self

import grpc
import psutil
import psycopg
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from duostore.v1 import data_access_pb2, data_access_pb2_grpc, entity_pb2
from tests.support.ports import free_port
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

# A machine with two cores starts a handful of processes in a few seconds; a loaded one
# in many.
START_SECONDS = 60.0
STOP_SECONDS = 60.0
CALL_SECONDS = 20.0

# A connection of its own, and soon another where one was refused: a process that died is back
# in a second.
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)

_CONFIG = """
[server]
address = "127.0.0.1:{port}"
workers = {workers}
drain_timeout = "10s"
[aurora]
dsn = "{dsn}"
[dynamodb]
region = "local"
endpoint_url = "{endpoint_url}"
table_prefix = "{prefix}"
read_timeout = "{dynamodb_timeout}"
[cache]
nodes = ["{node}"]
timeout = "{cache_timeout}"
# Long: how fast the machine is shall not decide who fills.
lease_wait = "5s"
[consolidator]
poll = "100ms"
[metrics]
address = "127.0.0.1:{metrics_port}"
[logging]
level = "info"
format = "json"
{kinds}
"""
_NO_VERIFIER = """
[verifier]
saves = 0
rows = 0
"""
# What tests call for, unless they bring kinds of their own.
_KINDS = """
[kinds.proposal]
snapshots = { consolidate_every = "1s" }
[kinds.language]
cache_ttl = "1h"
[kinds.template]
projection = "async"
"""


class Service:
    """Runs `duostore serve` while it is entered; its processes end with it, however it ends."""

    def __init__(
        self,
        folder: Path,
        *,
        dsn: str,
        endpoint_url: str,
        prefix: str,
        node: str,
        workers: int = 2,
        kinds: str = _KINDS,
        sql: Mapping[str, str] = MappingProxyType({}),
        cache_timeout: str = "100ms",
        dynamodb_timeout: str = "800ms",
        verifier: bool = False,
    ) -> None:
        """``kinds`` are the tables of the configuration that say which kinds there are.

        ``sql`` are the files that it names. Without the ``verifier`` nobody reads the stores, or
        writes to them, but who is told to.
        """
        self.port = free_port()
        self.metrics_port = free_port()
        self.config = folder / "duostore.toml"
        self.log = folder / "service.log"
        self.dsn = dsn
        self.prefix = prefix
        self.config.write_text(
            _CONFIG.format(
                port=self.port,
                metrics_port=self.metrics_port,
                workers=workers,
                dsn=dsn,
                endpoint_url=endpoint_url,
                prefix=prefix,
                node=node,
                cache_timeout=cache_timeout,
                dynamodb_timeout=dynamodb_timeout,
                kinds=kinds if verifier else kinds + _NO_VERIFIER,
            )
        )
        for name, text in sql.items():
            (folder / name).write_text(text)
        self._workers = workers
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        """Return where it answers."""
        return f"127.0.0.1:{self.port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Return its supervisor."""
        assert self._process is not None, "the service is not running"
        return self._process

    def __enter__(self) -> Self:
        # A store that has only just started may answer too late for once.
        eventually(self._is_migrated, within=START_SECONDS, what="its tables are there")
        self.start()
        return self

    def start(self) -> None:
        """Start it; return when it answers. Its tables and its schema have to be there."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_COMMAND, "serve", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            eventually(self._is_up, within=START_SECONDS, what="the service is up")
        except BaseException as error:
            self.stop()
            error.add_note(self.log.read_text()[-4000:])
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if exc is not None:
            exc.add_note(self.log.read_text()[-4000:])

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of `duostore` with the configuration of this service."""
        done = subprocess.run(
            [*_COMMAND, *arguments],
            env={**os.environ, "DUOSTORE_CONFIG": str(self.config), "DUOSTORE_TARGET": self.target},
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    def stop(self) -> int:
        """Stop it in order, by force if need be; return its exit code."""
        code = 0
        if self._process is not None:
            family = self.family()
            self._process.terminate()
            try:
                code = self._process.wait(STOP_SECONDS)
            finally:
                for process in family:
                    if process.is_running():
                        process.kill()
                psutil.wait_procs(family, timeout=STOP_SECONDS)
                self._process = None
        return code

    def family(self) -> list[psutil.Process]:
        """Return its processes that run, the supervisor first."""
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """Return its serving processes."""
        return [process for process in self.family() if "worker" in _arguments(process)]

    def serving(self) -> list[psutil.Process]:
        """Return its serving processes that take calls by now, the one most called first."""
        port = self.port
        listening = [
            worker for worker in self.workers() if _connections(worker, port, psutil.CONN_LISTEN)
        ]
        return sorted(
            listening,
            key=lambda worker: _connections(worker, port, psutil.CONN_ESTABLISHED),
            reverse=True,
        )

    def workers_in_use(self, channels: int) -> int:
        """Return how many workers hold connections, once there are so many of them."""

        def held() -> list[int]:
            return [
                _connections(worker, self.port, psutil.CONN_ESTABLISHED)
                for worker in self.workers()
            ]

        eventually(
            lambda: sum(held()) >= channels, within=CALL_SECONDS, what="all channels are connected"
        )
        return sum(count > 0 for count in held())

    def background(self) -> list[psutil.Process]:
        """Return its background process, if it runs."""
        return [process for process in self.family() if "background" in _arguments(process)]

    def channel(self) -> grpc.Channel:
        """Return a channel with a connection of its own, to whichever process takes it."""
        return grpc.insecure_channel(self.target, options=CHANNEL_OPTIONS)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that have these labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=CALL_SECONDS) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def is_drained(self) -> bool:
        """Return whether the outbox is empty: all that was saved is projected and busted."""
        return not self.fetch("SELECT 1 FROM duostore.outbox LIMIT 1")

    def is_at_rest(self) -> bool:
        """Return whether all that was saved is projected, and what it touches is recomputed."""
        ((left,),) = self.fetch(
            "SELECT EXISTS (SELECT FROM duostore.outbox)"
            " OR EXISTS (SELECT FROM duostore.source_change)"
            " OR EXISTS (SELECT FROM duostore.stale)"
        )
        return not left

    def fetch(self, statement: LiteralString, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement in its database."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(statement, values).fetchall()

    def health(self, name: str) -> int:
        """Return the health of the whole (the empty name) or of a store."""
        with self.channel() as channel:
            request = health_pb2.HealthCheckRequest(service=name)
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int(stub.Check(request, timeout=CALL_SECONDS).status)

    def _is_migrated(self) -> bool:
        done = self.run("migrate", check=False)
        assert done.returncode in {0, _STORE_FAILED}, done.stderr
        return done.returncode == 0

    def _is_up(self) -> bool:
        assert self.process.poll() is None, "the service ended"
        try:
            serving = self.health("") == health_pb2.HealthCheckResponse.SERVING
        except grpc.RpcError:
            return False
        return serving and len(self.serving()) == self._workers


class Caller:
    """Calls a service, with plain values in and out."""

    def __init__(self, channel: grpc.Channel, *, kind: str = "proposal") -> None:
        self._kind = kind
        self.channel = channel
        self.stub = data_access_pb2_grpc.DataAccessStub(channel)

    def key(self, id_: str) -> entity_pb2.EntityKey:
        """Return the key of an entity of this caller's kind."""
        return entity_pb2.EntityKey(kind=self._kind, id=id_)

    def get(self, id_: str, **freshness: Any) -> data_access_pb2.GetResponse:
        """Get an entity."""
        request = data_access_pb2.GetRequest(key=self.key(id_), **freshness)
        return self.stub.Get(request, timeout=CALL_SECONDS)

    def save(self, id_: str, data: dict[str, Any], **options: Any) -> data_access_pb2.SaveResponse:
        """Save an entity."""
        request = data_access_pb2.SaveRequest(key=self.key(id_), data=struct(data), **options)
        return self.stub.Save(request, timeout=CALL_SECONDS)

    def delete(self, id_: str, **options: Any) -> data_access_pb2.DeleteResponse:
        """Delete an entity."""
        request = data_access_pb2.DeleteRequest(key=self.key(id_), **options)
        return self.stub.Delete(request, timeout=CALL_SECONDS)

    def batch_get(self, ids: Iterable[str]) -> data_access_pb2.BatchGetResponse:
        """Get several entities."""
        request = data_access_pb2.BatchGetRequest(keys=[self.key(id_) for id_ in ids])
        return self.stub.BatchGet(request, timeout=CALL_SECONDS)

    def snapshot(
        self, id_: str, data: dict[str, Any], **options: Any
    ) -> data_access_pb2.SnapshotResponse:
        """Append a snapshot."""
        request = data_access_pb2.SnapshotRequest(key=self.key(id_), data=struct(data), **options)
        return self.stub.Snapshot(request, timeout=CALL_SECONDS)

    def get_snapshot(self, id_: str, sequence: int = 0) -> entity_pb2.EntitySnapshot:
        """Get a snapshot, the newest if no sequence is given."""
        request = data_access_pb2.GetSnapshotRequest(key=self.key(id_), sequence=sequence)
        return self.stub.GetSnapshot(request, timeout=CALL_SECONDS).snapshot

    def list_snapshots(self, id_: str) -> list[entity_pb2.EntitySnapshot]:
        """Get all snapshots, page by page."""
        snapshots: list[entity_pb2.EntitySnapshot] = []
        token = ""
        while True:
            request = data_access_pb2.ListSnapshotsRequest(
                key=self.key(id_), page_size=100, page_token=token
            )
            page = self.stub.ListSnapshots(request, timeout=CALL_SECONDS)
            snapshots += page.snapshots
            token = page.next_page_token
            if not token:
                return snapshots

    def transact(
        self, *mutations: data_access_pb2.Mutation, **options: Any
    ) -> data_access_pb2.TransactResponse:
        """Apply mutations together."""
        request = data_access_pb2.TransactRequest(mutations=mutations, **options)
        return self.stub.Transact(request, timeout=CALL_SECONDS)

    def query(
        self, name: str, params: dict[str, Any] | None = None, **options: Any
    ) -> data_access_pb2.QueryResponse:
        """Answer a named query."""
        request = data_access_pb2.QueryRequest(query=name, params=struct(params or {}), **options)
        return self.stub.Query(request, timeout=CALL_SECONDS)


def struct(data: dict[str, Any]) -> Struct:
    """Return a document as a message."""
    message = Struct()
    message.update(data)
    return message


def kill(process: psutil.Process) -> None:
    """Let a process die by SIGKILL; return when it has."""
    process.send_signal(signal.SIGKILL)
    eventually(
        lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE,
        within=10,
        what="the process is dead",
    )


# Of `duostore migrate`: a store could not be reached, or not in time.
_STORE_FAILED = 1
_COMMAND = (sys.executable, "-m", "duostore_server.cli.main")


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _connections(process: psutil.Process, port: int, status: str) -> int:
    """Return how many sockets with this status a process has on a port of its own."""
    try:
        return sum(
            connection.status == status and connection.laddr.port == port
            for connection in process.net_connections("tcp")
        )
    except psutil.Error:
        return 0
