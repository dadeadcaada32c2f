"""What a file of rules for Prometheus is made of, and how it is written."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that is computed and kept: ``record`` names it, ``labels`` are added."""

    record: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alert:
    """What somebody is told once ``expr`` has answered anything for as long as ``hold`` says.

    ``severity`` is ``page`` if somebody has to be woken, ``ticket`` if it can wait for the day.
    ``summary`` is one line, ``description`` says what it means to users.
    """

    name: str
    severity: str
    expr: str
    hold: str
    summary: str
    description: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated one after the other, each seeing what those before it recorded."""

    name: str
    interval: str
    rules: Sequence[Recording | Alert]


def written(preface: str, groups: Sequence[Group], runbook: str) -> str:
    """Return a file of rules, in YAML; ``runbook`` goes with every alert."""
    lines = [*(f"# {line}".rstrip() for line in preface.splitlines()), "groups:"]
    for group in groups:
        lines += [f"  - name: {group.name}", f"    interval: {group.interval}", "    rules:"]
        for rule in group.rules:
            lines += _rule(rule, runbook)
    return "\n".join(lines) + "\n"


def _rule(rule: Recording | Alert, runbook: str) -> Iterator[str]:
    if isinstance(rule, Recording):
        yield f"      - record: {rule.record}"
        yield from _expr(rule.expr)
        yield from _table("labels", rule.labels)
        return
    yield f"      - alert: {rule.name}"
    yield from _expr(rule.expr)
    yield f"        for: {rule.hold}"
    yield from _table("labels", {"severity": rule.severity, **rule.labels})
    yield from _table(
        "annotations",
        {"summary": rule.summary, "description": rule.description, "runbook": runbook},
    )


def _expr(expr: str) -> Iterator[str]:
    yield "        expr: |-"
    yield textwrap.indent(textwrap.dedent(expr).strip(), " " * 10)


def _table(name: str, values: Mapping[str, str]) -> Iterator[str]:
    if values:
        yield f"        {name}:"
        # Of text without control characters, JSON is YAML.
        yield from (
            f"          {key}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in values.items()
        )
