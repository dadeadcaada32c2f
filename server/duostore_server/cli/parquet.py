"""Rows as Parquet, in bounded memory. Needs the extra ``parquet``."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from duostore_server.cli.rows import UnfitRowsError, require_distinct, text_makers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duostore_server.cli.output import Output
    from duostore_server.cli.rows import Head, Row

# A row group is what readers read, and what is held in memory until then.
_GROUP_BYTES: Final = 16 * 1024 * 1024
_GROUP_ROWS: Final = 1_000_000
_SHOWN_CHARACTERS: Final = 40
# As of "timestamp(3) with time zone".
_MODIFIER: Final = re.compile(r"\([\d,]*\)")


def _whole(value: Any) -> int:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        raise TypeError("a fraction would be lost")
    return int(value)


def _boolean(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    if not isinstance(value, bool):
        raise TypeError("Python takes everything for a truth")
    return value


# By PostgreSQL's names: the type, and how a value becomes one. All others are strings.
_TYPES: Final[dict[str, tuple[Any, Callable[[Any], Any]]]] = {
    "smallint": (pa.int64(), _whole),
    "integer": (pa.int64(), _whole),
    "bigint": (pa.int64(), _whole),
    "real": (pa.float64(), float),
    "double precision": (pa.float64(), float),
    "boolean": (pa.bool_(), _boolean),
    "date": (pa.date32(), date.fromisoformat),
    "timestamp with time zone": (pa.timestamp("us", tz="UTC"), datetime.fromisoformat),
    "timestamp without time zone": (pa.timestamp("us"), datetime.fromisoformat),
}


class Parquet:
    """One file of row groups; its schema says in ``duostore.as_of`` what was seen."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._writer: Any = None
        self._schema: Any = None
        self._makers: list[Callable[[Any], Any]] = []
        self._batches: list[Any] = []
        self._rows = 0

    def begin(self, head: Head) -> None:
        require_distinct(head.columns)
        fields = []
        texts = text_makers(head.types)
        for name, type_, text in zip(head.columns, head.types, texts, strict=True):
            arrow, make = _TYPES.get(_MODIFIER.sub("", type_), (pa.string(), text))
            fields.append(pa.field(name, arrow))
            self._makers.append(make)
        self._schema = pa.schema(fields, metadata={"duostore.as_of": head.as_of})
        self._writer = ParquetWriter(self._output, self._schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        arrays = [
            self._array(index, [row[index] for row in rows]) for index in range(len(self._makers))
        ]
        self._batches.append(pa.record_batch(arrays, schema=self._schema))
        self._rows += len(rows)
        held = sum(batch.num_rows for batch in self._batches)
        if held >= _GROUP_ROWS or sum(batch.nbytes for batch in self._batches) >= _GROUP_BYTES:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._batches:
            table = pa.Table.from_batches(self._batches, self._schema)
            self._batches.clear()
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def _array(self, index: int, values: list[Any]) -> Any:  # noqa: ANN401 - has no types
        field, make = self._schema.field(index), self._makers[index]
        made: list[Any] = []
        for value in values:
            try:
                made.append(None if value is None else make(value))
            except (ValueError, TypeError) as error:
                row = self._rows + len(made) + 1
                shown = str(value)[:_SHOWN_CHARACTERS]
                raise UnfitRowsError(
                    f"row {row:,}: {field.name} is {shown!r}, which is no {field.type} of Parquet;"
                    " csv and jsonl take it as it is"
                ) from error
        return pa.array(made, type=field.type)
