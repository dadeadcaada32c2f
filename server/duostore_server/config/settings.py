"""The definition of the configuration: every key with its type, default, bounds and meaning.

Defaults, validation, environment names, the reference and the JSON Schema derive from it.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import ConfigDict, Field, SecretStr

from duostore_server.config.kind_settings import Kind
from duostore_server.config.operating_settings import Admin, Backfill, Flags, Verifier
from duostore_server.config.query_settings import Query
from duostore_server.config.quota_settings import Quota
from duostore_server.config.section import Section, duration, setting, size
from duostore_server.config.slo_settings import Slo
from duostore_server.config.sql_folder import Migrations
from duostore_server.config.values import (
    Dsn,
    Duration,
    File,
    HostPort,
    KindName,
    Namespace,
    Nodes,
    OptionalHostPort,
    QueryName,
    QuotaName,
    Region,
    Size,
    TablePrefix,
    Url,
)

_UNHURRIED_SECONDS: Final = 10.0


class Tls(Section):
    """``[server.tls]``."""

    certificate: File | None = setting(None, "The server's certificate chain, PEM.")
    key: File | None = setting(None, "The private key of the certificate, PEM.")
    client_ca: File | None = setting(
        None,
        "Who signs the certificates of clients, PEM. If set, clients must present one, and its "
        "common name is the caller in the log and in the audit, in place of what they say in the "
        "metadata `x-caller`.",
    )


class Server(Section):
    """``[server]``."""

    address: HostPort = setting("127.0.0.1:50051", "Where calls are answered.")
    workers: int = setting(2, "Serving processes. One for each core is a good start.", 1, 64)
    threads: int = setting(
        24,
        "Threads of each process; at least aurora.pool_max + aurora.max_waiting + 2, so that hits "
        "are served while Aurora is slow.",
        4,
        64,
    )
    max_concurrent_rpcs: int = setting(
        1000, "Calls that a process holds at a time, waiting ones included.", 8, 100_000
    )
    max_message_bytes: Size = size(
        "4MiB",
        "The largest request, as protobuf: at least 5.5 times the largest kinds.NAME.max_bytes, "
        "and 1 KiB.",
        "64KiB",
        "256MiB",
    )
    max_answer_bytes: Size = size(
        "4MiB",
        "The largest answer to a BatchGet; more is refused, with the advice to ask for fewer "
        "keys. At least 5.5 times the largest kinds.NAME.max_bytes, and 1 KiB. gRPC clients "
        "accept 4MiB unless they are told otherwise, the Python client 128MiB.",
        "64KiB",
        "128MiB",
    )
    max_connection_age: Duration = duration(
        "10m",
        "After this long a connection is closed, so that clients spread anew over the processes.",
        "10s",
        "24h",
    )
    connection_age_grace: Duration = duration(
        "30s", "How long the calls on such a connection may still take.", "1s", "10m"
    )
    drain_timeout: Duration = duration(
        "20s", "How long calls may still take once the server was told to stop.", "1s", "10m"
    )
    default_deadline: Duration = duration(
        "5s", "The deadline of a call that comes without one.", "100ms", "10m"
    )
    max_deadline: Duration = duration(
        "60s", "The longest deadline; longer ones are cut to it.", "100ms", "10m"
    )
    query_threads: int = setting(
        8,
        "Queries that each process computes or answers from the cache at a time, on threads of "
        "their own.",
        1,
        64,
    )
    export_streams: int = setting(
        2,
        "Exports that each process streams at a time, each with a thread and a connection to "
        "Aurora of its own; more are refused.",
        1,
        32,
    )
    export_deadline: Duration = duration(
        "1h", "The longest deadline of an Export, and that of one that comes without.", "1s", "24h"
    )
    export_stall: Duration = duration(
        "30s", "After so long a client that takes nothing of its Export is cut off.", "1s", "1h"
    )
    reflection: bool = setting(True, "Whether tools such as grpcurl may ask for the API.")  # noqa: FBT003 - a default
    tls: Tls = Field(
        default_factory=Tls,
        description="Encryption; off unless certificate and key are set.",
    )


class Aurora(Section):
    """``[aurora]``."""

    dsn: Dsn | None = setting(
        None, "How to reach the writer. Required by `serve`. Secret: better set by environment."
    )
    reader_dsn: Dsn | None = setting(
        None,
        "How to reach the readers, which queries are then asked of as long as they have caught up "
        "with the writer. Secret: better set by environment.",
    )
    migrations: Migrations | None = setting(
        None,
        "A folder of SQL files that make your own tables, such as `0001_invoices.sql`: `duostore "
        "migrate` and `duostore dev` apply each once, in the order of their numbers, after "
        "Duostore's own.",
    )
    pool_min: int = setting(1, "Connections that each process keeps open.", 0, 60)
    pool_max: int = setting(8, "Connections that each process may open.", 1, 60)
    pool_wait: Duration = duration(
        "500ms", "How long a call waits for a connection before it is refused.", "10ms", "30s"
    )
    max_waiting: int = setting(
        12, "Calls of a process that may wait for a connection; more are refused.", 1, 60
    )
    statement_timeout: Duration = duration("2s", "How long a statement may take.", "10ms", "5m")
    lock_timeout: Duration = duration("1s", "How long a statement waits for a lock.", "10ms", "5m")
    connect_timeout: Duration = duration(
        "2s",
        "How long opening a connection may take; the driver counts whole seconds.",
        "2s",
        "60s",
    )
    pooler: bool = setting(
        False,  # noqa: FBT003 - a default
        "Whether a transaction pooler (RDS Proxy, PgBouncer) stands before the database: "
        "then nothing is prepared.",
    )

    @property
    def own_migrations(self) -> tuple[tuple[str, bytes], ...]:
        """Return the names and contents of the user's own migrations, in order."""
        return self.migrations.files if self.migrations else ()


class DynamoDB(Section):
    """``[dynamodb]``."""

    region: Region | None = setting(None, "The AWS region of the tables. Required by `serve`.")
    endpoint_url: Url | None = setting(
        None, "Where DynamoDB is, if not at the region's own endpoint: a VPC endpoint, an emulator."
    )
    table_prefix: TablePrefix = setting("duostore_", "What the names of all tables begin with.")
    connect_timeout: Duration = duration(
        "300ms", "How long opening a connection may take.", "10ms", "30s"
    )
    read_timeout: Duration = duration("800ms", "How long an answer may take.", "10ms", "30s")
    compress_above: Size = size(
        1024, "Entities above this size are stored compressed.", 0, "400KiB"
    )
    statements: bool = setting(
        True,  # noqa: FBT003 - a default
        "Whether concurrent writes may travel together, as PartiQL statements; needs the "
        "permissions dynamodb:PartiQLInsert and dynamodb:PartiQLUpdate.",
    )
    read_in_flight: int = setting(
        2, "Batches that a process reads at a time; further keys gather meanwhile.", 1, 64
    )
    write_in_flight: int = setting(8, "Writes that a process does at a time.", 1, 64)


class Cache(Section):
    """``[cache]``."""

    backend: Literal["memcached", "memory"] = setting(
        "memcached", "`memory` keeps entries within one process: for `dev` and tests only."
    )
    nodes: Nodes = setting(
        ["127.0.0.1:11211"],
        "The memcached nodes. Every process of a deployment must have the same list, in the "
        "same order.",
    )
    namespace: Namespace = setting(
        "duostore", "What all keys begin with; must differ between deployments that share nodes."
    )
    timeout: Duration = duration("100ms", "How long a node may take to answer.", "1ms", "5s")
    connect_timeout: Duration = duration(
        "100ms", "How long opening a connection to a node may take.", "1ms", "5s"
    )
    lease_wait: Duration = duration(
        "500ms",
        "How long a reader waits for another that is fetching the same entity, before it reads "
        "for itself.",
        "0s",
        "5s",
    )
    memory_max_bytes: Size = size("64MiB", "What the `memory` backend may hold.", "1MiB", "64GiB")
    compress_above: Size = size(
        "4KiB", "Entities above this size are cached compressed.", 0, "1MiB"
    )


class Projector(Section):
    """``[projector]``."""

    batch: int = setting(100, "Changes that are taken up at a time.", 1, 1000)
    poll: Duration = duration(
        "200ms", "How often it looks for changes when there were none.", "10ms", "10s"
    )
    claim: Duration = duration(
        "1500ms",
        "After this long, a change that was taken up and not finished is taken up anew.",
        "100ms",
        "5m",
    )


class Metrics(Section):
    """``[metrics]``."""

    address: OptionalHostPort = setting(
        "127.0.0.1:9464", 'Where Prometheus finds `/metrics`; `""` turns it off.'
    )


class Logging(Section):
    """``[logging]``."""

    level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "The least severe events that are logged."
    )
    format: Literal["auto", "json", "console"] = setting(
        "auto", "`auto` is `console` on a terminal and `json` elsewhere."
    )


class Consolidator(Section):
    """``[consolidator]``."""

    batch: int = setting(100, "Drafts that are taken up at a time.", 1, 1000)
    poll: Duration = duration(
        "1s", "How often it looks for drafts when none were due.", "10ms", "1m"
    )


class Idempotency(Section):
    """``[idempotency]``."""

    keep: Duration = duration(
        "24h", "How long a repetition is known for one; some are for a little longer.", "1m", "30d"
    )


class FanOut(Section):
    """``[fan_out]``."""

    batch: int = setting(100, "Documents that are taken up to be recomputed at a time.", 1, 1000)
    poll: Duration = duration(
        "200ms", "How often it looks for changes when there were none.", "10ms", "10s"
    )


class Settings(Section):
    """The configuration of a deployment."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [table], "properties": {table: {"minProperties": 1}}}
                for table in ("kinds", "queries", "quotas")
            ]
        }
    )

    server: Server = Field(default_factory=Server, description="The gRPC server.")
    aurora: Aurora = Field(default_factory=Aurora, description="Aurora PostgreSQL, which is right.")
    dynamodb: DynamoDB = Field(default_factory=DynamoDB, description="DynamoDB, which is fast.")
    cache: Cache = Field(default_factory=Cache, description="The cache, which is near.")
    projector: Projector = Field(
        default_factory=Projector,
        description="The background process that brings every change to DynamoDB and the cache "
        "which the call that made it did not.",
    )
    consolidator: Consolidator = Field(
        default_factory=Consolidator,
        description="The background process that brings snapshots from DynamoDB to Aurora, and "
        "the kinds at home in DynamoDB that say so.",
    )
    fan_out: FanOut = Field(
        default_factory=FanOut,
        description="The background process that recomputes the documents of kinds with "
        "`depends_on` when what they are built of changes.",
    )
    idempotency: Idempotency = Field(
        default_factory=Idempotency,
        description="Calls that are safe to repeat: those with an idempotency key.",
    )
    verifier: Verifier = Field(
        default_factory=Verifier,
        description="The background process that compares the stores as they are read, all the "
        "time.",
    )
    backfill: Backfill = Field(
        default_factory=Backfill,
        description="The background process that projects all entities of a kind anew, when it is "
        "told to.",
    )
    admin: Admin = Field(
        default_factory=Admin,
        description="Who may call the service Admin, and `duostore explain`, `check`, `backfill`, "
        "`flag`, `readonly` and `status` with it: nobody unless it is said here.",
    )
    flags: Flags = Field(default_factory=Flags, description="Where flags come from.")
    slo: Slo = Field(
        default_factory=Slo, description="What is promised of the service, and watched over."
    )
    metrics: Metrics = Field(default_factory=Metrics, description="What is measured.")
    logging: Logging = Field(default_factory=Logging, description="What is logged, to stderr.")
    kinds: dict[KindName, Kind] = Field(
        default_factory=dict,
        description="The kinds of entity, one table each; there is at least one kind, query or "
        "quota. A name has 1 to 64 bytes of UTF-8, no `#` and no control characters.",
    )
    queries: dict[QueryName, Query] = Field(
        default_factory=dict,
        description="The queries that callers may ask Aurora, one table each. A name has 1 to 64 "
        "bytes of UTF-8, no `#` and no control characters.",
    )
    quotas: dict[QuotaName, Quota] = Field(
        default_factory=dict,
        description="The quotas, one table each; a deployment may have quotas alone, and no kinds. "
        "A name has 1 to 64 bytes of UTF-8, no `#` and no control characters.",
    )

    def unhurried(self) -> Settings:
        """Return the same settings with time for DynamoDB, for work that no call waits for."""
        dynamodb = self.dynamodb.model_copy(
            update={
                "connect_timeout": max(self.dynamodb.connect_timeout, _UNHURRIED_SECONDS),
                "read_timeout": max(self.dynamodb.read_timeout, _UNHURRIED_SECONDS),
            }
        )
        return self.model_copy(update={"dynamodb": dynamodb})

    def embedded(self, *, dsn: str, endpoint_url: str) -> Settings:
        """Return the same settings on the stores of the embedded default, whatever they named."""
        aurora = self.aurora.model_copy(
            update={"dsn": SecretStr(dsn), "reader_dsn": None, "pooler": False}
        )
        # The emulator has no statements with several parameters, and no region that AWS has not.
        dynamodb = self.dynamodb.model_copy(
            update={"endpoint_url": endpoint_url, "statements": False, "region": "us-east-1"}
        )
        cache = self.cache.model_copy(update={"backend": "memory"})
        admin = self.admin.model_copy(update={"open": True})
        return self.model_copy(
            update={"aurora": aurora, "dynamodb": dynamodb, "cache": cache, "admin": admin}
        )
