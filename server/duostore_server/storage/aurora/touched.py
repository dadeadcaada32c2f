"""How the documents that a change of a source touches are found, in the order of their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg.types.numeric import Int8

from duostore_server.domain.queries import TENANT
from duostore_server.domain.read_models import ID
from duostore_server.storage.aurora.sql_splice import as_text, quoted, spliced
from duostore_server.storage.aurora.trips import Statement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import LiteralString

    from duostore_server.domain.read_models import Source

# Parameters with a colon, as none of the configuration has. Rows of a page may be the same: all
# that equal its last are behind it.
_PAGE: Final = """
SELECT tenant, id
FROM (
{found}
) AS found
WHERE %(after:id)s::text IS NULL
    OR (tenant COLLATE "C", id COLLATE "C") > (%(after:tenant)s::text, %(after:id)s::text)
ORDER BY tenant COLLATE "C", id COLLATE "C"
LIMIT %(limit:)s
"""

# What `tenant` means is for SQL to decide: the column of the SELECT of the configuration or, if
# that has none, the one that is given beside it. NULL becomes what no key can have.
_KEYS: Final = """
    SELECT coalesce(duostore_keys.tenant, '#') AS tenant, coalesce(duostore_keys.id, '') AS id
    FROM (SELECT {tenant} AS tenant) AS duostore_given
    CROSS JOIN LATERAL (
        SELECT tenant::text AS tenant, id::text AS id
        FROM (
{ids}
        ) AS duostore_touched
    ) AS duostore_keys
"""

# Of many changes at once, which is for few documents: no more than these are looked for, in no
# order. The name of the image is none that SQL of the configuration has.
_TOGETHER: Final = """
SELECT tenant, id
FROM (
    SELECT duostore_found.tenant, duostore_found.id
    FROM (
        SELECT image AS duostore_image
        FROM duostore.source_change
        WHERE id = ANY (%(changes:)s::bigint[])
    ) AS duostore_change
    CROSS JOIN LATERAL (
{keys}
    ) AS duostore_found
    LIMIT %(limit:)s
) AS found
ORDER BY tenant COLLATE "C", id COLLATE "C"
"""

# All that the source leads to now, and whatever it led to before that has become a document.
_OF_ALL: Final = """
    SELECT duostore_found.tenant, duostore_found.id
    FROM {table} AS duostore_source
    CROSS JOIN LATERAL (
{keys}
    ) AS duostore_found
    WHERE {wanted}
    UNION ALL
    SELECT tenant, id FROM duostore.entity WHERE kind = %(kind:)s AND NOT deleted
"""


class Touched:
    """The documents of a kind that changes of one of its sources touch."""

    def __init__(self, kind: str, source: Source) -> None:
        self._kind = kind
        self._names = {place.name for place in source.ids.placeholders()}
        self._of_an_image = _of_an_image(source)
        self._of_images = _of_images(source)
        self._of_all = _of_all(source)

    def page(
        self,
        image: Mapping[str, str | None] | None,
        after: tuple[str, str] | None,
        limit: int,
    ) -> Statement:
        """Return the statement that finds the next keys, some of them perhaps more than once.

        Its rows are tenant and id, either of which may be none that a key can have. ``image``
        is that of the change, None if any row may have changed; ``after`` is where the page
        before it ended.
        """
        after_tenant, after_id = after or (None, None)
        params: dict[str, Any] = {
            "after:tenant": after_tenant,
            "after:id": after_id,
            "limit:": Int8(limit),
        }
        if image is None:
            return Statement(self._of_all, {**params, "kind:": self._kind})
        values = {name: image.get(name) for name in self._names}
        tenant = {TENANT: image.get(TENANT) or ""}
        return Statement(self._of_an_image, {**params, **values, **tenant})

    def together(self, changes: Sequence[int], limit: int) -> Statement:
        """Return the statement that finds up to ``limit`` keys of changes that have images.

        Its rows are as those of ``page``, one for each change that touches a document.
        """
        return Statement(self._of_images, {"changes:": list(changes), "limit:": Int8(limit)})


def _of_an_image(source: Source) -> LiteralString:
    expressions = {place.name: f"%({place.name})s::text" for place in source.ids.placeholders()}
    return _PAGE.format(found=_keys(source, expressions, f"%({TENANT})s::text"))


def _of_images(source: Source) -> LiteralString:
    expressions = {
        place.name: f"duostore_change.duostore_image ->> {as_text(place.name)}"
        for place in source.ids.placeholders()
    }
    tenant = f"coalesce(duostore_change.duostore_image ->> {as_text(TENANT)}, '')"
    expressions[TENANT] = tenant
    return _TOGETHER.format(keys=_keys(source, expressions, tenant))


def _of_all(source: Source) -> LiteralString:
    if source.kind is not None:
        table = "duostore.entity"
        wanted = f"duostore_source.kind = {as_text(source.kind)} AND NOT duostore_source.deleted"
        expressions = {
            **{name: f"duostore_source.data ->> {as_text(name)}" for name in source.fields},
            TENANT: "duostore_source.tenant",
            ID: "duostore_source.id",
        }
    else:
        table, wanted = quoted(*(source.table or "").split(".", 1)), "true"
        expressions = {name: f"duostore_source.{quoted(name)}::text" for name in source.fields}
    tenant = f"coalesce({expressions[TENANT]}, '')" if TENANT in expressions else "''::text"
    expressions[TENANT] = tenant
    keys = _keys(source, expressions, tenant)
    return _PAGE.format(found=_OF_ALL.format(keys=keys, table=table, wanted=wanted))


def _keys(source: Source, expressions: Mapping[str, str], tenant: str) -> str:
    return _KEYS.format(tenant=tenant, ids=spliced(source.ids.statement, expressions))
