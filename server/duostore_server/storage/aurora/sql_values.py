"""What PostgreSQL answers, as JSON values: nothing is rounded.

Numbers that a double cannot hold are strings: integers from 2^53 on, ``numeric``, NaN and the
infinities. ``timestamptz`` is RFC 3339 in UTC, ``timestamp`` and ``date`` are ISO 8601, ``bytea``
is base64, JSON the value itself and an array a list. All else is PostgreSQL's own text, and so
is what has no such form: dates before Christ, and JSON that no document may hold.

The session must write them so: its ``timezone`` is UTC, its ``datestyle`` ISO and its
``extra_float_digits`` at least 1.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from psycopg import postgres
from psycopg.adapt import AdaptersMap, Loader, Transformer
from psycopg.pq import Format
from psycopg.types import TypeInfo
from psycopg.types.array import register_array
from psycopg.types.bool import BoolLoader
from psycopg.types.numeric import IntLoader
from psycopg.types.string import ByteaLoader, TextLoader

from duostore_server.domain.documents import MAX_DEPTH, MAX_WHOLE
from duostore_server.domain.queries import Column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg
    from psycopg.abc import AdaptContext, Buffer
    from psycopg.rows import TupleRow

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.queries import Row

# Stands for every type that has no loader.
_ANY: Final = 0
# Of so many characters, none of them an exponent, a double holds every digit.
_EXACT_LENGTH: Final = 15

# The types that the driver does not know are of this database: enums, composites, domains,
# extensions. Columns of a domain are told as of its base type; items of an array are not.
_FOREIGN: Final = """
WITH RECURSIVE t AS (
    SELECT oid, typbasetype, typelem, typsubscript, typdelim
    FROM pg_catalog.pg_type
    WHERE oid = ANY (%s::oid[])
    UNION
    SELECT p.oid, p.typbasetype, p.typelem, p.typsubscript, p.typdelim
    FROM t
    JOIN pg_catalog.pg_type AS p ON p.oid IN (t.typbasetype, t.typelem)
)
SELECT oid::bigint, pg_catalog.format_type(oid, NULL), typbasetype::bigint,
    CASE typsubscript WHEN 'pg_catalog.array_subscript_handler'::regproc THEN typelem::bigint
    ELSE 0 END,
    typdelim
FROM t
"""


def _whole(text: str) -> int | str:
    if len(text) > _EXACT_LENGTH and abs(Decimal(text)) > MAX_WHOLE:
        return text
    return int(text)


def _fraction(text: str) -> float | str:
    value = float(text)
    # Told by what the double is written as again: 0.1 is none exactly, and yet stays 0.1.
    is_short = len(text) <= _EXACT_LENGTH and "e" not in text.lower()
    is_kept = abs(value) <= MAX_WHOLE and (is_short or Decimal(repr(value)) == Decimal(text))
    return value if is_kept else text


_JSON: Final = json.JSONDecoder(parse_int=_whole, parse_float=_fraction)


class _WholeLoader(Loader):
    def load(self, data: Buffer) -> int | str:
        return _whole(str(data, "ascii"))


class _FloatLoader(Loader):
    def load(self, data: Buffer) -> float | str:
        text = str(data, "ascii")
        value = float(text)
        return value if math.isfinite(value) else text


class _InstantLoader(Loader):
    def load(self, data: Buffer) -> str:
        text = str(data, "ascii")
        return f"{text[:-3].replace(' ', 'T')}Z" if text.endswith("+00") else text


class _LocalTimeLoader(Loader):
    def load(self, data: Buffer) -> str:
        text = str(data, "ascii")
        return text if text.endswith("BC") else text.replace(" ", "T")


class _BytesLoader(Loader):
    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._bytes = ByteaLoader(oid, context)

    def load(self, data: Buffer) -> str:
        return b64encode(self._bytes.load(bytes(data))).decode("ascii")


class _JsonLoader(Loader):
    def load(self, data: Buffer) -> object:
        text = str(data, "utf-8")
        try:
            value = _JSON.decode(text)
        except RecursionError:
            return text
        brackets = text.count("{") + text.count("[")
        if brackets > MAX_DEPTH and not _fits(value, MAX_DEPTH):
            return text
        # Half of a surrogate pair, which ``json`` keeps as it is written, is no character.
        if "\\ud" in text.lower() and not _is_text(value):
            return text
        return value


_LOADERS: Final[Mapping[str, type[Loader]]] = {
    "bool": BoolLoader,
    "int2": IntLoader,
    "int4": IntLoader,
    "oid": IntLoader,
    "int8": _WholeLoader,
    "float4": _FloatLoader,
    "float8": _FloatLoader,
    "timestamptz": _InstantLoader,
    "timestamp": _LocalTimeLoader,
    "bytea": _BytesLoader,
    "json": _JsonLoader,
    "jsonb": _JsonLoader,
}


class JsonRows:
    """Reads the rows of results that have the columns of ``cursor``'s: a portion after another.

    Types that are of this database alone are looked up, on the connection of the cursor: one
    round trip, if there are any.
    """

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        described = cursor.description or ()
        adapters, names = _builtin_adapters(), _builtin_names()
        if foreign := {each.type_code for each in described} - names.keys():
            found = cursor.connection.execute(_FOREIGN, (list(foreign),), prepare=False)
            adapters = AdaptersMap(adapters)
            names = {**names, **_adapt(adapters, found.fetchall())}
        self._transformer = Transformer(adapters)
        self.columns = tuple(
            Column(each.name, names.get(each.type_code, "unknown")) for each in described
        )

    def of(self, cursor: psycopg.Cursor[Any]) -> list[Row]:
        """Return all rows of a cursor's result."""
        result = cursor.pgresult
        if result is None:
            return []
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, list)


def documents_of(cursor: psycopg.Cursor[Any]) -> list[JsonObject]:
    """Return the rows of a cursor's result as objects, whose fields are named as the columns."""
    rows = JsonRows(cursor)
    names = [column.name for column in rows.columns]
    return [dict(zip(names, row, strict=True)) for row in rows.of(cursor)]


@cache
def _builtin_adapters() -> AdaptersMap:
    """Return what reads the types that every database has. Not to be changed: copy it."""
    adapters = AdaptersMap(types=postgres.types)
    adapters.register_loader(_ANY, TextLoader)
    for name, loader in _LOADERS.items():
        adapters.register_loader(name, loader)
    for info in adapters.types:
        if info.array_oid:
            register_array(info, adapters)
    return adapters


@cache
def _builtin_names() -> Mapping[int, str]:
    """Return the names of the types that every database has, as PostgreSQL writes them."""
    return {info.oid: info.regtype for info in postgres.types} | {
        info.array_oid: f"{info.regtype}[]" for info in postgres.types if info.array_oid
    }


def _adapt(adapters: AdaptersMap, types: Sequence[TupleRow]) -> Mapping[int, str]:
    """Have arrays and domains of these types read as what they are of; return all names."""
    by_oid = {oid: rest for oid, *rest in types}
    learnt = set(_builtin_names())

    def learn(oid: int) -> None:
        if oid in learnt:
            return
        learnt.add(oid)
        name, base, item, _ = by_oid[oid]
        if base:
            learn(base)
            if loader := adapters.get_loader(base, Format.TEXT):
                adapters.register_loader(oid, loader)
        elif item:
            learn(item)
            *_, delimiter = by_oid[item]
            register_array(TypeInfo(name, item, oid, delimiter=delimiter), adapters)

    for oid in by_oid:
        learn(oid)
    return {oid: name for oid, (name, *_) in by_oid.items()}


def _fits(value: object, levels: int) -> bool:
    """Tell whether a JSON value nests no deeper than so many levels."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return True
    return levels > 0 and all(_fits(item, levels - 1) for item in value)


def _is_text(value: object) -> bool:
    """Tell whether all strings of a JSON value are of characters that UTF-8 has."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
