"""What a document may contain: exactly that which every store gives back unchanged."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from duostore_server.domain.errors import FieldViolation

if TYPE_CHECKING:
    from collections.abc import Iterator

JsonObject: TypeAlias = dict[str, Any]

MAX_DEPTH: Final = 20
# Beyond 2^53 a double no longer tells neighbouring whole numbers apart.
MAX_WHOLE: Final = 2**53


def compact_json(data: JsonObject) -> str:
    """Return the document as compact JSON, keys in their order, non-ASCII kept."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def normalized(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value in the one form that every store gives back.

    Numbers come as doubles; whole ones within 2^53 become integers, so that ``1.0`` is
    ``1`` and ``-0.0`` is ``0`` in every tier. Everything else is left as it is; ask
    ``document_violations`` first.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_WHOLE:
        return int(value)
    if isinstance(value, dict):
        return {name: normalized(item) for name, item in value.items()}
    if isinstance(value, list):
        return [normalized(item) for item in value]
    return value


def document_violations(data: JsonObject, field: str) -> Iterator[FieldViolation]:
    """Yield all values of a document that a store could not give back, each by its path."""
    yield from _violations(data, field, 1)


def _violations(value: Any, path: str, depth: int) -> Iterator[FieldViolation]:  # noqa: ANN401
    if isinstance(value, str):
        if "\0" in value:
            yield FieldViolation(path, "holds the character U+0000, which cannot be stored")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield FieldViolation(path, "is not a finite number; JSON has no such value")
        elif abs(value) > MAX_WHOLE:
            yield FieldViolation(
                path, "is a whole number beyond 2^53, which a double rounds; send it as a string"
            )
    elif isinstance(value, (dict, list)):
        if depth > MAX_DEPTH:
            yield FieldViolation(path, f"nests deeper than {MAX_DEPTH} levels")
            return
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            inner = f"{path}.{name}" if isinstance(value, dict) else f"{path}[{name}]"
            if isinstance(name, str) and "\0" in name:
                yield FieldViolation(
                    path, "has a field name with the character U+0000, which cannot be stored"
                )
            yield from _violations(item, inner, depth + 1)
