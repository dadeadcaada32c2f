"""What every engine of the outbox promises."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Backlog
from duostore_server.domain.errors import DeadlineExceededError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Change
from tests.support.authority_engines import (
    in_memory,
    migrated_pool,
    on_postgresql,
    soon,
    write_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.authority_engines import Engine
    from tests.support.servers import PostgresServer

AT_ONCE = timedelta()
IN_A_SECOND = timedelta(seconds=1)
IN_AN_HOUR = timedelta(hours=1)
THREADS = 8


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        yield dsn, pool


@pytest.fixture(params=["postgresql", "fake"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "fake":
        return in_memory()
    return on_postgresql(*request.getfixturevalue("database"))


def key(number: int) -> EntityKey:
    return EntityKey("acme", "proposal", f"p-{number}")


def save(engine: Engine, number: int, due_after: timedelta = AT_ONCE) -> int:
    change = Change(key(number), {}, None, due_after)
    return engine.authority.write(write_of(change), soon()).written[0].outbox_id


def claim(engine: Engine, limit: int = 100) -> list[EntityKey]:
    return [row.key for row in engine.outbox.claim(limit, soon())]


def depth(engine: Engine) -> int:
    return engine.outbox.backlog(soon()).depth


def test_nothing_is_due_in_an_empty_outbox(engine: Engine) -> None:
    assert claim(engine) == []
    assert engine.outbox.backlog(soon()) == Backlog(0, 0.0)


def test_a_row_falls_due_after_its_time(engine: Engine) -> None:
    save(engine, 1, IN_AN_HOUR)
    assert claim(engine) == []
    engine.elapse(3599)
    assert claim(engine) == []
    engine.elapse(1.1)
    assert claim(engine) == [key(1)]


def test_a_deletion_is_an_obligation_too(engine: Engine) -> None:
    first = save(engine, 1)
    change = Change(key(1), None, None, AT_ONCE)
    (tombstone,) = engine.authority.write(write_of(change), soon()).written
    engine.outbox.complete([first], soon())
    assert [(r.id, r.key) for r in engine.outbox.claim(9, soon())] == [
        (tombstone.outbox_id, key(1))
    ]


def test_the_oldest_are_claimed_first(engine: Engine) -> None:
    for number, due_after in ((1, 30), (2, 10), (3, 20), (4, 5), (5, 7200)):
        save(engine, number, timedelta(seconds=due_after))
    engine.elapse(60)
    assert claim(engine, limit=3) == [key(4), key(2), key(3)]
    assert claim(engine, limit=3) == [key(1)]


def test_a_claimed_row_is_given_to_nobody_until_the_claim_runs_out(engine: Engine) -> None:
    saved = save(engine, 1)
    (claimed,) = engine.outbox.claim(1, soon())
    assert claimed.id == saved
    assert claim(engine) == []
    engine.elapse(2)
    assert claim(engine) == []
    engine.elapse(1.1)
    assert engine.outbox.claim(1, soon()) == [claimed]


def test_a_completed_row_is_gone(engine: Engine) -> None:
    ids = [save(engine, number) for number in range(5)]
    engine.outbox.complete(ids[:3], soon())
    engine.outbox.complete(ids[:3], soon())
    engine.outbox.complete([], soon())
    assert depth(engine) == 2
    assert sorted(row.id for row in engine.outbox.claim(9, soon())) == ids[3:]
    engine.outbox.complete(ids, soon())
    engine.elapse(3600)
    assert claim(engine) == []
    assert depth(engine) == 0


def test_a_key_has_one_row_with_an_id_of_its_newest_change(engine: Engine) -> None:
    ids = [save(engine, 1) for _ in range(5)]
    assert ids == sorted(set(ids))
    assert depth(engine) == 1
    (row,) = engine.outbox.claim(9, soon())
    assert row.id == ids[-1]


def test_completing_an_older_id_takes_nothing_away(engine: Engine) -> None:
    older = save(engine, 1)
    newer = save(engine, 1)
    engine.outbox.complete([older, older - 1, 10**15], soon())
    assert depth(engine) == 1
    engine.outbox.complete([newer], soon())
    assert depth(engine) == 0


def test_a_change_during_a_claim_is_taken_up_although_the_claimer_completes(engine: Engine) -> None:
    save(engine, 1)
    (claimed,) = engine.outbox.claim(1, soon())
    newer = save(engine, 1, IN_A_SECOND)
    engine.outbox.complete([claimed.id], soon())
    assert claim(engine) == []
    # By its own time, not when the claim would have run out.
    engine.elapse(1.5)
    assert [row.id for row in engine.outbox.claim(1, soon())] == [newer]


def test_a_key_that_is_saved_again_and_again_falls_due_all_the_same(engine: Engine) -> None:
    save(engine, 1, IN_A_SECOND)
    engine.elapse(0.6)
    save(engine, 1, IN_A_SECOND)
    assert claim(engine) == []
    engine.elapse(0.6)
    newest = save(engine, 1, IN_A_SECOND)
    assert [row.id for row in engine.outbox.claim(1, soon())] == [newest]


def test_a_key_that_is_to_be_projected_at_once_does_not_wait_for_its_older_row(
    engine: Engine,
) -> None:
    save(engine, 1, IN_AN_HOUR)
    save(engine, 1, AT_ONCE)
    assert claim(engine) == [key(1)]


def test_the_backlog_is_as_old_as_its_oldest_change(engine: Engine) -> None:
    save(engine, 1, IN_AN_HOUR)
    engine.elapse(100)
    second = save(engine, 2)
    engine.elapse(10)
    save(engine, 1)
    backlog = engine.outbox.backlog(soon())
    assert backlog.depth == 2
    assert 110 <= backlog.oldest_seconds < 140
    for row in engine.outbox.claim(9, soon()):
        if row.id != second:
            engine.outbox.complete([row.id], soon())
    # Claiming makes a row no younger.
    backlog = engine.outbox.backlog(soon())
    assert backlog.depth == 1
    assert 10 <= backlog.oldest_seconds < 40


def test_no_two_claimers_get_the_same_row(engine: Engine) -> None:
    rows = 400
    saved = {save(engine, number) for number in range(rows)}
    barrier = threading.Barrier(THREADS)

    def claimer(_: int) -> list[int]:
        mine: list[int] = []
        barrier.wait()
        while found := engine.outbox.claim(7, soon()):
            mine += [row.id for row in found]
        return mine

    with ThreadPoolExecutor(THREADS) as pool:
        claimed = [id_ for mine in pool.map(claimer, range(THREADS)) for id_ in mine]
    # A claimer may have passed over rows that another was just claiming, and found no more.
    claimed += [row.id for row in engine.outbox.claim(rows, soon())]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == saved


def test_savers_claimers_and_completers_leave_nothing_behind(engine: Engine) -> None:
    """C8, as far as the outbox goes: every obligation is met, and none is met too early."""
    keys, rounds = 5, 60
    projected: dict[EntityKey, int] = {}
    guard = threading.Lock()
    stop = threading.Event()

    def saver(_: int) -> None:
        for n in range(rounds):
            save(engine, n % keys)

    def project() -> int:
        rows = engine.outbox.claim(3, soon())
        current = engine.authority.read([row.key for row in rows], soon())
        with guard:
            for name, entity in current.items():
                projected[name] = max(projected.get(name, 0), entity.version)
        engine.outbox.complete([row.id for row in rows], soon())
        return len(rows)

    def projector(_: int) -> None:
        while not stop.is_set():
            project()

    with ThreadPoolExecutor(THREADS) as pool:
        projectors = [pool.submit(projector, n) for n in range(3)]
        try:
            list(pool.map(saver, range(4)))
        finally:
            stop.set()
        for done in projectors:
            done.result()
    engine.elapse(3600)
    while project():
        pass
    assert depth(engine) == 0
    assert projected == {key(n): 4 * rounds // keys for n in range(keys)}


def test_what_a_key_has_in_the_outbox_is_found(engine: Engine) -> None:
    began = engine.outbox.backlog(soon())
    assert engine.outbox.find([key(1)], soon()) == {}
    first = save(engine, 1, IN_AN_HOUR)
    engine.elapse(100)
    second = save(engine, 1, IN_AN_HOUR)
    other = save(engine, 2, IN_A_SECOND)
    save(engine, 3)
    keys = [key(4), key(2), key(1), EntityKey("", "proposal", "p-1"), key(1)]
    found = engine.outbox.find(keys, soon())
    assert set(found) == {key(1), key(2)}
    assert found[key(1)].id == second > first
    assert found[key(2)].id == other
    # By the oldest change, and the earlier of two plans.
    older, newer = found[key(1)], found[key(2)]
    assert timedelta(seconds=100) <= newer.create_time - older.create_time < timedelta(seconds=130)
    assert older.due_time - older.create_time == IN_AN_HOUR
    assert newer.due_time - newer.create_time == IN_A_SECOND
    assert began == Backlog(0, 0.0)
    assert engine.outbox.find([], soon()) == {}


def test_to_look_for_a_row_changes_nothing(engine: Engine) -> None:
    saved = save(engine, 1)
    (before,) = engine.outbox.find([key(1)], soon()).values()
    (after,) = engine.outbox.find([key(1)], soon()).values()
    assert replace(after, age=before.age) == before
    assert timedelta() <= before.age < after.age < timedelta(minutes=1)
    assert [row.id for row in engine.outbox.claim(9, soon())] == [saved]
    # A claim is a plan like any other, and completion leaves nothing to find.
    claimed = engine.outbox.find([key(1)], soon())[key(1)]
    assert claimed.id == saved
    assert claimed.due_time > before.due_time
    assert claimed.create_time == before.create_time
    engine.outbox.complete([saved], soon())
    assert engine.outbox.find([key(1)], soon()) == {}


def test_an_obligation_is_like_a_change(engine: Engine) -> None:
    """Of a key that was never saved, too, and to be completed as such."""
    saved = save(engine, 1, IN_AN_HOUR)
    engine.outbox.complete([saved], soon())
    rows = engine.outbox.oblige([key(1), key(2)], IN_A_SECOND, soon())
    assert sorted(row.key.id for row in rows) == ["p-1", "p-2"]
    assert all(row.id > saved for row in rows)
    assert claim(engine) == []
    engine.elapse(1.1)
    assert sorted(row.id for row in engine.outbox.claim(9, soon())) == sorted(r.id for r in rows)
    engine.outbox.complete([row.id for row in rows], soon())
    assert depth(engine) == 0
    assert list(engine.outbox.oblige([], IN_A_SECOND, soon())) == []


def test_an_obligation_takes_the_place_of_the_row_that_is_there(engine: Engine) -> None:
    saved = save(engine, 1, IN_A_SECOND)
    before = engine.outbox.find([key(1)], soon())[key(1)]
    (row,) = engine.outbox.oblige([key(1)], IN_AN_HOUR, soon())
    after = engine.outbox.find([key(1)], soon())[key(1)]
    assert row.id == after.id > saved
    assert (after.create_time, after.due_time) == (before.create_time, before.due_time)
    # Whoever projected the change before does not take it away.
    engine.outbox.complete([saved], soon())
    assert depth(engine) == 1
    (sooner,) = engine.outbox.oblige([key(1)], AT_ONCE, soon())
    assert [r.id for r in engine.outbox.claim(9, soon())] == [sooner.id]
    assert depth(engine) == 1


def test_a_change_after_an_obligation_outlives_its_completion(engine: Engine) -> None:
    (row,) = engine.outbox.oblige([key(1)], IN_A_SECOND, soon())
    saved = save(engine, 1, IN_AN_HOUR)
    assert saved > row.id
    engine.outbox.complete([row.id], soon())
    engine.elapse(1.1)
    assert [r.id for r in engine.outbox.claim(9, soon())] == [saved]


def test_a_key_that_is_given_twice_is_obliged_once(engine: Engine) -> None:
    rows = engine.outbox.oblige([key(1), key(2), key(1)], AT_ONCE, soon())
    assert sorted(row.key.id for row in rows) == ["p-1", "p-2"]
    assert depth(engine) == 2


def test_many_that_oblige_and_save_the_same_keys_never_stand_in_a_circle(engine: Engine) -> None:
    keys = [key(n) for n in range(20)]
    barrier = threading.Barrier(THREADS)
    newest: dict[EntityKey, int] = {}
    guard = threading.Lock()

    def oblige(thread: int) -> None:
        rng = random.Random(thread)
        barrier.wait()
        for _ in range(15):
            if thread % 4 == 0:
                changes = [Change(k, {}, None, IN_AN_HOUR) for k in rng.sample(keys, 10)]
                written = engine.authority.write(write_of(*changes), soon()).written
                ids = {each.entity.key: each.outbox_id for each in written}
            else:
                rows = engine.outbox.oblige(rng.sample(keys, 15), IN_AN_HOUR, soon())
                ids = {row.key: row.id for row in rows}
            with guard:
                newest.update({k: max(id_, newest.get(k, 0)) for k, id_ in ids.items()})

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(oblige, range(THREADS)))
    found = engine.outbox.find(keys, soon())
    assert {k: change.id for k, change in found.items()} == newest


def test_a_deadline_that_passed_stops_a_call_before_it_begins(engine: Engine) -> None:
    saved = save(engine, 1)
    for deadline in (Deadline.after(0), Deadline.after(10, cancelled=lambda: True)):
        with pytest.raises(DeadlineExceededError):
            engine.outbox.claim(1, deadline)
        with pytest.raises(DeadlineExceededError):
            engine.outbox.complete([saved], deadline)
        with pytest.raises(DeadlineExceededError):
            engine.outbox.backlog(deadline)
        with pytest.raises(DeadlineExceededError):
            engine.outbox.find([key(1)], deadline)
        with pytest.raises(DeadlineExceededError):
            engine.outbox.oblige([key(2)], AT_ONCE, deadline)
    assert claim(engine) == [key(1)]
