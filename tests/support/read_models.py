"""Relational and derived kinds for tests, of SQL that stands in the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.config.sql_files import parse
from duostore_server.domain.read_models import ReadModel, Source

if TYPE_CHECKING:
    from collections.abc import Mapping


def of_kind(kind: str, ids: str, *fields: str) -> Source:
    """Return the entities of a kind as a source."""
    return Source(kind, None, fields, parse("ids.sql", ids))


def of_table(table: str, ids: str, *fields: str) -> Source:
    """Return the rows of a table as a source."""
    return Source(None, table, fields, parse("ids.sql", ids))


def read_model(
    kind: str,
    sql: str,
    *sources: Source,
    save: str = "",
    delete: str = "",
    max_bytes: int = 4096,
) -> ReadModel:
    """Return the read model of a kind, derived unless there is SQL that saves and deletes."""
    return ReadModel(
        kind,
        parse("read_model.sql", sql),
        max_bytes,
        sources,
        parse("save.sql", save) if save else None,
        parse("delete.sql", delete) if delete else None,
    )


def by_kind(*models: ReadModel) -> Mapping[str, ReadModel]:
    """Return read models as the stores take them."""
    return {model.kind: model for model in models}
