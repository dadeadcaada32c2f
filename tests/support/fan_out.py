"""A derived kind over a kind and a table, and workers that bring its documents up to date."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Change
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.definitions import digest_of
from duostore_server.storage.aurora.source_changes import AuroraSourceChanges
from duostore_server.storage.aurora.stale import AuroraStaleDocuments
from duostore_server.storage.aurora.triggers import install
from tests.support.authority_engines import empty, soon, write_of
from tests.support.authority_faults import query
from tests.support.read_models import by_kind, of_kind, of_table, read_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duostore_server.domain.read_models import (
        ReadModel,
        Recomputed,
        SourceChange,
        StaleDocument,
    )
    from duostore_server.storage.aurora.pool import AuroraPool

TENANT = "acme"

TABLES = """
CREATE TABLE public.owner (id text PRIMARY KEY, name text, rank integer);
CREATE TABLE public.membership (owner text, team text);
"""

# What an author has: a name, from a table, and a number of notes, which are entities.
CARD = read_model(
    "card",
    """
    SELECT name, 10 / rank AS share, (
        SELECT count(*) FROM duostore.entity
        WHERE tenant = :tenant AND kind = 'note' AND NOT deleted AND data ->> 'author' = :id
    ) AS notes
    FROM public.owner
    WHERE id = :id
    """,
    of_kind("note", "SELECT :author AS id WHERE :author IS NOT NULL -- nobody's", "author"),
    of_table("public.owner", "SELECT 'acme' AS tenant, :id AS id", "id"),
)
# One change of a team touches the cards of all of its members.
TEAM_CARD = read_model(
    "team_card",
    "SELECT owner, string_agg(team, ',' ORDER BY team) AS teams FROM public.membership"
    " WHERE owner = :id GROUP BY owner",
    of_kind("team", "SELECT owner AS id FROM public.membership WHERE team = :id"),
    of_table("public.membership", "SELECT 'acme' AS tenant, :owner AS id", "owner"),
)
MODELS = by_kind(CARD, TEAM_CARD)


def begin(dsn: str) -> None:
    """Leave the tables empty, and have their changes noted from now on."""
    install(dsn, MODELS)
    empty(dsn)
    query(dsn, "TRUNCATE public.owner, public.membership")
    query(dsn, "TRUNCATE duostore.source_change, duostore.stale")


def define(dsn: str, models: Mapping[str, ReadModel]) -> None:
    """Have the database know read models as they are here, though no change of theirs is noted."""
    for model in models.values():
        for source in model.sources:
            query(
                dsn,
                "INSERT INTO duostore.read_model VALUES (%s, %s, %s, now())"
                " ON CONFLICT (kind, source) DO UPDATE SET digest = excluded.digest",
                model.kind,
                source.name,
                digest_of(model, source),
            )


def note(pool: AuroraPool, id_: str, author: str | None, kind: str = "note") -> None:
    """Save an entity that cards depend on, or delete it if it has no author."""
    data = None if author is None else {"author": author}
    change = Change(EntityKey(TENANT, kind, id_), data, None, timedelta())
    AuroraAuthority(pool).write(write_of(change), soon())


def card(id_: str, kind: str = "card") -> EntityKey:
    """Return the key of a card."""
    return EntityKey(TENANT, kind, id_)


def found(pool: AuroraPool, *keys: EntityKey) -> list[Any]:
    """Return the documents of keys, None of those that do not exist."""
    entities = AuroraAuthority(pool).read(keys, soon())
    return [entities[key].data if key in entities else None for key in keys]


def elapse(dsn: str, seconds: float) -> None:
    """Make all rows so much older."""
    for table in ("source_change", "stale"):
        query(
            dsn,
            f"UPDATE duostore.{table} SET due_time = due_time - make_interval(secs => %s),"
            " create_time = create_time - make_interval(secs => %s)",
            seconds,
            seconds,
        )


def claimed(changes: AuroraSourceChanges, limit: int = 100) -> Sequence[SourceChange]:
    """Return the changes that are due."""
    return changes.claim(limit, soon())


def expand_all(changes: AuroraSourceChanges, page: int = 100) -> int:
    """Expand all changes that are due; return how many pages that took."""
    pages = 0
    while due := claimed(changes):
        for change in due:
            changes.expand(change, page, soon())
            pages += 1
    return pages


def stale(dsn: str) -> list[str]:
    """Return the ids of the documents that are stale."""
    rows = query(dsn, "SELECT entity_id FROM duostore.stale ORDER BY kind, entity_id")
    return [str(id_) for (id_,) in rows]


def all_due(documents: AuroraStaleDocuments) -> Sequence[StaleDocument]:
    """Return all documents that are due."""
    return documents.claim(10_000, soon())


def recompute_all(documents: AuroraStaleDocuments) -> Mapping[str, Recomputed]:
    """Recompute all documents that are due, and return what came of it, by id."""
    recomputed: dict[str, Recomputed] = {}
    while due := documents.claim(100, soon()):
        recomputed |= {each.key.id: each for each in documents.recompute(due, soon())}
    return recomputed


def bring_up_to_date(pool: AuroraPool) -> Mapping[str, Recomputed]:
    """Work off all that is due, until nothing is."""
    expand_all(AuroraSourceChanges(pool, MODELS))
    return recompute_all(AuroraStaleDocuments(pool, MODELS))
