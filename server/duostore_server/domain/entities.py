"""Entities as the stores hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.errors import Store
    from duostore_server.domain.keys import EntityKey


@dataclass(frozen=True, slots=True)
class Entity:
    """One version of an entity, as the authority holds it.

    ``version`` starts at 1. ``data`` is None if this version is a deletion (a
    tombstone). Times are aware and in UTC.
    """

    key: EntityKey
    version: int
    data: JsonObject | None
    create_time: datetime
    update_time: datetime


# The shape of a document as it was saved.
AS_SAVED: Final = 1


class Form(Enum):
    """What a projection holds of a version."""

    VALUE = "value"
    TOMBSTONE = "tombstone"
    STUB = "stub"


@dataclass(frozen=True, slots=True)
class Projection:
    """A version of an entity as DynamoDB holds it.

    A shape is the number of a projection version, 1 that of the document as it was saved. Of
    ``Form.VALUE`` there is the serialized ``duostore.v1.Entity`` in one shape or two: that of
    shape 1 is ``payload``, those of others are ``later``, with their numbers. ``Form.STUB``
    says that this version exists but has to be read from the authority: it was too large for
    DynamoDB, or cannot be read there.
    """

    version: int
    form: Form
    payload: bytes | None = None
    later: tuple[tuple[int, bytes], ...] = ()

    @property
    def shapes(self) -> frozenset[int]:
        """Return the shapes that there are; none but of ``Form.VALUE``."""
        first = () if self.payload is None else (AS_SAVED,)
        return frozenset((*first, *(shape for shape, _ in self.later)))

    def in_shape(self, shape: int) -> bytes | None:
        """Return the payload of a shape, None if it is not there."""
        if shape == AS_SAVED:
            return self.payload
        return next((payload for other, payload in self.later if other == shape), None)


@dataclass(frozen=True, slots=True)
class Cached:
    """What the cache remembers of a key.

    ``payload`` is the serialized ``duostore.v1.Entity``, or None: the entity is
    known to be absent, with ``version`` that of its tombstone, or 0 if it never
    existed. ``cached_time`` is when it was filled, aware and in UTC. From
    ``expire_time`` on, if set, the entity is absent. ``shape`` is that of the payload, 1 to
    100; see ``Projection``.
    """

    version: int
    payload: bytes | None
    cached_time: datetime
    expire_time: datetime | None = None
    shape: int = AS_SAVED


@dataclass(frozen=True, slots=True)
class Peeked:
    """What is found in the cache under a key, by a look that changes nothing.

    ``entry`` is None if what is there cannot be read. ``stored_bytes`` is what it takes.
    """

    entry: Cached | Lease | None
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to fill a vacant cache entry. ``nonce`` is 16 random bytes, never reused."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A key whose current version may not have reached the projection and the cache.

    ``id`` is new with each change to the key, so that completing an older row
    cannot take away a newer obligation. What was committed before ``as_of``, by the authority's
    clock, is brought by whoever has brought what the row stands for.
    """

    id: int
    key: EntityKey
    as_of: datetime = field(compare=False)


@dataclass(frozen=True, slots=True)
class PendingChange:
    """What the outbox says of a key: since when, and from when on a projector takes it up.

    ``age`` is how long ago it was changed, by the authority's clock like the times.
    """

    id: int
    create_time: datetime
    due_time: datetime
    age: timedelta


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much the outbox holds: rows, and the age in seconds of the oldest (0 if empty)."""

    depth: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer to a read: a version, where it came from and, unless absent, its payload.

    ``payload`` is the serialized ``duostore.v1.Entity``, or None if the entity
    does not exist (version 0) or is deleted (its tombstone's version).
    ``cached_time`` is set if ``served_from`` is the cache. From ``expire_time`` on, if
    set, the entity is absent. ``shape`` is that of the payload.
    """

    version: int
    payload: bytes | None
    served_from: Store
    cached_time: datetime | None = None
    expire_time: datetime | None = None
    shape: int = AS_SAVED
