"""Reads a document from JSON text, refusing whatever a Struct would not give back as written."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from duostore_server.domain.documents import MAX_DEPTH, MAX_WHOLE, document_violations
from duostore_server.domain.errors import FieldViolation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.documents import JsonObject

# Up to this many significant digits a double gives back what was written.
_SAFE_DIGITS: Final = 15
# With this many, every double can be told from its neighbours: writers that know no
# shortest form (C's "%.17g") put 0.1 as 0.10000000000000001.
_EXACT_DIGITS: Final = 17
# Below it doubles have fewer digits.
_SMALLEST_FULL: Final = sys.float_info.min
_SHOWN_CHARACTERS: Final = 40


class DocumentError(Exception):
    """The text is no document that could be saved; ``violations`` lists all that is wrong."""

    def __init__(self, *violations: FieldViolation) -> None:
        self.violations = tuple(
            FieldViolation(_printable(v.field), _printable(v.description)) for v in violations
        )
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.violations))


def parse_document(text: bytes) -> JsonObject:
    """Return the JSON object in ``text``, which is UTF-8.

    Raises ``DocumentError``. A number is accepted if the double nearest to it is written
    back as the same number, and it is below 2^53.
    """
    value = parse_json(text, "data")
    if not isinstance(value, dict):
        raise _refused("data", f"is not a JSON object but {type_shown(value)}")
    if violations := (*losses(value, "data"), *document_violations(value, "data")):
        raise DocumentError(*violations)
    return value


def parse_json(text: bytes, field: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return the JSON value in ``text``, which is UTF-8; what would be changed is in ``losses``.

    Raises ``DocumentError``, which names ``field``, if it is not JSON.
    """
    try:
        return json.loads(
            text.decode(),
            parse_int=_whole,
            parse_float=_decimal,
            parse_constant=_constant,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise _refused(field, problem) from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if b"\n" in text else ""
        place = f"{line}column {error.colno}"
        raise _refused(field, f"is not JSON: {error.msg}: {place}") from error
    except RecursionError as error:
        raise _refused(field, f"nests deeper than {MAX_DEPTH} levels") from error


def losses(value: Any, field: str, depth: int = 1) -> Iterator[FieldViolation]:  # noqa: ANN401
    """Yield all in a value of ``parse_json`` that would come back changed, each by its path.

    Looks as deep as documents may nest; ``depth`` is that of the value itself.
    """
    if isinstance(value, Lossy):
        yield FieldViolation(field, value.problem)
    elif isinstance(value, str):
        if not _is_unicode(value):
            yield FieldViolation(field, "holds one half of a surrogate pair, which is no character")
    elif isinstance(value, list) and depth <= MAX_DEPTH:
        for index, item in enumerate(value):
            yield from losses(item, f"{field}[{index}]", depth + 1)
    elif isinstance(value, dict) and depth <= MAX_DEPTH:
        if isinstance(value, _Repeating):
            yield FieldViolation(field, f"has the name {value.repeated!r} twice")
        for name, item in value.items():
            if not _is_unicode(name):
                yield FieldViolation(
                    field, "has a name with one half of a surrogate pair, which is no character"
                )
            yield from losses(item, f"{field}.{name}", depth + 1)


def id_at(document: JsonObject, path: str) -> str:
    """Return the id found at a dotted path: a string, or a whole number as one.

    Raises ``DocumentError`` if there is none, or it is empty or anything else.
    """
    value: Any = document
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise DocumentError(FieldViolation(f"data.{path}", "is missing; it holds the id"))
        value = value[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        problem = f"holds the id: it must be a string or a whole number, not {type_shown(value)}"
        raise DocumentError(FieldViolation(f"data.{path}", problem))
    if not value:
        raise DocumentError(FieldViolation(f"data.{path}", "is empty; it holds the id"))
    return value


def type_shown(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return what a JSON value is, in a word."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "a number"


class Lossy:
    """A value that would come back changed, until its path is known."""

    __slots__ = ("problem",)

    def __init__(self, problem: str) -> None:
        self.problem = problem


class _Repeating(dict[str, Any]):
    """An object in which a name is given twice, so that a value would be dropped."""

    repeated: str = ""


def _refused(field: str, problem: str) -> DocumentError:
    return DocumentError(FieldViolation(field, problem))


def _whole(text: str) -> int | Lossy:
    # Python refuses to read thousands of digits at all.
    if len(text) <= len(str(-MAX_WHOLE)) and abs(value := int(text)) <= MAX_WHOLE:
        return value
    return _beyond(text)


def _decimal(text: str) -> float | Lossy:
    value = float(text)
    if abs(value) > MAX_WHOLE:
        return _beyond(text)
    mantissa = text.lower().partition("e")[0]
    digits = mantissa.replace(".", "").lstrip("-0").rstrip("0")
    if _is_kept(value, text, digits):
        return value
    return Lossy(
        f"is {_shown(text)}, which a double would turn into {value!r}; send it as a string"
    )


def _is_kept(value: float, text: str, digits: str) -> bool:
    if not digits or not value:
        return not digits and not value
    if abs(value) >= _SMALLEST_FULL and len(digits) <= _SAFE_DIGITS:
        return True
    if len(digits) > _EXACT_DIGITS:
        return False
    written = Decimal(text)
    return Decimal(repr(value)) == written or Decimal(f"{value:.{len(digits) - 1}e}") == written


def _beyond(text: str) -> Lossy:
    return Lossy(
        f"is {_shown(text)}, a number of 2^53 or beyond, which a double rounds; send it as a string"
    )


def _constant(text: str) -> Lossy:
    return Lossy(f"is {text}; JSON has no such value")


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    seen: set[str] = set()
    repeating = _Repeating(value)
    for name, _ in pairs:
        if name in seen:
            repeating.repeated = name
            break
        seen.add(name)
    return repeating


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _shown(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"
