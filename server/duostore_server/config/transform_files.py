"""The transforms of a kind: JMESPath files, read and compiled when the configuration is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import jmespath
from jmespath.exceptions import JMESPathError, JMESPathTypeError, LexerError, ParseError
from jmespath.functions import Functions
from jmespath.lexer import Lexer
from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from duostore_server.config.values import Form, Opaque, resolved
from duostore_server.domain.documents import compact_size, document_violations, normalized
from duostore_server.domain.entities import AS_SAVED
from duostore_server.domain.policies import TransformError

if TYPE_CHECKING:
    from jmespath.parser import ParsedResult

    from duostore_server.domain.documents import JsonObject

MAX_PROJECTION_VERSION: Final = 100
# Without leading zeros, so that no number can be said twice.
_NUMBER: Final = r"[1-9][0-9]{0,2}"

_DOCUMENT: Final = "document"

# Of what a list holds, the library tells the types of Python.
_TYPES: Final = {
    "str": "string",
    "int": "number",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
    "NoneType": "null",
}


@dataclass(frozen=True, slots=True)
class Transform:
    """A JMESPath expression, compiled. Equal to another of the same path and text.

    Safe to use from many threads.
    """

    path: str
    expression: str
    _compiled: ParsedResult = field(compare=False, repr=False)

    def build(self, document: JsonObject, max_bytes: int) -> JsonObject:
        """Return what the expression makes of a document, in the form that stores give back.

        The document is left as it is, and shares nothing with the result. Raises
        ``TransformError`` if it cannot be evaluated, and if the result is no object, cannot be
        stored, or has more than ``max_bytes`` as compact JSON. Its texts quote the expression
        at most, never a value.
        """
        try:
            found = _plain(self._compiled.search(document))
        except TransformError:
            raise
        except JMESPathTypeError as error:
            expected = " or ".join(error.expected_types)
            given = _TYPES.get(error.actual_type, error.actual_type)
            raise TransformError(
                f"the function {error.function_name} takes {expected}, not {given}"
            ) from error
        # The functions of the language are Python that takes any value; what it raises for
        # one that they do not foresee is nowhere promised, and says nothing against us.
        except Exception as error:
            raise TransformError(f"cannot be evaluated ({type(error).__name__})") from error
        return _accepted(found, max_bytes)


def _accepted(found: object, max_bytes: int) -> JsonObject:
    if not isinstance(found, dict):
        raise TransformError("the result is no object")
    for violation in document_violations(found, _DOCUMENT):
        raise TransformError(f"of the result {violation.field} {violation.description}")
    try:
        size = compact_size(found)
    except UnicodeEncodeError as error:
        raise TransformError("the result holds text that is not Unicode") from error
    if size > max_bytes:
        raise TransformError(
            f"the result has {size} bytes as compact JSON; its kind allows {max_bytes}"
        )
    return found


def compiled(path: str, text: str) -> Transform:
    """Return the transform of a file with this text; raises ``ValueError`` with the place."""
    try:
        parsed = jmespath.compile(text)
        faults = list(_wrong_calls(text, parsed.parsed))
    except ParseError as error:
        raise ValueError(f"{_place(path, text, error.lex_position)}: {_said(error)}") from None
    except JMESPathError as error:
        raise ValueError(f"{path}: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply") from None
    if faults:
        raise ValueError("; ".join(f"{_place(path, text, at)}: {fault}" for at, fault in faults))
    return Transform(path, text, parsed)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of JMESPath
    """Return a value as JSON in the form that stores give back, with nothing of the original.

    Whole numbers that are too large come as the doubles they round to, of which
    ``document_violations`` tells as it does of those that callers send.
    """
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, float)):
        return normalized(float(value))
    raise TransformError("the result holds an expression (&), which is no value")


def _said(error: ParseError) -> str:
    if isinstance(error, LexerError):
        return str(error.message)
    if not error.token_value:
        return "the expression ends too early"
    return f"{error.token_value!r} cannot stand here"


def _place(path: str, text: str, position: int) -> str:
    before = text[:position]
    return f"{path}:{before.count(chr(10)) + 1}:{position - before.rfind(chr(10))}"


def _wrong_calls(text: str, node: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Yield the calls of functions that there are not, or with too few or many arguments."""
    tokens = list(Lexer().tokenize(text))
    places = [
        token["start"]
        for token, following in pairwise(tokens)
        if token["type"] == "unquoted_identifier" and following["type"] == "lparen"
    ]
    for place, call in zip(places, _calls(node), strict=True):
        name, given = call["value"], len(call["children"])
        known = Functions.FUNCTION_TABLE.get(name)
        if known is None:
            yield place, f"there is no function {name}"
            continue
        takes = known["signature"]
        variadic = bool(takes) and bool(takes[-1].get("variadic"))
        if given < len(takes) or (given > len(takes) and not variadic):
            least = "at least " if variadic else ""
            yield place, f"the function {name} takes {least}{len(takes)}, and is given {given}"


def _calls(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the calls of an expression in the order in which they stand in its text."""
    if node["type"] == "function_expression":
        yield node
    children = node["children"]
    if node["type"] == "filter_projection":
        of, then, condition = children
        children = (of, condition, then)
    for child in children:
        if isinstance(child, Mapping):
            yield from _calls(child)


def _transforms(value: object, info: ValidationInfo) -> dict[int, Transform]:
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
            "must be a table of projection versions and paths, such as "
            '{ 2 = "transforms/proposal_2.jmespath" }'
        )
    found: dict[int, Transform] = {}
    wrong: list[str] = []
    for name, path in value.items():
        if not re.fullmatch(_NUMBER, name) or not AS_SAVED < int(name) <= MAX_PROJECTION_VERSION:
            wrong.append(
                f'has "{name}", and projection versions that are made by transforms are '
                f"{AS_SAVED + 1} to {MAX_PROJECTION_VERSION}"
            )
            continue
        try:
            found[int(name)] = _read(path, info)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return dict(sorted(found.items()))


def _read(value: object, info: ValidationInfo) -> Transform:
    path = resolved(value, info)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'is not UTF-8 text: "{path}", at byte {error.start}') from None
    except OSError as error:
        raise ValueError(f'cannot be read: "{path}": {error.strerror}') from None
    return compiled(str(path), text)


def _written(transforms: Mapping[int, Transform]) -> dict[str, str]:
    """Return the transforms as the file has them."""
    return {str(number): transform.path for number, transform in transforms.items()}


Transforms: TypeAlias = Annotated[
    Mapping[int, Annotated[Transform, Opaque()]],
    PlainValidator(_transforms),
    PlainSerializer(_written),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^([2-9]|[1-9][0-9]|100)$"},
            "additionalProperties": {"type": "string", "minLength": 1},
        }
    ),
    Form("table of paths of JMESPath", _written),
]
