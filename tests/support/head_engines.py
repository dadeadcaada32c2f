"""The engines of the heads, and words for the suites that run over them."""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.snapshots import HeadChange
from duostore_server.domain.transactions import Idempotency, IdempotencyKey
from duostore_server.storage.dynamodb.head_items import head_key
from duostore_server.storage.dynamodb.heads import direct_heads, open_heads
from duostore_server.storage.dynamodb.tables import (
    create_tables,
    idempotency_table,
    snapshot_table,
)
from tests.support.dynamodb_engines import never

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.ports import Heads
    from duostore_server.domain.snapshots import Head, HeadWritten
    from duostore_server.domain.transactions import Precondition

KEY = EntityKey("acme", "editor_state", "s-1")
# DynamoDB Local sweeps what is past its time within seconds.
NOW = datetime.now(UTC)
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
COMPRESS_ABOVE = 1024


def soon() -> Deadline:
    return Deadline.after(60)


def idempotency(text: str, request: str = "request") -> Idempotency:
    key = IdempotencyKey(KEY.tenant, text)
    return Idempotency(key, hashlib.sha256(request.encode()).digest(), timedelta(days=1))


def change(
    payload: bytes | None = b"payload",
    precondition: Precondition = None,
    *,
    key: EntityKey = KEY,
    now: datetime = NOW,
    ttl: timedelta | None = None,
    consolidate_after: timedelta | None = None,
    once: Idempotency | None = None,
) -> HeadChange:
    return HeadChange(key, payload, precondition, now, ttl, consolidate_after, once)


@dataclass
class Engine:
    """Heads, and what is below them."""

    client: DynamoDBClient
    prefix: str
    unreadable: list[tuple[EntityKey, int, str]] = field(default_factory=list)
    heads: Heads = field(init=False)

    def write(self, payload: bytes | None = b"payload", *args: Any, **options: Any) -> HeadWritten:
        return self.heads.write(change(payload, *args, **options), soon())

    def read(self, key: EntityKey = KEY) -> Head | None:
        return self.heads.read((key,), soon()).get(key)

    def item(self, key: EntityKey = KEY) -> dict[str, Any]:
        return dict(
            self.client.get_item(
                TableName=snapshot_table(self.prefix), Key=head_key(key), ConsistentRead=True
            )["Item"]
        )

    def record(self, once: Idempotency) -> dict[str, Any] | None:
        answer = self.client.get_item(
            TableName=idempotency_table(self.prefix),
            Key={"pk": {"S": f"dynamodb#{once.key}"}},
            ConsistentRead=True,
        )
        return dict(answer["Item"]) if "Item" in answer else None

    def damage(self, key: EntityKey = KEY, **attributes: Any) -> None:
        table = snapshot_table(self.prefix)
        self.client.put_item(TableName=table, Item={**self.item(key), **attributes})


@contextmanager
def threaded(client: DynamoDBClient, prefix: str, *, timeout: float = 30) -> Iterator[Engine]:
    """Run heads with threads of their own."""
    create_tables(client, prefix=prefix, pause=time.sleep)
    engine = Engine(client, prefix)
    with open_heads(
        client,
        prefix=prefix,
        unreadable=lambda *problem: engine.unreadable.append(problem),
        compress_above=COMPRESS_ABOVE,
        timeout=timeout,
    ) as engine.heads:
        yield engine


def direct(
    client: DynamoDBClient, prefix: str = "", *, pause: Callable[[float], object] = never
) -> Engine:
    """Return heads that call from their caller's thread."""
    create_tables(client, prefix=prefix, pause=never)
    engine = Engine(client, prefix)
    engine.heads = direct_heads(
        client,
        prefix=prefix,
        unreadable=lambda *problem: engine.unreadable.append(problem),
        pause=pause,
        clock=time.monotonic,
        compress_above=COMPRESS_ABOVE,
        timeout=30,
    )
    return engine
