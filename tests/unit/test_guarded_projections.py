"""A DynamoDB that keeps failing is left alone for a moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.errors import (
    DeadlineExceededError,
    DuplicateInProgressError,
    EntityNotFoundError,
    IdempotencyKeyReusedError,
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.snapshots import Appended, NewSnapshot, SnapshotPage, StoredSnapshot
from duostore_server.storage.backoff import Backoff
from duostore_server.storage.dynamodb.guarded import Guard, GuardedProjections
from duostore_server.storage.dynamodb.guarded_snapshots import GuardedSnapshots

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

KEY = EntityKey("", "proposal", "1")
HELD = Projection(1, Form.TOMBSTONE)
SOON = Deadline.after(3600)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SNAPSHOT = NewSnapshot(KEY, b"", NOW, in_history=True, consolidate_after=timedelta())
APPENDED = Appended(1, NOW)
PAGE = SnapshotPage((), more=False)


class Reached:
    """Fails as it is told; counts what reaches it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls = 0

    def reached(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


class Projections(Reached):
    def read(self, keys: Collection[EntityKey], _: Deadline) -> Mapping[EntityKey, Projection]:
        self.reached()
        return dict.fromkeys(keys, HELD)

    def put(self, _key: EntityKey, projection: Projection, _: Deadline) -> Projection:
        self.reached()
        return projection

    def put_all(
        self, projections: Mapping[EntityKey, Projection], _: Deadline
    ) -> Mapping[EntityKey, Projection]:
        self.reached()
        return projections


class Snapshots(Reached):
    def append(self, _snapshot: NewSnapshot, _: Deadline) -> Appended:
        self.reached()
        return APPENDED

    def read(self, _key: EntityKey, _sequence: int, _: Deadline) -> StoredSnapshot | None:
        self.reached()
        return None

    def page(self, _key: EntityKey, _before: int | None, _limit: int, _: Deadline) -> SnapshotPage:
        self.reached()
        return PAGE


class Scene:
    """Two guarded ports under one guard, and a clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.store = Projections()
        self.others = Snapshots()
        guard = Guard(Backoff(lambda: 1.0, lambda: self.now, tolerance=3))
        self.guarded = GuardedProjections(self.store, guard)
        self.snapshots = GuardedSnapshots(self.others, guard)

    def read(self) -> None:
        self.guarded.read((KEY,), SOON)

    def fail(self, error: Exception, times: int) -> None:
        self.store.error = error
        for _ in range(times):
            with pytest.raises(type(error)):
                self.read()


def test_what_works_passes_through() -> None:
    scene = Scene()
    assert scene.guarded.read((KEY,), SOON) == {KEY: HELD}
    assert scene.guarded.put(KEY, HELD, SOON) == HELD
    assert scene.guarded.put_all({KEY: HELD}, SOON) == {KEY: HELD}
    assert scene.snapshots.append(SNAPSHOT, SOON) is APPENDED
    assert scene.snapshots.read(KEY, 0, SOON) is None
    assert scene.snapshots.page(KEY, None, 1, SOON) is PAGE
    assert (scene.store.calls, scene.others.calls) == (3, 3)


def test_after_three_failures_in_a_row_nobody_waits_for_it() -> None:
    scene = Scene()
    scene.fail(StoreTimeoutError(Store.DYNAMODB), 3)
    with pytest.raises(StoreUnavailableError):
        scene.read()
    with pytest.raises(StoreUnavailableError):
        scene.guarded.put(KEY, HELD, SOON)
    with pytest.raises(StoreUnavailableError):
        scene.guarded.put_all({KEY: HELD}, SOON)
    assert scene.store.calls == 3


def test_what_one_port_found_out_holds_for_the_others() -> None:
    scene = Scene()
    scene.fail(StoreTimeoutError(Store.DYNAMODB), 3)
    with pytest.raises(StoreUnavailableError):
        scene.snapshots.append(SNAPSHOT, SOON)
    with pytest.raises(StoreUnavailableError):
        scene.snapshots.read(KEY, 0, SOON)
    with pytest.raises(StoreUnavailableError):
        scene.snapshots.page(KEY, None, 1, SOON)
    assert scene.others.calls == 0
    scene.now = 1.5
    scene.snapshots.read(KEY, 0, SOON)
    scene.store.error = None
    scene.read()
    assert scene.store.calls == 4


def test_a_write_whose_answer_was_lost_is_a_failure() -> None:
    scene = Scene()
    scene.others.error = WriteOutcomeUnknownError(Store.DYNAMODB)
    for _ in range(3):
        with pytest.raises(WriteOutcomeUnknownError):
            scene.snapshots.append(SNAPSHOT, SOON)
    with pytest.raises(StoreUnavailableError):
        scene.read()
    assert scene.store.calls == 0


@pytest.mark.parametrize("cause", [DeadlineExceededError(), StoreOverloadedError(Store.DYNAMODB)])
def test_a_write_that_nobody_waited_for_is_none(cause: Exception) -> None:
    scene = Scene()
    error = WriteOutcomeUnknownError(Store.DYNAMODB)
    error.__cause__ = cause
    scene.fail(error, 10)
    assert scene.store.calls == 10


@pytest.mark.parametrize(
    "refusal", [EntityNotFoundError(0), IdempotencyKeyReusedError(), DuplicateInProgressError()]
)
def test_a_refusal_is_an_answer(refusal: Exception) -> None:
    scene = Scene()
    for _ in range(5):
        scene.fail(StoreTimeoutError(Store.DYNAMODB), 2)
        scene.fail(refusal, 1)
    assert scene.store.calls == 15


def test_single_failures_do_not_add_up() -> None:
    scene = Scene()
    for _ in range(5):
        scene.fail(StoreTimeoutError(Store.DYNAMODB), 2)
        scene.store.error = None
        scene.read()
    assert scene.store.calls == 15


def test_after_the_pause_one_caller_finds_out_for_all() -> None:
    scene = Scene()
    scene.fail(StoreUnavailableError(Store.DYNAMODB), 3)
    scene.now = 1.5
    scene.fail(StoreUnavailableError(Store.DYNAMODB), 1)
    assert scene.store.calls == 4
    with pytest.raises(StoreUnavailableError):
        scene.read()
    assert scene.store.calls == 4
    scene.now = 3.0
    scene.store.error = None
    scene.read()
    scene.read()
    assert scene.store.calls == 6


@pytest.mark.parametrize("error", [StoreOverloadedError(Store.DYNAMODB), DeadlineExceededError()])
def test_a_store_that_is_there_is_not_shut_off(error: Exception) -> None:
    scene = Scene()
    scene.fail(error, 10)
    assert scene.store.calls == 10
