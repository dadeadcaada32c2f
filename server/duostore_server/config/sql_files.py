"""SQL files: read once, when the configuration is loaded, and taken apart."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from duostore_server.config.sql_tokens import Mark, UnreadableError, places
from duostore_server.config.values import Form, Opaque, resolved
from duostore_server.domain.sql import Placeholder, SqlFile, SqlStatement, Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duostore_server.config.sql_tokens import Place
    from duostore_server.domain.sql import Part

# What a statement may begin with: those that read, and those of save_sql and delete_sql. COMMIT
# among them would leave the entity and its rows apart. A procedure cannot be told :version, for
# which a subquery stands; a function can.
_READS: Final = frozenset({"SELECT", "WITH", "VALUES", "TABLE", "("})
_ONLY_READS: Final = "a query may only read: begin with SELECT, WITH, VALUES or TABLE"
_WRITES: Final = _READS | {"INSERT", "UPDATE", "DELETE", "MERGE"}

PARAM_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class SqlFileError(ValueError):
    """A file is not SQL that can be used. ``faults`` are lines, from 1, and what is wrong there."""

    def __init__(self, path: str, faults: Sequence[tuple[int, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{path}:{line}: {fault}" for line, fault in faults))


def parse(path: str, text: str) -> SqlFile:
    """Return the statements of a file, at least one; raises ``SqlFileError``.

    ``:name`` is a parameter unless it stands in a string, a quoted name or a comment. A
    statement goes from what follows the last semicolon, comments included and space not,
    to its last word.
    """
    try:
        found = list(places(text))
    except UnreadableError as error:
        raise SqlFileError(path, [(_line(text, error.position), str(error))]) from None
    faults = list(_faults(text, found))
    statements = tuple(_statements(text, found))
    if not statements and not faults:
        faults = [(1, "holds no statement")]
    if faults:
        raise SqlFileError(path, faults)
    return SqlFile(path, statements, hashlib.sha256(text.encode()).hexdigest())


def one_select(file: SqlFile) -> SqlFile:
    """Return the file if it has one statement, which reads; raises ``SqlFileError``."""
    first, *others = [_beginning(statement) for statement in file.statements]
    faults = []
    if first[1] not in _READS:
        faults = [(first[0], f"{_ONLY_READS}, not {first[1]}")]
    if others:
        line, _ = others[0]
        faults.append(
            (line, "a second statement begins, and only save_sql and delete_sql may have several")
        )
    if faults:
        raise SqlFileError(file.path, faults)
    return file


def writes(file: SqlFile) -> SqlFile:
    """Return the file if it may be run in the transaction of a Save; raises ``SqlFileError``."""
    found = [_beginning(statement) for statement in file.statements]
    known = ", ".join(sorted(_WRITES - {"("}))
    if faults := [
        (line, f"{word} cannot begin a statement here; known are {known}")
        for line, word in found
        if word not in _WRITES
    ]:
        raise SqlFileError(file.path, faults)
    return file


def _beginning(statement: SqlStatement) -> tuple[int, str]:
    """Return the first word of a statement, in upper case, and its line."""
    first = statement.parts[0]
    if isinstance(first, Text):
        for place in places(first.text):
            word = first.text[place.start : place.end].upper()
            return first.line + first.text.count("\n", 0, place.start), word
    placeholder = next(statement.placeholders())
    return placeholder.line, f":{placeholder.name}"


def _faults(text: str, found: Sequence[Place]) -> Iterator[tuple[int, str]]:
    if "\0" in text:
        yield _line(text, text.index("\0")), "holds the character U+0000"
    for place in found:
        word = text[place.start : place.end]
        line = _line(text, place.start)
        if place.mark is Mark.NUMBERED:
            yield line, f"{word} is no parameter; parameters have names, such as :id"
        elif place.mark is Mark.PLACEHOLDER and not PARAM_NAME.fullmatch(word[1:]):
            yield (
                line,
                f"{word} is no name of a parameter: they are of A-Z, a-z, 0-9 and _",
            )


def _statements(text: str, found: Sequence[Place]) -> Iterator[SqlStatement]:
    begin = 0
    places: list[Place] = []
    for place in found:
        if place.mark is not Mark.END:
            places.append(place)
            continue
        if places:
            yield SqlStatement(tuple(_parts(text, begin, places)))
        begin, places = place.end, []
    if places:
        yield SqlStatement(tuple(_parts(text, begin, places)))


def _parts(text: str, begin: int, places: Sequence[Place]) -> Iterator[Part]:
    head = text[begin : places[0].start]
    begin += len(head) - len(head.lstrip())
    for place in places:
        if place.mark is Mark.PLACEHOLDER:
            if begin < place.start:
                yield Text(text[begin : place.start], _line(text, begin))
            yield Placeholder(text[place.start + 1 : place.end], _line(text, place.start))
            begin = place.end
    if begin < places[-1].end:
        yield Text(text[begin : places[-1].end], _line(text, begin))


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def read_select(value: object, info: ValidationInfo) -> SqlFile:
    """Return the file whose path this is, seen from the folder of the configuration."""
    return one_select(_read(value, info))


def _read_writes(value: object, info: ValidationInfo) -> SqlFile:
    return writes(_read(value, info))


def _read(value: object, info: ValidationInfo) -> SqlFile:
    path = resolved(value, info)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'is not UTF-8 text: "{path}", at byte {error.start}') from None
    except OSError as error:
        raise ValueError(f'cannot be read: "{path}": {error.strerror}') from None
    if text.startswith("\ufeff"):
        raise ValueError(f'begins with a byte order mark, which PostgreSQL does not know: "{path}"')
    return parse(str(path), text)


Select: TypeAlias = Annotated[
    SqlFile,
    Opaque(),
    PlainValidator(read_select),
    PlainSerializer(lambda file: file.path),
    WithJsonSchema({"type": "string", "minLength": 1}),
    Form("path of SQL", lambda file: file.path),
]
Writes: TypeAlias = Annotated[
    SqlFile,
    Opaque(),
    PlainValidator(_read_writes),
    PlainSerializer(lambda file: file.path),
    WithJsonSchema({"type": "string", "minLength": 1}),
    Form("path of SQL", lambda file: file.path),
]
