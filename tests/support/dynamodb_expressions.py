"""The conditions and PartiQL statements of DynamoDB, as far as Duostore uses them.

What is not understood is an error, so that nothing is passed over in silence.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Attribute: TypeAlias = "Mapping[str, Any]"
Item: TypeAlias = "Mapping[str, Attribute]"

_TOKEN = re.compile(r"\s*(<>|<=|>=|[<>=(),]|:\w+|\w+)")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}


def holds(condition: str, item: Item | None, values: Mapping[str, Attribute]) -> bool:
    """Return whether a ``ConditionExpression`` is true of an item, or of there being none."""
    return _Condition(condition, item or {}, values).result()


def compare(comparison: str, left: Attribute | None, right: Attribute | None) -> bool:
    """Compare as DynamoDB does: false if a side is missing or they differ in type."""
    if left is None or right is None or set(left) != set(right):
        return False
    ((kind, left_value),) = left.items()
    right_value = right[kind]
    if kind == "N":
        left_value, right_value = Decimal(left_value), Decimal(right_value)
    return _COMPARISONS[comparison](left_value, right_value)


class _Condition:
    """Evaluates ``OR``, ``AND``, ``NOT``, brackets, functions and comparisons, left to right."""

    def __init__(self, text: str, item: Item, values: Mapping[str, Attribute]) -> None:
        self._tokens = _tokens(text)
        self._item = item
        self._values = values
        self._unused = set(values)

    def result(self) -> bool:
        result = self._either()
        assert not self._tokens, f"not understood: {self._tokens}"
        assert not self._unused, f"values that are not used: {self._unused}"
        return result

    def _either(self) -> bool:
        result = self._both()
        while self._accept("OR"):
            result = self._both() or result
        return result

    def _both(self) -> bool:
        result = self._one()
        while self._accept("AND"):
            result = self._one() and result
        return result

    def _one(self) -> bool:
        if self._accept("NOT"):
            return not self._one()
        if self._accept("("):
            result = self._either()
            self._expect(")")
            return result
        name = self._tokens.pop(0)
        if self._accept("("):
            return self._function(name)
        comparison = self._tokens.pop(0)
        return compare(comparison, self._operand(name), self._operand(self._tokens.pop(0)))

    def _function(self, name: str) -> bool:
        arguments = [self._tokens.pop(0)]
        while self._accept(","):
            arguments.append(self._tokens.pop(0))
        self._expect(")")
        match name, arguments:
            case "attribute_exists", [path]:
                return path in self._item
            case "attribute_not_exists", [path]:
                return path not in self._item
            case "attribute_type", [path, kind]:
                return (self._operand(kind) or {})["S"] in self._item.get(path, {})
        raise AssertionError(f"not understood: {name}{arguments}")

    def _operand(self, token: str) -> Attribute | None:
        if token.startswith(":"):
            self._unused.discard(token)
            return self._values[token]
        return self._item.get(token)

    def _accept(self, token: str) -> bool:
        if self._tokens[:1] == [token]:
            del self._tokens[0]
            return True
        return False

    def _expect(self, token: str) -> None:
        assert self._accept(token), f"expected {token!r} before {self._tokens}"


def _tokens(text: str) -> list[str]:
    tokens = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        assert found, f"not understood: {text[at:]!r}"
        tokens.append(found[1])
        at = found.end()
    return tokens


@dataclass(frozen=True, slots=True)
class Statement:
    """A conditional write of one item: INSERT (``assigned`` is all of it) or UPDATE."""

    table: str
    pk: str
    assigned: Item
    removed: frozenset[str]
    conditions: Sequence[tuple[str, str, Attribute]]
    inserts: bool

    def refusal(self, item: Item | None) -> str | None:
        """Return the code with which the statement is refused over an item, if it is."""
        if self.inserts:
            return None if item is None else "DuplicateItem"
        if item is not None and all(
            compare(comparison, item.get(name), value)
            for name, comparison, value in self.conditions
        ):
            return None
        return "ConditionalCheckFailed"

    def applied_to(self, item: Item | None) -> Item:
        """Return what the item is after the statement."""
        kept = {name: value for name, value in (item or {}).items() if name not in self.removed}
        return {**kept, **self.assigned}


_INSERT = re.compile(r"INSERT INTO \"([\w.-]+)\" VALUE \{((?:'\w+': \?(?:, )?)+)\}")
_UPDATE = re.compile(
    r"UPDATE \"([\w.-]+)\"((?: SET \"\w+\"=\?| REMOVE \"\w+\")+)"
    r" WHERE (\"\w+\"[<>=]+\?(?: AND \"\w+\"[<>=]+\?)*)"
)


def parse(text: str, parameters: Sequence[Attribute]) -> Statement:
    """Return the statement that a PartiQL text and its parameters are."""
    given = list(parameters)
    if insert := _INSERT.fullmatch(text):
        item = {name: given.pop(0) for name in re.findall(r"'(\w+)'", insert[2])}
        assert not given, "more parameters than question marks"
        return Statement(insert[1], item["pk"]["S"], item, frozenset(), (), inserts=True)
    update = _UPDATE.fullmatch(text)
    assert update, f"not understood: {text}"
    assigned = {name: given.pop(0) for name in re.findall(r"SET \"(\w+)\"", update[2])}
    removed = frozenset(re.findall(r"REMOVE \"(\w+)\"", update[2]))
    where = [
        (name, comparison, given.pop(0))
        for name, comparison in re.findall(r"\"(\w+)\"([<>=]+)", update[3])
    ]
    assert not given, "more parameters than question marks"
    ((_, _, pk),) = [condition for condition in where if condition[:2] == ("pk", "=")]
    return Statement(update[1], pk["S"], assigned, removed, where, inserts=False)
