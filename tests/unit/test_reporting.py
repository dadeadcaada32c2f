"""What GetStatus gathers, whatever is down."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.access.status import Reporting
from duostore_server.domain.controls import ReadOnly
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Backlog
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreOverloadedError,
    StoreUnavailableError,
)
from duostore_server.domain.status import Figures, StoreCalls, StoreStanding

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
FIGURES = Figures(stores=(StoreCalls(Store.CACHE, 10, 0.5, 0.001),))
# Handed through, whatever it is.
BACKFILL: Any = object()
READ_ONLY = {kind: ReadOnly(kind, f"why {kind}", "ops", NOW) for kind in ("proposal", "", "note")}


class World:
    """What is known elsewhere; each part fails with its error, if it has one."""

    def __init__(self) -> None:
        self.outbox_error: Exception | None = None
        self.backfills_error: Exception | None = None
        self.controls_error: Exception | None = None
        self.in_force: Mapping[str, ReadOnly] = {}
        self.waited: list[float] = []
        outbox: Any = self
        self.reporting = Reporting(
            release="1.2.3",
            start_time=NOW,
            outbox=outbox,
            read_only=self.read_only,
            in_force=lambda: self.in_force,
            backfills=self.backfills,
            figures=lambda: FIGURES,
        )

    def backlog(self, deadline: Deadline) -> Backlog:
        self.waited.append(deadline.remaining())
        if self.outbox_error is not None:
            raise self.outbox_error
        return Backlog(7, 1.5)

    def backfills(self, deadline: Deadline) -> list[Any]:
        self.waited.append(deadline.remaining())
        if self.backfills_error is not None:
            raise self.backfills_error
        return [(BACKFILL, None)]

    def read_only(self, deadline: Deadline) -> list[ReadOnly]:
        self.waited.append(deadline.remaining())
        if self.controls_error is not None:
            raise self.controls_error
        return [READ_ONLY[kind] for kind in sorted(READ_ONLY)]


def test_all_that_is_known_is_told() -> None:
    world = World()
    world.reporting.noted(Store.CACHE, up=True)
    world.reporting.noted(Store.AURORA, up=True)
    world.reporting.noted(Store.AURORA, up=False)
    status = world.reporting.status(Deadline.after(60))
    assert (status.release, status.start_time) == ("1.2.3", NOW)
    assert status.stores == (
        StoreStanding(Store.AURORA, up=False, calls=None),
        # Nobody has asked it yet.
        StoreStanding(Store.DYNAMODB, up=False, calls=None),
        StoreStanding(Store.CACHE, up=True, calls=FIGURES.stores[0]),
    )
    assert status.backlog == Backlog(7, 1.5)
    assert [found.kind for found in status.read_only] == ["", "note", "proposal"]
    assert status.backfills == ((BACKFILL, None),)
    assert status.figures is FIGURES


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailableError(Store.AURORA),
        StoreOverloadedError(Store.AURORA),
        DeadlineExceededError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_while_aurora_cannot_be_asked_the_rest_is_told_and_soon(error: Exception) -> None:
    world = World()
    world.in_force = READ_ONLY
    world.outbox_error = error
    status = world.reporting.status(Deadline.after(60))
    assert (status.backlog, status.backfills) == (None, ())
    assert [found.kind for found in status.read_only] == ["", "note", "proposal"]
    # Once, and not for long.
    assert len(world.waited) == 1
    assert world.waited[0] <= 2
    world.outbox_error, world.backfills_error = None, error
    status = world.reporting.status(Deadline.after(60))
    assert (status.backlog, status.backfills) == (Backlog(7, 1.5), ())


def test_read_only_is_what_aurora_says_and_else_what_is_in_force_in_this_process() -> None:
    world = World()
    world.in_force = {"": READ_ONLY[""]}
    status = world.reporting.status(Deadline.after(60))
    assert [found.kind for found in status.read_only] == ["", "note", "proposal"]
    world.controls_error = StoreUnavailableError(Store.AURORA)
    status = world.reporting.status(Deadline.after(60))
    assert status.read_only == (READ_ONLY[""],)
    assert status.backlog == Backlog(7, 1.5)


def test_a_fault_is_not_hidden() -> None:
    world = World()
    world.outbox_error = ValueError("a fault of ours")
    with pytest.raises(ValueError, match="a fault"):
        world.reporting.status(Deadline.after(60))
