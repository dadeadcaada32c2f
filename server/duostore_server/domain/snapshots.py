"""What lives in DynamoDB alone: snapshots, and entities of the kinds at home there.

Both have a *head*, one item in which the newest content and its number stand; each
write raises the number by one. A head may be dirty: it holds what Aurora has not been
brought yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.transactions import Idempotency, Precondition


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """A snapshot that is to be appended.

    ``payload`` is the serialized ``duostore.v1.EntitySnapshot`` without its sequence.
    ``in_history``: it is kept beside the newest one. It is due for consolidation
    ``consolidate_after`` the oldest snapshot that was not consolidated.
    """

    key: EntityKey
    payload: bytes
    time: datetime
    in_history: bool
    consolidate_after: timedelta
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """An acknowledged snapshot. ``replayed``: it was appended earlier, under the same key."""

    sequence: int
    time: datetime
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A snapshot as it is held; ``payload`` as in ``NewSnapshot``."""

    sequence: int
    payload: bytes
    time: datetime


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """Snapshots, newest first, and whether there may be older ones."""

    snapshots: Sequence[StoredSnapshot]
    more: bool


@dataclass(frozen=True, slots=True)
class HeadChange:
    """A Save (``payload`` set) or a Delete (``payload`` None) of an entity at home in DynamoDB.

    ``payload`` is the serialized ``duostore.v1.Entity`` without version and times.
    ``now`` is the writer's clock: an entity that has expired by then is absent to the
    precondition. ``ttl``: it expires so long after this write. ``consolidate_after``:
    as of ``NewSnapshot``, or None if the kind is not consolidated.
    """

    key: EntityKey
    payload: bytes | None
    precondition: Precondition
    now: datetime
    ttl: timedelta | None
    consolidate_after: timedelta | None
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """One version of an entity at home in DynamoDB.

    ``payload`` as in ``HeadChange``, or None if the version is a deletion. From
    ``expire_time`` on, if set, the entity is absent.
    """

    version: int
    payload: bytes | None
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None

    def is_live(self, now: datetime) -> bool:
        """Return whether the entity exists."""
        return self.payload is not None and (self.expire_time is None or now < self.expire_time)


@dataclass(frozen=True, slots=True)
class HeadWritten:
    """An applied write. ``replayed``: it was applied earlier, under the same key."""

    version: int
    update_time: datetime
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class DirtyHead:
    """A head that is due for consolidation, as it was when it was looked at.

    ``number`` is its sequence or version. ``payload`` is None for a deletion, otherwise
    as it was written. Its history goes up to ``history``, or there is none if that is 0,
    and has its expiry already up to ``expiring``. From ``expire_time`` on, if set, the
    entity is absent.
    """

    key: EntityKey
    number: int
    payload: bytes | None
    time: datetime
    expiring: int = 0
    history: int = 0
    expire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class DueHeads:
    """Heads that are due, and whether there may be more."""

    heads: Sequence[DirtyHead]
    more: bool


@dataclass(frozen=True, slots=True)
class Draft:
    """The newest content of a head, as Aurora holds it.

    ``data`` is None for a deletion. From ``expire_time`` on, if set, the entity is absent.
    """

    key: EntityKey
    sequence: int
    data: JsonObject | None
    update_time: datetime
    expire_time: datetime | None = None
