"""Reads the mutations of a transaction: a JSON array, or one JSON object a line."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.struct_pb2 import Struct

from duostore.v1 import data_access_pb2
from duostore_server.cli.json_document import (
    DocumentError,
    Lossy,
    losses,
    parse_json,
    type_shown,
)
from duostore_server.domain.documents import document_violations
from duostore_server.domain.errors import FieldViolation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor

# A document stands two levels deep in its mutation, {"save": {"data": ...}}, and is itself
# the first of its levels.
_DEPTH: Final = -1
_STRUCT: Final = Struct.DESCRIPTOR.full_name
_WHOLE: Final = re.compile(r"-?[0-9]+")


@dataclass(slots=True)
class Mutations:
    """What was given of a transaction; to be sent only if there are no ``violations``.

    ``lines`` has the number of the line in which each mutation stands, in their order; it
    is empty if they stand in an array.
    """

    messages: list[data_access_pb2.Mutation] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    violations: list[FieldViolation] = field(default_factory=list)

    def with_lines(self, text: str) -> str:
        """Return a text in which each mutation that it names has its line beside it."""
        return re.sub(r"\bmutations\[(\d+)\]", self._with_line, text)

    def _with_line(self, named: re.Match[str]) -> str:
        index = int(named[1])
        return f"{named[0]} (line {self.lines[index]})" if index < len(self.lines) else named[0]


def read_mutations(text: bytes, *, tenant: str) -> Mutations:
    """Return the mutations in a text, which is UTF-8, and all that is wrong with them.

    Blank lines are left out. ``tenant`` is that of mutations that name none.
    """
    read = Mutations()
    text = text.removeprefix(codecs.BOM_UTF8)
    if text.lstrip().startswith(b"["):
        try:
            values = parse_json(text, "input")
        except DocumentError as error:
            read.violations.extend(error.violations)
            return read
        for value in values:
            _add(read, value, tenant)
    else:
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                read.lines.append(number)
                try:
                    value = parse_json(line, f"mutations[{len(read.messages)}]")
                except DocumentError as error:
                    read.messages.append(data_access_pb2.Mutation())
                    read.violations.extend(error.violations)
                else:
                    _add(read, value, tenant)
    return read


def _add(read: Mutations, value: Any, tenant: str) -> None:  # noqa: ANN401 - any JSON value
    message = data_access_pb2.Mutation()
    place = f"mutations[{len(read.messages)}]"
    read.messages.append(message)
    if violations := list(_violations(value, place)):
        # Which makes them printable.
        read.violations.extend(DocumentError(*violations).violations)
        return
    try:
        json_format.ParseDict(value, message)
    except json_format.ParseError as error:
        problem = " ".join(str(error).split())
        read.violations.append(FieldViolation(place, f"is no mutation: {problem}"))
        return
    if kind := message.WhichOneof("mutation"):
        key = getattr(message, kind).key
        key.tenant = key.tenant or tenant


def _violations(value: Any, place: str) -> Iterator[FieldViolation]:  # noqa: ANN401 - as above
    yield from losses(value, place, _DEPTH)
    yield from _misfits(value, data_access_pb2.Mutation.DESCRIPTOR, place)


def _misfits(value: Any, message: Descriptor, place: str) -> Iterator[FieldViolation]:  # noqa: ANN401 - as above
    """Yield all in a value that does not fit into a message, each by its path.

    ``ParseDict`` says it in the words of Python, takes empty lists for objects, and ends with
    the first.
    """
    fields = {field.name: field for field in message.fields}
    if not isinstance(value, dict):
        names = f", of {', '.join(fields)}" if message.full_name != _STRUCT else ""
        yield FieldViolation(place, f"is not a JSON object{names}, but {type_shown(value)}")
        return
    if message.full_name == _STRUCT:
        yield from document_violations(value, place)
        return
    known = fields | {field.camelcase_name: field for field in message.fields}
    for name, item in value.items():
        if name not in known:
            yield FieldViolation(place, f"has no field {name!r}, but {', '.join(fields)}")
        elif item is not None:  # which is a field left out
            yield from _misfit(item, known[name], f"{place}.{name}")


def _misfit(item: Any, field: FieldDescriptor, place: str) -> Iterator[FieldViolation]:  # noqa: ANN401 - as above
    if field.message_type is not None:
        yield from _misfits(item, field.message_type, place)
    elif isinstance(item, Lossy):
        return  # and told already
    elif field.type == FieldDescriptor.TYPE_STRING:
        if not isinstance(item, str):
            yield FieldViolation(place, f"is not a string but {type_shown(item)}")
    elif field.type == FieldDescriptor.TYPE_BOOL:
        if not isinstance(item, bool):
            yield FieldViolation(place, f"is not true or false but {type_shown(item)}")
    elif not _is_whole(item):
        yield FieldViolation(place, "is not a whole number, nor one in a string")


def _is_whole(item: Any) -> bool:  # noqa: ANN401 - as above
    if isinstance(item, str):
        return _WHOLE.fullmatch(item) is not None
    if isinstance(item, float):
        return item.is_integer()
    return isinstance(item, int) and not isinstance(item, bool)
