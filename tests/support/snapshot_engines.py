"""Snapshots and dirty heads on one engine, under a clock that a test turns."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.snapshots import NewSnapshot
from duostore_server.domain.transactions import Idempotency, IdempotencyKey
from duostore_server.storage.dynamodb.client import make_client
from duostore_server.storage.dynamodb.dirty import DynamoDirtyHeads
from duostore_server.storage.dynamodb.head_items import head_key, history_key
from duostore_server.storage.dynamodb.snapshots import open_snapshots
from duostore_server.storage.dynamodb.tables import create_tables, snapshot_table
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.snapshots import (
        Appended,
        DirtyHead,
        SnapshotPage,
        StoredSnapshot,
    )
    from duostore_server.storage.dynamodb.snapshots import DynamoSnapshots

KEY = EntityKey("acme", "proposal", "p-1")
# DynamoDB Local deletes by its own clock, with which this one begins.
START = datetime.now(UTC).replace(microsecond=125)
CONSOLIDATE_AFTER = timedelta(seconds=30)
COMPRESS_ABOVE = 1024
HASH = bytes(range(32))
# As much as a test waits in vain before it fails.
PATIENCE_SECONDS = 20.0


def soon() -> Deadline:
    return Deadline.after(60)


def key_of(number: int) -> EntityKey:
    return EntityKey("acme", "proposal", f"p-{number}")


def idempotency(text: str, request_hash: bytes = HASH, tenant: str = "acme") -> Idempotency:
    return Idempotency(IdempotencyKey(tenant, text), request_hash, timedelta(hours=24))


class Clock:
    """Says what time it is; a test turns it."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time

    def turn(self, **by: float) -> None:
        self.time += timedelta(**by)


@dataclass
class Engine:
    """A deployment's snapshots: two instances, as two processes have, and its dirty heads."""

    client: DynamoDBClient
    prefix: str
    clock: Clock
    snapshots: DynamoSnapshots
    others: DynamoSnapshots
    dirty: DynamoDirtyHeads
    unreadable: list[tuple[EntityKey, int, str]] = field(default_factory=list)
    counts_base64: bool = False

    @property
    def table(self) -> str:
        return snapshot_table(self.prefix)

    def append(
        self,
        payload: bytes = b"payload",
        key: EntityKey = KEY,
        *,
        once: Idempotency | None = None,
        in_history: bool = True,
        by: DynamoSnapshots | None = None,
        deadline: Deadline | None = None,
    ) -> Appended:
        new = NewSnapshot(
            key=key,
            payload=payload,
            time=self.clock(),
            in_history=in_history,
            consolidate_after=CONSOLIDATE_AFTER,
            idempotency=once,
        )
        return (by or self.snapshots).append(new, deadline or soon())

    def read(self, sequence: int = 0, key: EntityKey = KEY) -> StoredSnapshot | None:
        return self.snapshots.read(key, sequence, soon())

    def page(
        self, before: int | None = None, limit: int = 20, key: EntityKey = KEY
    ) -> SnapshotPage:
        return self.snapshots.page(key, before, limit, soon())

    def history(self, key: EntityKey = KEY, limit: int = 20) -> list[StoredSnapshot]:
        """Return all snapshots of a key, newest first, page by page."""
        page = self.page(None, limit, key)
        found = list(page.snapshots)
        while page.more and page.snapshots:
            page = self.page(found[-1].sequence, limit, key)
            found += page.snapshots
        return found

    def sequences(self, key: EntityKey = KEY) -> list[int]:
        return [snapshot.sequence for snapshot in self.history(key)]

    def due(self, limit: int = 100) -> Sequence[DirtyHead]:
        return self.dirty.due(limit, soon()).heads

    def found(self, key: EntityKey = KEY) -> DirtyHead:
        """Return a head that is due, as soon as the index shows it."""
        (head,) = eventually(
            lambda: [head for head in self.due() if head.key == key],
            within=PATIENCE_SECONDS,
            what=f"{key} is due",
        )
        return head

    def found_when_due(self, key: EntityKey = KEY) -> DirtyHead:
        """Return a head once it is due, to which the clock is turned."""
        self.clock.turn(seconds=CONSOLIDATE_AFTER.total_seconds())
        return self.found(key)

    def settle(
        self,
        head: DirtyHead,
        *,
        expire: int = 0,
        keep: timedelta = timedelta(hours=1),
        next_due: datetime | None = None,
    ) -> None:
        self.dirty.settle(
            head,
            expire=expire,
            keep=keep,
            clean=next_due is None,
            next_due=next_due or self.clock(),
            deadline=soon(),
        )

    def item(self, key: EntityKey = KEY, sequence: int | None = None) -> dict[str, Any] | None:
        """Return the item of the head, or of a snapshot in the history."""
        found = self.client.get_item(
            TableName=self.table,
            Key=head_key(key) if sequence is None else history_key(key, sequence),
            ConsistentRead=True,
        ).get("Item")
        return None if found is None else dict(found)

    def change(self, item: dict[str, Any] | None, **attributes: Any) -> None:
        """Put an item with other attributes; those that are None go."""
        changed = {**(item or {}), **attributes}
        self.client.put_item(
            TableName=self.table,
            Item={name: value for name, value in changed.items() if value is not None},
        )


@contextmanager
def engine_on(
    client: DynamoDBClient,
    prefix: str,
    *,
    statements: bool = True,
    counts_base64: bool = False,
    timeout: float = PATIENCE_SECONDS,
) -> Iterator[Engine]:
    """Open both ports over tables of the test's own."""
    unreadable: list[tuple[EntityKey, int, str]] = []
    clock = Clock()

    def told(*problem: Any) -> None:
        unreadable.append(problem)

    create_tables(client, prefix=prefix, pause=lambda _: None)
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(
                open_snapshots(
                    client,
                    prefix=prefix,
                    unreadable=told,
                    compress_above=COMPRESS_ABOVE,
                    timeout=timeout,
                    now=clock,
                )
            )
            for _ in range(2)
        )
        dirty = DynamoDirtyHeads(
            client,
            prefix=prefix,
            unreadable=told,
            timeout=timeout,
            statements=statements,
            now=clock,
        )
        yield Engine(client, prefix, clock, first, second, dirty, unreadable, counts_base64)


def client_of(endpoint_url: str) -> DynamoDBClient:
    return make_client(
        region="us-east-1",
        endpoint_url=endpoint_url,
        connect_timeout=5,
        read_timeout=PATIENCE_SECONDS,
    )
