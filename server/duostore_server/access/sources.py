"""Where a read goes that the cache cannot answer: each home of kinds has its way."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from duostore_server.domain.entities import Form, Reading
from duostore_server.domain.errors import DeadlineExceededError, Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from duostore_server.access.shapes import Shapes
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity, Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Authority, Heads, Projections
    from duostore_server.domain.snapshots import Head

_ABSENT: Final = Reading(0, None, Store.AURORA)

# Each step that can be done without leaves this share of the time that is left to those
# after it: a store that hangs must not use up the whole deadline.
SHARE: Final = 0.5
# What is brought to DynamoDB at a time on the way of a read.
_LOT: Final = 25


class Source(Protocol):
    """The stores behind the cache, for the kinds of one home."""

    def read(
        self, keys: list[EntityKey], min_version: int, deadline: Deadline
    ) -> dict[EntityKey, tuple[Reading, bool]]:
        """Return each key's reading, and whether that may be cached.

        Behind ``min_version`` only if the home itself is. Raises ``StoreError`` if no
        store that may answer can be reached.
        """
        ...

    def read_home(self, key: EntityKey, deadline: Deadline) -> Reading:
        """Return what the home of the kind holds; raises ``StoreError`` if it cannot tell."""
        ...


class ProjectedSource:
    """DynamoDB, then Aurora, which is right; what DynamoDB lacked is put there on the way.

    Only a version that DynamoDB already holds may be cached: else the next eviction would
    send readers back to an older item. An item that lacks the shape which readers get is as
    good as none.
    """

    def __init__(self, authority: Authority, projections: Projections, shapes: Shapes) -> None:
        self._authority = authority
        self._projections = projections
        self._shapes = shapes

    def read(
        self, keys: list[EntityKey], min_version: int, deadline: Deadline
    ) -> dict[EntityKey, tuple[Reading, bool]]:
        held: Mapping[EntityKey, Projection] | None
        try:
            held = self._projections.read(keys, deadline.part(SHARE))
        except (StoreError, DeadlineExceededError):
            held = None
        answers: dict[EntityKey, tuple[Reading, bool]] = {}
        behind: dict[EntityKey, int] = {}
        for key in keys:
            shapes = self._shapes.readable(key)
            found = None if held is None else held.get(key)
            reading = None if found is None else _reading(found, shapes)
            if reading is None or reading.version < min_version:
                behind[key] = self._shapes.to_read(key)
            else:
                answers[key] = reading, True
        if behind:
            rows = self._authority.read(list(behind), deadline)
            mine = {key: self._shapes.project(row) for key, row in rows.items()}
            now = None if held is None else self._put_missing(mine, held, deadline.part(SHARE))
            for key, shape in behind.items():
                row = rows.get(key)
                own = None if row is None else self._of_row(row, shape, mine.get(key))
                answers[key] = _answer(own, shape, None if now is None else now.get(key), now)
        return answers

    def read_home(self, key: EntityKey, deadline: Deadline) -> Reading:
        row = self._authority.read((key,), deadline).get(key)
        return _ABSENT if row is None else self._of_row(row, self._shapes.to_read(key))

    def _of_row(self, row: Entity, shape: int, projected: Projection | None = None) -> Reading:
        """Return the reading of what Aurora has; ``projected`` spares what was done already."""
        payload = projected.in_shape(shape) if projected is not None else None
        if payload is None and row.data is not None:
            payload = self._shapes.payload(row, shape)
        return Reading(row.version, payload, Store.AURORA, shape=shape)

    def _put_missing(
        self,
        mine: Mapping[EntityKey, Projection],
        held: Mapping[EntityKey, Projection],
        deadline: Deadline,
    ) -> Mapping[EntityKey, Projection]:
        """Bring what Aurora has to DynamoDB where that is older; return what is held now.

        What could not be brought is as it was.
        """
        missing = [
            (key, projection)
            for key, projection in mine.items()
            if (found := held.get(key)) is None or is_behind(found, projection)
        ]
        now = dict(held)
        for start in range(0, len(missing), _LOT):
            # A lot at a time, each with its own fate: others read from DynamoDB meanwhile.
            lot = dict(missing[start : start + _LOT])
            with suppress(StoreError, DeadlineExceededError):
                now |= self._projections.put_all(lot, deadline)
        return now


def is_behind(held: Projection, mine: Projection) -> bool:
    """Whether what is held is older, or as new without one of the shapes."""
    if held.version == mine.version and held.form is mine.form is Form.VALUE:
        return not mine.shapes <= held.shapes
    return held.version < mine.version


def _reading(found: Projection, shapes: tuple[int, ...]) -> Reading | None:
    """Return what DynamoDB answers; None if that is for Aurora to say.

    Of several ``shapes`` in which it may be answered it must have one alone.
    """
    if found.form is Form.TOMBSTONE:
        return Reading(found.version, None, Store.DYNAMODB, shape=shapes[0])
    there = [shape for shape in shapes if shape in found.shapes]
    if len(there) != 1:
        return None
    return Reading(found.version, found.in_shape(there[0]), Store.DYNAMODB, shape=there[0])


def _answer(
    own: Reading | None,
    shape: int,
    now: Projection | None,
    held: Mapping[EntityKey, Projection] | None,
) -> tuple[Reading, bool]:
    """Return the reading of what Aurora has or, if that is newer, DynamoDB has by ``now``.

    And whether DynamoDB holds that version; ``held`` is None if it cannot be reached.
    """
    if own is None:
        return _ABSENT, held is not None and now is None
    if now is not None and now.version > own.version:
        newer = _reading(now, (shape,))
        return (own, False) if newer is None else (newer, True)
    return own, now is not None and now.version == own.version


class HeadSource:
    """DynamoDB alone, for the kinds that are at home there."""

    def __init__(
        self,
        heads: Heads,
        compose: Callable[[bytes, Head], bytes],
        now: Callable[[], datetime],
    ) -> None:
        """``compose`` makes the serialized Entity of a head's payload and the head."""
        self._heads = heads
        self._compose = compose
        self._now = now

    def read(
        self,
        keys: list[EntityKey],
        min_version: int,  # noqa: ARG002 - nobody else could be asked for it
        deadline: Deadline,
    ) -> dict[EntityKey, tuple[Reading, bool]]:
        heads = self._heads.read(keys, deadline)
        now = self._now()
        return {key: (self._reading(heads.get(key), now), True) for key in keys}

    def read_home(self, key: EntityKey, deadline: Deadline) -> Reading:
        reading, _ = self.read([key], 0, deadline)[key]
        return reading

    def _reading(self, head: Head | None, now: datetime) -> Reading:
        if head is None:
            return Reading(0, None, Store.DYNAMODB)
        if head.payload is None or not head.is_live(now):
            return Reading(head.version, None, Store.DYNAMODB)
        payload = self._compose(head.payload, head)
        return Reading(head.version, payload, Store.DYNAMODB, expire_time=head.expire_time)
