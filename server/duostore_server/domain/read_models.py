"""Documents that SQL builds: of relational kinds and of derived ones, and what they depend on.

A change of a source is noted in the transaction that makes it. It is expanded, a page at a
time, into the documents that it touches; those are stale until they are recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.sql import SqlFile
    from duostore_server.domain.transactions import Written

# What the SQL of a kind may use as parameters, beside the fields of a source.
ID: Final = "id"
DATA: Final = "data"
VERSION: Final = "version"


@dataclass(frozen=True, slots=True)
class Source:
    """What documents depend on: the entities of a kind, or the rows of a table.

    One of ``kind`` and ``table`` is set. ``fields`` are those of the document, or columns of
    the table, that decide which documents a change touches. ``ids`` is a SELECT that is
    told them by name, as text (NULL where they are not there), and for a kind ``tenant`` and
    ``id``; it answers a column ``id`` and, unless they are the source's, ``tenant``. It is
    run for what a row was before the change and for what it is after.
    """

    kind: str | None
    table: str | None
    fields: tuple[str, ...]
    ids: SqlFile

    @property
    def name(self) -> str:
        """Return ``kind:NAME`` or ``table:NAME``, unique among the sources of a kind."""
        return f"kind:{self.kind}" if self.kind is not None else f"table:{self.table}"


@dataclass(frozen=True, slots=True)
class ReadModel:
    """How SQL builds the documents of a kind.

    ``sql`` is a SELECT that is told ``tenant`` and ``id`` and answers one row, whose columns
    are the fields of the document, or none if there is no document. A relational kind has
    ``save`` and ``delete``, which are run in the transaction of the change and told
    ``tenant``, ``id`` and ``version``, ``save`` also ``data``; a derived kind has neither.
    ``max_bytes`` bounds the document as compact JSON in UTF-8.
    """

    kind: str
    sql: SqlFile
    max_bytes: int
    sources: tuple[Source, ...] = ()
    save: SqlFile | None = None
    delete: SqlFile | None = None

    @property
    def is_derived(self) -> bool:
        """Whether callers can only read such documents."""
        return self.save is None


@dataclass(frozen=True, slots=True)
class SourceChange:
    """A change of a source that is not expanded yet, or not to its end.

    ``begun``: some of the documents that it touches were found already. ``alone``: it is not
    for ``SourceChanges.expand_together``, for it is begun, or has failed, or is of any row.
    """

    id: int
    kind: str
    source: str
    begun: bool
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Expansion:
    """One page of an expansion: how many documents became stale, and whether it was the last."""

    touched: int
    done: bool


@dataclass(frozen=True, slots=True)
class StaleDocument:
    """A document that has to be recomputed. ``id`` is new with each change that touches it."""

    id: int
    key: EntityKey


class Outcome(Enum):
    """What a recomputation came to."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A document that was recomputed. ``written`` is its new version, if it has changed."""

    key: EntityKey
    outcome: Outcome
    written: Written | None = None


@dataclass(frozen=True, slots=True)
class FanOutBacklog:
    """How much is left: changes to expand, documents to recompute, the age of the oldest.

    ``failing`` are those of either whose SQL failed when it was last tried, which ``changes``
    and ``stale`` leave out: they wait for a person, and keep nothing else waiting.
    """

    changes: int
    stale: int
    failing: int
    oldest_seconds: float
