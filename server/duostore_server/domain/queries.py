"""Named queries: what the configuration says of each, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date, datetime
    from decimal import Decimal
    from uuid import UUID

    from duostore_server.domain.sql import SqlFile

MAX_QUERY_BYTES: Final = 64

# The parameter that every SQL of the configuration may use: the tenant of the call.
TENANT: Final = "tenant"


class ParamType(Enum):
    """The type of a parameter, or of the items of one that is a list."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    DATE = "date"
    UUID = "uuid"


Scalar: TypeAlias = "str | int | float | bool | Decimal | datetime | date | UUID"
ParamValue: TypeAlias = "Scalar | list[Scalar] | None"

# A row of a result: JSON values, in the order of the columns. Nothing is rounded: what a
# double cannot hold is a string.
Row: TypeAlias = list[Any]


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a query. One that is not given has ``default``, unless it is ``required``."""

    name: str
    type: ParamType
    is_list: bool = False
    required: bool = True
    default: ParamValue = None


@dataclass(frozen=True, slots=True)
class Query:
    """How one query is answered.

    ``params`` are by name, in lower case. A result is cached for ``cache_ttl`` seconds, not
    at all if that is 0, and no longer than until an entity of a kind of ``depends_on``
    changes. ``max_rows`` and ``max_bytes``, of rows as protobuf, bound what Query answers
    and not what Export does. ``timeout`` seconds are what the database may take: for all of a
    Query, for each portion of an Export.
    """

    name: str
    sql: SqlFile
    params: Mapping[str, Param]
    cache_ttl: float
    max_rows: int
    max_bytes: int
    timeout: float
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QueryCall:
    """A query with the values of all its parameters, acceptable and in their one form."""

    query: Query
    tenant: str
    values: Mapping[str, ParamValue]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a result; ``type`` is as PostgreSQL names it."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Result:
    """All rows of a query. What was committed before ``as_of``, aware and in UTC, was seen."""

    columns: tuple[Column, ...]
    rows: list[Row]
    as_of: datetime
