"""What does not agree between the stores, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import Store

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from duostore_server.domain.keys import EntityKey

# Of one document, places that are told.
MAX_DIFFERENCES: Final = 20


class Drift(Enum):
    """A way in which DynamoDB or the cache does not agree; ``duostore.v1.DriftKind``, in short.

    The value is its name in metrics, logs and on the command line.
    """

    PROJECTION_OLDER = "projection_older"
    PROJECTION_NEWER = "projection_newer"
    PROJECTION_MISSING = "projection_missing"
    PROJECTION_CONTENT = "projection_content"
    PROJECTION_UNREADABLE = "projection_unreadable"
    PROJECTION_ORPHAN = "projection_orphan"
    PROJECTION_VERSION_MISSING = "projection_version_missing"
    CACHE_OLDER = "cache_older"
    CACHE_NEWER = "cache_newer"
    CACHE_CONTENT = "cache_content"
    CACHE_UNREADABLE = "cache_unreadable"

    @property
    def store(self) -> Store:
        """Return the store that does not agree."""
        return Store.CACHE if self.value.startswith("cache") else Store.DYNAMODB

    @property
    def misleads(self) -> bool:
        """Whether a reader is answered wrongly, or may be; of the others Aurora is asked."""
        return self not in _HARMLESS

    @property
    def is_evolution(self) -> bool:
        """Whether a kind that moves to another projection version is like this for a while.

        A backfill brings what lacks, at its rate.
        """
        return self is Drift.PROJECTION_VERSION_MISSING


# Readers pass over what is missing or cannot be read, and ask Aurora.
_HARMLESS: Final = frozenset(
    {
        Drift.PROJECTION_MISSING,
        Drift.PROJECTION_UNREADABLE,
        Drift.PROJECTION_VERSION_MISSING,
        Drift.CACHE_UNREADABLE,
    }
)


class Departure(Enum):
    """In which way one place of a document is not what it should be."""

    MISSING = "missing"
    EXTRA = "extra"
    TYPE = "type"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Difference:
    """One place of a document, such as ``author.name`` or ``tags[2]``; no value is told."""

    path: str
    departure: Departure


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing of one entity that does not agree. Versions are 0 where there is none."""

    key: EntityKey
    drift: Drift
    expected_version: int
    found_version: int
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class SavedVersion:
    """A version that was committed, and when."""

    key: EntityKey
    version: int
    time: datetime


@dataclass(frozen=True, slots=True)
class Verified:
    """One look of the verifier at a key.

    ``age`` is how long after the save it looked, zero for a row taken at random; ``version``
    the one that Aurora had.
    """

    key: EntityKey
    age: timedelta
    version: int
    time: datetime
    drifts: tuple[Drift, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundDrift:
    """A finding, and what was done about it.

    ``repair_error`` says why it was not repaired; empty if it was, or was not to be.
    """

    finding: Finding
    repaired: bool = False
    repair_error: str = ""


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """How far a check has come: all in all, and what drifts it found since the last word.

    ``checked`` counts entities and items; of those, ``undecided`` could not be compared, since
    they were changed again and again or a store could not be asked. ``drift_count`` and
    ``repaired_count`` are of all drifts so far. With ``done`` there is no more to come.
    """

    checked: int
    estimated_total: int
    drifts: tuple[FoundDrift, ...]
    drift_count: int
    repaired_count: int
    undecided_count: int
    done: bool = False
