"""Results of queries as messages, for the tests of those who ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from duostore.v1 import data_access_pb2, entity_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS: Final = {"id": "text", "count": "bigint"}
AS_OF: Final = "2026-01-02T03:04:05.678901Z"


def page(
    rows: Sequence[Sequence[Any]], columns: dict[str, str] = COLUMNS, *, token: str = ""
) -> data_access_pb2.QueryResponse:
    """Return a page of a result that Aurora has computed; ``columns`` are types by name."""
    response = data_access_pb2.QueryResponse(
        columns=columns, column_types=columns.values(), next_page_token=token
    )
    for row in rows:
        response.rows.add().extend(row)
    response.as_of.FromJsonString(AS_OF)
    response.receipt.served_from = entity_pb2.STORE_AURORA
    return response


def first_portion(
    rows: Sequence[Sequence[Any]] = (), columns: dict[str, str] = COLUMNS
) -> data_access_pb2.ExportResponse:
    """Return the first portion of an export, which says what the columns are."""
    response = portion(rows)
    response.columns.extend(columns)
    response.column_types.extend(columns.values())
    response.as_of.FromJsonString(AS_OF)
    return response


def portion(rows: Sequence[Sequence[Any]]) -> data_access_pb2.ExportResponse:
    """Return a later portion of an export."""
    response = data_access_pb2.ExportResponse()
    for row in rows:
        response.rows.add().extend(row)
    return response
