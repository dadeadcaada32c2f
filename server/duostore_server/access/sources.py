"""Where a read goes that the cache cannot answer: each home of kinds has its way."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from duostore_server.access.propagation import projection_of
from duostore_server.domain.entities import Form, Reading
from duostore_server.domain.errors import DeadlineExceededError, Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

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
    send readers back to an older item.
    """

    def __init__(
        self, authority: Authority, projections: Projections, encode: Callable[[Entity], bytes]
    ) -> None:
        self._authority = authority
        self._projections = projections
        self._encode = encode

    def read(
        self, keys: list[EntityKey], min_version: int, deadline: Deadline
    ) -> dict[EntityKey, tuple[Reading, bool]]:
        held: Mapping[EntityKey, Projection] | None
        try:
            held = self._projections.read(keys, deadline.part(SHARE))
        except (StoreError, DeadlineExceededError):
            held = None
        answers: dict[EntityKey, tuple[Reading, bool]] = {}
        behind = []
        for key in keys:
            found = held.get(key) if held is not None else None
            if found is None or found.form is Form.STUB or found.version < min_version:
                behind.append(key)
            else:
                answers[key] = Reading(found.version, found.payload, Store.DYNAMODB), True
        if behind:
            rows = self._authority.read(behind, deadline)
            mine = {key: projection_of(row, self._encode) for key, row in rows.items()}
            now = None if held is None else self._put_missing(mine, held, deadline.part(SHARE))
            for key in behind:
                answers[key] = _answer(key, mine.get(key), now)
        return answers

    def read_home(self, key: EntityKey, deadline: Deadline) -> Reading:
        row = self._authority.read((key,), deadline).get(key)
        if row is None:
            return _ABSENT
        return Reading(row.version, projection_of(row, self._encode).payload, Store.AURORA)

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
            if (found := held.get(key)) is None or found.version < projection.version
        ]
        now = dict(held)
        for start in range(0, len(missing), _LOT):
            # A lot at a time, each with its own fate: others read from DynamoDB meanwhile.
            lot = dict(missing[start : start + _LOT])
            with suppress(StoreError, DeadlineExceededError):
                now |= self._projections.put_all(lot, deadline)
        return now


def _answer(
    key: EntityKey, mine: Projection | None, held: Mapping[EntityKey, Projection] | None
) -> tuple[Reading, bool]:
    """Return the reading of what Aurora has or, if that is newer, DynamoDB has by now.

    And whether DynamoDB holds that version; ``held`` is None if it cannot be reached.
    """
    now = held.get(key) if held is not None else None
    if mine is None:
        return _ABSENT, held is not None and now is None
    if now is not None and now.version > mine.version and now.form is not Form.STUB:
        return Reading(now.version, now.payload, Store.DYNAMODB), True
    reading = Reading(mine.version, mine.payload, Store.AURORA)
    return reading, now is not None and now.version == mine.version


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
