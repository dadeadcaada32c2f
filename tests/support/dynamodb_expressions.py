"""The conditions, updates and PartiQL statements of DynamoDB, as far as Duostore uses them.

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

_TOKEN = re.compile(r"\s*(<>|<=|>=|[<>=(),+-]|[:#]?\w+)")
_EXPRESSIONS = ("ConditionExpression", "UpdateExpression")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}
_SUMS: dict[str, Callable[[Decimal, Decimal], Decimal]] = {"+": operator.add, "-": operator.sub}


class Substitutes:
    """The names and values for the expressions of a request: all that they use, and no more.

    Of a request whose only expression a mutant has left out, they may be left over.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._names = request.get("ExpressionAttributeNames", {})
        self._values = request.get("ExpressionAttributeValues", {})
        expressions = [request[name] for name in _EXPRESSIONS if name in request]
        used = set(re.findall(r"[:#]\w+", " ".join(expressions)))
        given = {*self._names, *self._values}
        assert used == given or not expressions, (
            f"used, but not given, or the reverse: {used ^ given}"
        )

    def name(self, token: str) -> str:
        """Return the attribute that a token names."""
        name: str = self._names[token] if token.startswith("#") else token
        assert re.fullmatch(r"\w+", name), f"not understood: {name!r}"
        return name

    def operand(self, token: str, item: Item) -> Attribute | None:
        """Return the value that a token stands for: a given one, or that of an attribute."""
        if token.startswith(":"):
            value: Attribute = self._values[token]
            return value
        return item.get(self.name(token))


def holds(condition: str, item: Item | None, substitutes: Substitutes) -> bool:
    """Return whether a ``ConditionExpression`` is true of an item, or of there being none."""
    return _Condition(condition, item or {}, substitutes).result()


def updated(expression: str, item: Item, substitutes: Substitutes) -> tuple[Item, frozenset[str]]:
    """Return what an ``UpdateExpression`` makes of an item, and which attributes it set."""
    return _Update(expression, item, substitutes).result()


def compare(comparison: str, left: Attribute | None, right: Attribute | None) -> bool:
    """Compare as DynamoDB does: what is missing or of another type differs, and no more."""
    if left is None or right is None or set(left) != set(right):
        return comparison == "<>"
    ((kind, left_value),) = left.items()
    right_value = right[kind]
    if kind == "N":
        left_value, right_value = Decimal(left_value), Decimal(right_value)
    if comparison == "<>":
        return bool(left_value != right_value)
    return _COMPARISONS[comparison](left_value, right_value)


class _Parser:
    """The tokens of an expression that are not consumed yet."""

    def __init__(self, text: str, item: Item, substitutes: Substitutes) -> None:
        self._tokens = _tokens(text)
        self._item = item
        self._substitutes = substitutes

    def _next(self) -> str:
        assert self._tokens, "the expression ends too early"
        return self._tokens.pop(0)

    def _accept(self, token: str) -> bool:
        if self._tokens[:1] == [token]:
            del self._tokens[0]
            return True
        return False

    def _expect(self, token: str) -> None:
        assert self._accept(token), f"expected {token!r} before {self._tokens}"

    def _arguments(self) -> list[str]:
        arguments = [self._next()]
        while self._accept(","):
            arguments.append(self._next())
        self._expect(")")
        return arguments

    def _end(self) -> None:
        assert not self._tokens, f"not understood: {self._tokens}"


class _Condition(_Parser):
    """Evaluates ``OR``, ``AND``, ``NOT``, brackets, functions and comparisons, left to right."""

    def result(self) -> bool:
        result = self._either()
        self._end()
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
        name = self._next()
        if self._accept("("):
            return self._function(name)
        comparison = self._next()
        left = self._substitutes.operand(name, self._item)
        return compare(comparison, left, self._substitutes.operand(self._next(), self._item))

    def _function(self, name: str) -> bool:
        match name, self._arguments():
            case "attribute_exists", [path]:
                return self._substitutes.name(path) in self._item
            case "attribute_not_exists", [path]:
                return self._substitutes.name(path) not in self._item
            case "attribute_type", [path, kind]:
                attribute = self._item.get(self._substitutes.name(path), {})
                return (self._substitutes.operand(kind, {}) or {})["S"] in attribute
        raise AssertionError(f"not understood: {name}")


class _Update(_Parser):
    """Evaluates ``SET`` with sums, differences and ``if_not_exists``, and ``REMOVE``.

    All operands are those of the item before.
    """

    def result(self) -> tuple[Item, frozenset[str]]:
        assigned: dict[str, Attribute] = {}
        removed: set[str] = set()
        if self._accept("SET"):
            self._assign(assigned)
            while self._accept(","):
                self._assign(assigned)
        if self._accept("REMOVE"):
            self._remove(assigned, removed)
            while self._accept(","):
                self._remove(assigned, removed)
        self._end()
        kept = {name: value for name, value in self._item.items() if name not in removed}
        return {**kept, **assigned}, frozenset(assigned)

    def _assign(self, assigned: dict[str, Attribute]) -> None:
        name = self._substitutes.name(self._next())
        assert name not in assigned, f"two paths overlap: {name}"
        self._expect("=")
        value = self._operand()
        for sign, apply in _SUMS.items():
            if self._accept(sign):
                value = {"N": str(apply(Decimal(value["N"]), Decimal(self._operand()["N"])))}
                break
        assigned[name] = value

    def _remove(self, assigned: Mapping[str, Attribute], removed: set[str]) -> None:
        name = self._substitutes.name(self._next())
        assert name not in assigned, f"two paths overlap: {name}"
        assert name not in removed, f"two paths overlap: {name}"
        removed.add(name)

    def _operand(self) -> Attribute:
        token = self._next()
        if self._accept("("):
            assert token == "if_not_exists", f"not understood: {token}"
            path, otherwise = self._arguments()
            held = self._substitutes.operand(path, self._item)
            default = self._substitutes.operand(otherwise, self._item)
            value = default if held is None else held
        else:
            value = self._substitutes.operand(token, self._item)
        assert value is not None, f"an operand that the item does not have: {token}"
        return value


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
