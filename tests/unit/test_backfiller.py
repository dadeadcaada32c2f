"""Working off backfills: what is put, how fast, and what is done twice."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server import codec
from duostore_server.access.reprojecting import Reprojecting
from duostore_server.access.shapes import Shapes
from duostore_server.domain.backfills import CLAIM_SECONDS, BackfillState
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached, Form, Projection
from duostore_server.domain.errors import (
    Store,
    StoreOverloadedError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey, key_digest
from duostore_server.domain.policies import (
    KindPolicy,
    Policies,
    ProjectionMode,
    TransformError,
)
from duostore_server.domain.transactions import Change, Origin, Transaction
from duostore_server.storage.cache.memory import MemoryCache
from duostore_server.workers.backfiller import SETTLE_SECONDS, Backfiller
from duostore_server.workers.loop import IncompleteRoundError
from tests.support.fake_authority import FakeAuthority
from tests.support.fake_backfills import NOON, FakeBackfills, FakeEntities
from tests.support.reader_stack import Clock, FakeProjections, Told, down

if TYPE_CHECKING:
    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.entities import Entity

WRITE, READ = "projection_write.note.2", "projection_read.note.2"


def transform(document: JsonObject) -> JsonObject:
    if "title" not in document:
        raise TransformError("there is no title")
    return {"headline": document["title"]}


POLICY = KindPolicy(
    60, 10, ProjectionMode.INLINE, 1000, projection_version=2, transforms={2: transform}
)


def key(number: int, kind: str = "note") -> EntityKey:
    return EntityKey("", kind, f"n{number:04}")


class World:
    """A backfiller over stores in memory. Time passes when a test says so."""

    def __init__(
        self,
        entities: int,
        *,
        parts: int = 1,
        rate: int = 0,
        workers: int = 2,
        batch: int = 10,
    ) -> None:
        self.clock = Clock()
        self.rows = FakeAuthority(clock=lambda: NOON.timestamp() + self.clock.now)
        keys = [key(number) for number in range(entities)]
        for number in range(entities):
            self.save(number)
        self.flags: dict[str, FlagValue] = {WRITE: "old", READ: 0}
        self.encoded = 0
        self.shapes = Shapes(Policies({"note": POLICY}), self._encode, self.flags.__getitem__)
        self.stored = FakeProjections()
        self.entries = MemoryCache(clock=self.clock)
        self.asked: list[str] = []
        self.projections = Told("dynamodb", self.stored, self.asked)
        self.cache = Told("cache", self.entries, self.asked)
        cuts = [key(entities * n // parts - 1) for n in range(1, parts)]
        self.backfills = FakeBackfills(self.clock, cuts=cuts, total=entities)
        self.entities = FakeEntities(lambda: self.rows.read(keys, soon()))
        self.counted: dict[tuple[str, str], int] = {}
        self.workers, self.batch = workers, batch
        self.backfiller = self.another()
        self.start(rate=rate, parts=parts)

    def another(self) -> Backfiller:
        """Return a backfiller of another process."""
        return Backfiller(
            backfills=self.backfills,
            entities=self.entities,
            reprojecting=Reprojecting(
                shapes=self.shapes,
                projections=self.projections,
                cache=self.cache,
                outbox=self.rows,
            ),
            kinds=("note",),
            workers=self.workers,
            batch=self.batch,
            clock=self.clock,
            backfilled=self._count,
        )

    def start(self, *, rate: int = 0, parts: int = 1) -> None:
        self.backfills.start("note", rate=rate, parts=parts, caller="", deadline=soon())

    def save(self, number: int, data: Any = None) -> Entity:
        document = {"title": f"note {number}"} if data is None else data
        change = Change(key(number), document, None, timedelta())
        (written,) = self.rows.write(Transaction((change,), Origin("", "")), soon()).written
        return written.entity

    def settle(self) -> None:
        """Let a backfill be found, and its first batch be due."""
        assert self.backfiller.run_once() is False
        self.clock.now += SETTLE_SECONDS

    def finish(self) -> None:
        while self.state is BackfillState.RUNNING:
            if not self.backfiller.run_once():
                self.clock.now += 0.1

    @property
    def state(self) -> BackfillState:
        return self.backfills.backfills["note"].state

    @property
    def counts(self) -> tuple[int, int, int]:
        found = self.backfills.backfills["note"]
        return found.done, found.projected, found.failed

    def _encode(self, entity: Entity) -> bytes:
        self.encoded += 1
        return codec.encode(entity)

    def _count(self, kind: str, outcome: str, count: int) -> None:
        self.counted[kind, outcome] = self.counted.get((kind, outcome), 0) + count


def soon() -> Deadline:
    return Deadline.after(10)


@pytest.mark.parametrize(("entities", "parts"), [(0, 1), (1, 1), (35, 1), (40, 4), (41, 3)])
def test_every_entity_is_projected_once(entities: int, parts: int) -> None:
    world = World(entities, parts=parts)
    world.finish()
    assert set(world.stored.held) == {key(number) for number in range(entities)}
    assert {held.version for held in world.stored.held.values()} <= {1}
    assert world.counts == (entities, entities, 0)
    assert world.state is BackfillState.DONE
    assert world.counted == ({("note", "projected"): entities} if entities else {})


def test_a_batch_is_of_bounded_size_and_several_parts_go_on_together() -> None:
    world = World(100, parts=4, workers=3)
    limits: list[int] = []
    world.entities.step = lambda _after, limit: limits.append(limit)
    world.settle()
    assert world.backfiller.run_once() is True
    assert limits == [10] * 3
    assert world.counts[0] == 30


def test_no_call_of_dynamodb_is_larger_than_one_takes_however_large_the_batch() -> None:
    world = World(330, batch=300)
    sizes: dict[str, list[int]] = {"read": [], "put_all": []}
    for method, called in sizes.items():
        world.projections.before[method] = lambda keys, _, called=called: called.append(len(keys))
    world.finish()
    assert world.counts == (330, 330, 0)
    assert sizes["read"] == [100, 100, 100, 30]
    assert sizes["put_all"] == [25] * 13 + [5]


def test_what_dynamodb_has_already_is_neither_put_nor_busted() -> None:
    world = World(20)
    world.finish()
    lease = world.entries.lease((key(3),))[key(3)]
    assert world.entries.fill(key(3), lease, Cached(1, b"cached", NOON), 60)
    del world.asked[:]
    world.start()
    world.finish()
    assert set(world.asked) == {"dynamodb.read"}
    assert world.encoded == 20
    assert world.entries.read((key(3),))
    assert world.counts == (20, 0, 0)
    assert world.counted == {("note", "projected"): 20, ("note", "unchanged"): 20}


def test_what_dynamodb_has_older_is_put_and_busted() -> None:
    world = World(20)
    world.finish()
    world.save(3, {"title": "new"})
    lease = world.entries.lease((key(3),))[key(3)]
    assert world.entries.fill(key(3), lease, Cached(1, b"cached", NOON), 60)
    world.start()
    world.finish()
    assert world.stored.held[key(3)].version == 2
    assert not world.entries.read((key(3),))
    assert world.counts == (20, 1, 0)


def test_a_tombstone_is_projected_and_then_left_alone() -> None:
    world = World(5)
    change = Change(key(2), None, None, timedelta())
    world.rows.write(Transaction((change,), Origin("", "")), soon())
    for _ in range(2):
        world.start()
        world.finish()
        assert world.stored.held[key(2)] == Projection(2, Form.TOMBSTONE)
    assert world.counts == (5, 0, 0)


def test_what_is_too_large_for_dynamodb_is_no_change_the_second_time() -> None:
    class Small(FakeProjections):
        def put(self, key: EntityKey, projection: Projection, deadline: Deadline) -> Projection:
            return super().put(key, Projection(projection.version, Form.STUB), deadline)

    world = World(10)
    world.projections = Told("dynamodb", Small(), world.asked)
    world.backfiller = world.another()
    for projected in (10, 0):
        world.start()
        world.finish()
        assert world.counts == (10, projected, 0)


def test_what_a_save_has_put_meanwhile_stays() -> None:
    world = World(10)
    newer = Projection(9, Form.VALUE, b"newer")
    world.projections.before["put_all"] = lambda *_: world.stored.held.update({key(4): newer})
    world.finish()
    assert world.stored.held[key(4)] is newer
    assert world.counts == (10, 9, 0)


def test_a_shape_that_is_switched_on_is_brought_to_what_lacks_it() -> None:
    world = World(20)
    world.finish()
    world.flags[WRITE] = "both"
    world.start()
    world.finish()
    assert {held.shapes for held in world.stored.held.values()} == {frozenset({1, 2})}
    assert world.counts == (20, 20, 0)
    world.flags[WRITE] = "new"
    world.start()
    world.finish()
    assert world.counts == (20, 0, 0)


def test_no_batch_begins_before_a_flag_that_was_set_is_in_force_everywhere() -> None:
    world = World(20)
    world.backfiller.run_once()
    world.clock.now = SETTLE_SECONDS - 0.1
    world.backfiller.run_once()
    assert world.counts[0] == 0
    world.clock.now = SETTLE_SECONDS + 0.1
    world.backfiller.run_once()
    assert world.counts[0] == 10


def test_one_that_was_paused_settles_anew() -> None:
    world = World(40)
    world.settle()
    world.backfiller.run_once()
    world.backfills.move("note", BackfillState.PAUSED, "", soon())
    world.backfiller.run_once()
    world.clock.now += CLAIM_SECONDS
    world.backfiller.run_once()
    world.start()
    world.clock.now += 2.0
    world.settle()
    assert world.counts[0] == 10
    world.backfiller.run_once()
    assert world.counts[0] == 20


def test_an_entity_that_cannot_be_projected_is_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(10)
    for number in range(4):
        world.save(number, {"untitled": "secret"})
    world.flags[WRITE] = "both"
    world.finish()
    assert world.counts == (10, 6, 4)
    assert world.counted == {("note", "projected"): 6, ("note", "failed"): 4}
    assert world.stored.held[key(0)].shapes == {1}
    assert "there is no title" in caplog.text
    assert key_digest(key(2)) in caplog.text
    assert key_digest(key(3)) not in caplog.text
    assert "count=1" in caplog.text
    assert "secret" not in caplog.text
    del world.asked[:]
    world.start()
    world.finish()
    assert world.counts == (10, 0, 4)
    assert "dynamodb.put_all" not in world.asked


def test_of_what_has_no_shape_at_all_dynamodb_says_to_ask_aurora() -> None:
    world = World(1)
    world.save(0, {"untitled": True})
    world.flags[WRITE] = "new"
    world.finish()
    assert world.stored.held[key(0)] == Projection(2, Form.STUB)
    assert world.counts == (1, 0, 1)


def test_a_part_of_which_a_batch_fails_is_taken_up_again_where_it_was() -> None:
    world = World(30)
    world.settle()
    world.backfiller.run_once()
    world.projections.before["put_all"] = down(Store.DYNAMODB)
    with pytest.raises(IncompleteRoundError):
        world.backfiller.run_once()
    world.projections.before.clear()
    asked: list[EntityKey | None] = []
    world.entities.step = lambda after, _limit: asked.append(after)
    world.clock.now += CLAIM_SECONDS + 1
    world.finish()
    assert asked == [key(9), key(19), key(29)]
    assert world.counts == (30, 30, 0)


def test_a_checkpoint_that_fails_loses_no_more_than_its_batch() -> None:
    world = World(30)
    world.settle()
    world.backfiller.run_once()

    def step(name: str) -> None:
        if name == "advance":
            raise StoreUnavailableError(Store.AURORA)

    world.backfills.step = step
    with pytest.raises(IncompleteRoundError):
        world.backfiller.run_once()
    assert len(world.stored.held) == 20
    world.backfills.step = lambda _: None
    world.clock.now += CLAIM_SECONDS + 1
    world.finish()
    assert world.counts == (30, 20, 0)
    assert world.counted == {("note", "projected"): 20, ("note", "unchanged"): 10}


def test_after_a_death_another_redoes_at_most_a_batch_of_each_part() -> None:
    world = World(80, parts=2)
    read: list[EntityKey] = []
    world.projections.before["read"] = lambda keys, _: read.extend(keys)
    world.settle()
    world.backfiller.run_once()

    class Killed(BaseException):
        pass

    def die(_: str) -> None:
        raise Killed

    world.backfills.step = die
    with pytest.raises(Killed):
        world.backfiller.run_once()
    world.backfills.step = lambda _: None
    world.backfiller = world.another()
    world.clock.now += CLAIM_SECONDS + 1
    world.finish()
    assert len(set(read)) == 80
    assert len(read) <= 80 + 2 * world.batch
    assert world.counts[0] == 80


def test_two_processes_share_the_parts() -> None:
    world = World(80, parts=4)
    other = world.another()
    world.backfiller.run_once()
    other.run_once()
    world.clock.now += SETTLE_SECONDS
    assert world.backfiller.run_once()
    assert other.run_once()
    assert sorted(part.number for part, _ in world.backfills.batches) == [1, 2, 3, 4]


def test_who_has_lost_a_part_leaves_it() -> None:
    world = World(40)
    world.settle()
    world.backfiller.run_once()
    world.clock.now += CLAIM_SECONDS + 1
    other = world.another()
    other.run_once()
    world.backfiller.run_once()
    assert world.counts[0] == 10
    world.backfiller = other
    world.finish()
    assert world.counts == (40, 40, 0)
    assert len(world.stored.held) == 40


def test_a_backfill_that_is_cancelled_stops_after_the_batch() -> None:
    world = World(40)
    world.settle()
    world.backfiller.run_once()
    world.backfills.move("note", BackfillState.CANCELLED, "", soon())
    assert world.backfiller.run_once()
    assert world.backfiller.run_once() is False
    assert world.counts[0] == 10


@pytest.mark.parametrize(("rate", "parts"), [(10, 1), (40, 1), (100, 4), (400, 2)])
def test_no_more_is_done_in_a_second_than_the_rate_allows(rate: int, parts: int) -> None:
    world = World(1200, parts=parts, rate=rate, workers=4, batch=100)
    world.settle()
    began = world.clock.now
    while world.clock.now < began + 3:
        while world.backfiller.run_once():
            pass
        world.clock.now += 0.1
        passed = world.clock.now - began
        # And what a batch may be ahead of it.
        assert world.counts[0] <= rate * passed + rate * 0.6
    assert world.counts[0] >= rate * 2.9 - rate * 0.2


class Paced:
    """Processes that come and go, in a time that passes for all of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.working: list[Backfiller] = []
        # The time, and how many entities were looked at by then.
        self.seen: list[tuple[float, int]] = []

    def work(self, seconds: float) -> None:
        """Let all of them work for so long."""
        end = self.world.clock.now + seconds
        while self.world.clock.now < end:
            for each in self.working:
                while each.run_once():
                    pass
            self.seen.append((self.world.clock.now, self.world.counts[0]))
            self.world.clock.now += 0.05

    def per_second(self, seconds: float) -> float:
        """Return how many were looked at in a second, in the last so many."""
        (began, before), (ended, after) = self.seen[-round(seconds / 0.05)], self.seen[-1]
        return (after - before) / (ended - began)

    def assert_never_above(self, rate: int, parts: int) -> None:
        """Hold all times against the rate, and what one batch of each part may be ahead."""
        ahead = rate * 0.5 + parts
        for at, (began, before) in enumerate(self.seen):
            for ended, after in self.seen[at:]:
                assert after - before <= rate * (ended - began) + ahead, (began, ended)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_rate_is_had_by_the_parts_that_are_held_however_few(workers: int) -> None:
    world = World(2400, parts=4, rate=60, workers=workers, batch=100)
    paced = Paced(world)
    paced.working.append(world.backfiller)
    paced.work(SETTLE_SECONDS + 6)
    assert paced.per_second(5) == pytest.approx(60, rel=0.11)


def test_whatever_processes_come_and_go_they_do_together_what_the_rate_allows() -> None:
    rate, parts = 60, 6
    world = World(7200, parts=parts, rate=rate, workers=2, batch=200)
    paced = Paced(world)
    steady: list[float] = []
    for come in (world.backfiller, world.another(), world.another()):
        paced.working.append(come)
        paced.work(SETTLE_SECONDS + 5)
        steady.append(paced.per_second(4))
    # Its claims count until they run out, since it cannot tell anybody that it has died.
    del paced.working[0]
    paced.work(CLAIM_SECONDS + 5)
    steady.append(paced.per_second(4))
    paced.working.append(world.another())
    paced.work(SETTLE_SECONDS + 5)
    steady.append(paced.per_second(4))
    assert steady == pytest.approx([rate] * 5, rel=0.15)
    assert world.state is BackfillState.RUNNING
    paced.assert_never_above(rate, parts)


def test_parts_that_end_soon_are_not_done_faster() -> None:
    world = World(256, parts=64, rate=20, workers=2)
    paced = Paced(world)
    paced.working.append(world.backfiller)
    paced.work(SETTLE_SECONDS + 6)
    assert paced.seen[-1][1] > 20
    paced.assert_never_above(20, 2)


def test_time_that_was_lost_is_not_made_up_for_in_one_go() -> None:
    world = World(1000, rate=100, batch=50)
    world.settle()
    world.backfiller.run_once()
    world.clock.now += 5
    before = world.counts[0]
    while world.backfiller.run_once():
        pass
    assert world.counts[0] - before <= 100 * 1.0 + 50


def test_a_part_that_waits_for_its_rate_is_held_on_to() -> None:
    world = World(32, parts=16, rate=1, workers=16)
    other = world.another()
    world.settle()
    limit = world.clock.now + 40
    while world.state is BackfillState.RUNNING:
        assert world.clock.now < limit
        world.backfiller.run_once()
        other.run_once()
        world.clock.now += 0.1
    assert world.counts == (32, 32, 0)
    assert {part.at.claim for part in world.backfills.parts} == {1}


def test_a_part_is_held_on_to_while_all_batches_are_as_slow_as_may_be() -> None:
    world = World(120, parts=3, rate=10, workers=3, batch=1)
    other = world.another()

    def slow(after: EntityKey | None, _: int) -> None:
        if after is not None and after.id < "n0040":
            # Whoever else is there looks for what is free all the while.
            for _ in range(55):
                world.clock.now += 0.1
                other.run_once()

    world.settle()
    world.entities.step = slow
    for _ in range(60):
        world.backfiller.run_once()
        world.clock.now += 0.1
    assert world.clock.now > 3 * CLAIM_SECONDS
    assert {part.at.claim for part in world.backfills.parts} == {1}


def test_parts_are_held_on_to_before_their_first_batch_too() -> None:
    world = World(40)
    other = world.another()
    world.backfiller.run_once()
    (part,) = world.backfills.parts
    # A claim of which hardly anything is left when the first batch may begin.
    part.claimed_until = SETTLE_SECONDS + 1

    def slow(_after: object, _limit: object) -> None:
        for _ in range(50):
            world.clock.now += 0.1
            other.run_once()

    world.entities.step = slow
    world.clock.now = SETTLE_SECONDS + 0.1
    world.backfiller.run_once()
    assert world.counts[0] == 10
    assert part.at.claim == 1


def test_what_outlasts_its_time_is_given_up_before_the_claim_runs_out() -> None:
    world = World(30)
    world.settle()
    began = world.clock.now

    def slow(*_: object) -> None:
        world.clock.now += CLAIM_SECONDS / 2

    world.entities.step = slow
    with pytest.raises(IncompleteRoundError):
        world.backfiller.run_once()
    assert world.clock.now - began < CLAIM_SECONDS
    assert not world.stored.held
    world.entities.step = lambda *_: None
    world.clock.now += CLAIM_SECONDS
    world.finish()
    assert world.counts == (30, 30, 0)


def test_there_is_time_for_a_batch_of_a_slow_store() -> None:
    world = World(30)
    world.settle()

    def slow(*_: object) -> None:
        world.clock.now += 5

    world.entities.step = slow
    assert world.backfiller.run_once()
    assert world.counts == (10, 10, 0)


def test_a_batch_of_which_the_checkpoint_is_anothers_is_not_counted() -> None:
    world = World(40)
    world.settle()
    world.backfiller.run_once()
    other = world.another()

    def lose(*_: object) -> None:
        world.entities.step = lambda *_: None
        world.clock.now += CLAIM_SECONDS + 1
        other.run_once()

    # Between what was put and what is noted.
    world.projections.after["put_all"] = lambda: lose() if not other._held else None
    world.backfiller.run_once()
    assert other._held
    assert world.counts == (10, 10, 0)
    world.projections.after.clear()
    world.backfiller = other
    world.finish()
    assert world.counts == (40, 30, 0)
    assert world.counted == {("note", "projected"): 30, ("note", "unchanged"): 10}


def test_a_new_rate_holds_from_the_next_batch_on() -> None:
    world = World(2000, rate=10, batch=100)
    world.settle()
    world.backfiller.run_once()
    world.start(rate=1000)
    world.clock.now += 0.6
    world.backfiller.run_once()
    world.backfiller.run_once()
    began = world.counts[0]
    world.clock.now += 0.5
    while world.backfiller.run_once():
        pass
    assert world.counts[0] - began >= 400


def test_a_cache_that_is_down_holds_up_nothing_and_what_may_be_older_is_left_to_the_projector() -> (
    None
):
    world = World(10)
    world.flags[WRITE] = "both"
    for number in (3, 5):
        world.stored.held[key(number)] = Projection(1, Form.VALUE, b"")
    world.save(3, {"title": "new"})
    keys = [key(number) for number in range(10)]
    world.rows.forget(keys)
    world.cache.before["invalidate"] = down(Store.CACHE)
    world.finish()
    assert world.counts == (10, 10, 0)
    assert set(world.rows.find(keys, soon())) == {key(3)}


def test_an_overloaded_store_is_left_alone_until_the_claim_runs_out() -> None:
    world = World(10)
    world.settle()

    def overloaded(*_: object) -> None:
        raise StoreOverloadedError(Store.DYNAMODB)

    world.projections.before["read"] = overloaded
    with pytest.raises(IncompleteRoundError):
        world.backfiller.run_once()
    del world.asked[:]
    for _ in range(int(CLAIM_SECONDS) - 1):
        assert world.backfiller.run_once() is False
        world.clock.now += 1
    assert not world.asked


def test_a_fault_of_ours_lets_go_of_the_part() -> None:
    world = World(10)
    world.settle()

    def fault(*_: object) -> None:
        raise ZeroDivisionError

    world.projections.before["read"] = fault
    with pytest.raises(ZeroDivisionError):
        world.backfiller.run_once()
    world.projections.before.clear()
    world.clock.now += CLAIM_SECONDS + 1
    world.finish()
    assert world.counts == (10, 10, 0)


def test_a_kind_that_is_not_configured_here_is_left_to_others() -> None:
    world = World(3)
    world.backfills.start("other", rate=0, parts=1, caller="", deadline=soon())
    world.finish()
    assert world.backfills.backfills["other"].state is BackfillState.RUNNING
    (part,) = [part for part in world.backfills.parts if part.at.kind == "other"]
    assert part.at.claim == 0
