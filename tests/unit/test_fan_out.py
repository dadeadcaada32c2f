"""The fan-out: in which order it works off changes and documents, and what waits for what."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.entities import Entity, OutboxRow
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.read_models import (
    Expansion,
    FanOutBacklog,
    Outcome,
    Recomputed,
    SourceChange,
    StaleDocument,
)
from duostore_server.domain.transactions import Written
from duostore_server.workers.fan_out import Expander, Recomputer
from duostore_server.workers.loop import IncompleteRoundError
from tests.support.reader_stack import NOON

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from duostore_server.domain.deadline import Deadline

BATCH, PAGE, MOST_STALE = 10, 100, 200
LOT = 25


def key(id_: int) -> EntityKey:
    return EntityKey("acme", "card", str(id_))


class InSqlError(StoreOverloadedError):
    """The SQL of a change fails, which is told of where it is expanded alone."""

    def __init__(self) -> None:
        super().__init__(Store.AURORA)


class FakeFanOut:
    """``ports.SourceChanges`` and ``ports.StaleDocuments`` in memory; claims never run out.

    A change touches so many documents, from one id on. ``fails`` is asked with each change
    that is expanded, and each lot that is recomputed; it may raise. Recomputed documents
    come out as ``outcomes`` says, or changed.
    """

    def __init__(self) -> None:
        self.left: dict[int, range] = {}
        self.due: list[SourceChange] = []
        self.stale: list[StaleDocument] = []
        self.most_stale = 0
        self.claims: list[bool] = []
        self.claimed: list[SourceChange] = []
        self.lots: list[list[int]] = []
        self.fails: Callable[[Any], object] = lambda _: None
        self.outcomes: dict[int, Outcome] = {}
        self.asked: list[str] = []
        self.pages: list[int] = []
        self.groups: list[list[int]] = []

    def change(
        self, touches: range, *, source: str = "kind:proposal", alone: bool = False
    ) -> SourceChange:
        change = SourceChange(len(self.left) + 1, "card", source, begun=False, alone=alone)
        self.left[change.id] = touches
        self.due.append(change)
        return change

    def claims_run_out(self) -> None:
        self.due, self.claimed = [*self.due, *self.claimed], []

    def claim(
        self, limit: int, deadline: Deadline, *, fresh: bool = False
    ) -> Sequence[SourceChange]:
        assert deadline.remaining() > 0
        self.claims.append(fresh)
        claimed = [change for change in self.due if not (fresh and change.begun)][:limit]
        self.due = [change for change in self.due if change not in claimed]
        self.claimed += claimed
        return claimed

    def expand(self, change: SourceChange, limit: int, deadline: Deadline) -> Expansion:
        assert deadline.remaining() > 0
        self.claimed.remove(change)
        try:
            self.fails(change)
        except BaseException:
            self.due.append(change)
            raise
        self.pages.append(limit)
        page, left = self.left[change.id][:limit], self.left[change.id][limit:]
        self.stale += [StaleDocument(id_, key(id_)) for id_ in page]
        self.most_stale = max(self.most_stale, len(self.stale))
        self.left[change.id] = left
        if left:
            self.due.append(replace(change, begun=True))
        return Expansion(len(page), not left)

    def expand_together(
        self, changes: Sequence[SourceChange], limit: int, deadline: Deadline
    ) -> Expansion | None:
        assert len({change.source for change in changes}) == 1
        assert not any(change.alone or change.begun for change in changes)
        self.groups.append([change.id for change in changes])
        try:
            for change in changes:
                self.fails(change)
        except InSqlError:
            return None
        if sum(len(self.left[change.id]) for change in changes) > limit:
            return None
        fails, self.fails = self.fails, lambda _: None
        touched = sum(self.expand(change, limit, deadline).touched for change in changes)
        self.fails = fails
        return Expansion(touched, done=True)

    def waiting(self, limit: int, deadline: Deadline) -> int:
        assert deadline.remaining() > 0
        return min(limit, len(self.stale))

    def backlog(self, _: Deadline) -> FanOutBacklog:
        return FanOutBacklog(len(self.due), len(self.stale), 0, 0.0)

    def recompute(self, stale: Sequence[StaleDocument], deadline: Deadline) -> Sequence[Recomputed]:
        assert deadline.remaining() > 0
        self.lots.append([one.id for one in stale])
        self.asked.append("recompute")
        try:
            self.fails(stale)
        except BaseException:
            self.stale += stale
            raise
        return [self._recomputed(one) for one in stale]

    def _recomputed(self, stale: StaleDocument) -> Recomputed:
        outcome = self.outcomes.get(stale.id, Outcome.CHANGED)
        written = None
        if outcome is Outcome.CHANGED:
            # Every third is found to be gone.
            data = None if stale.id % 3 == 0 else {"id": stale.id}
            row = OutboxRow(1000 + stale.id, stale.key, NOON)
            written = Written(Entity(stale.key, 2, data, NOON, NOON), row)
        return Recomputed(stale.key, outcome, written)


class StaleOf:
    """The half of ``FakeFanOut`` whose ``claim`` is of documents."""

    def __init__(self, fan_out: FakeFanOut) -> None:
        self._fan_out = fan_out
        self.recompute = fan_out.recompute

    def claim(self, limit: int, deadline: Deadline) -> Sequence[StaleDocument]:
        assert deadline.remaining() > 0
        claimed = self._fan_out.stale[:limit]
        self._fan_out.stale = self._fan_out.stale[limit:]
        return claimed


class Stack:
    """Both workers over one fan-out, what they propagated, completed and counted."""

    def __init__(self, *, batch: int = BATCH, each: Any = map) -> None:
        self.fan_out = FakeFanOut()
        self.now = 0.0
        self.asked = self.fan_out.asked
        self.propagated: list[Entity] = []
        self.completed: list[int] = []
        self.counted: list[tuple[str, Outcome]] = []
        self.propagates = True
        self.completion_fails: Exception | None = None
        self.expander = Expander(
            changes=self.fan_out,
            batch=batch,
            page=PAGE,
            most_stale=MOST_STALE,
            clock=lambda: self.now,
        )
        stack: Any = self
        self.recomputer = Recomputer(
            stale=StaleOf(self.fan_out),
            propagation=stack,
            outbox=stack,
            batch=batch,
            recomputed=lambda kind, outcome: self.counted.append((kind, outcome)),
            each=each,
        )

    def propagate(self, entities: Sequence[Entity], deadline: Deadline) -> bool:
        assert deadline.remaining() > 0
        self.asked.append("propagate")
        self.propagated += entities
        return self.propagates

    def complete(self, rows: Collection[OutboxRow], deadline: Deadline) -> None:
        assert deadline.remaining() > 0
        self.asked.append("complete")
        if self.completion_fails is not None:
            raise self.completion_fails
        self.completed += [row.id for row in rows]

    def make_stale(self, count: int) -> None:
        self.fan_out.stale += [StaleDocument(id_, key(id_)) for id_ in range(count)]


def raises_for(places: Collection[int], error: Exception) -> Callable[[Any], None]:
    """Return what raises for changes, and for lots that hold documents, with these ids."""

    def fail(asked: Any) -> None:
        ids = {asked.id} if isinstance(asked, SourceChange) else {one.id for one in asked}
        if ids & set(places):
            raise error

    return fail


FAILURES = [
    StoreUnavailableError(Store.AURORA),
    StoreOverloadedError(Store.AURORA),
    DeadlineExceededError(),
]


def test_each_change_is_expanded_by_a_page_and_there_may_be_more() -> None:
    stack = Stack()
    stack.fan_out.change(range(3))
    stack.fan_out.change(range(10, 10 + PAGE + 5))
    assert stack.expander.run_once() is True
    assert len(stack.fan_out.stale) == 3 + PAGE
    assert stack.expander.run_once() is True
    assert len(stack.fan_out.stale) == 3 + PAGE + 5
    assert stack.expander.run_once() is False
    assert stack.fan_out.due == []


def test_no_more_changes_are_taken_than_a_batch() -> None:
    stack = Stack(batch=2)
    for id_ in range(5):
        stack.fan_out.change(range(id_, id_ + 1))
    stack.expander.run_once()
    assert len(stack.fan_out.due) == 3


@pytest.mark.parametrize(("waiting", "fresh"), [(MOST_STALE - 1, False), (MOST_STALE, True)])
def test_while_much_is_stale_only_fresh_changes_are_taken(waiting: int, *, fresh: bool) -> None:
    stack = Stack()
    stack.make_stale(waiting)
    stack.expander.run_once()
    assert stack.fan_out.claims == [fresh]


def test_a_large_change_goes_on_when_there_is_room_and_holds_up_no_small_one() -> None:
    stack = Stack(batch=50)
    stack.fan_out.change(range(10, 10 + 30 * PAGE))
    for _ in range(10):
        stack.expander.run_once()
    assert len(stack.fan_out.stale) == MOST_STALE, "it has to wait"
    small = stack.fan_out.change(range(1, 2))
    assert stack.expander.run_once() is True
    assert stack.fan_out.left[small.id] == range(0)
    assert stack.expander.run_once() is False, "the large one rests, and the worker with it"
    rounds = 0
    while len(stack.fan_out.stale) > 0:
        rounds += 1
        stack.recomputer.run_once()
        if any(1 in lot for lot in stack.fan_out.lots):
            break
        stack.expander.run_once()
    assert rounds <= (MOST_STALE + PAGE) // 50 + 1
    while stack.fan_out.due or stack.fan_out.stale:
        stack.expander.run_once()
        stack.recomputer.run_once()
    assert stack.fan_out.most_stale <= MOST_STALE + PAGE
    done = [id_ for lot in stack.fan_out.lots for id_ in lot]
    assert sorted(done) == [1, *range(10, 10 + 30 * PAGE)]


def test_many_large_changes_together_find_no_more_than_one_would() -> None:
    stack = Stack(batch=50)
    for n in range(20):
        stack.fan_out.change(range(n * 10 * PAGE, (n + 1) * 10 * PAGE))
    # Each begins with a page.
    stack.expander.run_once()
    stack.fan_out.stale.clear()
    stack.fan_out.most_stale = 0
    while stack.fan_out.due or stack.fan_out.stale:
        stack.expander.run_once()
        stack.fan_out.claims_run_out()
        stack.recomputer.run_once()
    assert stack.fan_out.most_stale <= MOST_STALE + PAGE
    done = {id_ for lot in stack.fan_out.lots for id_ in lot}
    assert len(done) == 20 * 9 * PAGE


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_a_change_that_cannot_be_expanded_holds_up_no_other(error: Exception) -> None:
    stack = Stack()
    failing = stack.fan_out.change(range(3))
    stack.fan_out.change(range(10, 12), source="table:public.owner")
    stack.fan_out.fails = raises_for([failing.id], error)
    with pytest.raises(IncompleteRoundError, match="1 of 2"):
        stack.expander.run_once()
    assert len(stack.fan_out.stale) == 2
    stack.fan_out.fails = lambda _: None
    assert stack.expander.run_once() is True
    assert len(stack.fan_out.stale) == 5


def test_a_fault_of_ours_is_not_hidden() -> None:
    stack = Stack()
    stack.fan_out.change(range(3))
    stack.make_stale(1)
    stack.fan_out.fails = raises_for([0, 1], ValueError("a fault"))
    for worker in (stack.expander, stack.recomputer):
        with pytest.raises(ValueError, match="a fault"):
            worker.run_once()


def test_what_has_changed_is_brought_on_and_only_then_completed() -> None:
    stack = Stack()
    stack.make_stale(4)
    stack.fan_out.outcomes = {1: Outcome.UNCHANGED, 2: Outcome.FAILED}
    assert stack.recomputer.run_once() is False
    assert stack.asked == ["recompute", "propagate", "complete"]
    assert [(one.key, one.data) for one in stack.propagated] == [
        (key(0), None),
        (key(3), None),
    ]
    assert stack.completed == [1000, 1003]
    assert stack.counted == [
        ("card", outcome)
        for outcome in (Outcome.CHANGED, Outcome.UNCHANGED, Outcome.FAILED, Outcome.CHANGED)
    ]


def test_where_nothing_has_changed_nobody_is_told() -> None:
    stack = Stack()
    stack.make_stale(3)
    stack.fan_out.outcomes = dict.fromkeys(range(3), Outcome.UNCHANGED)
    assert stack.recomputer.run_once() is False
    assert stack.asked == ["recompute"]


def test_nothing_stale_is_nothing_to_do() -> None:
    stack = Stack()
    assert stack.recomputer.run_once() is False
    assert stack.asked == []


def test_a_full_batch_asks_for_the_next_at_once_and_lots_are_small() -> None:
    stack = Stack(batch=2 * LOT + 1)
    stack.make_stale(3 * LOT)
    assert stack.recomputer.run_once() is True
    assert [len(lot) for lot in stack.fan_out.lots] == [LOT, LOT, 1]
    assert stack.recomputer.run_once() is False
    assert sorted(stack.completed) == [1000 + id_ for id_ in range(3 * LOT)]


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_a_lot_that_cannot_be_recomputed_holds_up_no_other(error: Exception) -> None:
    stack = Stack(batch=3 * LOT)
    stack.make_stale(3 * LOT)
    stack.fan_out.fails = raises_for([LOT], error)
    with pytest.raises(IncompleteRoundError, match="1 of 3 lots"):
        stack.recomputer.run_once()
    assert len(stack.completed) == 2 * LOT
    assert len(stack.counted) == 2 * LOT
    stack.fan_out.fails = lambda _: None
    stack.recomputer.run_once()
    assert len(stack.completed) == 3 * LOT


def test_what_could_not_be_brought_on_is_left_to_the_projector() -> None:
    stack = Stack()
    stack.make_stale(2)
    stack.propagates = False
    with pytest.raises(IncompleteRoundError, match="1 of 1"):
        stack.recomputer.run_once()
    assert stack.asked == ["recompute", "propagate"], "the outbox rows stay"


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_what_could_not_be_completed_is_a_failure_and_no_harm(error: Exception) -> None:
    stack = Stack()
    stack.make_stale(2)
    stack.completion_fails = error
    with pytest.raises(IncompleteRoundError, match="1 of 1"):
        stack.recomputer.run_once()
    assert len(stack.propagated) == 2


def test_lots_may_be_recomputed_side_by_side() -> None:
    with ThreadPoolExecutor(4) as pool:
        stack = Stack(batch=8 * LOT, each=pool.map)
        stack.make_stale(8 * LOT)
        assert stack.recomputer.run_once() is True
    assert sorted(stack.completed) == [1000 + id_ for id_ in range(8 * LOT)]
    assert len(stack.fan_out.lots) == 8


def test_fresh_changes_of_a_source_are_expanded_together_and_others_alone() -> None:
    stack = Stack()
    for id_ in range(3):
        stack.fan_out.change(range(id_, id_ + 1))
        stack.fan_out.change(range(10 + id_, 11 + id_), source="table:public.owner")
    alone = stack.fan_out.change(range(20, 21), alone=True)
    assert stack.expander.run_once() is True
    assert stack.fan_out.groups == [[1, 3, 5], [2, 4, 6]]
    assert stack.fan_out.due == []
    assert [one.id for one in stack.fan_out.stale] == [0, 1, 2, 10, 11, 12, 20]
    assert not stack.fan_out.left[alone.id]


def test_a_group_of_too_many_documents_is_done_in_halves() -> None:
    stack = Stack()
    for id_ in range(3):
        stack.fan_out.change(range(id_, id_ + 1))
    stack.fan_out.change(range(10, 10 + 2 * PAGE))
    stack.expander.run_once()
    assert stack.fan_out.groups == [[1, 2, 3, 4], [1, 2], [3, 4]]
    assert len(stack.fan_out.stale) == 3 + PAGE
    assert [change.id for change in stack.fan_out.due] == [4]


def test_one_that_fails_in_a_group_fails_alone() -> None:
    stack = Stack()
    for id_ in range(8):
        stack.fan_out.change(range(id_, id_ + 1))
    stack.fan_out.fails = raises_for([6], InSqlError())
    with pytest.raises(IncompleteRoundError, match="1 of 8"):
        stack.expander.run_once()
    assert [change.id for change in stack.fan_out.due] == [6]
    assert len(stack.fan_out.stale) == 7


@pytest.mark.parametrize("error", FAILURES[:2], ids=repr)
def test_a_group_is_not_tried_in_parts_where_the_store_fails(error: Exception) -> None:
    stack = Stack()
    for id_ in range(8):
        stack.fan_out.change(range(id_, id_ + 1))
    stack.fan_out.fails = raises_for([6], error)
    with pytest.raises(IncompleteRoundError, match="8 of 8"):
        stack.expander.run_once()
    assert len(stack.fan_out.groups) == 1


@pytest.mark.parametrize(
    ("seconds", "pages"), [(1.0, [100, 200, 400, 800]), (0.1, [100, 100, 100, 100])]
)
def test_pages_of_a_change_grow_while_they_take_long(seconds: float, pages: list[int]) -> None:
    stack = Stack()

    def takes_long(_: object) -> None:
        stack.now += seconds

    stack.fan_out.fails = takes_long
    stack.fan_out.change(range(10_000))
    for _ in pages:
        stack.expander.run_once()
        stack.fan_out.stale.clear()
    assert stack.fan_out.pages == pages


def test_a_page_grows_to_a_bound_and_another_change_begins_small() -> None:
    stack = Stack()

    def takes_long(_: object) -> None:
        stack.now += 1

    stack.fan_out.fails = takes_long
    large = stack.fan_out.change(range(100_000))
    while stack.fan_out.left[large.id]:
        stack.expander.run_once()
        stack.fan_out.stale.clear()
    assert max(stack.fan_out.pages) == 20_000
    stack.fan_out.change(range(1))
    stack.expander.run_once()
    assert stack.fan_out.pages[-1] == PAGE


def test_a_round_ends_when_its_claims_do() -> None:
    stack = Stack()

    def takes_long(_: object) -> None:
        stack.now += 3

    stack.fan_out.fails = takes_long
    for id_ in range(5):
        stack.fan_out.change(range(id_, id_ + 1), alone=True)
    assert stack.expander.run_once() is True
    assert len(stack.fan_out.stale) == 2
    assert len(stack.fan_out.claimed) == 3


def test_while_nothing_is_brought_on_one_lot_is_tried_a_round() -> None:
    stack = Stack(batch=4 * LOT)
    stack.make_stale(12 * LOT)
    stack.propagates = False

    def lots_of_a_round() -> int:
        stack.fan_out.lots.clear()
        with suppress(IncompleteRoundError):
            stack.recomputer.run_once()
        return len(stack.fan_out.lots)

    assert [lots_of_a_round() for _ in range(3)] == [4, 1, 1]
    # What tells nothing of it changes nothing.
    stack.fan_out.outcomes = dict.fromkeys(range(12 * LOT), Outcome.UNCHANGED)
    assert [lots_of_a_round() for _ in range(2)] == [1, 1]
    stack.fan_out.outcomes = {}
    stack.propagates = True
    assert [lots_of_a_round() for _ in range(2)] == [1, 3]


def test_where_aurora_fails_the_next_round_is_as_large_as_ever() -> None:
    stack = Stack(batch=4 * LOT)
    stack.make_stale(8 * LOT)
    stack.fan_out.fails = raises_for([0], StoreUnavailableError(Store.AURORA))
    with pytest.raises(IncompleteRoundError):
        stack.recomputer.run_once()
    stack.fan_out.fails = lambda _: None
    stack.fan_out.lots.clear()
    stack.recomputer.run_once()
    assert len(stack.fan_out.lots) == 4


@pytest.mark.parametrize("error", [StoreTimeoutError(Store.AURORA), DeadlineExceededError()])
def test_a_group_that_takes_too_long_is_smaller_in_the_next_round(error: Exception) -> None:
    stack = Stack(batch=8)

    def takes_long(change: SourceChange) -> None:
        # Each needs a second, and four have to be done by then.
        stack.now += 1
        if len(stack.fan_out.groups[-1]) > 2 and change.id in stack.fan_out.groups[-1][3:]:
            raise error

    stack.fan_out.fails = takes_long
    for id_ in range(8):
        stack.fan_out.change(range(id_, id_ + 1))
    rounds = 0
    while stack.fan_out.due:
        rounds += 1
        stack.expander.run_once()
        stack.fan_out.claims_run_out()
    assert [len(group) for group in stack.fan_out.groups[:3]] == [8, 4, 2]
    assert len(stack.fan_out.stale) == 8
    assert rounds < 10
