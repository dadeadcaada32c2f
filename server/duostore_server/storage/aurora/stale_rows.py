"""How a document becomes stale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.storage.aurora.trips import Statement

if TYPE_CHECKING:
    from collections.abc import Collection

    from duostore_server.domain.keys import EntityKey

# A row that is there gets a new id, so that who recomputes it now, and may have read what was
# before, takes nothing away; it is due no later than it was. Rows are locked in the order of
# their keys, so that two that touch the same ones do not wait for each other in a circle.
_TOUCH: Final = """
INSERT INTO duostore.stale AS s (tenant, kind, entity_id)
SELECT DISTINCT ON (tenant COLLATE "C", kind COLLATE "C", id COLLATE "C") tenant, kind, id
FROM unnest(%s::text[], %s::text[], %s::text[]) AS touched (tenant, kind, id)
ORDER BY tenant COLLATE "C", kind COLLATE "C", id COLLATE "C"
ON CONFLICT (tenant, kind, entity_id) DO UPDATE SET
    id = DEFAULT,
    failures = 0,
    due_time = least(s.due_time, excluded.due_time)
"""


def touching(keys: Collection[EntityKey]) -> Statement:
    """Return the statement that makes documents stale, whether they exist or not."""
    columns = (
        [key.tenant for key in keys],
        [key.kind for key in keys],
        [key.id for key in keys],
    )
    return Statement(_TOUCH, columns)
