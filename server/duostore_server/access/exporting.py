"""Export: the rows of a named query as the database finds them, never cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from datetime import datetime

    from duostore_server.access.query_checks import QueryChecks
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.ports import Queries
    from duostore_server.domain.queries import Column, Row


@dataclass(frozen=True, slots=True)
class ExportPortion:
    """Rows of an export; the first portion alone has the columns, and ``as_of``."""

    rows: Sequence[Row]
    columns: tuple[Column, ...] = ()
    as_of: datetime | None = None


class Exporting:
    """Streams the results of named queries, however large they are."""

    def __init__(self, checks: QueryChecks, queries: Queries) -> None:
        self._checks = checks
        self._queries = queries

    def export(
        self, tenant: str, name: str, params: JsonObject, deadline: Deadline
    ) -> Generator[ExportPortion, None, None]:
        """Yield the rows in portions, at least one; the next is fetched when it is asked for.

        Raises as ``Querying.query`` does, but for the bounds of a result, which hold not here.
        """
        call = self._checks.call(tenant, name, params)
        with self._queries.open(call, deadline) as results:
            portions = results.portions()
            yield ExportPortion(next(portions, ()), results.columns, results.as_of)
            for portion in portions:
                yield ExportPortion(portion)
