"""What queries of Prometheus are made of: the series they choose, and the labels they speak of."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"(?<![\w:$])((?:duostore[_:][\w:]*)|up|ALERTS)(\{[^}]*\})?(?!\s*\()")
_LABELS = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


@dataclass(frozen=True)
class Selector:
    """The series that a part of a query chooses, and by which labels."""

    metric: str
    text: str
    labels: frozenset[str]


def selectors(expr: str) -> list[Selector]:
    """Return all that a query chooses."""
    return [
        Selector(found[1], found[0], frozenset(_MATCHER.findall(found[2] or "")))
        for found in _SELECTOR.finditer(expr)
    ]


def grouped(expr: str) -> set[str]:
    """Return the labels by which a query adds up and joins."""
    return {
        label.strip()
        for labels in _LABELS.findall(_STRING.sub('""', expr))
        for label in labels.split(",")
        if label.strip()
    }
