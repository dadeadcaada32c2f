"""How long a reader waits for others, and for stores that hang."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server import codec
from duostore_server.access.checks import Checks
from duostore_server.access.flights import Flights
from duostore_server.access.reading import Reader, lease_pauses
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Entity, Lease
from duostore_server.domain.errors import DeadlineExceededError, Store
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import KindPolicy, Policies, ProjectionMode

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

KEY = EntityKey("", "proposal", "1")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Scene:
    """A reader on stores of one entity, under a clock that only waiting turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lease: Lease | None = None
        self.dynamodb_hangs = False
        self.pauses: list[float] = []
        self.filled = 0
        policy = KindPolicy(60, 10, ProjectionMode.INLINE, 1000)
        policies = Policies({"proposal": policy})
        self.reader = Reader(
            authority=_Authority(),
            projections=_Projections(self),
            cache=_Cache(self),
            policies=policies,
            checks=Checks(policies),
            flights=Flights(),
            encode=codec.encode,
            pauses=lease_pauses(0.5),
            pause=self._pause,
            jitter=lambda: 1.0,
            now=lambda: NOON,
            served=lambda _kind, _store: None,
        )

    def get(self, seconds: float) -> Store:
        deadline = Deadline.after(seconds, clock=lambda: self.now)
        return self.reader.get(KEY, deadline).served_from

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class _Authority:
    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Entity]:
        deadline.bound(2.0)
        return {key: Entity(key, 1, {}, NOON, NOON) for key in keys}

    def write(self, *_: Any) -> Any:
        raise AssertionError


class _Projections:
    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def read(self, _keys: Any, deadline: Deadline) -> Any:
        if self._scene.dynamodb_hangs:
            self._scene.now += deadline.bound(0.8)
            raise DeadlineExceededError
        return {}

    def put(self, _key: Any, projection: Any, _deadline: Any) -> Any:
        return projection


class _Cache:
    """Holds a lease, or nothing."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def read(self, _keys: Any) -> Any:
        return {KEY: self._scene.lease} if self._scene.lease else {}

    def lease(self, _keys: Any) -> Any:
        return {KEY: Lease(b"mine")}

    def fill(self, *_: Any) -> bool:
        self._scene.filled += 1
        return True

    def invalidate(self, _keys: Any) -> None:
        pass


def test_a_lease_is_waited_for_once_and_not_again() -> None:
    scene = Scene()
    scene.lease = Lease(b"of one who died")
    assert scene.get(5) is Store.AURORA
    assert sum(scene.pauses) == pytest.approx(0.5, abs=0.05)
    scene.pauses.clear()
    assert scene.get(5) is Store.AURORA
    assert scene.pauses == []
    scene.lease = Lease(b"of another")
    scene.get(5)
    assert scene.pauses != []
    assert scene.filled == 0


def test_waiting_for_a_lease_leaves_time_to_read() -> None:
    scene = Scene()
    scene.lease = Lease(b"of one who died")
    assert scene.get(0.3) is Store.AURORA
    assert scene.now <= 0.15


def test_a_hanging_dynamodb_leaves_time_for_aurora() -> None:
    scene = Scene()
    scene.dynamodb_hangs = True
    assert scene.get(0.5) is Store.AURORA
    assert scene.now < 0.3


def test_no_patience_is_no_pause() -> None:
    assert lease_pauses(0) == ()
    assert sum(lease_pauses(0.5)) == pytest.approx(0.5, abs=0.03)
