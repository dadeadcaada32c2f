"""What the configuration of queries, and of kinds that SQL builds, means to the use cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.queries import Query as NamedQuery
from duostore_server.domain.read_models import ReadModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.config.query_settings import Query
    from duostore_server.config.settings import Settings


def queries(settings: Settings) -> Mapping[str, NamedQuery]:
    """Return how the configured queries are answered, by name; their SQL was read at load."""
    return {name: _query(name, query) for name, query in settings.queries.items()}


def read_models(settings: Settings) -> Mapping[str, ReadModel]:
    """Return how documents are built of the kinds that SQL builds, by the name of the kind."""
    return {
        name: ReadModel(
            kind=name,
            sql=kind.read_model,
            max_bytes=kind.max_bytes,
            sources=tuple(kind.depends_on),
            save=kind.save_sql,
            delete=kind.delete_sql,
        )
        for name, kind in settings.kinds.items()
        if kind.read_model is not None
    }


def _query(name: str, query: Query) -> NamedQuery:
    return NamedQuery(
        name=name,
        sql=query.sql,
        params=dict(query.params),
        cache_ttl=query.cache_ttl,
        max_rows=query.max_rows,
        max_bytes=query.max_bytes,
        timeout=query.timeout,
        depends_on=query.depends_on,
    )
