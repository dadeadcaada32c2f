"""The engines of the authority's conformance suites, each with the same few handles."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import psycopg

from duostore_server.domain.deadline import Deadline
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.migrate import migrate
from duostore_server.storage.aurora.outbox import AuroraOutbox
from duostore_server.storage.aurora.pool import AuroraPool
from tests.support.fake_authority import FakeAuthority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import LiteralString

    from duostore_server.domain.ports import Authority, Outbox

START = 1_800_000_000.0


class Elapse(Protocol):
    def __call__(self, seconds: float) -> None: ...


@dataclass(frozen=True)
class Engine:
    """An authority with an empty outbox. ``elapse`` makes all outbox rows so much older."""

    authority: Authority
    outbox: Outbox
    elapse: Elapse


def soon() -> Deadline:
    """Return a deadline that only a stuck call reaches."""
    return Deadline.after(10)


@contextmanager
def migrated_pool(dsn: str, *, max_size: int = 10) -> Iterator[AuroraPool]:
    """Create the schema and open a pool in which every thread of a test finds a connection."""
    migrate(dsn)
    with AuroraPool(dsn, max_size=max_size, wait=10, lock_timeout=10, statement_timeout=10) as pool:
        yield pool


def on_postgresql(dsn: str, pool: AuroraPool) -> Engine:
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

    execute("TRUNCATE duostore.entity, duostore.outbox")
    return Engine(AuroraAuthority(pool), AuroraOutbox(pool), elapse)


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
    return Engine(fake, fake, elapse)
