"""What is measured: `duostore serve` with one worker, over stores of its own."""

from __future__ import annotations

import random
import string
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config

from duostore.v1 import entity_pb2
from duostore_server import codec
from duostore_server.domain.entities import Entity, Form, Projection
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.dynamodb.items import encode
from duostore_server.storage.dynamodb.tables import projection_table
from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer, running
from tests.support.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from types_boto3_dynamodb import DynamoDBClient

KIND: Final = "proposal"
# Quotas whose limit nobody reaches, with leases and without, and one of a single unit.
HOT: Final = "hot"
EACH: Final = "each"
SPENT: Final = "spent"
QUOTAS: Final = f"""
[quotas.{HOT}]
limit = 1_000_000_000
window = "1m"
[quotas.{EACH}]
limit = 1_000_000_000
window = "1m"
lease = 0
[quotas.{SPENT}]
limit = 1
window = "30d"
"""
# One query, with its result cached and without, and one that has any number of rows.
CACHED: Final = "cached"
UNCACHED: Final = "uncached"
EXPORTED: Final = "exported"
_QUERIES: Final = f"""
[queries.{CACHED}]
sql = "sums.sql"
depends_on = ["{KIND}"]
cache_ttl = "24h"
timeout = "1m"
[queries.{UNCACHED}]
sql = "sums.sql"
depends_on = ["{KIND}"]
cache_ttl = "0s"
timeout = "1m"
[queries.{EXPORTED}]
sql = "rows.sql"
params = {{ rows = "integer" }}
timeout = "1m"
"""
ROWS_SQL: Final = """
SELECT n AS id, md5(n::text) AS digest, 'Proposal number ' || n AS title, n * 0.01 AS amount,
    timestamptz '2026-01-01 00:00Z' + n * interval '1 s' AS create_time
FROM (SELECT generate_series(1, :rows) AS n) AS numbers
"""
_SQL: Final = {
    "rows.sql": ROWS_SQL,
    "sums.sql": """
        SELECT n % 10 AS digit, count(*) AS numbers, sum(n) AS total, max(md5(n::text)) AS most
        FROM generate_series(1, 200000) AS numbers (n)
        GROUP BY n % 10
        ORDER BY digit
    """,
}
# Entities that DynamoDB holds from the start and no Save has touched.
SEEDED: Final = 10_000

_PREFIX: Final = "bench_"
_TABLES: Final = f"[kinds.{KIND}.snapshots]\n{QUOTAS}{_QUERIES}"
_BODY_LETTERS: Final = 830
# What the service itself, by default, would not compress.
_PLAIN_BYTES: Final = 1024
_BATCH: Final = 25
_SEEDING_THREADS: Final = 4
# What tests leave out for speed and a Save is paid for with.
_DURABLE: Final = {"fsync": "on", "full_page_writes": "on"}


@dataclass(frozen=True, slots=True)
class Deployment:
    """A service that runs, and its stores."""

    service: Service
    memcached: MemcachedServer
    dsn: str
    endpoint_url: str

    @property
    def prefix(self) -> str:
        """Return what the names of the tables begin with."""
        return _PREFIX

    @property
    def table(self) -> str:
        """Return the name of the table of projections."""
        return projection_table(_PREFIX)

    @contextmanager
    def another_service(
        self, *, workers: int, tables: str, sql: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[Service]:
        """Run a service over the same stores, with tables of its own in its configuration."""
        with (
            tempfile.TemporaryDirectory(prefix="duostore-bench-") as folder,
            Service(
                Path(folder),
                dsn=self.dsn,
                endpoint_url=self.endpoint_url,
                prefix=_PREFIX,
                node=self.memcached.address,
                workers=workers,
                kinds=f"[kinds.{KIND}]\n{tables}",
                sql=sql,
            ) as service,
        ):
            yield service

    @contextmanager
    def plain_client(self, threads: int) -> Iterator[DynamoDBClient]:
        """Yield boto3's client as it comes, with a connection for each thread."""
        client = boto3.client(
            "dynamodb",
            region_name="local",
            endpoint_url=self.endpoint_url,
            aws_access_key_id="bench",
            aws_secret_access_key="bench",  # noqa: S106 - the emulator takes any
            config=Config(max_pool_connections=threads),
        )
        try:
            yield client
        finally:
            client.close()


@contextmanager
def deployed() -> Iterator[Deployment]:
    """Run the stores and the service while the block runs; nothing is left of them."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="duostore-bench-"))
        postgres = stack.enter_context(running(PostgresServer(_DURABLE)))
        dynamodb = stack.enter_context(running(DynamoDBLocal()))
        memcached = stack.enter_context(running(MemcachedServer()))
        dsn = postgres.create_database()
        service = stack.enter_context(
            Service(
                Path(folder),
                dsn=dsn,
                endpoint_url=dynamodb.endpoint_url,
                prefix=_PREFIX,
                node=memcached.address,
                workers=1,
                kinds=_TABLES,
                sql=_SQL,
            )
        )
        deployment = Deployment(service, memcached, dsn, dynamodb.endpoint_url)
        _seed(deployment)
        yield deployment


def document(number: int) -> dict[str, Any]:
    """Return a document that makes an Entity of about 1 KB; the same for the same number."""
    letters = random.Random(number).choices(string.ascii_letters + "  ", k=_BODY_LETTERS)  # noqa: S311 - filling
    return {
        "title": f"Proposal {number}",
        "status": "draft",
        "amount": number,
        "author": {"name": "A. Writer", "team": "Roofs"},
        "body": "".join(letters),
    }


def seeded_key(number: int) -> EntityKey:
    """Return the key of a seeded entity."""
    return EntityKey("", KIND, f"seeded-{number}")


def key_message(key: EntityKey) -> entity_pb2.EntityKey:
    """Return a key as callers send it."""
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)


def item(key: EntityKey, number: int) -> dict[str, Any]:
    """Return the item by which DynamoDB holds the first version of an entity."""
    now = datetime.now(UTC)
    payload = codec.encode(Entity(key, 1, document(number), now, now))
    return encode(key, Projection(1, Form.VALUE, payload), compress_above=_PLAIN_BYTES).item


def _seed(deployment: Deployment) -> None:
    with deployment.plain_client(_SEEDING_THREADS) as client:

        def write(numbers: Sequence[int]) -> None:
            requests: Any = [{"PutRequest": {"Item": item(seeded_key(n), n)}} for n in numbers]
            left: Any = {deployment.table: requests}
            while left:
                left = client.batch_write_item(RequestItems=left)["UnprocessedItems"]

        batches = [range(first, first + _BATCH) for first in range(0, SEEDED, _BATCH)]
        with ThreadPoolExecutor(_SEEDING_THREADS) as pool:
            for _ in pool.map(write, batches):
                pass
