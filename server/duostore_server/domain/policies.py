"""What the configuration says of each kind of entity."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Final

from duostore_server.domain.entities import AS_SAVED
from duostore_server.domain.errors import FieldViolation
from duostore_server.domain.keys import MAX_KIND_BYTES, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.keys import EntityKey

# An inline change falls due for the projector after this long, so that the
# request that made it normally gets there first.
INLINE_DUE_AFTER: Final = timedelta(seconds=1)


class Home(Enum):
    """The store that is right about a kind."""

    AURORA = "aurora"
    DYNAMODB = "dynamodb"


class ProjectionMode(Enum):
    """Who projects a change: the request that made it, or the projector alone."""

    INLINE = "inline"
    ASYNC = "async"


class TransformError(ValueError):
    """A document cannot be brought into a shape; the text says why, and quotes no value."""


def _accept_all(_: JsonObject) -> Iterator[FieldViolation]:
    return iter(())


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """How snapshots of a kind are kept.

    They are brought to Aurora every ``consolidate_every`` at the latest; after that the
    history keeps each for ``keep``, or has none if that is zero.
    """

    consolidate_every: timedelta
    keep: timedelta


@dataclass(frozen=True, slots=True)
class KindPolicy:
    """How entities of one kind are kept.

    Times are seconds, or timedeltas. ``max_bytes`` bounds the document as compact JSON
    in UTF-8. ``ttl`` and ``consolidate_every`` are of kinds at home in DynamoDB: after
    ``ttl`` an entity is absent; ``consolidate_every`` so often it is brought to Aurora.
    ``snapshots`` are kept for kinds at home in Aurora alone, if set. Documents of a
    ``derived`` kind are computed, and callers can only read them; those of a ``relational``
    one are what its read model makes of what is saved.
    ``schema_violations`` yields all that a document breaks of the kind's JSON
    Schema, with fields below ``data``. ``projection_version`` is the newest shape of its
    projections, and ``transforms`` has for each shape from 2 on, the newest and the one
    before it at least, what makes it of the document as saved, or raises ``TransformError``.
    """

    cache_ttl: float
    absent_ttl: float
    projection: ProjectionMode
    max_bytes: int
    schema_violations: Callable[[JsonObject], Iterable[FieldViolation]] = _accept_all
    home: Home = Home.AURORA
    ttl: timedelta | None = None
    consolidate_every: timedelta | None = None
    snapshots: SnapshotPolicy | None = None
    derived: bool = False
    relational: bool = False
    projection_version: int = AS_SAVED
    transforms: Mapping[int, Callable[[JsonObject], JsonObject]] = field(default_factory=dict)

    @property
    def due_after(self) -> timedelta:
        """Return when a change falls due for the projector, counted from its commit."""
        return INLINE_DUE_AFTER if self.projection is ProjectionMode.INLINE else timedelta()


class Policies:
    """The kinds of a deployment."""

    def __init__(self, kinds: Mapping[str, KindPolicy]) -> None:
        self._kinds = dict(kinds)

    def of(self, key: EntityKey) -> KindPolicy:
        """Return the policy of a key whose kind was found to be configured."""
        return self._kinds[key.kind]

    def snapshots_of(self, key: EntityKey) -> SnapshotPolicy:
        """Return how snapshots of a key are kept whose kind was found to keep any."""
        snapshots = self._kinds[key.kind].snapshots
        if snapshots is None:
            raise ValueError(f"{key.kind!r} keeps no snapshots")
        return snapshots

    def find(self, key: EntityKey) -> KindPolicy | None:
        """Return the policy of any key; None if its kind is not configured."""
        return self._kinds.get(key.kind)

    def names(self) -> tuple[str, ...]:
        """Return the names of the kinds, in order."""
        return tuple(sorted(self._kinds))

    def at_home(self, home: Home) -> tuple[str, ...]:
        """Return the names of the kinds that are at home there, in order."""
        return tuple(kind for kind in self.names() if self._kinds[kind].home is home)

    def of_kind(self, kind: str) -> KindPolicy | None:
        """Return the policy of a kind; None if it is not configured."""
        return self._kinds.get(kind)

    def violations(self, key: EntityKey, field: str) -> Iterator[FieldViolation]:
        """Yield a violation if the key's kind could be configured and is not.

        Quotes the kind: not one that is empty or too long to be one, which
        ``key_violations`` tells.
        """
        if key.kind in self._kinds or not 1 <= len(key.kind.encode()) <= MAX_KIND_BYTES:
            return
        yield FieldViolation(
            f"{field}.kind",
            f"{key.kind!r} is not a configured kind (configured: {listed(self._kinds)})",
        )
