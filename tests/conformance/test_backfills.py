"""What every engine of the backfills promises."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from duostore_server.domain.backfills import (
    MAX_PARTS,
    Advanced,
    Backfill,
    BackfillPart,
    BackfillState,
    Batch,
)
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.aurora import backfills as module
from duostore_server.storage.aurora.backfills import AuroraBackfills
from duostore_server.storage.aurora.entities import AuroraEntities
from tests.support.authority_engines import empty, migrated_pool, soon
from tests.support.authority_faults import wait_until_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import LiteralString

    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.servers import PostgresServer

RUNNING, PAUSED = BackfillState.RUNNING, BackfillState.PAUSED
DONE, CANCELLED = BackfillState.DONE, BackfillState.CANCELLED
THREADS = 8


class Engine:
    """Backfills of which there are none yet."""

    def __init__(self, dsn: str, pool: AuroraPool) -> None:
        self.dsn = dsn
        self.backfills = AuroraBackfills(pool, claim=10)
        self.entities = AuroraEntities(pool)

    def fill(self, kind: str, tenants: int, ids: int) -> None:
        """Write entities of a kind: so many tenants with so many ids each."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute(
                "INSERT INTO duostore.entity"
                " SELECT 't' || t, %s, n, 1, '{}', 1, false, now(), now()"
                " FROM generate_series(1, %s) AS t, generate_series(1, %s) AS n",
                (kind, tenants, ids),
            )

    def elapse(self, seconds: float) -> None:
        """Make all claims so much older."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute(
                "UPDATE duostore.backfill_part AS p"
                " SET claimed_until = p.claimed_until - make_interval(secs => %s)"
                " FROM (SELECT backfill, number FROM duostore.backfill_part ORDER BY 1, 2"
                " FOR UPDATE) AS locked"
                " WHERE (p.backfill, p.number) = (locked.backfill, locked.number)",
                (seconds,),
            )

    def start(
        self, kind: str = "a", *, rate: int = 0, parts: int = 4, caller: str = "ops"
    ) -> Backfill:
        return self.backfills.start(kind, rate=rate, parts=parts, caller=caller, deadline=soon())

    def move(self, state: BackfillState, kind: str = "a", caller: str = "ops") -> Backfill | None:
        return self.backfills.move(kind, state, caller, soon())

    def find(self, kind: str = "a") -> Backfill:
        found = self.backfills.find(kind, soon())
        assert found is not None
        return found

    def claim(self, limit: int = 100, kinds: Sequence[str] = ("a",)) -> Sequence[BackfillPart]:
        return self.backfills.claim(kinds, limit, soon())

    def advance(
        self, part: BackfillPart, last: object | None, done: int = 0
    ) -> BackfillPart | None:
        """Advance a part to a key of one tenant, or to its end; return it if it goes on."""
        return self.note(part, last, done).part

    def note(self, part: BackfillPart, last: object | None, done: int = 0) -> Advanced:
        """Do the same, and return what became of it."""
        key = None if last is None else EntityKey("t1", part.kind, str(last))
        return self.backfills.advance(part, Batch(key, done, done // 2, done // 3), soon())

    def hold(self, part: BackfillPart) -> BackfillPart | None:
        return self.backfills.hold(part, soon())


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        yield dsn, pool


@pytest.fixture
def engine(database: tuple[str, AuroraPool]) -> Engine:
    dsn, pool = database
    empty(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute("TRUNCATE duostore.backfill, duostore.backfill_part")
    return Engine(dsn, pool)


def counts(backfill: Backfill) -> tuple[int, int, int]:
    return backfill.done, backfill.projected, backfill.failed


def test_there_is_none_at_first(engine: Engine) -> None:
    assert engine.backfills.find("a", soon()) is None
    assert engine.backfills.unfinished(soon()) == []
    assert engine.claim() == []
    for state in (PAUSED, CANCELLED):
        assert engine.move(state) is None
    assert engine.backfills.find("a", soon()) is None


def test_one_begins_with_nothing_done(engine: Engine) -> None:
    engine.fill("a", 3, 100)
    engine.fill("z", 3, 100)
    before = datetime.now(UTC) - timedelta(seconds=1)
    begun = engine.start(rate=500, parts=3, caller="alice")
    assert replace(begun, id=0, start_time=before, update_time=before) == Backfill(
        id=0,
        kind="a",
        state=RUNNING,
        done=0,
        projected=0,
        failed=0,
        estimated_total=300,
        parts=3,
        parts_done=0,
        rate=500,
        caller="alice",
        start_time=before,
        update_time=before,
    )
    assert before < begun.start_time <= begun.update_time < before + timedelta(minutes=1)
    assert begun.start_time.tzinfo is begun.update_time.tzinfo is UTC
    assert engine.find() == begun
    assert engine.backfills.unfinished(soon()) == [begun]


@pytest.mark.parametrize("parts", [1, 4, MAX_PARTS])
def test_parts_are_of_about_one_size_and_hold_all_there_is(engine: Engine, parts: int) -> None:
    engine.fill("a", 7, 900)
    engine.fill("z", 7, 900)
    assert engine.start(parts=parts).parts == parts
    claimed = engine.claim()
    assert len(claimed) == parts
    in_order = sorted(claimed, key=lambda part: part.number)
    assert in_order[0].after is None
    assert in_order[-1].until is None
    assert [part.until for part in in_order[:-1]] == [part.after for part in in_order[1:]]
    found = {
        part.number: engine.entities.page("a", part.after, part.until, 9999, soon()).entities
        for part in claimed
    }
    sizes = [len(entities) for entities in found.values()]
    assert sum(sizes) == 6300
    assert max(sizes) < 3 * 6300 / parts
    assert len({each.key for entities in found.values() for each in entities}) == 6300


@pytest.mark.parametrize(("ids", "parts"), [(0, 1), (1, 2), (2, 3), (3, 4), (5, 4)])
def test_few_entities_are_of_few_parts(engine: Engine, ids: int, parts: int) -> None:
    engine.fill("a", 1, ids)
    begun = engine.start(parts=4)
    assert (begun.parts, begun.estimated_total) == (parts, ids)
    pages = [
        engine.entities.page("a", part.after, part.until, 99, soon()) for part in engine.claim()
    ]
    assert sum(len(page.entities) for page in pages) == ids
    assert all(page.last is None for page in pages)


def test_one_that_is_running_is_joined(engine: Engine) -> None:
    engine.fill("a", 1, 50)
    begun = engine.start(rate=500, parts=2, caller="alice")
    assert engine.start(rate=0, parts=9, caller="bob") == begun
    # But for its rate, if one is given.
    assert engine.start(rate=70, parts=9, caller="bob") == replace(begun, rate=70)
    assert engine.start(rate=0) == replace(begun, rate=70)


def test_one_that_is_paused_goes_on(engine: Engine) -> None:
    engine.fill("a", 1, 50)
    begun = engine.start(rate=500, parts=2, caller="alice")
    (part,) = engine.claim(1)
    advanced = engine.advance(part, 1, 6)
    assert advanced is not None
    paused = engine.move(PAUSED, caller="bob")
    assert paused == engine.find() == engine.move(PAUSED, caller="carol")
    assert (paused.id, paused.state, paused.caller) == (begun.id, PAUSED, "bob")
    assert counts(paused) == (6, 3, 2)
    assert engine.backfills.unfinished(soon()) == [paused]
    assert engine.claim() == []
    assert engine.advance(advanced, 2, 6) is None

    resumed = engine.start(rate=0, parts=9, caller="dave")
    assert (resumed.state, resumed.caller, resumed.rate, resumed.parts) == (RUNNING, "dave", 500, 2)
    assert (resumed.id, counts(resumed)) == (begun.id, (6, 3, 2))
    assert resumed.start_time == begun.start_time
    assert resumed.update_time > paused.update_time
    # From where it was, by whoever has claimed it.
    assert engine.advance(advanced, 2, 6) is not None
    assert counts(engine.find()) == (12, 6, 4)
    assert engine.start(rate=9).rate == 9


def test_one_that_is_cancelled_is_over(engine: Engine) -> None:
    engine.fill("a", 1, 50)
    begun = engine.start(parts=2)
    (part, _) = engine.claim()
    cancelled = engine.move(CANCELLED, caller="bob")
    assert cancelled == engine.find()
    assert (cancelled.id, cancelled.state, cancelled.caller) == (begun.id, CANCELLED, "bob")
    assert engine.backfills.unfinished(soon()) == []
    for state in (PAUSED, CANCELLED):
        assert engine.move(state) is None
    assert engine.advance(part, 1, 6) is None
    assert engine.advance(part, None, 6) is None
    engine.elapse(20)
    assert engine.claim() == []
    assert engine.find() == cancelled
    # The next one begins anew.
    again = engine.start(parts=3)
    assert again.id > begun.id
    assert (again.state, again.parts, counts(again)) == (RUNNING, 3, (0, 0, 0))
    assert engine.advance(part, 1, 6) is None
    assert engine.find() == again


def test_one_that_is_paused_can_be_cancelled(engine: Engine) -> None:
    engine.start()
    engine.move(PAUSED)
    cancelled = engine.move(CANCELLED)
    assert cancelled is not None
    assert cancelled.state is CANCELLED


def test_kinds_are_not_in_each_others_way(engine: Engine) -> None:
    for kind in "bca":
        engine.fill(kind, 1, 10)
        engine.start(kind, parts=2)
    engine.move(PAUSED, "b")
    engine.move(CANCELLED, "c")
    assert [(each.kind, each.state) for each in engine.backfills.unfinished(soon())] == [
        ("a", RUNNING),
        ("b", PAUSED),
    ]
    engine.start("c", parts=2)
    assert {part.kind for part in engine.claim(kinds=["c", "b", "nothing"])} == {"c"}
    assert {part.kind for part in engine.claim(kinds=["a", "b", "c"])} == {"a"}
    assert engine.claim(kinds=[]) == []


def test_a_claimed_part_is_given_to_nobody_until_the_claim_runs_out(engine: Engine) -> None:
    engine.fill("a", 1, 50)
    begun = engine.start(parts=3)
    first, second = engine.claim(2)
    assert {first.backfill, second.backfill} == {begun.id}
    (third,) = engine.claim()
    assert {first.number, second.number, third.number} == {1, 2, 3}
    assert engine.claim() == []
    engine.elapse(9)
    assert engine.claim() == []
    assert engine.advance(second, (second.after and second.after.id) or "0", 1) is not None
    engine.elapse(1.1)
    again = engine.claim()
    # What goes on is held for as long again.
    assert sorted(part.number for part in again) == sorted([first.number, third.number])
    newer = next(part for part in again if part.number == first.number)
    assert newer == replace(first, claim=first.claim + 1)
    # Who has lost its claim can do nothing, and who has it can.
    assert engine.advance(first, 0, 5) is None
    assert engine.advance(first, None, 5) is None
    assert engine.find().done == 1
    assert engine.advance(newer, 0, 6) is not None
    assert engine.find().done == 7


def test_a_part_goes_on_from_its_checkpoint(engine: Engine) -> None:
    engine.fill("a", 1, 50)
    begun = engine.start(parts=1, rate=100)
    (part,) = engine.claim()
    assert (part.after, part.until, part.rate) == (None, None, 100.0)
    advanced = engine.advance(part, 17, 12)
    assert advanced == replace(part, after=EntityKey("t1", "a", "17"))
    found = engine.find()
    assert counts(found) == (12, 6, 4)
    assert found.update_time > begun.update_time
    engine.elapse(20)
    (again,) = engine.claim()
    assert again == replace(advanced, claim=part.claim + 1)
    # A page may end between two tenants.
    between = EntityKey("t2", "a", "")
    moved = engine.backfills.advance(again, Batch(between, 0, 0, 0), soon())
    assert moved == Advanced(is_counted=True, part=replace(again, after=between))
    engine.elapse(20)
    (last,) = engine.claim()
    assert last.after == between


def test_a_batch_counts_once_however_often_it_is_told(engine: Engine) -> None:
    engine.fill("a", 1, 50)
    engine.start(parts=2)
    part, other = engine.claim()
    first = engine.advance(part, 1, 6)
    assert first is not None
    for _ in range(3):
        engine.elapse(9)
        assert engine.note(part, 1, 6) == Advanced(is_counted=True, part=first)
    assert counts(engine.find()) == (6, 3, 2)
    # And holds the part for as long again, as it would the first time.
    assert [found.number for found in engine.claim()] == [other.number]
    second = engine.advance(first, 2, 6)
    assert second is not None
    # What is further behind is another's, or a mistake.
    assert engine.note(part, 1, 6) == Advanced(is_counted=False, part=None)
    assert counts(engine.find()) == (12, 6, 4)
    for _ in range(3):
        assert engine.note(second, None, 6) == Advanced(is_counted=True, part=None)
    found = engine.find()
    assert (counts(found), found.parts_done, found.state) == ((18, 9, 6), 1, RUNNING)


def test_of_a_batch_of_which_the_answer_was_lost_it_is_told_that_it_counts_whatever_came_after(
    engine: Engine,
) -> None:
    engine.fill("a", 1, 50)
    engine.start(parts=1)
    (part,) = engine.claim()
    assert engine.note(part, 1, 6).part is not None
    engine.move(PAUSED)
    assert engine.note(part, 1, 6) == Advanced(is_counted=True, part=None)
    engine.start()
    engine.elapse(20)
    (again,) = engine.claim()
    # Another's by now, who may have come to the same place by doing it again.
    assert engine.note(part, 1, 6) == Advanced(is_counted=False, part=None)
    assert engine.note(replace(again, after=part.after), None, 6).is_counted is False
    assert counts(engine.find()) == (6, 3, 2)


def test_a_part_is_held_where_it_is_and_as_long_as_it_is_ones_own(engine: Engine) -> None:
    engine.fill("a", 1, 50)
    engine.start(parts=2, rate=100)
    first, second = engine.claim()
    before = engine.find()
    for _ in range(3):
        engine.elapse(9)
        assert engine.hold(first) == first
        assert engine.hold(second) == second
    assert engine.find() == before
    assert engine.claim() == []
    advanced = engine.advance(first, 1, 6)
    assert advanced is not None
    assert engine.hold(first) is None
    assert engine.hold(advanced) == advanced
    # Also after the claim has run out, if nobody has taken the part.
    engine.elapse(20)
    assert engine.hold(advanced) == replace(advanced, rate=100.0)
    (again,) = engine.claim()
    assert again.number == second.number
    assert engine.hold(second) is None
    engine.start(rate=70)
    assert engine.hold(again) == replace(again, rate=35.0)
    engine.move(PAUSED)
    assert engine.hold(again) is None
    engine.start()
    engine.advance(again, None)
    assert engine.hold(again) is None
    engine.move(CANCELLED)
    assert engine.hold(advanced) is None


def test_with_the_last_part_it_is_done(engine: Engine) -> None:
    engine.fill("a", 1, 50)
    begun = engine.start(parts=3)
    for n, part in enumerate(engine.claim(), 1):
        found = engine.find()
        assert (found.state, found.parts_done) == (RUNNING, n - 1)
        assert engine.advance(part, None, 6) is None
    found = engine.find()
    assert (found.state, found.parts_done, counts(found)) == (DONE, 3, (18, 9, 6))
    assert engine.backfills.unfinished(soon()) == []
    engine.elapse(20)
    assert engine.claim() == []
    assert engine.move(PAUSED) is engine.move(CANCELLED) is None
    assert engine.find() == found
    again = engine.start()
    assert again.id > begun.id
    assert engine.find() == again


def test_the_rate_is_shared_by_the_parts_that_are_claimed(engine: Engine) -> None:
    engine.fill("a", 1, 50)
    engine.fill("b", 1, 50)
    engine.start("b", parts=4, rate=7)
    engine.claim(kinds=["b"])
    engine.start(parts=4, rate=120)
    (part,) = engine.claim(1)
    assert part.rate == 120.0
    others = list(engine.claim(2))
    assert [other.rate for other in others] == [40.0] * 2
    advanced = engine.advance(part, 0)
    assert advanced is not None
    assert advanced.rate == 40.0
    (last,) = engine.claim()
    assert last.rate == 30.0
    # Those that have ended do not count,
    engine.advance(last, None)
    engine.start(rate=60)
    advanced = engine.advance(advanced, 1)
    assert advanced is not None
    assert advanced.rate == 20.0
    # nor do those whose claims have run out.
    engine.elapse(20)
    advanced = engine.advance(advanced, 2)
    assert advanced is not None
    assert advanced.rate == 60.0
    assert [again.rate for again in engine.claim(1)] == [30.0]
    assert [again.rate for again in engine.claim()] == [20.0]
    assert engine.hold(advanced) == replace(advanced, rate=20.0)


def test_no_rate_is_no_bound(engine: Engine) -> None:
    engine.start(parts=1)
    (part,) = engine.claim()
    assert part.rate == 0.0


def together(work: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    barrier = threading.Barrier(threads)

    def run(thread: int) -> Any:
        barrier.wait()
        return work(thread)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def test_of_many_that_start_at_once_one_begins(engine: Engine) -> None:
    engine.fill("a", 1, 500)
    for _ in range(5):
        started = together(lambda n: engine.start(caller=str(n), parts=1 + n % 4))
        assert len({backfill.id for backfill in started}) == 1
        assert len({(backfill.caller, backfill.parts) for backfill in started}) == 1
        parts = engine.claim()
        assert len(parts) == started[0].parts
        engine.move(CANCELLED)


def test_no_two_claimers_get_the_same_part(engine: Engine) -> None:
    engine.fill("a", 1, 2000)
    engine.start(parts=60)

    def claim_all(_: int) -> list[int]:
        mine: list[int] = []
        while found := engine.claim(3):
            mine += [part.number for part in found]
        return mine

    claimed = [number for mine in together(claim_all) for number in mine]
    claimed += [part.number for part in engine.claim()]
    assert sorted(claimed) == list(range(1, 61))


# The mutant that looks at the other parts when one ends, as it sees them then.
_END_BY_SIGHT: LiteralString = """
WITH ended AS (
    UPDATE duostore.backfill_part SET ended = true
    WHERE backfill = %(backfill)s AND number = %(number)s AND claim = %(claim)s
)
UPDATE duostore.backfill AS b SET state = 'done', parts_done = parts
WHERE id = %(backfill)s AND NOT EXISTS (
    SELECT FROM duostore.backfill_part AS p
    WHERE p.backfill = b.id AND p.number <> %(number)s AND NOT p.ended
)
"""


def ending(part: BackfillPart) -> dict[str, object]:
    return module._params(part, Batch(None, 1, 0, 0), timedelta(seconds=10))


def two_parts(engine: Engine) -> Sequence[BackfillPart]:
    engine.fill("a", 1, 100)
    assert engine.start(parts=2).parts == 2
    return engine.claim()


def test_of_two_parts_that_end_at_once_one_is_the_last(engine: Engine) -> None:
    first, second = two_parts(engine)
    with psycopg.connect(engine.dsn) as connection, ThreadPoolExecutor(1) as thread:
        connection.execute(module._ADVANCE, ending(first))
        other = thread.submit(engine.advance, second, None, 1)
        wait_until_blocked(engine.dsn)
        connection.commit()
        assert other.result() is None
    found = engine.find()
    assert (found.state, found.parts_done, found.done) == (DONE, 2, 2)


@pytest.mark.parametrize(("moved", "state"), [(PAUSED, DONE), (CANCELLED, CANCELLED)])
def test_a_batch_that_was_under_way_counts_and_starts_nothing_again(
    engine: Engine, moved: BackfillState, state: BackfillState
) -> None:
    engine.fill("a", 1, 100)
    engine.start(parts=1)
    (part,) = engine.claim()
    with psycopg.connect(engine.dsn) as connection, ThreadPoolExecutor(1) as thread:
        connection.execute(module._MOVE, {"kind": "a", "state": moved.value, "caller": "ops"})
        last = thread.submit(engine.advance, part, None, 6)
        wait_until_blocked(engine.dsn)
        connection.commit()
        assert last.result() is None
    found = engine.find()
    assert (found.state, found.parts_done, found.done) == (state, 1, 6)


def test_of_two_that_look_at_each_other_none_is_the_last(engine: Engine) -> None:
    first, second = two_parts(engine)
    with psycopg.connect(engine.dsn) as one, psycopg.connect(engine.dsn) as other:
        one.execute(_END_BY_SIGHT, ending(first))
        other.execute(_END_BY_SIGHT, ending(second))
    assert engine.find().state is RUNNING


def test_all_parts_end_at_once(engine: Engine) -> None:
    engine.fill("a", 1, 500)
    for _ in range(5):
        engine.start(parts=THREADS)
        parts = engine.claim()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda part: engine.advance(part, None, 6), parts))
        found = engine.find()
        assert (found.state, found.parts_done, found.done) == (DONE, THREADS, 6 * THREADS)


class Crash(Exception):  # noqa: N818 - nothing is wrong: it is what is tested
    """A process dies."""


def tell(
    backfills: AuroraBackfills, part: BackfillPart, batch: Batch, die: random.Random
) -> list[Advanced]:
    """Note a batch, and again each time that the answer is lost."""
    told = [backfills.advance(part, batch, soon())]
    while die.random() < 0.1:
        told.append(backfills.advance(part, batch, soon()))
    return told


def work_off(
    engine: Engine, rng: random.Random, backfills: AuroraBackfills
) -> tuple[Counter[EntityKey], int]:
    """Do all of a backfill with processes that die and lose answers.

    Returns what was looked at, and how many entities were told to count.
    """
    looked_at: Counter[EntityKey] = Counter()
    counted: list[int] = []
    guard = threading.Lock()
    dice = [random.Random(rng.random()) for _ in range(THREADS)]

    def batch(part: BackfillPart, die: random.Random) -> BackfillPart | None:
        page = engine.entities.page("a", part.after, part.until, 1 + die.randrange(20), soon())
        with guard:
            looked_at.update(each.key for each in page.entities)
        if die.random() < 0.1:
            raise Crash
        done = Batch(page.last, len(page.entities), 0, 0)
        told = tell(backfills, part, done, die)
        if any(advanced.is_counted for advanced in told):
            with guard:
                counted.append(done.done)
        if die.random() < 0.1:
            raise Crash
        return told[-1].part

    def worker(n: int) -> None:
        while engine.find().state is RUNNING:
            for claimed in engine.claim(2):
                part: BackfillPart | None = claimed
                try:
                    while part is not None:
                        part = batch(part, dice[n])
                except Crash:
                    # Claims of whoever has not died run out too, now and then.
                    engine.elapse(20)

    together(worker)
    return looked_at, sum(counted)


def test_processes_die_and_each_entity_is_counted_once(engine: Engine) -> None:
    engine.fill("a", 5, 200)
    engine.fill("z", 5, 200)
    engine.start(parts=6)
    looked_at, counted = work_off(engine, random.Random(3), engine.backfills)
    found = engine.find()
    assert (found.state, found.parts_done) == (DONE, 6)
    assert found.done == counted == len(looked_at) == 1000
    # It was not for want of trouble.
    assert max(looked_at.values()) > 1


class CountsEachAnswer(AuroraBackfills):
    """The mutant that minds the claim alone."""

    def advance(self, part: BackfillPart, batch: Batch, deadline: Deadline) -> Advanced:
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute(
                "UPDATE duostore.backfill_part SET done = done + %s"
                " WHERE backfill = %s AND number = %s AND claim = %s AND NOT ended"
                " RETURNING number",
                (batch.done, part.backfill, part.number, part.claim),
            ).fetchall()
        advanced = super().advance(part, replace(batch, done=0), deadline)
        return advanced if rows else Advanced(is_counted=False, part=None)

    dsn = ""


def test_one_that_minds_the_claim_alone_counts_twice(
    engine: Engine, database: tuple[str, AuroraPool]
) -> None:
    mutant = CountsEachAnswer(database[1])
    mutant.dsn = engine.dsn
    engine.fill("a", 5, 200)
    engine.start(parts=6)
    looked_at, _ = work_off(engine, random.Random(3), mutant)
    assert engine.find().done > len(looked_at) == 1000


def test_while_parts_end_it_is_paused_and_goes_on(engine: Engine) -> None:
    engine.fill("a", 2, 100)
    engine.start(parts=8)

    def work(n: int) -> None:
        while (state := engine.find().state) in (RUNNING, PAUSED):
            if n == 0:
                engine.move(PAUSED)
            elif state is PAUSED and n == 1:
                engine.start()
            engine.elapse(20)
            for claimed in engine.claim(1):
                part: BackfillPart | None = claimed
                while part is not None:
                    page = engine.entities.page("a", part.after, part.until, 7, soon())
                    batch = Batch(page.last, len(page.entities), 0, 0)
                    part = engine.backfills.advance(part, batch, soon()).part

    together(work, 4)
    with psycopg.connect(engine.dsn) as connection:
        backfills = connection.execute(
            "SELECT b.state, b.parts, b.parts_done, sum(p.done)::int, bool_and(p.ended)"
            " FROM duostore.backfill AS b JOIN duostore.backfill_part AS p ON p.backfill = b.id"
            " GROUP BY b.id"
        ).fetchall()
    # One of those that came late to start it may have begun the next.
    assert ("done", 8, 8, 200, True) in backfills


def test_a_deadline_that_passed_stops_a_call_before_it_begins(engine: Engine) -> None:
    begun = engine.start(parts=1)
    (part,) = engine.claim()
    over = Deadline.after(0)
    backfills = engine.backfills
    for call in (
        lambda: backfills.start("b", rate=0, parts=1, caller="", deadline=over),
        lambda: backfills.move("a", PAUSED, "", over),
        lambda: backfills.find("a", over),
        lambda: backfills.unfinished(over),
        lambda: backfills.claim(["a"], 1, over),
        lambda: backfills.hold(part, over),
        lambda: backfills.advance(part, Batch(None, 1, 0, 0), over),
    ):
        with pytest.raises(DeadlineExceededError):
            call()
    assert engine.backfills.unfinished(soon()) == [begun]


@pytest.mark.parametrize(
    "call",
    [
        lambda backfills: backfills.find("a", soon()),
        lambda backfills: backfills.unfinished(soon()),
        lambda backfills: backfills.claim(["a"], 1, soon()),
        lambda backfills: backfills.move("a", PAUSED, "", soon()),
    ],
)
def test_a_writer_that_was_demoted_is_not_believed(
    engine: Engine, call: Callable[[AuroraBackfills], object]
) -> None:
    begun = engine.start()
    with migrated_pool(engine.dsn, max_size=1) as pool:
        backfills = AuroraBackfills(pool)
        pool.execute("SET default_transaction_read_only = on", (), soon())
        with pytest.raises(StoreUnavailableError):
            call(backfills)
        assert backfills.unfinished(soon()) == [begun]


def test_a_long_past_of_backfills_makes_none_slower(engine: Engine) -> None:
    with psycopg.connect(engine.dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO duostore.backfill (kind, state, rate, parts, parts_done,"
            " estimated_total, caller, start_time, update_time)"
            " SELECT 'a', 'done', 0, 1, 1, 1, '', now(), now() FROM generate_series(1, 20000)"
        )
        connection.execute(
            "INSERT INTO duostore.backfill_part (backfill, number, ended)"
            " SELECT id, 1, true FROM duostore.backfill"
        )
        connection.execute("ANALYZE duostore.backfill, duostore.backfill_part")
        for query, params in (
            (module._READ_NEWEST, ("a",)),
            (module._READ_UNFINISHED, ()),
            (module._CLAIM, (["a"], 1, timedelta(seconds=1))),
        ):
            plan = connection.execute(b"EXPLAIN " + query.encode(), params).fetchall()
            assert not any("Seq Scan" in line for (line,) in plan), plan
