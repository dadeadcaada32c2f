"""PostgreSQL, DynamoDB and memcached with what compares and mends them, and raw hands on each."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from pymemcache.client.base import Client  # type: ignore[import-untyped]  # shipped without

from duostore_server import codec
from duostore_server.access.checking import Checking
from duostore_server.access.examining import PAUSES, Examining
from duostore_server.access.judging import Judge
from duostore_server.access.propagation import Propagation
from duostore_server.access.repairing import Repairing
from duostore_server.access.shapes import Shapes
from duostore_server.access.walking import Walking
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached, Entity, Projection
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Change, Origin, Transaction
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.entities import AuroraEntities
from duostore_server.storage.aurora.outbox import AuroraOutbox
from duostore_server.storage.cache import entries
from duostore_server.storage.cache.keys import Namespace
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.dynamodb import items
from duostore_server.storage.dynamodb.projection_items import DynamoProjectionItems
from tests.support.authority_engines import empty, migrated_pool
from tests.support.dynamodb_engines import patient_client
from tests.support.projection_engines import COMPRESS_ABOVE, direct
from tests.support.tier_stack import POLICIES, READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from typing import LiteralString

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.admin_ports import HeldItem
    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.drift import CheckProgress, FoundDrift
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.servers import DynamoDBLocal, MemcachedServer

_TTL = 600


def key(id_: str, kind: str = "proposal") -> EntityKey:
    return EntityKey("acme", kind, id_)


def soon() -> Deadline:
    return Deadline.after(60)


class SlowItems(DynamoProjectionItems):
    """Items that are looked at with something going on before and after."""

    between: Callable[[], object] = staticmethod(lambda: None)

    def inspect(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, HeldItem]:
        self.between()
        held = super().inspect(keys, deadline)
        self.between()
        return held


class Driven:
    """The real stores of a test, with nothing in them."""

    def __init__(
        self, *, dsn: str, pool: AuroraPool, client: DynamoDBClient, prefix: str, address: str
    ) -> None:
        self._dsn = dsn
        host, _, port = address.rpartition(":")
        # A namespace of the test's own: others use the server too.
        self._names = Namespace(prefix)
        self._memcached = Client((host, int(port)), timeout=5)
        self.dynamodb = direct(client, prefix)
        self.authority = AuroraAuthority(pool, {})
        self.outbox = AuroraOutbox(pool)
        self.entities = AuroraEntities(pool)
        self.items = SlowItems(client, prefix=prefix, compress_above=COMPRESS_ABOVE)
        self.cache = MemcachedCache([address], namespace=prefix, timeout=5, connect_timeout=5)
        self.pauses: Sequence[float] = PAUSES
        self.flags: dict[str, FlagValue] = {WRITE: "old", READ: 0}
        self.shapes = Shapes(POLICIES, codec.encode, lambda name: self.flags[name])
        self.propagation = Propagation(self.dynamodb.projections, self.cache, self.shapes.project)

    def close(self) -> None:
        self.cache.close()
        self._memcached.close()

    def save(
        self, key: EntityKey, data: Any = None, *, deleted: bool = False, done: bool = True
    ) -> Entity:
        """Save as a process does; not ``done``: it dies once the version is committed."""
        content = None if deleted else {"a": 1, "b": {"c": "text"}} if data is None else data
        change = Change(key, content, None, timedelta(seconds=1))
        transaction = Transaction((change,), Origin("tests", ""))
        (written,) = self.authority.write(transaction, soon()).written
        if done and self.propagation.propagate((written.entity,), soon()):
            self.outbox.complete((written.row,), soon())
        return written.entity

    def forget_outbox(self) -> None:
        """Lose the outbox, by hand."""
        self.sql("DELETE FROM duostore.outbox")

    def sql(self, query: LiteralString, *params: object) -> None:
        with psycopg.connect(self._dsn) as connection:
            connection.execute(query, params)

    def waiting(self) -> int:
        return self.outbox.backlog(soon()).depth

    def put_item(self, key: EntityKey, projection: Projection, **attributes: Any) -> None:
        """Put an item by hand; ``attributes`` instead of those that it would have."""
        write = items.encode(key, projection, compress_above=COMPRESS_ABOVE)
        self.dynamodb.client.put_item(
            TableName=self.dynamodb.table, Item={**write.item, **attributes}
        )

    def delete_item(self, key: EntityKey) -> None:
        self.dynamodb.client.delete_item(TableName=self.dynamodb.table, Key={"pk": {"S": str(key)}})

    def set_entry(
        self, key: EntityKey, version: int, payload: bytes | None, shape: int = 1
    ) -> None:
        """Set an entry of memcached by hand."""
        entry = Cached(version, payload, datetime.now(UTC), shape=shape)
        self.set_bytes(key, entries.encode(entry, compress_above=4096))

    def set_bytes(self, key: EntityKey, raw: bytes) -> None:
        assert self._memcached.set(self._names.key(key), raw, expire=_TTL, noreply=False)

    def check(
        self, kind: str = "", sample: int | None = None, *, repair: bool = False, **parts: Any
    ) -> list[CheckProgress]:
        """Check as the service does; ``parts`` are classes to be used instead."""
        running = self.checking(**parts).check(kind, sample, soon(), repair=repair)
        return list(running)

    def found(self, **options: Any) -> dict[tuple[str, str], FoundDrift]:
        """Return all that a check tells, by id and drift."""
        return {
            (each.finding.key.id, each.finding.drift.value): each
            for progress in self.check(**options)
            for each in progress.drifts
        }

    def checking(
        self, examining: type[Examining] = Examining, judge: type[Judge] = Judge
    ) -> Checking:
        looks = examining(
            authority=self.authority,
            items=self.items,
            cache=self.cache,
            outbox=self.outbox,
            judge=judge(self.shapes, codec.decode, codec.head_entity, self.items.fits),
            policies=POLICIES,
            pause=threading.Event().wait,
            pauses=self.pauses,
        )
        return Checking(
            walking=Walking(
                entities=self.entities,
                items=self.items,
                examining=looks,
                pause=threading.Event().wait,
            ),
            authority=self.authority,
            examining=looks,
            repairing=Repairing(
                examining=looks,
                authority=self.authority,
                outbox=self.outbox,
                items=self.items,
                cache=self.cache,
                propagation=self.propagation,
                shapes=self.shapes,
            ),
            policies=POLICIES,
            drifted=lambda _kind, _drift: None,
            repaired=lambda _kind, _ok: None,
            clock=time.monotonic,
        )


@contextmanager
def driven(
    dsn: str, dynamodb: DynamoDBLocal, memcached: MemcachedServer, prefix: str
) -> Iterator[Driven]:
    """Open the real stores, with tables of their own."""
    with ExitStack() as stack:
        pool = stack.enter_context(migrated_pool(dsn))
        client = stack.enter_context(patient_client(dynamodb.endpoint_url))
        empty(dsn)
        stores = Driven(dsn=dsn, pool=pool, client=client, prefix=prefix, address=memcached.address)
        stack.callback(stores.close)
        yield stores
