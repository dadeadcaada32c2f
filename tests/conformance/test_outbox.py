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
from duostore_server.domain.entities import Backlog, OutboxRow
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


def save(engine: Engine, number: int, due_after: timedelta = AT_ONCE) -> OutboxRow:
    change = Change(key(number), {}, None, due_after)
    return engine.authority.write(write_of(change), soon()).written[0].row


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
    assert engine.outbox.claim(9, soon()) == [tombstone.row]


def test_the_oldest_are_claimed_first(engine: Engine) -> None:
    for number, due_after in ((1, 30), (2, 10), (3, 20), (4, 5), (5, 7200)):
        save(engine, number, timedelta(seconds=due_after))
    engine.elapse(60)
    assert claim(engine, limit=3) == [key(4), key(2), key(3)]
    assert claim(engine, limit=3) == [key(1)]


def test_a_claimed_row_is_given_to_nobody_until_the_claim_runs_out(engine: Engine) -> None:
    saved = save(engine, 1)
    (claimed,) = engine.outbox.claim(1, soon())
    assert claimed == saved
    assert claim(engine) == []
    engine.elapse(2)
    assert claim(engine) == []
    engine.elapse(1.1)
    assert engine.outbox.claim(1, soon()) == [claimed]


def test_a_completed_row_is_gone(engine: Engine) -> None:
    rows = [save(engine, number) for number in range(5)]
    engine.outbox.complete(rows[:3], soon())
    engine.outbox.complete(rows[:3], soon())
    engine.outbox.complete([], soon())
    assert depth(engine) == 2
    assert sorted(engine.outbox.claim(9, soon()), key=lambda row: row.id) == rows[3:]
    engine.outbox.complete(rows, soon())
    engine.elapse(3600)
    assert claim(engine) == []
    assert depth(engine) == 0


def test_a_key_has_one_row_with_an_id_of_its_newest_change(engine: Engine) -> None:
    ids = [save(engine, 1).id for _ in range(5)]
    assert ids == sorted(set(ids))
    assert depth(engine) == 1
    (row,) = engine.outbox.claim(9, soon())
    assert row.id == ids[-1]


def test_completing_an_older_id_takes_nothing_away(engine: Engine) -> None:
    older = save(engine, 1)
    newer = save(engine, 1)
    unknown = [replace(older, id=id_) for id_ in (older.id - 1, 10**15)]
    engine.outbox.complete([older, *unknown[:1]], soon())
    engine.outbox.complete(unknown[1:], soon())
    assert depth(engine) == 1
    engine.outbox.complete([newer], soon())
    assert depth(engine) == 0


def test_a_change_during_a_claim_is_taken_up_although_the_claimer_completes(engine: Engine) -> None:
    save(engine, 1)
    (claimed,) = engine.outbox.claim(1, soon())
    newer = save(engine, 1, IN_A_SECOND)
    engine.outbox.complete([claimed], soon())
    assert claim(engine) == []
    # By its own time, not when the claim would have run out.
    engine.elapse(1.5)
    assert engine.outbox.claim(1, soon()) == [newer]


def test_a_key_that_is_saved_again_and_again_falls_due_all_the_same(engine: Engine) -> None:
    save(engine, 1, IN_A_SECOND)
    engine.elapse(0.6)
    save(engine, 1, IN_A_SECOND)
    assert claim(engine) == []
    engine.elapse(0.6)
    newest = save(engine, 1, IN_A_SECOND)
    assert engine.outbox.claim(1, soon()) == [newest]


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
        if row != second:
            engine.outbox.complete([row], soon())
    # Claiming makes a row no younger.
    backlog = engine.outbox.backlog(soon())
    assert backlog.depth == 1
    assert 10 <= backlog.oldest_seconds < 40


def age(engine: Engine) -> float:
    return engine.outbox.backlog(soon()).oldest_seconds


def elapsed(engine: Engine, seconds: float, row: OutboxRow) -> OutboxRow:
    """Let everything be so much older; return a row as who took it holds it."""
    engine.elapse(seconds)
    if engine.moves_rows:
        return replace(row, as_of=row.as_of - timedelta(seconds=seconds))
    return row


def saved_during_its_projection(engine: Engine, *, claims: bool) -> tuple[OutboxRow, OutboxRow]:
    """Let a projection begin at once, a change be committed 20 s after, and 30 s go by.

    Return the row that is to be completed, and that of the change.
    """
    row = save(engine, 1)
    engine.elapse(100)
    if claims:
        (row,) = engine.outbox.claim(1, soon())
    else:
        row = save(engine, 1)
    row = elapsed(engine, 20, row)
    newer = save(engine, 1, IN_AN_HOUR)
    assert age(engine) >= 120
    return elapsed(engine, 30, row), newer


@pytest.mark.parametrize("claims", [True, False], ids=["a projector", "a saver"])
def test_what_was_brought_makes_a_row_no_older_than_what_was_committed_since(
    engine: Engine, *, claims: bool
) -> None:
    row, _ = saved_during_its_projection(engine, claims=claims)
    engine.outbox.complete([row], soon())
    assert depth(engine) == 1
    # Since the projection began: the change was committed after that, and has waited for 30 s.
    assert 50 <= age(engine) < 80


def test_an_obligation_that_is_completed_makes_a_newer_row_as_old_as_itself(
    engine: Engine,
) -> None:
    save(engine, 1, IN_AN_HOUR)
    engine.elapse(100)
    (row,) = engine.outbox.oblige([key(1)], AT_ONCE, soon())
    row = elapsed(engine, 20, row)
    save(engine, 1)
    engine.outbox.complete([row], soon())
    assert 20 <= age(engine) < 50


def test_a_row_that_is_never_brought_grows_older_whatever_completes_before(
    engine: Engine,
) -> None:
    """Completions of what it has overtaken may come late and again and again."""
    row, newer = saved_during_its_projection(engine, claims=True)
    for _ in range(3):
        engine.outbox.complete([row], soon())
        row = elapsed(engine, 60, row)
    assert age(engine) >= 30 + 3 * 60
    engine.outbox.complete([newer], soon())
    assert depth(engine) == 0


def test_a_completion_makes_no_row_older(engine: Engine) -> None:
    older = save(engine, 1)
    engine.outbox.complete([older], soon())
    older = elapsed(engine, 100, older)
    save(engine, 1)
    engine.outbox.complete([older], soon())
    assert age(engine) < 30


def test_a_completion_from_a_clock_that_was_ahead_changes_no_age(engine: Engine) -> None:
    row = save(engine, 1)
    engine.elapse(100)
    save(engine, 1)
    engine.outbox.complete([replace(row, as_of=row.as_of + timedelta(hours=1))], soon())
    assert age(engine) >= 100


def test_of_several_completions_of_a_key_the_newest_counts(engine: Engine) -> None:
    rows = [save(engine, 1) for _ in range(3)]
    newest = save(engine, 1)
    engine.outbox.complete([*rows, *rows[::-1]], soon())
    found = engine.outbox.find([key(1)], soon())[key(1)]
    assert found.id == newest.id
    assert abs(found.create_time - rows[-1].as_of) < timedelta(milliseconds=1)


def test_no_two_claimers_get_the_same_row(engine: Engine) -> None:
    rows = 400
    saved = {save(engine, number).id for number in range(rows)}
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
        engine.outbox.complete(rows, soon())
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
    assert found[key(1)].id == second.id > first.id
    assert found[key(2)].id == other.id
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
    assert engine.outbox.claim(9, soon()) == [saved]
    # A claim is a plan like any other, and completion leaves nothing to find.
    claimed = engine.outbox.find([key(1)], soon())[key(1)]
    assert claimed.id == saved.id
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
    assert all(row.id > saved.id for row in rows)
    assert claim(engine) == []
    engine.elapse(1.1)
    assert sorted(row.id for row in engine.outbox.claim(9, soon())) == sorted(r.id for r in rows)
    engine.outbox.complete(rows, soon())
    assert depth(engine) == 0
    assert list(engine.outbox.oblige([], IN_A_SECOND, soon())) == []


def test_an_obligation_takes_the_place_of_the_row_that_is_there(engine: Engine) -> None:
    saved = save(engine, 1, IN_A_SECOND)
    before = engine.outbox.find([key(1)], soon())[key(1)]
    (row,) = engine.outbox.oblige([key(1)], IN_AN_HOUR, soon())
    after = engine.outbox.find([key(1)], soon())[key(1)]
    assert row.id == after.id > saved.id
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
    assert saved.id > row.id
    engine.outbox.complete([row], soon())
    engine.elapse(1.1)
    assert engine.outbox.claim(9, soon()) == [saved]


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
                ids = {each.entity.key: each.row.id for each in written}
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
