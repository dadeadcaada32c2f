"""The engines of the authority's conformance suites, each with the same few handles."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Protocol

import psycopg

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Origin, Transaction
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.drafts import AuroraDrafts
from duostore_server.storage.aurora.idempotency import AuroraIdempotency
from duostore_server.storage.aurora.migrate import migrate
from duostore_server.storage.aurora.outbox import AuroraOutbox
from duostore_server.storage.aurora.pool import AuroraPool
from tests.support.fake_authority import AuditRow, FakeAuthority
from tests.support.read_models import by_kind, read_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import LiteralString

    from duostore_server.domain.ports import Authority, Drafts, IdempotencyRows, Outbox
    from duostore_server.domain.read_models import ReadModel
    from duostore_server.domain.transactions import Idempotency, Mutation

_PROPOSAL = read_model(
    "proposal",
    "SELECT n FROM public.proposal WHERE tenant = :tenant AND id = :id",
    save="INSERT INTO public.proposal VALUES (:tenant, :id, (:data ->> 'n')::integer)"
    " ON CONFLICT (tenant, id) DO UPDATE SET n = excluded.n",
    delete="DELETE FROM public.proposal WHERE tenant = :tenant AND id = :id",
)

START = 1_800_000_000.0
ORIGIN = Origin("tester", "request-1")


class Elapse(Protocol):
    def __call__(self, seconds: float) -> None: ...


@dataclass(frozen=True)
class Engine:
    """An authority that holds nothing yet.

    ``elapse`` makes all rows of the outbox and of the idempotency keys so much older.
    ``audit`` returns what was written, in the order of its times. ``moves_rows``: it does so by
    their times, and not by the clock.
    """

    authority: Authority
    outbox: Outbox
    drafts: Drafts
    idempotency: IdempotencyRows
    elapse: Elapse
    audit: Callable[[], Sequence[AuditRow]]
    moves_rows: bool


def soon() -> Deadline:
    """Return a deadline that only a stuck call reaches."""
    return Deadline.after(10)


def write_of(
    *mutations: Mutation, idempotency: Idempotency | None = None, origin: Origin = ORIGIN
) -> Transaction:
    """Return a transaction of these mutations."""
    return Transaction(mutations, origin, idempotency)


@contextmanager
def migrated_pool(dsn: str, *, max_size: int = 10) -> Iterator[AuroraPool]:
    """Create the schema and open a pool in which every thread of a test finds a connection."""
    migrate(dsn)
    with AuroraPool(dsn, max_size=max_size, wait=10, lock_timeout=10, statement_timeout=10) as pool:
        yield pool


def empty(dsn: str) -> None:
    """Remove everything that is held, from the audit too, as its owner may."""
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE duostore.audit DISABLE TRIGGER audit_is_append_only")
        connection.execute(
            "TRUNCATE duostore.entity, duostore.outbox, duostore.idempotency, duostore.audit,"
            " duostore.draft"
        )
        connection.execute("ALTER TABLE duostore.audit ENABLE ALWAYS TRIGGER audit_is_append_only")


def relational_on_postgresql(dsn: str, pool: AuroraPool) -> Engine:
    """Return the real one, to which proposals are relational; their documents have an ``n``."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS public.proposal"
            " (tenant text, id text, n integer, PRIMARY KEY (tenant, id))"
        )
        connection.execute("TRUNCATE public.proposal")
    return on_postgresql(dsn, pool, by_kind(_PROPOSAL))


def on_postgresql(
    dsn: str, pool: AuroraPool, read_models: Mapping[str, ReadModel] | None = None
) -> Engine:
    """Return the real one on a database whose tables are emptied first."""

    def execute(query: LiteralString, *params: object) -> None:
        with psycopg.connect(dsn) as connection:
            connection.execute(query, params)

    def elapse(seconds: float) -> None:
        execute(
            "UPDATE duostore.outbox SET due_time = due_time - make_interval(secs => %s),"
            " create_time = create_time - make_interval(secs => %s)",
            seconds,
            seconds,
        )
        execute(
            "UPDATE duostore.idempotency SET expire_time = expire_time - make_interval(secs => %s)",
            seconds,
        )

    def audit() -> Sequence[AuditRow]:
        with psycopg.connect(dsn) as connection:
            rows = connection.execute(
                "SELECT tenant, kind, entity_id, version, operation, caller, request_id, time"
                " FROM duostore.audit ORDER BY time"
            ).fetchall()
        return [
            AuditRow(
                EntityKey(tenant, kind, id_),
                version,
                operation,
                Origin(caller, request_id),
                time.astimezone(UTC),
            )
            for tenant, kind, id_, version, operation, caller, request_id, time in rows
        ]

    empty(dsn)
    return Engine(
        AuroraAuthority(pool, read_models or {}),
        AuroraOutbox(pool),
        AuroraDrafts(pool),
        AuroraIdempotency(pool),
        elapse,
        audit,
        moves_rows=True,
    )


def in_memory() -> Engine:
    """Return the fake, with a clock that goes on by microseconds of its own and by ``elapse``."""
    now = START

    def clock() -> float:
        nonlocal now
        now += 1e-5
        return now

    def elapse(seconds: float) -> None:
        nonlocal now
        now += seconds

    fake = FakeAuthority(clock=clock)
    return Engine(fake, fake, fake, fake, elapse, lambda: list(fake.audit), moves_rows=False)
