"""What the documents of a kind depend on, as a list of the configuration has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from duostore_server.config.sql_files import PARAM_NAME, read_select
from duostore_server.config.values import Form, Opaque
from duostore_server.domain.queries import TENANT
from duostore_server.domain.read_models import ID, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TABLE: Final = r"[A-Za-z_][A-Za-z0-9_$]*\.[A-Za-z_][A-Za-z0-9_$]*"
_OURS: Final = "duostore."
_KEYS: Final = ("kind", "table", "fields", "ids")


def _sources(value: object, info: ValidationInfo) -> tuple[Source, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
            "must be a list of tables, such as "
            '[{ kind = "proposal", fields = ["author"], ids = "sql/ids.sql" }]'
        )
    found: list[Source] = []
    wrong: list[str] = []
    for position, item in enumerate(value):
        try:
            source = _source(item, info)
        except ValueError as error:
            wrong.append(f"entry {position + 1} {error}")
            continue
        if source.name in {each.name for each in found}:
            wrong.append(f"entry {position + 1} is {source.name} once more")
        found.append(source)
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(found)


def _source(item: object, info: ValidationInfo) -> Source:
    if not isinstance(item, dict):
        raise ValueError("must be a table with kind or table, fields and ids")  # noqa: TRY004 - as above
    wrong = list(_problems(item))
    try:
        ids = read_select(item.get("ids"), info)
    except ValueError as error:
        wrong.append(f"has ids that cannot be used: {error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return Source(
        kind=item.get("kind"), table=item.get("table"), fields=tuple(item["fields"]), ids=ids
    )


def _problems(item: Mapping[str, object]) -> Iterator[str]:
    if unknown := [key for key in item if key not in _KEYS]:
        yield f"has no {', '.join(unknown)}; known here: {', '.join(_KEYS)}"
    kind, table = item.get("kind"), item.get("table")
    if (kind is None) == (table is None):
        yield "must name one kind or one table"
    if kind is not None and not isinstance(kind, str):
        yield "must name its kind in quotes"
    if table is not None:
        if not isinstance(table, str) or not re.fullmatch(_TABLE, table):
            yield 'must name its table with the schema, such as "public.invoice"'
        elif table.startswith(_OURS):
            yield f"names {table}, which is Duostore's own: name the kind"
    yield from _bad_fields(item.get("fields"), of_kind=kind is not None)


def _bad_fields(fields: object, *, of_kind: bool) -> Iterator[str]:
    whose = "fields of the document" if of_kind else "columns of the table"
    if not isinstance(fields, (list, tuple)) or not all(isinstance(name, str) for name in fields):
        yield f"must have fields, a list of names of {whose}"
        return
    if not fields and not of_kind:
        yield "must have at least one column as its fields"
    for name in dict.fromkeys(fields):
        if not PARAM_NAME.fullmatch(name):
            yield f'has the field "{name}", and a name must be of A-Z a-z 0-9 _'
        elif of_kind and name in (TENANT, ID):
            yield f'has the field "{name}", and ids is told the {name} of the entity by that name'
        if fields.count(name) > 1:
            yield f'has the field "{name}" twice'


def _written(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return the sources as the file has them."""
    return [
        {
            **({"kind": source.kind} if source.kind is not None else {"table": source.table}),
            "fields": list(source.fields),
            "ids": source.ids.path,
        }
        for source in sources
    ]


Sources: TypeAlias = Annotated[
    Sequence[Annotated[Source, Opaque()]],
    PlainValidator(_sources),
    PlainSerializer(_written),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "kind": {"type": "string", "minLength": 1},
                    "table": {"type": "string", "pattern": f"^{_TABLE}$"},
                    "fields": {
                        "type": "array",
                        "items": {"type": "string", "pattern": f"^{PARAM_NAME.pattern}$"},
                        "uniqueItems": True,
                    },
                    "ids": {"type": "string", "minLength": 1},
                },
                "required": ["fields", "ids"],
                "oneOf": [{"required": ["kind"]}, {"required": ["table"]}],
                "additionalProperties": False,
            },
        }
    ),
    Form("list of sources", _written),
]
