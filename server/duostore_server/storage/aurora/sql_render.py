"""SQL of the configuration as the driver and the server take it.

Values are bound, each where its placeholder stands and with a cast to its type, so that
neither the type nor the plan of a statement depends on what a caller sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg.types.numeric import Int8

from duostore_server.domain.queries import TENANT, ParamType
from duostore_server.domain.sql import Placeholder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import LiteralString

    from duostore_server.domain.queries import Param, ParamValue
    from duostore_server.domain.sql import Part, SqlStatement

_SERVER_TYPES: Final[Mapping[ParamType, str]] = {
    ParamType.STRING: "text",
    ParamType.INTEGER: "bigint",
    ParamType.NUMBER: "double precision",
    ParamType.DECIMAL: "numeric",
    ParamType.BOOLEAN: "boolean",
    ParamType.TIMESTAMP: "timestamptz",
    ParamType.DATE: "date",
    ParamType.UUID: "uuid",
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement for PREPARE: ``names`` are those of ``$1``, ``$2`` and so on."""

    sql: str
    names: tuple[str, ...]
    _lines: tuple[tuple[int, Part], ...]

    def line_of(self, position: int) -> int:
        """Return the line of the file of a character of ``sql``, counted from 1 as in errors."""
        offset = position - 1
        begin, part = self._lines[0]
        for start, each in self._lines:
            if start <= offset:
                begin, part = start, each
        if isinstance(part, Placeholder):
            return part.line
        return part.line + part.text.count("\n", 0, offset - begin)


def types_of(params: Mapping[str, Param]) -> dict[str, str]:
    """Return the server's types of a query's parameters, by name; the tenant is one of them."""
    types = {
        name: f"{_SERVER_TYPES[param.type]}[]" if param.is_list else _SERVER_TYPES[param.type]
        for name, param in params.items()
    }
    return {**types, TENANT: "text"}


def rendered(statement: SqlStatement, types: Mapping[str, str]) -> LiteralString:
    """Return a statement for ``execute``, which must be given parameters, though they be none.

    ``types`` are the server's, by the names of the placeholders. Literal, since nothing that
    a caller sends is a part of it.
    """
    return "".join(
        _cast(f"%({part.name})s", types[part.name])
        if isinstance(part, Placeholder)
        else part.text.replace("%", "%%")
        for part in statement.parts
    )


def prepared(statement: SqlStatement, types: Mapping[str, str]) -> Prepared:
    """Return a statement for PREPARE, in which each name has one number."""
    numbers: dict[str, int] = {}
    lines: list[tuple[int, Part]] = []
    pieces: list[str] = []
    length = 0
    for part in statement.parts:
        lines.append((length, part))
        if isinstance(part, Placeholder):
            number = numbers.setdefault(part.name, len(numbers) + 1)
            pieces.append(_cast(f"${number}", types[part.name]))
        else:
            pieces.append(part.text)
        length += len(pieces[-1])
    return Prepared("".join(pieces), tuple(numbers), tuple(lines))


def bound(values: Mapping[str, ParamValue]) -> dict[str, object]:
    """Return values as the driver is to send them: integers as such of one width."""
    return {
        name: [_sent(item) for item in value] if isinstance(value, list) else _sent(value)
        for name, value in values.items()
    }


def _sent(value: object) -> object:
    return Int8(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _cast(place: str, type_: str) -> str:
    return f"({place}::{type_})"
