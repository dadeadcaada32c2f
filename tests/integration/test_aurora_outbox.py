from __future__ import annotations

import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.types.numeric import Int8

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import OutboxRow
from duostore_server.domain.errors import StoreTimeoutError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Change
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.mutations import statement_of
from duostore_server.storage.aurora.outbox import _CLAIM, _COMPLETE, AuroraOutbox
from tests.support.authority_engines import ORIGIN, migrated_pool, soon, write_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from psycopg.rows import TupleRow

    from duostore_server.domain.transactions import Written
    from duostore_server.storage.aurora.pool import AuroraPool


class ReadsByPosition(AuroraOutbox):
    """The mutant that takes the outbox for a log: it claims what comes after the last id."""

    _last = 0

    def claim(self, limit: int, deadline: Deadline) -> Sequence[OutboxRow]:
        rows = self._pool.execute(
            "SELECT id, clock_timestamp(), tenant, kind, entity_id FROM duostore.outbox"
            " WHERE id > %s AND due_time <= clock_timestamp() ORDER BY id LIMIT %s",
            (Int8(self._last), Int8(limit)),
            deadline,
        )
        self._last = max((self._last, *(row[0] for row in rows)))
        return [OutboxRow(id_, EntityKey(*key), as_of) for id_, as_of, *key in rows]


class WaitsForSavers(AuroraOutbox):
    """The mutant that deletes rows whether they are locked or not."""

    def complete(self, rows: Collection[OutboxRow], deadline: Deadline) -> None:
        self._pool.execute(
            "DELETE FROM duostore.outbox WHERE id = ANY (%s)",
            ([Int8(row.id) for row in rows],),
            deadline,
        )


@pytest.fixture
def pool(postgres_dsn: str) -> Iterator[AuroraPool]:
    with migrated_pool(postgres_dsn) as pool:
        yield pool


def key(name: object) -> EntityKey:
    return EntityKey("", "proposal", str(name))


def save(pool: AuroraPool, name: object, due_after: timedelta = timedelta()) -> OutboxRow:
    return write(pool, Change(key(name), {}, None, due_after)).row


def write(pool: AuroraPool, change: Change) -> Written:
    (written,) = AuroraAuthority(pool).write(write_of(change), soon()).written
    return written


@contextmanager
def saving(dsn: str, name: object) -> Iterator[psycopg.Connection[TupleRow]]:
    """Do a Save by the very statement of production, in a transaction that commits at the end."""
    statement = statement_of(Change(key(name), {}, None, timedelta()), ORIGIN)
    with psycopg.connect(dsn) as connection:
        connection.execute(statement.query, statement.params)
        yield connection


def claimed_around_a_late_commit(pool: AuroraPool, dsn: str, outbox: AuroraOutbox) -> list[str]:
    """Commit a row whose id is lower than one that was claimed and completed before."""
    with saving(dsn, "late"):
        save(pool, "early")
        first = outbox.claim(10, soon())
        outbox.complete(first, soon())
    second = outbox.claim(10, soon())
    assert all(row.id < first[0].id for row in second)
    return [row.key.id for row in (*first, *second)]


def test_a_row_that_is_committed_late_is_found(pool: AuroraPool, postgres_dsn: str) -> None:
    claimed = claimed_around_a_late_commit(pool, postgres_dsn, AuroraOutbox(pool))
    assert claimed == ["early", "late"]


def test_a_reader_by_position_loses_a_row_that_is_committed_late(
    pool: AuroraPool, postgres_dsn: str
) -> None:
    claimed = claimed_around_a_late_commit(pool, postgres_dsn, ReadsByPosition(pool))
    assert claimed == ["early"]


def test_completing_does_not_wait_for_a_saver(pool: AuroraPool, postgres_dsn: str) -> None:
    busy, idle = save(pool, "busy"), save(pool, "idle")
    with saving(postgres_dsn, "busy"):
        AuroraOutbox(pool).complete([busy, idle], Deadline.after(5))
        assert AuroraOutbox(pool).backlog(soon()).depth == 1
    assert [row.key.id for row in AuroraOutbox(pool).claim(10, soon())] == ["busy"]


def created(dsn: str, name: str) -> datetime:
    with psycopg.connect(dsn) as connection:
        ((time,),) = connection.execute(
            "SELECT create_time FROM duostore.outbox WHERE entity_id = %s", (name,)
        ).fetchall()
    assert isinstance(time, datetime)
    return time.astimezone(UTC)


def hot(pool: AuroraPool, dsn: str, outbox: AuroraOutbox) -> tuple[OutboxRow, datetime]:
    """Save while an earlier change is being brought; return its row, and when that was begun."""
    save(pool, "hot")
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE duostore.outbox SET create_time = now() - interval '1 hour'")
    (claimed,) = outbox.claim(10, soon())
    began = datetime.now(UTC)
    save(pool, "hot")
    outbox.complete([claimed], soon())
    return claimed, began


class Youngest(AuroraOutbox):
    """The mutant that takes a row that it just missed for one of now."""

    def complete(self, rows: Collection[OutboxRow], deadline: Deadline) -> None:
        now = datetime.now(UTC)
        super().complete([replace(row, as_of=now) for row in rows], deadline)


def test_a_row_that_was_just_missed_is_as_old_as_the_claim_of_what_was_brought(
    pool: AuroraPool, postgres_dsn: str
) -> None:
    claimed, began = hot(pool, postgres_dsn, AuroraOutbox(pool))
    assert created(postgres_dsn, "hot") == claimed.as_of <= began
    # One machine, one clock.
    hot(pool, postgres_dsn, Youngest(pool))
    assert created(postgres_dsn, "hot") > began


def test_what_is_committed_late_is_not_made_younger_than_its_commit(
    pool: AuroraPool, postgres_dsn: str
) -> None:
    """Its row has times from before the claim of what was brought, and it from after it."""
    outbox = AuroraOutbox(pool)
    first = save(pool, "hot")
    with saving(postgres_dsn, "hot") as connection:
        # The row is locked: nothing of it is changed, and nobody waits.
        outbox.complete([first], Deadline.after(5))
        connection.commit()
        committed = datetime.now(UTC)
    outbox.complete([first], soon())
    assert created(postgres_dsn, "hot") == first.as_of <= committed
    (row,) = outbox.claim(10, soon())
    outbox.complete([row], soon())
    assert outbox.backlog(soon()).depth == 0


def test_a_plain_delete_would_wait_for_a_saver(pool: AuroraPool, postgres_dsn: str) -> None:
    busy = save(pool, "busy")
    with saving(postgres_dsn, "busy"), pytest.raises(StoreTimeoutError):
        WaitsForSavers(pool).complete([busy], Deadline.after(0.3))


def test_claiming_does_not_wait_for_a_saver(pool: AuroraPool, postgres_dsn: str) -> None:
    save(pool, "busy")
    save(pool, "idle")
    with saving(postgres_dsn, "busy"):
        claimed = AuroraOutbox(pool).claim(10, Deadline.after(5))
    assert [row.key.id for row in claimed] == ["idle"]


def test_no_row_lock_outlives_a_claim(pool: AuroraPool, postgres_dsn: str) -> None:
    save(pool, "one")
    AuroraOutbox(pool).claim(10, soon())
    with psycopg.connect(postgres_dsn) as connection:
        locked = connection.execute("SELECT id FROM duostore.outbox FOR UPDATE NOWAIT").fetchall()
    assert len(locked) == 1


def test_savers_of_many_keys_never_deadlock_with_completions(
    pool: AuroraPool, postgres_dsn: str
) -> None:
    """Savers lock several rows at once, in every order of keys that does not deadlock them."""
    names = [f"k{n}" for n in range(6)]
    ids: dict[str, list[OutboxRow]] = defaultdict(list)
    outbox = AuroraOutbox(pool)

    def saver(offset: int) -> None:
        for n in range(40):
            name = names[(offset + n) % len(names)]
            ids[name].append(save(pool, name))

    def saver_of_all(_: int) -> None:
        for _ in range(20):
            with psycopg.connect(postgres_dsn) as connection:
                for name in names:
                    connection.execute(
                        "UPDATE duostore.outbox SET id = DEFAULT WHERE entity_id = %s", (name,)
                    )

    def completer(backwards: int) -> None:
        for _ in range(60):
            known = [id_ for name in names for id_ in ids[name][-3:]]
            outbox.complete(known[:: -1 if backwards else 1], soon())
            outbox.claim(3, soon())

    def together(work: Callable[[int], None], n: int) -> None:
        barrier.wait()
        work(n)

    works = [*((saver, n) for n in range(3)), (saver_of_all, 0), (completer, 0), (completer, 1)]
    barrier = threading.Barrier(len(works))
    with ThreadPoolExecutor(len(works)) as threads:
        running = [threads.submit(together, work, n) for work, n in works]
        for done in running:
            done.result(timeout=60)
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        ((deadlocks,),) = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
    assert deadlocks == 0


def test_a_clock_that_was_set_back_makes_nothing_wait(pool: AuroraPool, postgres_dsn: str) -> None:
    first = write(pool, Change(key(1), {}, None, timedelta()))
    AuroraOutbox(pool).complete([first.row], soon())
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("UPDATE duostore.entity SET update_time = now() + interval '1 hour'")
        ((ahead,),) = connection.execute("SELECT update_time FROM duostore.entity")
    second = write(pool, Change(key(1), {}, None, timedelta()))
    assert second.entity.update_time == ahead
    tombstone = write(pool, Change(key(1), None, None, timedelta()))
    assert tombstone.entity.update_time == ahead
    third = write(pool, Change(key(1), {}, None, timedelta()))
    assert third.entity.create_time == third.entity.update_time == ahead
    (row,) = AuroraOutbox(pool).claim(10, soon())
    assert row == third.row
    assert AuroraOutbox(pool).backlog(soon()).oldest_seconds < 600


def fill(connection: psycopg.Connection[TupleRow]) -> None:
    connection.execute(
        "INSERT INTO duostore.outbox (tenant, kind, entity_id, due_time, create_time)"
        " SELECT '', 'proposal', n, now() - n * interval '1 ms', now()"
        " FROM generate_series(1, 20000) AS n"
    )
    connection.execute("ANALYZE duostore.outbox")


def test_rows_of_a_large_backlog_are_completed_by_its_indexes(
    pool: AuroraPool, postgres_dsn: str
) -> None:
    rows = [OutboxRow(n, key(n), datetime.now(UTC)) for n in range(1, 101)]
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        fill(connection)
        ids = [Int8(row.id) for row in rows]
        keys = [["" for _ in rows], ["proposal" for _ in rows], [row.key.id for row in rows]]
        plan = connection.execute(
            "EXPLAIN " + _COMPLETE,
            (ids, [row.as_of for row in rows], *keys),
        ).fetchall()
    lines = [line for (line,) in plan]
    assert not any("Seq Scan on outbox" in line for line in lines), lines
    AuroraOutbox(pool).complete(rows, soon())
    assert AuroraOutbox(pool).backlog(soon()).depth == 19_900


def test_a_large_backlog_is_claimed_by_its_index(pool: AuroraPool, postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        fill(connection)
        plan = connection.execute("EXPLAIN " + _CLAIM, (Int8(100), timedelta(seconds=3))).fetchall()
    assert any("Index Scan using outbox_due_time" in line for (line,) in plan)
    assert not any("Sort Key: outbox.due_time" in line for (line,) in plan)
    claimed = AuroraOutbox(pool).claim(500, soon())
    assert [row.key.id for row in claimed] == [str(n) for n in range(20000, 19500, -1)]
