"""A result as a table for people: cut and padded, and not to be read by programs."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len, set_cell_size

from duostore_server.cli.rows import text_makers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from duostore_server.cli.rows import Head, Row

_MOST_CELLS: Final = 60
_NUMBERS: Final = {"smallint", "integer", "bigint", "real", "double precision", "numeric"}


def table(head: Head, rows: Sequence[Row]) -> Iterator[str]:
    """Yield a result a line at a time, the names of its columns first."""
    texts = text_makers(head.types)
    names = [_shown(name) for name in head.columns]
    lines = [[_cell(value, text) for value, text in zip(row, texts, strict=True)] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(names, *lines, strict=True)]
    rights = [type_ in _NUMBERS for type_ in head.types]
    for line in chain([names], lines):
        yield "  ".join(
            _padded(cell, width, right=right)
            for cell, width, right in zip(line, widths, rights, strict=True)
        ).rstrip()


def _cell(value: Any, text: Callable[[Any], str]) -> str:  # noqa: ANN401 - any JSON value
    return "null" if value is None else _shown(text(value))


def _shown(text: str) -> str:
    printable = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        # No character takes less than no cell, and most take one.
        for character in text[: 2 * _MOST_CELLS]
    )
    if len(text) <= len(printable) and cell_len(printable) <= _MOST_CELLS:
        return printable
    return set_cell_size(printable, _MOST_CELLS - 1).rstrip() + "…"


def _padded(text: str, width: int, *, right: bool) -> str:
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding
