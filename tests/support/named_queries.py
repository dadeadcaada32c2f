"""Named queries as the configuration would have them, and what they answer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from duostore_server.config.sql_files import parse
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.queries import Param, ParamType, Query, QueryCall
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.queries import AuroraQueries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.ports import Queries
    from duostore_server.domain.queries import ParamValue, Row

NAME = "by_test"


def named(sql: str, *, name: str = NAME, timeout: float = 10.0, **params: ParamType) -> Query:
    """Return a query of some SQL; a parameter whose name ends in ``s`` is a list."""
    return Query(
        name=name,
        sql=parse(f"sql/{name}.sql", sql),
        params={
            each: Param(each, type_, is_list=each.endswith("s")) for each, type_ in params.items()
        },
        cache_ttl=0.0,
        max_rows=1000,
        max_bytes=100_000,
        timeout=timeout,
    )


def call(query: Query | str, values: dict[str, ParamValue] | None = None) -> QueryCall:
    """Return a call of a query, or of some SQL without parameters."""
    return QueryCall(named(query) if isinstance(query, str) else query, "acme", values or {})


def answer(
    queries: Queries,
    query: Query | str,
    values: dict[str, ParamValue] | None = None,
    deadline: Deadline | None = None,
) -> list[Row]:
    """Return all rows of a query."""
    with queries.open(call(query, values), deadline or Deadline.after(30)) as results:
        return [row for portion in results.portions() for row in portion]


@contextmanager
def querying(dsn: str, *, max_size: int = 4, **options: Any) -> Iterator[AuroraQueries]:
    """Open queries on a database, by a pool of their own."""
    with AuroraPool(dsn, min_size=0, max_size=max_size, wait=5) as pool:
        yield AuroraQueries(pool, **options)
