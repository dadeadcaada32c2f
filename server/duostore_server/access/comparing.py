"""Where two documents differ: by path, and with no value told."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from duostore_server.domain.documents import path_text
from duostore_server.domain.drift import MAX_DIFFERENCES, Departure, Difference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.entities import Entity

_Trail: TypeAlias = "tuple[_Trail, str | int] | None"

# What stands around a document begins with @, and the document as a whole is one of these.
DOCUMENT: Final = "@document"
_AROUND: Final = ("key", "version", "create_time", "update_time")

# What holds others of these does not differ itself if it is of the same type.
_NAMES: Final[dict[type, str]] = {
    type(None): "null",
    bool: "bool",
    int: "number",
    float: "number",
    str: "string",
    list: "list",
    dict: "object",
}


def entity_differences(expected: Entity, found: Entity) -> tuple[Difference, ...]:
    """Return where a version is not what it should be, 20 places at most; none if it is.

    Paths are those of its document, or ``@key``, ``@version``, ``@create_time`` and
    ``@update_time``.
    """
    around = (
        Difference(f"@{name}", Departure.VALUE)
        for name in _AROUND
        if getattr(expected, name) != getattr(found, name)
    )
    first = tuple(around)
    rest = document_differences(expected.data or {}, found.data or {})
    return (*first, *rest)[:MAX_DIFFERENCES]


def document_differences(expected: JsonObject, found: JsonObject) -> tuple[Difference, ...]:
    """Return where a document is not what it should be, 20 places at most; none if it is.

    Both in the form of ``documents.normalized``. Missing and extra places are told as wholes,
    and so are those of another type.
    """
    return tuple(
        Difference(path_text("", _steps(trail)).removeprefix("."), departure)
        for trail, departure in islice(_differences(expected, found, None), MAX_DIFFERENCES)
    )


def _differences(expected: Any, found: Any, trail: _Trail) -> Iterator[tuple[_Trail, Departure]]:  # noqa: ANN401 - any JSON values
    if _NAMES.get(type(expected)) != _NAMES.get(type(found)):
        yield trail, Departure.TYPE
    elif isinstance(expected, dict):
        yield from _objects(expected, found, trail)
    elif isinstance(expected, list):
        for index in range(max(len(expected), len(found))):
            at = (trail, index)
            if index >= len(found):
                yield at, Departure.MISSING
            elif index >= len(expected):
                yield at, Departure.EXTRA
            else:
                yield from _differences(expected[index], found[index], at)
    elif expected != found:
        yield trail, Departure.VALUE


def _objects(
    expected: JsonObject, found: JsonObject, trail: _Trail
) -> Iterator[tuple[_Trail, Departure]]:
    # In order, since the order in which a store gives the fields back says nothing.
    for name in sorted({*expected, *found}):
        at = (trail, name)
        if name not in found:
            yield at, Departure.MISSING
        elif name not in expected:
            yield at, Departure.EXTRA
        else:
            yield from _differences(expected[name], found[name], at)


def _steps(trail: _Trail) -> list[str | int]:
    steps = []
    while trail is not None:
        trail, step = trail
        steps.append(step)
    return steps[::-1]
