"""What each store holds of one entity, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from duostore_server.domain.drift import Finding, Verified
    from duostore_server.domain.entities import PendingChange
    from duostore_server.domain.keys import EntityKey


class Holding(Enum):
    """What there is of an entity in one store; ``duostore.v1.TierState.Holding``, in short."""

    NOTHING = "nothing"
    VALUE = "value"
    ABSENT = "absent"
    STUB = "stub"
    LEASE = "lease"
    UNREADABLE = "unreadable"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TierState:
    """What one store holds of an entity.

    ``version`` is 0 if there is none; ``stored_bytes`` is of Aurora the document as compact
    JSON. ``time`` is when it was written, or filled if it is the cache; None if that cannot be
    told. ``expire_time`` is when it goes by itself at the latest, if it does. ``shapes`` are the
    projection versions that are there, in order. ``fault`` says why it cannot be read or asked,
    empty if it can.
    """

    holding: Holding
    version: int = 0
    stored_bytes: int = 0
    time: datetime | None = None
    expire_time: datetime | None = None
    shapes: tuple[int, ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True)
class NewestSnapshot:
    """The number of the newest snapshot of an entity, and when it was written."""

    sequence: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Explained:
    """What each store holds of one entity, and what follows from it.

    ``aurora`` is None if the kind is at home in DynamoDB; ``dynamodb`` is then its head.
    ``outbox`` is there if the newest version may not be projected yet; ``snapshot`` if the
    kind keeps any and there is one; ``verification`` if the verifier has looked at the entity
    and that is not forgotten. What of those could not be asked is None too. ``drifts`` is all
    that does not agree with the store that is right, pending or not; ``verdict`` what it comes
    to, in one sentence.
    """

    key: EntityKey
    aurora: TierState | None
    dynamodb: TierState
    cache: TierState
    outbox: PendingChange | None
    snapshot: NewestSnapshot | None
    verification: Verified | None
    drifts: tuple[Finding, ...]
    verdict: str
