"""Writes to the authority, and what makes them safe to repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from duostore_server.domain.errors import IdempotencyKeyReusedError

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.entities import Entity, OutboxRow
    from duostore_server.domain.keys import EntityKey


@dataclass(frozen=True, slots=True)
class IfVersion:
    """Precondition: the entity exists with this version."""

    version: int


@dataclass(frozen=True, slots=True)
class IfAbsent:
    """Precondition: the entity does not exist or is deleted."""


Precondition: TypeAlias = IfVersion | IfAbsent | None


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked for a write, for the audit: both may be empty."""

    caller: str
    request_id: str


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What a caller calls one intention; unique in its tenant."""

    tenant: str
    text: str

    def __str__(self) -> str:
        """Return ``tenant#text``, unambiguous since no tenant holds a ``#``."""
        return f"{self.tenant}#{self.text}"


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of one mutation: the version that it made or checked, and when that was."""

    version: int
    update_time: datetime


Answer: TypeAlias = tuple[Applied, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is remembered of a request that was applied.

    ``request_hash`` is 32 bytes; ``answer`` is in the order of the request.
    ``projected`` tells whether every reader is known to see it.
    """

    request_hash: bytes
    answer: Answer
    projected: bool = False


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A request that is to be applied once, however often it comes.

    ``request_hash`` is the SHA-256 of what it asks for. It is remembered for ``keep``,
    or longer.
    """

    key: IdempotencyKey
    request_hash: bytes
    keep: timedelta

    def answer_of(self, recorded: Recorded) -> Recorded:
        """Return what is recorded under this key.

        Raises ``IdempotencyKeyReusedError`` if it is of another request.
        """
        if recorded.request_hash != self.request_hash:
            raise IdempotencyKeyReusedError
        return recorded


@dataclass(frozen=True, slots=True)
class FromSnapshot:
    """Content that is a snapshot of the same entity; the newest if ``sequence`` is 0."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Save:
    """What a caller asks to be saved. ``content`` is None if there is none: refused."""

    key: EntityKey
    content: JsonObject | FromSnapshot | None
    precondition: Precondition


@dataclass(frozen=True, slots=True)
class Delete:
    """What a caller asks to be deleted."""

    key: EntityKey
    precondition: IfVersion | None


@dataclass(frozen=True, slots=True)
class Change:
    """A Save (``data`` set) or a Delete (``data`` None) of one entity.

    A Delete without precondition still requires that the entity exists, and cannot
    have ``IfAbsent``. ``due_after`` is how long the in-line projection has before the
    projector takes the change up.
    """

    key: EntityKey
    data: JsonObject | None
    precondition: Precondition
    due_after: timedelta


@dataclass(frozen=True, slots=True)
class Check:
    """Requires that an entity exists with a version when the transaction commits."""

    key: EntityKey
    version: int


Mutation: TypeAlias = Change | Check
Request: TypeAlias = Save | Delete | Check


@dataclass(frozen=True, slots=True)
class Transaction:
    """Mutations of different entities, all applied or none.

    ``mutations`` are 1 to 100, of different keys, in the order of the request.
    """

    mutations: tuple[Mutation, ...]
    origin: Origin
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A committed change, and the outbox row that it left."""

    entity: Entity
    row: OutboxRow


@dataclass(frozen=True, slots=True)
class Committed:
    """What a transaction came to.

    ``answer`` has what came of each mutation, in order. ``written`` are its changes,
    in the order of the request; there are none if it was ``replayed``: applied
    earlier, under the same idempotency key.
    """

    answer: Answer
    written: tuple[Written, ...]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a write.

    ``projected``: every read that starts from now on sees it. ``replayed``: it was
    applied earlier.
    """

    answer: Answer
    projected: bool
    replayed: bool = False
