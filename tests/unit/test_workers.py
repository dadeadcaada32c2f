"""What goes on beside the requests."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import Store, StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Change, Origin, Transaction
from duostore_server.workers.deferred import Deferred
from duostore_server.workers.loop import IncompleteRoundError, Loop
from duostore_server.workers.projector import Projector
from tests.support.fake_authority import FakeAuthority
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from duostore_server.domain.entities import Entity, OutboxRow
    from duostore_server.domain.transactions import Written


class Observer:
    """Counts rounds."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def succeeded(self, name: str) -> None:
        self.ended.append(f"{name} ok")

    def failed(self, name: str) -> None:
        self.ended.append(f"{name} error")


def loop(work: Callable[[], bool], observer: Observer, rest: float = 0.001) -> Loop:
    return Loop("work", work, rest=rest, jitter=lambda: 0.01, observer=observer)


def test_a_loop_goes_on_after_errors_and_tells_of_them() -> None:
    observer = Observer()
    rounds = iter([StoreUnavailableError(Store.AURORA), ValueError("a fault"), None, None])

    def work() -> bool:
        error = next(rounds, None)
        if error is not None:
            raise error
        return False

    with loop(work, observer):
        eventually(lambda: "work ok" in observer.ended, within=10, what="a round is done")
    assert observer.ended[:3] == ["work error", "work error", "work ok"]


def test_a_loop_does_not_rest_while_there_is_more() -> None:
    left = [3]
    done = threading.Event()

    def work() -> bool:
        left[0] -= 1
        if left[0] == 0:
            done.set()
        return left[0] > 0

    with loop(work, Observer(), rest=3600):
        assert done.wait(10)


def test_leaving_a_loop_lets_its_round_finish() -> None:
    began, release, finished = threading.Event(), threading.Event(), threading.Event()

    def work() -> bool:
        began.set()
        release.wait(10)
        finished.set()
        return False

    with loop(work, Observer(), rest=3600):
        assert began.wait(10)
        release.set()
    assert finished.is_set()


class Propagation:
    """Stands in for the propagation of single entities: brings those that are not refused."""

    def __init__(self, *refused: str) -> None:
        self.brought: list[tuple[str, int]] = []
        self.refused = set(refused)

    def propagate(self, entities: Sequence[Entity], deadline: Deadline) -> bool:
        (entity,) = entities
        assert deadline.remaining() > 0
        if entity.key.id in self.refused:
            return False
        self.brought.append((entity.key.id, entity.version))
        return True


def key(id_: str) -> EntityKey:
    return EntityKey("", "proposal", id_)


def write(authority: FakeAuthority, id_: str) -> Written:
    change = Change(key(id_), {"id": id_}, None, timedelta(0))
    (written,) = authority.write(Transaction((change,), Origin("", "")), Deadline.after(5)).written
    return written


def projector(authority: FakeAuthority, propagation: Any, batch: int = 10) -> Projector:
    return Projector(
        outbox=authority, authority=authority, propagation=propagation, batch=batch, budget=5
    )


def depth(authority: FakeAuthority) -> int:
    return authority.backlog(Deadline.after(5)).depth


def test_the_projector_brings_the_current_version_and_empties_the_outbox() -> None:
    authority, propagation = FakeAuthority(), Propagation()
    for id_ in ("a", "b", "a"):
        write(authority, id_)
    assert projector(authority, propagation).run_once() is False
    assert sorted(propagation.brought) == [("a", 2), ("b", 1)]
    assert depth(authority) == 0


def test_what_could_not_be_brought_stays_and_holds_nothing_up() -> None:
    now = [0.0]
    authority = FakeAuthority(clock=lambda: now[0], claim=3)
    propagation = Propagation("b")
    for id_ in ("a", "b", "c"):
        write(authority, id_)
    worker = projector(authority, propagation)
    with pytest.raises(IncompleteRoundError, match="1 of 3"):
        worker.run_once()
    assert [id_ for id_, _ in propagation.brought] == ["a", "c"]
    assert depth(authority) == 1
    propagation.refused.clear()
    worker.run_once()
    assert depth(authority) == 1, "it is claimed, for a while"
    now[0] = 3.5
    worker.run_once()
    assert propagation.brought[-1] == ("b", 1)
    assert depth(authority) == 0


def test_a_full_batch_asks_for_the_next_at_once() -> None:
    authority = FakeAuthority()
    for number in range(5):
        write(authority, str(number))
    worker = projector(authority, Propagation(), batch=2)
    assert [worker.run_once() for _ in range(4)] == [True, True, False, False]
    assert depth(authority) == 0


def test_a_full_batch_of_failures_is_a_failure() -> None:
    authority = FakeAuthority()
    for number in range(4):
        write(authority, str(number))
    worker = projector(authority, Propagation("0", "1", "2", "3"), batch=2)
    with pytest.raises(IncompleteRoundError, match="2 of 2"):
        worker.run_once()


def test_slow_projections_are_completed_a_part_at_a_time() -> None:
    """A batch that takes longer than the budget must not be begun anew for ever."""
    authority = FakeAuthority(claim=0.0)
    for number in range(10):
        write(authority, str(number))

    class Slow(Propagation):
        def propagate(self, entities: Sequence[Entity], _: Deadline) -> bool:
            (entity,) = entities
            threading.Event().wait(0.02)
            self.brought.append((entity.key.id, entity.version))
            return True

    propagation = Slow()
    worker = Projector(
        outbox=authority,
        authority=authority,
        propagation=cast("Any", propagation),
        batch=10,
        budget=0.05,
    )
    for _ in range(10):
        with suppress(IncompleteRoundError):
            worker.run_once()
    assert depth(authority) == 0
    assert len(propagation.brought) == 10, "each was brought once"


def test_a_newer_save_is_not_completed_with_the_older() -> None:
    authority = FakeAuthority()

    class SavedMeanwhile(Propagation):
        def propagate(self, entities: Sequence[Entity], deadline: Deadline) -> bool:
            (entity,) = entities
            if entity.version == 1:
                write(authority, entity.key.id)
            return super().propagate(entities, deadline)

    propagation = SavedMeanwhile()
    write(authority, "a")
    worker = projector(authority, propagation)
    worker.run_once()
    assert depth(authority) == 1
    worker.run_once()
    assert propagation.brought == [("a", 1), ("a", 2)]
    assert depth(authority) == 0


def test_completions_are_removed_in_batches_and_at_the_end() -> None:
    authority = FakeAuthority()
    completed: list[int] = []

    class Counting(FakeAuthority):
        def complete(self, rows: Collection[OutboxRow], deadline: Deadline) -> None:
            completed.append(len(rows))
            super().complete(rows, deadline)

    authority = Counting()
    completer = Deferred(authority.complete, batch=500)
    for number in range(1200):
        completer.add((write(authority, str(number)).row,))
    assert completer.run_once() is True
    completer.finish()
    assert completed == [500, 500, 200]
    assert depth(authority) == 0


def test_notes_that_cannot_be_removed_are_left_to_the_projector() -> None:
    class Down(FakeAuthority):
        def complete(self, *_: object) -> None:
            raise StoreUnavailableError(Store.AURORA)

    completer: Deferred[OutboxRow] = Deferred(Down().complete, batch=500)
    completer.add((write(FakeAuthority(), "1").row,))
    completer.finish()
