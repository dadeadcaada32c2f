"""A folder of migrations: numbered SQL files, read once, when the configuration is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from duostore_server.config.values import Form, Opaque

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NUMBERED: Final = re.compile(r"([0-9]{1,12})_[A-Za-z0-9_-]+\.sql", re.ASCII)


@dataclass(frozen=True, slots=True)
class SqlFolder:
    """The migrations of a folder: ``files`` are names without ``.sql`` and contents, in order."""

    path: Path
    files: tuple[tuple[str, bytes], ...]


def _read(value: object, info: ValidationInfo) -> SqlFolder:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be the path of a folder, in quotes")
    path: Path = (info.context or {}).get("folder", Path()) / value
    try:
        found = [file for file in path.iterdir() if file.name.endswith(".sql")]
        if wrong := list(_problems(found)):
            raise ValueError("; ".join(wrong))
        files = [(file.stem, file.read_bytes()) for file in sorted(found, key=_number)]
    except OSError as error:
        name = error.filename or path
        raise ValueError(f'cannot be read: "{name}": {error.strerror}') from None
    if not files:
        raise ValueError(f'holds no SQL file: "{path}"')
    return SqlFolder(path, tuple(files))


def _problems(files: Sequence[Path]) -> Iterator[str]:
    numbers: dict[int, Path] = {}
    for file in sorted(files):
        if not _NUMBERED.fullmatch(file.name):
            yield (
                f'holds "{file.name}", whose name must be a number, which tells its place in the '
                'order, and words of A-Z a-z 0-9 _ -, such as "0001_invoices.sql"'
            )
        elif (earlier := numbers.setdefault(_number(file), file)) != file:
            yield f'holds "{earlier.name}" and "{file.name}", which have the same number'


def _number(file: Path) -> int:
    return int(file.name.partition("_")[0])


Migrations: TypeAlias = Annotated[
    SqlFolder,
    Opaque(),
    PlainValidator(_read),
    PlainSerializer(lambda folder: str(folder.path)),
    WithJsonSchema({"type": "string", "minLength": 1}),
    Form("path of a folder", lambda folder: str(folder.path)),
]
