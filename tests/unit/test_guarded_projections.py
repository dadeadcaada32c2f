"""A DynamoDB that keeps failing is left alone for a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.backoff import Backoff
from duostore_server.storage.dynamodb.guarded import GuardedProjections

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

KEY = EntityKey("", "proposal", "1")
HELD = Projection(1, Form.TOMBSTONE)
SOON = Deadline.after(3600)


class Projections:
    """Answers, or fails as it is told; counts what reaches it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls = 0

    def read(self, keys: Collection[EntityKey], _: Deadline) -> Mapping[EntityKey, Projection]:
        self._reached()
        return dict.fromkeys(keys, HELD)

    def put(self, _key: EntityKey, projection: Projection, _: Deadline) -> Projection:
        self._reached()
        return projection

    def _reached(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


class Scene:
    """Guarded projections under a clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.store = Projections()
        backoff = Backoff(lambda: 1.0, lambda: self.now, tolerance=3)
        self.guarded = GuardedProjections(self.store, backoff)

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


def test_after_three_failures_in_a_row_nobody_waits_for_it() -> None:
    scene = Scene()
    scene.fail(StoreTimeoutError(Store.DYNAMODB), 3)
    with pytest.raises(StoreUnavailableError):
        scene.read()
    with pytest.raises(StoreUnavailableError):
        scene.guarded.put(KEY, HELD, SOON)
    assert scene.store.calls == 3


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
