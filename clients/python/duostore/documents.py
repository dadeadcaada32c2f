"""Between plain dicts and ``Struct``, so that nothing is rounded or changed in silence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from google.protobuf.struct_pb2 import NULL_VALUE, Struct

from duostore.errors import FieldViolation, invalid_request

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from google.protobuf.struct_pb2 import ListValue, Value

# From 2^53 on a double no longer tells neighbouring whole numbers apart: as 2^53 itself comes
# 2^53 + 1, too.
MAX_WHOLE: Final = 2**53 - 1
MAX_DEPTH: Final = 20
# A list may hold nothing but mistakes; nobody reads further than this.
MAX_VIOLATIONS: Final = 100

# What to send in place of a value that JSON does not have; the first match counts.
_INSTEAD: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    ((date, time), "value.isoformat()"),
    (timedelta, "value.total_seconds()"),
    ((Decimal, UUID), "str(value)"),
    ((bytes, bytearray, memoryview), "base64.b64encode(value).decode()"),
    ((set, frozenset), "sorted(value), a list"),
    (Enum, "value.value"),
    (complex, "[value.real, value.imag]"),
)


def to_struct(data: Mapping[str, Any], field: str = "data") -> Struct:
    """Return the document as a Struct; tuples become lists.

    Raises ``InvalidRequestError``, which is a ``ValueError``, with every value that would
    not come back as it is, each by its path from ``field``: numbers of 2^53 and beyond, NaN
    and infinities, keys that are no strings, values that JSON does not have, and what nests
    deeper than 20 levels (or contains itself).
    """
    struct = Struct()
    writing = _Writing()
    document: object = data
    if isinstance(document, Mapping):
        writing.fields(struct.fields, document, field, 1)
    else:
        writing.refuse(field, f"is of type {type(document).__name__}; a document is a dict")
    if writing.violations:
        raise invalid_request(writing.violations)
    return struct


def from_struct(struct: Struct) -> dict[str, Any]:
    """Return a Struct as a plain dict: whole numbers below 2^53 as int, others as float."""
    return {name: _plain(value) for name, value in struct.fields.items()}


def from_list(values: ListValue) -> list[Any]:
    """Return a ListValue as a plain list, its numbers as ``from_struct`` gives them."""
    return [_plain(item) for item in values.values]


def _plain(value: Value) -> Any:  # noqa: ANN401 - any JSON value
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            number = value.number_value
            whole = number.is_integer() and abs(number) <= MAX_WHOLE
            return int(number) if whole else number
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return from_list(value.list_value)
        case _:
            return None


class _Writing:
    """Writes one document and gathers all that is wrong with it."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def refuse(self, path: str, description: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(FieldViolation(path, description))

    def fields(
        self,
        fields: MutableMapping[str, Value],
        data: Mapping[Any, Any],
        path: str,
        depth: int,
    ) -> None:
        for name, item in data.items():
            if not isinstance(name, str):
                self.refuse(
                    path,
                    f"has the key {name!r}, of type {type(name).__name__}; "
                    "send its keys as strings",
                )
                continue
            try:
                target = fields[name]
            except UnicodeEncodeError as error:
                self.refuse(path, f"has the key {name!r}, {no_unicode(error)}")
                continue
            self.value(target, item, f"{path}.{name}", depth)

    def value(self, target: Value, item: object, path: str, depth: int) -> None:
        if isinstance(item, str):
            try:
                target.string_value = item
            except UnicodeEncodeError as error:
                self.refuse(path, f"is a string {no_unicode(error)}")
        elif item is None:
            target.null_value = NULL_VALUE
        elif isinstance(item, bool):
            target.bool_value = item
        elif isinstance(item, int | float):
            # Put so that NaN, which compares to nothing, is refused as well.
            if abs(item) <= MAX_WHOLE:
                target.number_value = item
            else:
                self.refuse(path, _no_number(item))
        elif isinstance(item, Mapping | list | tuple):
            self.container(target, item, path, depth + 1)
        else:
            self.refuse(path, f"is of type {type(item).__name__}; {_instead_of(item)}")

    def container(
        self,
        target: Value,
        item: Mapping[Any, Any] | list[Any] | tuple[Any, ...],
        path: str,
        depth: int,
    ) -> None:
        if depth > MAX_DEPTH:
            self.refuse(path, f"nests deeper than {MAX_DEPTH} levels, or contains itself")
        elif isinstance(item, Mapping):
            target.struct_value.SetInParent()
            self.fields(target.struct_value.fields, item, path, depth)
        else:
            target.list_value.SetInParent()
            values = target.list_value.values
            for index, inner in enumerate(item):
                self.value(values.add(), inner, f"{path}[{index}]", depth)


def _no_number(number: float) -> str:
    if isinstance(number, int) or math.isfinite(number):
        return "is a number of 2^53 or beyond, which a double rounds; send str(value)"
    return f"is {number}, which JSON does not have; send None or leave the field out"


def no_unicode(error: UnicodeEncodeError) -> str:
    """Return what is wrong with a string that cannot be sent."""
    return f"that is not Unicode: a lone surrogate at position {error.start}"


def _instead_of(item: object) -> str:
    for types, instead in _INSTEAD:
        if isinstance(item, types):
            return f"send {instead}"
    if is_dataclass(item):
        return "send dataclasses.asdict(value)"
    return "send only dict, list, str, int, float, bool and None"
