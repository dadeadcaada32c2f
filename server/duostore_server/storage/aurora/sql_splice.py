"""SQL of the configuration with expressions of ours where its placeholders stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from duostore_server.domain.sql import Placeholder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import LiteralString

    from duostore_server.domain.sql import SqlStatement


def spliced(statement: SqlStatement, expressions: Mapping[str, str]) -> LiteralString:
    """Return a statement for ``execute`` with an expression for each name.

    An expression is as the driver takes it: ``%(name)s`` where a value is bound, ``%%`` for a
    percent sign. Literal, since nothing that a caller sends is a part of it.
    """
    return "".join(
        f"({expressions[part.name]})"
        if isinstance(part, Placeholder)
        else part.text.replace("%", "%%")
        for part in statement.parts
    )


def quoted(*names: str) -> str:
    """Return a name, each of its parts in quotes, for a statement that takes parameters."""
    return sql.Identifier(*names).as_string(None).replace("%", "%%")


def as_text(value: str) -> str:
    """Return a text as a literal, for a statement that takes parameters."""
    return sql.Literal(value).as_string(None).replace("%", "%%")
