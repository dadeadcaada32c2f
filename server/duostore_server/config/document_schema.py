"""The JSON Schema of a kind: read and compiled once, then asked about every document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import jsonschema_rs
from jsonschema_rs import ValidationErrorKind as Broken
from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from duostore_server.config.values import Form, resolved
from duostore_server.domain.documents import path_text
from duostore_server.domain.errors import FieldViolation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from duostore_server.domain.documents import JsonObject

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_MAX_DESCRIPTION: Final = 200

# The validator makes all errors of a document at once, each with its path and a copy of the
# value: a list of 65,000 items under a name of 128 KiB would take 8 GB. One error for each
# value may take this much, in bytes and counting so many for the error itself; of documents
# that could take more only the first error is asked for.
_MAX_ERROR_BYTES: Final = 8 << 20
_ERROR_BYTES: Final = 1024

_DESCRIPTIONS: Final = {
    "const": "must be {expected_value}",
    "enum": "must be one of {options}",
    "exclusiveMaximum": "must be less than {limit}",
    "exclusiveMinimum": "must be more than {limit}",
    "falseSchema": "is not allowed",
    "format": "must have the format {format}",
    "maxItems": "must have at most {limit} item(s)",
    "maxLength": "must have at most {limit} character(s)",
    "maxProperties": "must have at most {limit} field(s)",
    "maximum": "must be at most {limit}",
    "minItems": "must have at least {limit} item(s)",
    "minLength": "must have at least {limit} character(s)",
    "minProperties": "must have at least {limit} field(s)",
    "minimum": "must be at least {limit}",
    "multipleOf": "must be a multiple of {multiple_of}",
    "pattern": "must match the pattern {pattern}",
    "type": "must be of type {types}",
    "unevaluatedItems": "holds items that are not known to the schema",
    "uniqueItems": "must not hold an item twice",
}


class DocumentSchema:
    """A JSON Schema (draft 2020-12), compiled. Equal to another of the same file and content.

    ``format`` is checked. Refused are formats that are not known, references that lead
    out of the file, and patterns that cannot be matched in linear time, since callers
    choose what they are matched against. Safe to use from many threads.
    """

    __slots__ = ("_schema", "_validator", "path")

    def __init__(self, path: Path, schema: JsonObject) -> None:
        self.path = path
        self._schema = schema
        self._validator = jsonschema_rs.Draft202012Validator(
            schema,
            validate_formats=True,
            ignore_unknown_formats=False,
            offline=True,
            pattern_options=jsonschema_rs.RegexOptions(),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DocumentSchema):
            return NotImplemented
        return self.path == other.path and self._schema == other._schema

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"DocumentSchema({str(self.path)!r})"

    def __reduce__(self) -> tuple[type[DocumentSchema], tuple[Path, JsonObject]]:
        return DocumentSchema, (self.path, self._schema)

    @property
    def example(self) -> JsonObject | None:
        """Return the first of the schema's ``examples``, if it has any."""
        example = next(iter(self._schema.get("examples", ())), None)
        return example if isinstance(example, dict) else None

    def violations(self, document: JsonObject) -> Iterator[FieldViolation]:
        """Yield everything that the document breaks, each by its path below ``data``.

        Of a document with many values, or with long ones below long names, only what breaks
        first. Ask ``document_violations`` first: numbers that are not finite pass here, and
        nesting is not bounded. Descriptions quote the schema, never the document.
        """
        if self._validator.is_valid(document):
            return
        if _error_bytes(document) <= _MAX_ERROR_BYTES:
            for error in self._validator.iter_errors(document):
                yield from _violations(document, error)
            return
        try:
            self._validator.validate(document)
        except jsonschema_rs.ValidationError as error:
            yield from _violations(document, error)
            yield FieldViolation(
                "data", "may break the schema elsewhere too: of so large a document not all is told"
            )


def _violations(
    document: JsonObject, error: jsonschema_rs.ValidationError
) -> Iterator[FieldViolation]:
    steps = _steps(document, error.instance_path)
    match error.kind:
        case Broken.Required(property=name):
            yield FieldViolation(path_text("data", (*steps, name)), "is required")
        case Broken.AdditionalProperties(unexpected=names):
            yield from _unexpected(steps, names)
        case Broken.UnevaluatedProperties(unexpected=names):
            yield from _unexpected(steps, names)
        case Broken.PropertyNames(error=inner):
            yield FieldViolation(
                path_text("data", (*steps, str(inner.instance))),
                "has a name that the schema does not allow",
            )
        case kind:
            yield FieldViolation(path_text("data", steps), _description(kind))


def _unexpected(steps: Sequence[str | int], names: Iterable[str]) -> Iterator[FieldViolation]:
    for name in names:
        yield FieldViolation(path_text("data", (*steps, name)), "is not known to the schema")


def _steps(document: JsonObject, segments: Sequence[str | int]) -> list[str | int]:
    """Return the steps to where the segments lead: names as text, indexes as numbers.

    The validator gives names of digits as numbers, so that only the document tells
    the field ``7`` from the item 7. It leaves out empty names and leading zeros.
    """
    steps: list[str | int] = []
    value: Any = document
    for segment in segments:
        if isinstance(value, list) and isinstance(segment, int):
            steps.append(segment)
            value = value[segment] if segment < len(value) else None
        else:
            steps.append(str(segment))
            value = value.get(str(segment)) if isinstance(value, dict) else None
    return steps


def _error_bytes(value: Any, path: int = 0, above: int = 1) -> int:  # noqa: ANN401 - any JSON value
    """Return about how much one error for each value takes, each with its path and a copy.

    A value is part of every value ``above`` it, itself counted, and copied with each.
    """
    total = _ERROR_BYTES + path
    if isinstance(value, dict):
        for name, item in value.items():
            total += len(name) * above + _error_bytes(item, path + len(name), above + 1)
    elif isinstance(value, list):
        for item in value:
            total += _error_bytes(item, path, above + 1)
    elif isinstance(value, str):
        total += len(value) * above
    return total


def _description(kind: Broken) -> str:
    template = _DESCRIPTIONS.get(kind.name)
    if template is None:
        return f"does not match the schema ({kind.name})"
    rule = {name: _quoted(value) for name, value in kind.as_dict().items()}
    return _bounded(template.format(**rule))


def _quoted(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_quoted(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_DESCRIPTION else f"{text[: _MAX_DESCRIPTION - 3]}..."


def _read(value: object, info: ValidationInfo) -> DocumentSchema:
    path = resolved(value, info)
    try:
        schema = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'is not valid JSON: "{path}": {error}') from None
    if not isinstance(schema, dict):
        raise ValueError(f'must hold a JSON object: "{path}"')  # noqa: TRY004 - pydantic collects ValueErrors
    if schema.get("$schema", DIALECT) not in (DIALECT, f"{DIALECT}#"):
        raise ValueError(f'must be of draft 2020-12, "$schema": "{DIALECT}": "{path}"')
    try:
        return DocumentSchema(path, schema)
    except ValueError as error:
        raise ValueError(
            f'is no valid JSON Schema: "{path}": {_bounded(_schema_fault(error))}'
        ) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twice}" stands twice in one object')
    return found


def _schema_fault(error: ValueError) -> str:
    if not isinstance(error, jsonschema_rs.ValidationError):
        return str(error)
    if isinstance(error.kind, Broken.Referencing):
        return f"a reference cannot be followed within the file: {error.message}"
    where = "/".join(str(segment) for segment in error.instance_path)
    if isinstance(error.kind, Broken.Format) and error.kind.format == "regex":
        return (
            f"at /{where}: {json.dumps(error.instance)} is no regular expression, or a very "
            "large one, or has look-around or back-references"
        )
    return f"at /{where}: {error.message}"


SchemaFile: TypeAlias = Annotated[
    DocumentSchema,
    PlainValidator(_read),
    PlainSerializer(lambda schema: str(schema.path)),
    WithJsonSchema({"type": "string", "minLength": 1}),
    Form("path", lambda schema: str(schema.path)),
]
