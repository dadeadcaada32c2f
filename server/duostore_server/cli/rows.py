"""The rows of a query, as the service sends them and as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from duostore_server.codec import plain
from duostore_server.domain.documents import normalized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.struct_pb2 import ListValue, Value

    from duostore.v1 import data_access_pb2

    Row: TypeAlias = list[Any]

_JSON: Final = {"json", "jsonb"}


class UnfitRowsError(Exception):
    """The rows cannot be told in the format that was asked for; the text says why."""


def counted(rows: int) -> str:
    """Return how many rows there are, as people say it."""
    return f"{rows:,} {'row' if rows == 1 else 'rows'}"


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a result before its rows; ``as_of`` is RFC 3339."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    as_of: str


def head_of(message: data_access_pb2.QueryResponse | data_access_pb2.ExportResponse) -> Head:
    """Return what a page, or the first portion, says of all."""
    return Head(tuple(message.columns), tuple(message.column_types), message.as_of.ToJsonString())


def rows_of(messages: Iterable[ListValue], head: Head) -> list[Row]:
    """Return rows as plain values, whole numbers below 2^53 as integers.

    Raises ``UnfitRowsError`` if one has not a value for every column.
    """
    rows = [[_plain(value) for value in message.values] for message in messages]
    if any(len(row) != len(head.columns) for row in rows):
        raise UnfitRowsError("the service sent a row with a value too many, or too few")
    return rows


def require_distinct(columns: tuple[str, ...]) -> None:
    """Raise ``UnfitRowsError`` if columns have one name, where each name has one value."""
    if len(set(columns)) != len(columns):
        raise UnfitRowsError(
            f"several of the columns {', '.join(columns)} have one name: take another format, or"
            " name them apart in the query's SQL"
        )


def json_line(columns: tuple[str, ...], row: Row) -> str:
    """Return a row as a JSON object in one line, its names in the order of the columns."""
    return _json(dict(zip(columns, row, strict=True)))


def text_makers(types: Iterable[str]) -> list[Callable[[Any], str]]:
    """Return for each column how to tell a value that is not null as text.

    What is not a string by its type is JSON, so that a json column's "5" differs from its 5.
    """
    return [_json if type_ in _JSON else _text for type_ in types]


def _text(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain(value: Value) -> Any:  # noqa: ANN401 - any JSON value
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            return normalized(value.number_value)
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return normalized(plain(value.struct_value))
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case _:
            return None
