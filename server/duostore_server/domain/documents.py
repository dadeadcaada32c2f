"""What a document may contain: exactly that which every store gives back unchanged."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from duostore_server.domain.errors import FieldViolation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

JsonObject: TypeAlias = dict[str, Any]
# Where a value is: the trail of what holds it, and its name or index in there.
_Trail: TypeAlias = "tuple[_Trail, str | int] | None"

MAX_DEPTH: Final = 20
# From 2^53 on a double no longer tells neighbouring whole numbers apart: as 2^53 itself comes
# 2^53 + 1, too.
MAX_WHOLE: Final = 2**53 - 1
# Of a longer field name a path shows the beginning: names are as long as callers like, and
# a path is told for each of many violations.
MAX_SHOWN_NAME: Final = 100


def compact_json(data: JsonObject) -> str:
    """Return the document as compact JSON, keys in their order, non-ASCII kept."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def compact_size(data: JsonObject) -> int:
    """Return the bytes of the document as compact JSON in UTF-8.

    Takes any document, also one that holds what JSON has no word for.
    """
    return len(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())


def most_struct_bytes(json_bytes: int) -> int:
    """Return how large a document of so much compact JSON may be as ``google.protobuf.Struct``.

    5.5 times as large: a list of numbers of one digit has 2 bytes of JSON for each, and
    11 of protobuf. Nothing grows more.
    """
    return -(-json_bytes * 11 // 2)


def normalized(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a JSON value in the one form that every store gives back.

    Numbers come as doubles; whole ones below 2^53 become integers, so that ``1.0`` is
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


def path_text(field: str, steps: Iterable[str | int]) -> str:
    """Return where the steps lead from a field, as ``data.items[3].price``; long names cut."""
    return field + "".join(
        f"[{step}]" if isinstance(step, int) else f".{_shown(step)}" for step in steps
    )


def document_violations(data: JsonObject, field: str) -> Iterator[FieldViolation]:
    """Yield all values of a document that a store could not give back, each by its path.

    Lazy, and linear in the size of the document for those who stop after some number of
    violations: a path is made for a violation, not for a value.
    """
    for trail, description in _violations(data, None, 1):
        yield FieldViolation(path_text(field, _steps(trail)), description)


def _violations(
    container: dict[str, Any] | list[Any], trail: _Trail, depth: int
) -> Iterator[tuple[_Trail, str]]:
    named: Iterable[tuple[str | int, Any]]
    named = container.items() if isinstance(container, dict) else enumerate(container)
    for name, value in named:
        if isinstance(name, str) and "\0" in name:
            yield trail, "has a field name with the character U+0000, which cannot be stored"
        if isinstance(value, (dict, list)):
            if depth == MAX_DEPTH:
                yield (trail, name), f"nests deeper than {MAX_DEPTH} levels"
            elif value:
                yield from _violations(value, (trail, name), depth + 1)
        elif description := _fault(value):
            yield (trail, name), description


def _fault(value: object) -> str | None:
    if isinstance(value, str):
        return "holds the character U+0000, which cannot be stored" if "\0" in value else None
    if isinstance(value, float):
        if not math.isfinite(value):
            return "is not a finite number; JSON has no such value"
        if abs(value) > MAX_WHOLE:
            return "is a whole number of 2^53 or beyond, which a double rounds; send it as a string"
    return None


def _steps(trail: _Trail) -> Iterable[str | int]:
    steps = []
    while trail is not None:
        trail, step = trail
        steps.append(step)
    return reversed(steps)


def _shown(name: str) -> str:
    return name if len(name) <= MAX_SHOWN_NAME else f"{name[: MAX_SHOWN_NAME - 1]}…"
