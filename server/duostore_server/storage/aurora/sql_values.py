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
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeAlias

from psycopg import postgres
from psycopg.abc import Params
from psycopg.adapt import AdaptersMap, Loader, Transformer
from psycopg.pq import Format
from psycopg.rows import TupleRow
from psycopg.types import TypeInfo
from psycopg.types.array import register_array
from psycopg.types.bool import BoolLoader
from psycopg.types.numeric import IntLoader
from psycopg.types.string import ByteaLoader, TextLoader

from duostore_server.domain.documents import MAX_DEPTH, MAX_WHOLE
from duostore_server.domain.queries import Column

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg
    from psycopg.abc import AdaptContext, Buffer
    from psycopg.pq.abc import PGresult

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.queries import Row

# Host, port and name.
Database: TypeAlias = tuple[bytes, bytes, bytes]
LookUp: TypeAlias = Callable[[LiteralString, Params], Sequence[TupleRow]]

_LEARNT_SECONDS: Final = 300.0
# Sets of types that results have had.
_MOST_LEARNT: Final = 256

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


@dataclass(frozen=True, slots=True)
class Types:
    """How values of types are read, and what the types are called, by OID. Not to be changed."""

    adapters: AdaptersMap
    names: Mapping[int, str]


class LearntTypes:
    """What databases told of types of their own; safe to use from many threads.

    Types that are made anew have new OIDs, and are asked for. Of one that is renamed the old
    name is told until ``_LEARNT_SECONDS`` have passed; and should an OID come to stand for
    another type, as in a database that was restored, its values are read as the old one's.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._learnt: dict[tuple[Database, frozenset[int]], tuple[float, Types]] = {}

    def get(self, database: Database, oids: frozenset[int], look_up: LookUp) -> Types:
        """Return these types of a database and all that every database has."""
        now = self._clock()
        until, types = self._learnt.get((database, oids), (now, None))
        if types is None or now >= until:
            adapters = AdaptersMap(_builtin_adapters())
            named = _adapt(adapters, look_up(_FOREIGN, (list(oids),)))
            types = Types(adapters, {**_builtin_names(), **named})
            with self._lock:
                # All at once: it is cheap to learn again, and rare that there are so many.
                if len(self._learnt) >= _MOST_LEARNT:
                    self._learnt.clear()
                self._learnt[database, oids] = (now + _LEARNT_SECONDS, types)
        return types


class JsonRows:
    """Reads the rows of results that have the columns of ``described``: a portion after another.

    For types that are of this database alone a statement is given to ``look_up``, which returns
    its rows, unless they are ``learnt`` already.
    """

    def __init__(
        self,
        described: PGresult,
        database: Database,
        look_up: LookUp,
        learnt: LearntTypes | None = None,
    ) -> None:
        columns = [
            ((described.fname(n) or b"").decode(), described.ftype(n))
            for n in range(described.nfields)
        ]
        types = Types(_builtin_adapters(), _builtin_names())
        if foreign := frozenset(oid for _, oid in columns).difference(types.names):
            types = (learnt or _learnt()).get(database, foreign, look_up)
        self.columns = tuple(Column(name, types.names.get(oid, "unknown")) for name, oid in columns)
        self._transformer = Transformer(types.adapters)
        self._transformer.set_pgresult(described)

    def of(self, *results: PGresult) -> list[Row]:
        """Return all rows of results."""
        rows: list[Row] = []
        for result in results:
            # What reads the columns is known, and not looked up for each result.
            self._transformer.set_pgresult(result, set_loaders=False)
            rows += self._transformer.load_rows(0, result.ntuples, list)
        return rows


def database_of(connection: psycopg.Connection[Any]) -> Database:
    """Return the database that a connection leads to, as ``JsonRows`` wants it."""
    pgconn = connection.pgconn
    return pgconn.host, pgconn.port, pgconn.db


def documents_of(cursor: psycopg.Cursor[Any]) -> list[JsonObject]:
    """Return the rows of a cursor's result as objects, whose fields are named as the columns.

    One round trip more if types are of this database alone, and not learnt already.
    """
    result = cursor.pgresult
    if result is None:
        return []
    connection = cursor.connection

    def look_up(sql: LiteralString, params: Params) -> Sequence[TupleRow]:
        return connection.execute(sql, params, prepare=False).fetchall()

    rows = JsonRows(result, database_of(connection), look_up)
    names = [column.name for column in rows.columns]
    return [dict(zip(names, row, strict=True)) for row in rows.of(result)]


@cache
def _learnt() -> LearntTypes:
    """Return what this process has learnt."""
    return LearntTypes()


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
