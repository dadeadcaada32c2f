"""Heads and records are left alone together with everything else in DynamoDB."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    EntityExistsError,
    Store,
    StoreTimeoutError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.snapshots import Head, HeadChange, HeadWritten
from duostore_server.domain.transactions import IdempotencyKey, Recorded
from duostore_server.storage.backoff import Backoff
from duostore_server.storage.dynamodb.guarded import Guard
from duostore_server.storage.dynamodb.guarded_heads import GuardedHeads
from duostore_server.storage.dynamodb.guarded_records import GuardedRecords

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from duostore_server.domain.transactions import Idempotency

KEY = EntityKey("", "editor_state", "1")
NAME = IdempotencyKey("", "k")
NOW = datetime(2026, 3, 1, tzinfo=UTC)
HEAD = Head(1, b"payload", NOW, NOW, None)
CHANGE = HeadChange(KEY, b"payload", None, NOW, None, None)
RECORDED = Recorded(b"hash", ())
SOON = Deadline.after(3600)


class Stores:
    """Heads and records that answer, or fail as they are told."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls = 0

    def reached(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


class Heads:
    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def read(self, keys: Collection[EntityKey], _: Deadline) -> dict[EntityKey, Head]:
        self._stores.reached()
        return dict.fromkeys(keys, HEAD)

    def write(self, change: HeadChange, _: Deadline) -> HeadWritten:
        self._stores.reached()
        return HeadWritten(1, change.now)

    def recall(self, _key: IdempotencyKey, _: Deadline) -> Recorded | None:
        self._stores.reached()
        return RECORDED


class Records:
    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def read(self, _key: IdempotencyKey, _: Deadline) -> Recorded | None:
        self._stores.reached()
        return RECORDED

    def put(self, _records: Sequence[tuple[Idempotency, Recorded]], _: Deadline) -> None:
        self._stores.reached()


class Scene:
    """All four calls behind one guard, which gives up after three failures."""

    def __init__(self) -> None:
        self.stores = Stores()
        guard = Guard(Backoff(lambda: 1.0, lambda: 0.0, tolerance=3))
        heads = GuardedHeads(Heads(self.stores), guard)
        records = GuardedRecords(Records(self.stores), guard)
        self.calls: list[Callable[[], object]] = [
            lambda: heads.read((KEY,), SOON),
            lambda: heads.write(CHANGE, SOON),
            lambda: records.read(NAME, SOON),
            lambda: records.put((), SOON),
        ]


def test_what_works_passes_through() -> None:
    scene = Scene()
    answers = [call() for call in scene.calls]
    assert answers == [{KEY: HEAD}, HeadWritten(1, NOW), RECORDED, None]
    assert scene.stores.calls == 4


@pytest.mark.parametrize(
    "error",
    [
        StoreTimeoutError(Store.DYNAMODB),
        StoreUnavailableError(Store.DYNAMODB),
        WriteOutcomeUnknownError(Store.DYNAMODB),
    ],
)
@pytest.mark.parametrize("which", range(4))
def test_what_one_call_finds_out_holds_for_all(which: int, error: Exception) -> None:
    scene = Scene()
    scene.stores.error = error
    for _ in range(3):
        with pytest.raises(type(error)):
            scene.calls[which]()
    for call in scene.calls:
        with pytest.raises(StoreUnavailableError):
            call()
    assert scene.stores.calls == 3


def test_a_refusal_is_an_answer() -> None:
    scene = Scene()
    for _ in range(5):
        scene.stores.error = StoreTimeoutError(Store.DYNAMODB)
        for call in scene.calls[:2]:
            with pytest.raises(StoreTimeoutError):
                call()
        scene.stores.error = EntityExistsError(1)
        with pytest.raises(EntityExistsError):
            scene.calls[1]()
    assert scene.stores.calls == 15
