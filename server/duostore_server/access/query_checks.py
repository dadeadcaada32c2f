"""Refuses queries that cannot be answered, naming every field at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.access.checks import refuse
from duostore_server.domain.errors import FieldViolation
from duostore_server.domain.keys import MAX_TENANT_BYTES, listed, part_violations
from duostore_server.domain.queries import MAX_QUERY_BYTES, QueryCall
from duostore_server.domain.query_params import accepted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.queries import Query


class QueryChecks:
    """Knows which queries are configured, and what their parameters may be."""

    def __init__(self, queries: Mapping[str, Query]) -> None:
        self._queries = queries

    def call(
        self, tenant: str, name: str, params: JsonObject, *others: FieldViolation
    ) -> QueryCall:
        """Accept a query with its parameters; raises ``InvalidRequestError``."""
        wrong = [
            *part_violations(tenant, "tenant", MAX_TENANT_BYTES, empty_ok=True, hash_ok=False),
            *self._name(name),
            *others,
        ]
        query = self._queries.get(name)
        if query is None:
            refuse(wrong)
            raise ValueError(f"{name!r} is no query and was accepted")
        values, violations = accepted(query, params)
        refuse([*wrong, *violations])
        return QueryCall(query, tenant, values)

    def _name(self, name: str) -> Iterator[FieldViolation]:
        if name in self._queries:
            return
        faults = list(
            part_violations(name, "query", MAX_QUERY_BYTES, empty_ok=False, hash_ok=False)
        )
        yield from faults
        if not faults:
            text = f"{name!r} is not a configured query (configured: {listed(self._queries)})"
            yield FieldViolation("query", text)
