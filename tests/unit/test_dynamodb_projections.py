from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.errors import (
    DeadlineExceededError,
    StoreOverloadedError,
    StoreTimeoutError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.dynamodb.coalescer import Direct
from duostore_server.storage.dynamodb.projections import DynamoProjections

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duostore_server.storage.dynamodb.items import Write

KEY = EntityKey("acme", "proposal", "hot")
OTHER = EntityKey("acme", "proposal", "cold")
VALUE = Projection(1, Form.VALUE, b"payload")


class World:
    """Time that passes only by pauses and by calls, which take ``call_seconds`` each."""

    def __init__(self, answers: Callable[[int], dict[EntityKey, Projection | None]]) -> None:
        self.now = 100.0
        self.call_seconds = 0.0
        self.asked: list[set[EntityKey]] = []
        self.pauses: list[float] = []
        self.alone = 0
        self._answers = answers

    def clock(self) -> float:
        return self.now

    def deadline(self, seconds: float) -> Deadline:
        return Deadline.after(seconds, clock=self.clock)

    def pause(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 6))
        self.now += seconds

    def read(self, keys: Sequence[EntityKey]) -> dict[EntityKey, Projection | None]:
        self.asked.append(set(keys))
        self.now += self.call_seconds
        answers = self._answers(len(self.asked))
        return {key: answers[key] for key in keys if key in answers}

    def put_together(self, writes: Sequence[Write]) -> dict[Write, Projection | None]:
        self.now += self.call_seconds
        return dict.fromkeys(writes)

    def put(self, writes: Sequence[Write]) -> dict[Write, Projection]:
        self.alone += 1
        return {write: write.projection for write in writes}

    def projections(self) -> DynamoProjections:
        return DynamoProjections(
            reads=Direct(self.read, max_batch=100),
            together=Direct(self.put_together, max_batch=25),
            alone=Direct(self.put, max_batch=1),
            compress_above=1024,
            timeout=1.0,
            pause=self.pause,
            jitter=lambda: 1.0,
            clock=self.clock,
        )


def test_only_what_was_not_processed_is_asked_for_again() -> None:
    world = World(lambda call: {KEY: VALUE} if call == 3 else {OTHER: None})
    assert world.projections().read((KEY, OTHER), world.deadline(9)) == {KEY: VALUE}
    assert world.asked == [{KEY, OTHER}, {KEY}, {KEY}]
    assert world.pauses == [0.01, 0.02]


def test_backoff_doubles_and_ends_with_the_timeout() -> None:
    world = World(lambda _: {})
    with pytest.raises(StoreOverloadedError):
        world.projections().read((KEY,), world.deadline(9))
    assert world.pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.37]
    assert world.now == pytest.approx(101.0)


def test_backoff_ends_with_the_deadline() -> None:
    world = World(lambda _: {})
    with pytest.raises(DeadlineExceededError):
        world.projections().read((KEY,), world.deadline(0.2))
    # Less the margin that is kept back for the answer's way.
    assert world.now == pytest.approx(100.18)


def test_a_slow_first_attempt_leaves_the_second_the_rest_of_the_timeout() -> None:
    world = World(lambda _: {})
    world.call_seconds = 0.4
    assert world.projections().put(KEY, VALUE, world.deadline(9)) == VALUE
    world.call_seconds = 1.0
    with pytest.raises(StoreTimeoutError):
        world.projections().put(KEY, VALUE, world.deadline(9))
    assert world.alone == 1
