"""The parameters of queries: from Python's values to what the server takes for each type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final, TypeAlias
from uuid import UUID

from google.protobuf.struct_pb2 import NULL_VALUE, Struct

from duostore.documents import MAX_WHOLE, no_unicode
from duostore.errors import FieldViolation, invalid_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.struct_pb2 import Value

    Scalar: TypeAlias = str | int | float | bool | Decimal | datetime | date | UUID
    Params: TypeAlias = Mapping[str, Scalar | Sequence[Scalar] | None]

# Far above the digits that the server takes, far below those that would fill the memory.
_MOST_DIGITS: Final = 1_000


def to_params(params: Params) -> Struct:
    """Return the parameters as a Struct, each in the form that the server takes for its type.

    Whole numbers of 2^53 and beyond, Decimal, datetime, date and UUID become strings. Raises
    ``InvalidRequestError``, which is a ``ValueError``, with every value that cannot be sent: NaN
    and infinities, a datetime without a zone, lists in lists, other types.
    """
    given: object = params
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise invalid_request([FieldViolation("params", f"is of type {kind}; send a dict")])
    struct = Struct()
    violations: list[FieldViolation] = []
    for name, item in given.items():
        if not isinstance(name, str):
            violations.append(FieldViolation("params", f"has the key {name!r}; send strings"))
            continue
        try:
            _write(struct.fields[name], item)
        except UnicodeEncodeError as error:
            violations.append(
                FieldViolation("params", f"has the key {name!r}, {no_unicode(error)}")
            )
        except _UnfitError as error:
            violations.append(FieldViolation(f"params.{name}{error.place}", error.problem))
    if violations:
        raise invalid_request(violations)
    return struct


class _UnfitError(Exception):
    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = place


def _write(target: Value, item: object) -> None:
    if not isinstance(item, list | tuple):
        _write_scalar(target, item)
        return
    target.list_value.SetInParent()
    for index, inner in enumerate(item):
        try:
            _write_scalar(target.list_value.values.add(), inner)
        except _UnfitError as error:
            raise _UnfitError(error.problem, f"[{index}]") from None


def _write_scalar(target: Value, item: object) -> None:
    match item:
        case None:
            target.null_value = NULL_VALUE
        case bool():
            target.bool_value = item
        case int() if abs(item) <= MAX_WHOLE:
            target.number_value = item
        case float():
            if not math.isfinite(item):
                raise _UnfitError(f"is {item}, which is no number")
            target.number_value = item
        case _:
            text = _text(item)
            try:
                target.string_value = text
            except UnicodeEncodeError as error:
                raise _UnfitError(f"is a string {no_unicode(error)}") from None


def _text(item: object) -> str:
    match item:
        case str():
            return item
        case int() if item.bit_length() <= _MOST_DIGITS:
            return str(item)
        case Decimal() if not item.is_finite() or abs(item.adjusted()) <= _MOST_DIGITS:
            # Never with an exponent, which the server does not take.
            return format(item, "f")
        case int() | Decimal():
            raise _UnfitError("is a number of so many digits that no database takes it")
        case datetime():
            return _moment(item)
        case date():
            return item.isoformat()
        case UUID():
            return str(item)
        case _:
            raise _UnfitError(
                f"is of type {type(item).__name__}; send a str, int, float, bool, Decimal,"
                " datetime, date, UUID or None, or a list of them"
            )


def _moment(item: datetime) -> str:
    if item.tzinfo is None:
        raise _UnfitError("is a datetime without a zone; send one with tzinfo, such as UTC")
    try:
        # In UTC, for an offset may have seconds, which RFC 3339 has no place for.
        return item.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except OverflowError:
        raise _UnfitError("is before the year 1 or after 9999 in UTC") from None
