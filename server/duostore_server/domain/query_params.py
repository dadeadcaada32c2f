"""The parameters of queries: from what callers send to the one form of each value."""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from duostore_server.domain.documents import MAX_SHOWN_NAME, MAX_WHOLE, path_text
from duostore_server.domain.errors import FieldViolation
from duostore_server.domain.keys import listed
from duostore_server.domain.queries import ParamType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.queries import Param, ParamValue, Query, Scalar

MAX_LIST: Final = 10_000

_TOO_LARGE: Final = "is a whole number of 2^53 or beyond; send it as a string"
_BEYOND: Final = "is beyond the whole numbers of 64 bits"
_INT64: Final = range(-(2**63), 2**63)
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_MORE_DIGITS: Final = re.compile(r"-?[1-9][0-9]{19,}", re.ASCII)
_DECIMAL: Final = re.compile(r"-?[0-9]{1,200}(\.[0-9]{1,200})?", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_TIMESTAMP: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}", re.ASCII)


class ItemError(ValueError):
    """An item of a list is not of its type: the one at ``index``, from 0, for a ``reason``."""

    def __init__(self, index: int, reason: str) -> None:
        self.index = index
        self.reason = reason
        super().__init__(f"[{index}] {reason}")


def accepted(
    query: Query, given: JsonObject
) -> tuple[Mapping[str, ParamValue], list[FieldViolation]]:
    """Return the value of each parameter of a query, and all that is wrong with what was given.

    Neither the case nor the order of names counts; null stands for what is not given. Equal
    values that are written differently come out as one: 5, 5.0 and "5" of an integer, a
    timestamp in any zone. What is wrong or missing has no value. What is wrong comes in the
    order in which it was given, then what is missing, in the order of its declaration.
    """
    values: dict[str, ParamValue] = {}
    wrong: list[FieldViolation] = []
    seen: dict[str, str] = {}
    for name, value in given.items():
        field = path_text("params", (name,))
        param = query.params.get(name.lower())
        if param is None:
            wrong.append(FieldViolation(field, _unknown(name, query)))
        elif (earlier := seen.setdefault(param.name, name)) != name:
            text = f"is the same parameter as {earlier!r}: names differ in case alone"
            wrong.append(FieldViolation(field, text))
        elif value is not None:
            try:
                values[param.name] = parse_value(param.type, value, is_list=param.is_list)
            except ItemError as error:
                at = path_text("params", (name, error.index))
                wrong.append(FieldViolation(at, error.reason))
                values[param.name] = None
            except ValueError as error:
                wrong.append(FieldViolation(field, str(error)))
                values[param.name] = None
    for param in query.params.values():
        if param.name in values:
            continue
        if param.required:
            text = f"is required, and is {_expected(param)}"
            wrong.append(FieldViolation(f"params.{param.name}", text))
        values[param.name] = param.default
    return values, wrong


def parse_value(type_: ParamType, value: Any, *, is_list: bool = False) -> ParamValue:  # noqa: ANN401 - any JSON value
    """Return a JSON value in the one form of its type.

    Raises ``ValueError``, which says what is expected and never quotes the value; for an item
    of a list it is an ``ItemError``.
    """
    if not is_list:
        return _PARSERS[type_](value)
    if not isinstance(value, list):
        raise ValueError(f"must be a list, each item {_SHAPES[type_]}")  # noqa: TRY004 - as all
    if len(value) > MAX_LIST:
        raise ValueError(f"has {len(value)} items; at most {MAX_LIST} are allowed")
    parse = _PARSERS[type_]
    return list(_items(parse, value))


def canonical(values: Mapping[str, ParamValue]) -> str:
    """Return accepted values as one text: equal for equal values, different otherwise."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)


def _items(parse: Callable[[Any], Scalar], values: list[Any]) -> Iterator[Scalar]:
    for index, value in enumerate(values):
        try:
            yield parse(value)
        except ValueError as error:
            raise ItemError(index, str(error)) from None


def _unknown(name: str, query: Query) -> str:
    shown = name if len(name) <= MAX_SHOWN_NAME else f"{name[: MAX_SHOWN_NAME - 1]}…"
    return f"{shown!r} is no parameter of {query.name!r} (parameters: {listed(query.params)})"


def _expected(param: Param) -> str:
    return f"a list, each item {_SHAPES[param.type]}" if param.is_list else _SHAPES[param.type]


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be {_SHAPES[ParamType.STRING]}")  # noqa: TRY004 - as all
    if "\0" in value:
        raise ValueError("holds the character U+0000, which the database does not take")
    return value


def _integer(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
        if abs(value) > MAX_WHOLE and value in _INT64:
            raise ValueError(_TOO_LARGE)
    elif isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    elif isinstance(value, str) and _MORE_DIGITS.fullmatch(value):
        raise ValueError(_BEYOND)
    elif isinstance(value, float) and math.isfinite(value):
        raise ValueError("must be a whole number")
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"must be {_SHAPES[ParamType.INTEGER]}")  # noqa: TRY004 - as all
    if value not in _INT64:
        raise ValueError(_BEYOND)
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be {_SHAPES[ParamType.NUMBER]}")  # noqa: TRY004 - as all
    # A whole number of the configuration may be beyond all doubles, or between two of them.
    if not (abs(value) <= sys.float_info.max and float(value) == value):
        raise ValueError(f"must be {_SHAPES[ParamType.NUMBER]}")
    # -0.0 is 0.0 to the database, and shall be to the cache.
    return float(value) + 0.0


def _decimal(value: object) -> Decimal:
    if isinstance(value, float) and math.isfinite(value):
        if value.is_integer() and abs(value) > MAX_WHOLE:
            raise ValueError(_TOO_LARGE)
        value = format(Decimal(repr(value)), "f")
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        raise ValueError(f"must be {_SHAPES[ParamType.DECIMAL]}")
    whole, _, fraction = value.partition(".")
    fraction = fraction.rstrip("0")
    found = Decimal(f"{whole}.{fraction}" if fraction else whole)
    # 0 has no sign to the database; zeros in front are gone by now.
    return found or Decimal(0)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be {_SHAPES[ParamType.BOOLEAN]}")  # noqa: TRY004 - as all
    return value


def _timestamp(value: object) -> datetime:
    if isinstance(value, str) and _TIMESTAMP.fullmatch(value):
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"must be {_SHAPES[ParamType.TIMESTAMP]}")


def _date(value: object) -> date:
    if isinstance(value, str) and _DATE.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError(f"must be {_SHAPES[ParamType.DATE]}")


def _uuid(value: object) -> UUID:
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise ValueError(f"must be {_SHAPES[ParamType.UUID]}")
    return UUID(value)


_SHAPES: Final[Mapping[ParamType, str]] = {
    ParamType.STRING: "a string",
    ParamType.INTEGER: "a whole number (beyond 2^53 as a string)",
    ParamType.NUMBER: "a finite number",
    ParamType.DECIMAL: 'a decimal, best as a string such as "12.50"',
    ParamType.BOOLEAN: "true or false",
    ParamType.TIMESTAMP: 'a timestamp with its zone, such as "2026-01-31T12:00:00Z"',
    ParamType.DATE: 'a date, such as "2026-01-31"',
    ParamType.UUID: 'a UUID, such as "0b1c64f2-4a3c-4b8e-9a55-1f5f2d9c7e11"',
}

_PARSERS: Final[Mapping[ParamType, Callable[[Any], Scalar]]] = {
    ParamType.STRING: _string,
    ParamType.INTEGER: _integer,
    ParamType.NUMBER: _number,
    ParamType.DECIMAL: _decimal,
    ParamType.BOOLEAN: _boolean,
    ParamType.TIMESTAMP: _timestamp,
    ParamType.DATE: _date,
    ParamType.UUID: _uuid,
}
