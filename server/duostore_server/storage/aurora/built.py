"""Documents that read models build, as far as they are documents that every store can hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from duostore_server.domain.documents import (
    MAX_WHOLE,
    compact_size,
    document_violations,
    normalized,
)
from duostore_server.domain.queries import TENANT
from duostore_server.domain.read_models import ID
from duostore_server.storage.aurora.sql_render import rendered
from duostore_server.storage.aurora.sql_values import documents_of
from duostore_server.storage.aurora.trips import Statement

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.read_models import ReadModel
    from duostore_server.storage.aurora.trips import Rows

_TYPES: Final = {TENANT: "text", ID: "text"}


class UnfitDocumentError(Exception):
    """What a read model answers is no document; the text says why and quotes no value of it."""


def building(model: ReadModel, key: EntityKey) -> Statement:
    """Return the statement that builds a document; its rows are for ``built``."""
    return Statement(
        rendered(model.sql.statement, _TYPES), {TENANT: key.tenant, ID: key.id}, _documents
    )


def built(model: ReadModel, rows: Rows) -> JsonObject | None:
    """Return the document that a read model has answered; None if there is none.

    Raises ``UnfitDocumentError`` if it is larger or deeper than documents may be, or one of
    several. Numbers beyond the whole ones that a double tells apart become strings.
    """
    if not rows:
        return None
    if len(rows) > 1:
        raise UnfitDocumentError("the read model answers several rows")
    ((found,),) = rows
    document: JsonObject = normalized(_told_apart(found))
    size = compact_size(document)
    if size > model.max_bytes:
        raise UnfitDocumentError(
            f"the document that the read model builds has {size} bytes of JSON; at most "
            f"{model.max_bytes} are allowed"
        )
    for violation in document_violations(document, "document"):
        raise UnfitDocumentError(
            f"what the read model builds is no document: {violation.field} {violation.description}"
        )
    return document


def same(one: JsonObject | None, other: JsonObject | None) -> bool:
    """Tell whether two documents are the same JSON: 1 is 1.0, and true is neither."""
    if one is None or other is None:
        return one is other
    return _form(one) == _form(other)


def _documents(cursor: psycopg.Cursor[TupleRow]) -> Rows:
    return [(document,) for document in documents_of(cursor)]


def _form(document: JsonObject) -> str:
    return json.dumps(normalized(document), sort_keys=True)


def _told_apart(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float) and abs(value) > MAX_WHOLE:
        return repr(value)
    if isinstance(value, dict):
        return {name: _told_apart(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_told_apart(item) for item in value]
    return value
