"""What goes into calls and comes out of them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta


def require_text(name: str, text: object) -> None:
    """Raise ``TypeError``, by this name, for what is no string."""
    if not isinstance(text, str):
        raise TypeError(
            f"{name} is {text!r}, of type {type(text).__name__}; send a str"
            " (ids that are numbers: str(number))"
        )


@dataclass(frozen=True, slots=True)
class Key:
    """Names one entity; unique in a deployment. ``tenant`` is empty in a single-tenant one.

    Raises ``TypeError`` if a part is not a string. What the strings may contain is the
    server's to say: see ``EntityKey`` in ``entity.proto``.
    """

    kind: str
    id: str
    tenant: str = ""

    def __post_init__(self) -> None:
        for name in ("kind", "id", "tenant"):
            require_text(name, getattr(self, name))


class Store(StrEnum):
    """The store that answered a read. ``UNKNOWN`` if the server knows more than this client."""

    CACHE = "cache"
    DYNAMODB = "dynamodb"
    AURORA = "aurora"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Entity:
    """One version of an entity.

    ``version`` is 1 for the first save and one more for each further save or delete; it
    is what ``min_version`` and ``if_version`` take. In ``data`` whole numbers are ``int``
    and all others ``float``. Times are aware and in UTC.

    ``served_from`` says which store answered, of a batch the slowest that was asked;
    ``cached_time``, set if that was the cache, when the answer was put there (the oldest
    of a batch). The answer is equally good from every store, so neither counts in a
    comparison.
    """

    tenant: str
    kind: str
    id: str
    version: int
    data: dict[str, Any] = field(hash=False)
    create_time: datetime
    update_time: datetime
    served_from: Store = field(compare=False)
    cached_time: datetime | None = field(compare=False)

    @property
    def key(self) -> Key:
        """Return the name of the entity."""
        return Key(self.kind, self.id, self.tenant)


@dataclass(frozen=True, slots=True)
class Saved:
    """A write, or a deletion, that is committed and cannot be lost.

    ``version`` is the version that it created: a read with it as ``min_version`` sees
    this write or a newer one, whatever fails. ``projected`` says that every read that
    starts from now on sees it even without; if False, they do normally within two
    seconds. ``update_time`` is aware and in UTC. ``replayed`` says that the write was
    applied by an earlier call with the same idempotency key, whose answer this is.
    """

    version: int
    update_time: datetime
    projected: bool
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Save:
    """Part of a transaction: create an entity or replace its data, as ``Client.save`` does."""

    kind: str
    id: str
    data: Mapping[str, Any] = field(hash=False)
    _: KW_ONLY
    if_version: int | None = None
    if_absent: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """Part of a transaction: save what a snapshot holds, as ``Client.publish`` does."""

    kind: str
    id: str
    sequence: int = 0
    _: KW_ONLY
    if_version: int | None = None
    if_absent: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Part of a transaction: delete an entity, as ``Client.delete`` does."""

    kind: str
    id: str
    _: KW_ONLY
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Part of a transaction: require that an entity has a version, and change nothing."""

    kind: str
    id: str
    if_version: int


Mutation: TypeAlias = Save | Publish | Delete | Check


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of one mutation: the version that it created, or that was checked.

    ``update_time`` is when that version was committed, aware and in UTC.
    """

    key: Key
    version: int
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Transacted:
    """A transaction that is committed and cannot be lost.

    ``results`` has what came of each mutation, in their order. ``projected`` says that
    every read that starts from now on sees all of it; ``replayed`` as of ``Saved``.
    """

    results: tuple[Applied, ...]
    projected: bool
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Appended:
    """A snapshot that is stored and cannot be lost.

    ``sequence`` is larger than that of every snapshot of the entity before it; numbers
    may be left out. ``snapshot_time`` is aware and in UTC; ``replayed`` as of ``Saved``.
    """

    sequence: int
    snapshot_time: datetime
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What somebody was writing at a moment: a document beside its entity.

    ``sequence`` and ``snapshot_time`` as of ``Appended``, ``data`` as of ``Entity``.
    """

    tenant: str
    kind: str
    id: str
    sequence: int
    data: dict[str, Any] = field(hash=False)
    snapshot_time: datetime

    @property
    def key(self) -> Key:
        """Return the name of the entity."""
        return Key(self.kind, self.id, self.tenant)


@dataclass(frozen=True, slots=True)
class QuotaDecision:
    """Whether a quota allows what was asked for: true in a condition if it does.

    ``limit`` and ``remaining`` are in units; at least so many as ``remaining`` are left.
    ``reset_time``, aware and in UTC, is when all that is used by now is available again;
    None if DynamoDB could not be asked. ``retry_after`` is None if it is allowed, or never
    can be, since the cost is above the limit; otherwise the time after which it can be,
    unless others are faster. ``replayed`` says that an earlier call with the same
    idempotency key was allowed, and nothing more was debited; ``unchecked`` that nothing
    was, since DynamoDB could not be reached and the quota is configured to allow then.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_time: datetime | None
    retry_after: timedelta | None = None
    replayed: bool = False
    unchecked: bool = False

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True, slots=True)
class Settled:
    """How a reservation was settled.

    ``committed`` units count as used and ``refunded`` ones were given back. ``covered`` is
    False if more was used than was reserved, and the quota had no room for the rest, which
    was not debited. ``replayed`` says that an earlier call settled it so.
    """

    committed: int
    refunded: int
    covered: bool
    replayed: bool = False
