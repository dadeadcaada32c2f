"""What a running service tells of a call to a collector and to its log, and what it never does."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from duostore.v1 import data_access_pb2, entity_pb2
from tests.support.collector import http_collector
from tests.support.service import CALL_SECONDS, Caller, Service, struct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.collector import Collector, Received
    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

# In a document, a key, a token or an idempotency key; nobody is to read it elsewhere.
MARKER = f"marker{secrets.token_hex(8)}"
TOKEN = f"Bearer {MARKER}"
KINDS = """
[kinds.proposal]
snapshots = { consolidate_every = "1s" }
[kinds.strict]
schema = "strict.json"
[kinds.state]
home = "dynamodb"
[queries.named]
sql = "named.sql"
params = { name = "string" }
[quotas.calls]
limit = 5
window = "1h"
"""
SCHEMA = '{"type": "object", "properties": {"title": {"enum": ["only this"]}}}'
NAMED = "SELECT id FROM duostore.entity WHERE id = :name"
DRIVERS = "opentelemetry.instrumentation."


@dataclass(frozen=True)
class Watched:
    """A service that traces and logs all it can, the collector, and where it logs."""

    service: Service
    collector: Collector
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has logged, line by line."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("telemetry")
    with http_collector() as collector, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        environment.setenv("DUOSTORE__LOGGING__LEVEL", "debug")
        with Service(
            folder,
            dsn=postgres.create_database(),
            endpoint_url=dynamodb.endpoint_url,
            prefix=f"t{secrets.token_hex(4)}_",
            node=memcached.address,
            workers=1,
            kinds=KINDS,
            sql={"strict.json": SCHEMA, "named.sql": NAMED},
        ) as service:
            yield Watched(service, collector, service.log)


@pytest.fixture
def stub(watched: Watched) -> Iterator[Any]:
    """Somebody who calls it."""
    with watched.service.channel() as channel:
        yield Caller(channel).stub


def begun() -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return a new trace and what a call of it has in its metadata."""
    trace = secrets.token_hex(16)
    return trace, (
        ("traceparent", f"00-{trace}-{secrets.token_hex(8)}-01"),
        ("authorization", TOKEN),
        ("x-request-id", trace),
    )


def key(kind: str, id_: str = MARKER) -> entity_pb2.EntityKey:
    return entity_pb2.EntityKey(tenant=MARKER, kind=kind, id=id_)


def whole(watched: Watched, trace: str) -> list[Received]:
    """Return the spans of a call once they are all there."""

    def received() -> list[Received]:
        spans = watched.collector.of(trace)
        return spans if any(span.name.startswith("duostore.v1.") for span in spans) else []

    return eventually(received, within=20, what="the collector has the trace")


def children(spans: list[Received], parent: Received) -> dict[str, set[str]]:
    """Return the spans under one, by who made them."""
    found: dict[str, set[str]] = {}
    for span in spans:
        if span.parent == parent.id:
            found.setdefault(span.scope.removeprefix(DRIVERS), set()).add(span.name)
    return found


def test_a_collector_receives_the_stores_of_a_call_and_what_their_drivers_did(
    watched: Watched, stub: Any
) -> None:
    id_ = f"{MARKER}-drivers"
    trace, metadata = begun()
    save = data_access_pb2.SaveRequest(key=key("proposal", id_), data=struct({"t": MARKER}))
    stub.Save(save, timeout=CALL_SECONDS, metadata=metadata)
    spans = whole(watched, trace)
    (server,) = (span for span in spans if span.name == "duostore.v1.DataAccess/Save")
    assert server.resource["service.name"] == "duostore"
    assert server.resource["duostore.process"] == "worker"
    (write,) = (span for span in spans if span.name == "aurora.write")
    assert write.parent == server.id
    assert write.attributes == {"duostore.tier": "aurora", "duostore.outcome": "ok"}
    assert children(spans, write)["psycopg"]
    statements = [span.attributes.get("db.statement", "") for span in spans]
    assert any("%(" in statement or "%s" in statement for statement in statements)

    trace, metadata = begun()
    get = data_access_pb2.GetRequest(key=key("proposal", id_))
    stub.Get(get, timeout=CALL_SECONDS, metadata=metadata)
    spans = whole(watched, trace)
    (cached,) = (span for span in spans if span.name == "cache.read")
    assert cached.attributes["duostore.outcome"] == "miss"
    assert children(spans, cached) == {"pymemcache": {"get_many"}}
    (read,) = (span for span in spans if span.name == "dynamodb.read")
    # On a thread that sends what callers have gathered; it is this caller's trace all the same.
    assert children(spans, read) == {"botocore.dynamodb": {"DynamoDB.BatchGetItem"}}


def test_neither_a_document_nor_a_key_nor_a_token_is_logged_or_traced(
    watched: Watched, stub: Any
) -> None:
    ids = [call_with_markers(stub, number) for number in range(len(CALLS))]
    for trace in ids:
        whole(watched, trace)
    watched.service.stop()
    log = watched.log.read_text()
    assert MARKER not in log
    for body in watched.collector.bodies:
        assert MARKER.encode() not in body
    # All of it was there to be told.
    told = {line.get("trace_id") for line in watched.lines()}
    refused = {line["trace_id"] for line in watched.lines() if line["event"] == "call refused"}
    assert refused <= set(ids)
    assert len(refused) == sum(refusing for _, _, refusing in CALLS)
    assert told >= refused
    for line in watched.lines():
        if line["event"] == "call refused":
            assert line["request_id"] == line["trace_id"]
            assert len(line["span_id"]) == 16


def call_with_markers(stub: Any, number: int) -> str:
    """Make one of the calls; return its trace."""
    method, request, refusing = CALLS[number]
    trace, metadata = begun()
    try:
        getattr(stub, method)(request, timeout=CALL_SECONDS, metadata=metadata)
    except grpc.RpcError:
        assert refusing, method
    else:
        assert not refusing, method
    return trace


def _save(kind: str, **options: Any) -> data_access_pb2.SaveRequest:
    data = struct({"title": MARKER, MARKER: [MARKER]})
    return data_access_pb2.SaveRequest(key=key(kind), data=data, **options)


# The method, its request, and whether that is refused.
CALLS = (
    ("Save", _save("proposal", idempotency_key=MARKER), False),
    ("Save", _save("proposal", idempotency_key=MARKER), False),
    ("Save", _save("proposal", if_absent=True), True),
    ("Save", _save("proposal", if_version=77), True),
    ("Save", _save("strict"), True),
    ("Save", _save("state"), False),
    ("Save", _save("unknown"), True),
    ("Get", data_access_pb2.GetRequest(key=key("proposal")), False),
    ("Get", data_access_pb2.GetRequest(key=key("proposal", f"{MARKER}-none")), True),
    ("Get", data_access_pb2.GetRequest(key=key("proposal", f"{MARKER}\n")), True),
    ("BatchGet", data_access_pb2.BatchGetRequest(keys=[key("proposal"), key("state")]), False),
    (
        "Snapshot",
        data_access_pb2.SnapshotRequest(key=key("proposal"), data=struct({"title": MARKER})),
        False,
    ),
    (
        "Query",
        data_access_pb2.QueryRequest(query="named", params=struct({"name": MARKER})),
        False,
    ),
    (
        "Query",
        data_access_pb2.QueryRequest(query="named", params=struct({"name": [MARKER]})),
        True,
    ),
    ("Quota", data_access_pb2.QuotaRequest(quota="calls", subject=MARKER, cost=1), False),
    ("Delete", data_access_pb2.DeleteRequest(key=key("proposal"), if_version=99), True),
    ("Delete", data_access_pb2.DeleteRequest(key=key("proposal")), False),
)
