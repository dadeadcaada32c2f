"""The condition that an item is still exactly as it was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duostore_server.domain.entities import AS_SAVED
from duostore_server.storage.dynamodb.items import attributes_of, shapes_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from duostore_server.domain.entities import Projection


@dataclass(frozen=True, slots=True)
class Condition:
    """A ``ConditionExpression``, with the names and the values that it speaks of."""

    expression: str
    names: dict[str, str]
    values: dict[str, Any]


def exactly(item: Mapping[str, Any], by: Projection | None) -> Condition:
    """Return the condition that each attribute is as in ``item``, which ``by`` shall replace.

    DynamoDB cannot be asked whether there are attributes besides. Those must be absent which
    a put of the same version could have added to these: see ``_absent``.
    """
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    clauses = []
    for number, (name, value) in enumerate(item.items()):
        names[f"#a{number}"], values[f":a{number}"] = name, value
        clauses.append(f"#a{number} = :a{number}")
    for number, name in enumerate(_absent(item, by), start=len(names)):
        names[f"#a{number}"] = name
        clauses.append(f"attribute_not_exists(#a{number})")
    return Condition(" AND ".join(clauses), names, values)


def _absent(item: Mapping[str, Any], by: Projection | None) -> Iterator[str]:
    """Yield the names of the attributes that an item has not, but one like it could have.

    What is put holds one shape or two neighbours: what keeps those that were found can only
    have added one next to them. If none was found, those of ``by`` are what is put nowadays.
    """
    known = {AS_SAVED, *shapes_in(item), *(by.shapes if by else ())}
    near = {shape + step for shape in known for step in (-1, 0, 1)} - {0}
    for name in ("version", "form", *(name for n in sorted(near) for name in attributes_of(n))):
        if name not in item:
            yield name
