"""The formats of rows that are written as they come: CSV and JSON Lines; Parquet is by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from duostore_server.cli.rows import UnfitRowsError, json_line, require_distinct, text_makers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duostore_server.cli.output import Output
    from duostore_server.cli.rows import Head, Row

# What makes a field of RFC 4180 need quotes.
_SPECIAL: Final = frozenset(',"\r\n')


class RowWriter(Protocol):
    """Writes the rows of one result to its output, in one format."""

    def begin(self, head: Head) -> None:
        """Write what comes before the rows. Raises ``UnfitRowsError``."""
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows, or keep a bounded number of them. Raises ``UnfitRowsError``."""
        ...

    def end(self) -> None:
        """Write what is left. Without it the output is not whole."""
        ...


class JsonLines:
    """A JSON object a row, its names in the order of the columns."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._columns: tuple[str, ...] = ()

    def begin(self, head: Head) -> None:
        require_distinct(head.columns)
        self._columns = head.columns

    def write(self, rows: Sequence[Row]) -> None:
        columns = self._columns
        self._output.write("".join(f"{json_line(columns, row)}\n" for row in rows).encode())

    def end(self) -> None:
        pass


class Csv:
    """CSV as of RFC 4180 with a header, in UTF-8. NULL is nothing, an empty string is ``""``.

    Lists and JSON are JSON. Text is written as it is, also what a spreadsheet would take for
    a formula.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._texts: list[Callable[[Any], str]] = []

    def begin(self, head: Head) -> None:
        self._texts = text_makers(head.types)
        self._output.write(_line([_field(name) for name in head.columns]).encode())

    def write(self, rows: Sequence[Row]) -> None:
        texts = self._texts
        lines = (
            _line(
                [
                    "" if value is None else _field(text(value))
                    for value, text in zip(row, texts, strict=True)
                ]
            )
            for row in rows
        )
        self._output.write("".join(lines).encode())

    def end(self) -> None:
        pass


def writer_of(format_: str, output: Output) -> RowWriter:
    """Return the writer of a format: jsonl, csv or parquet.

    Raises ``UnfitRowsError`` if that needs what is not installed.
    """
    match format_:
        case "jsonl":
            return JsonLines(output)
        case "csv":
            return Csv(output)
        case _:
            try:
                from duostore_server.cli.parquet import Parquet  # noqa: PLC0415 - an extra
            except ModuleNotFoundError as error:
                raise UnfitRowsError(
                    f"Parquet needs {error.name}, which is not installed: "
                    'pip install "duostore-server[parquet]"'
                ) from error
            return Parquet(output)


def _line(fields: list[str]) -> str:
    # A line of nothing would be no row to those who read it.
    line = ",".join(fields) or '""'
    return f"{line}\r\n"


def _field(text: str) -> str:
    if text and _SPECIAL.isdisjoint(text):
        return text
    quoted = text.replace('"', '""')
    return f'"{quoted}"'
