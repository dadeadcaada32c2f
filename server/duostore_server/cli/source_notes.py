"""What is said of the sources of kinds by those who look at the database: a line for a kind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from duostore_server.config.entries import dotted

if TYPE_CHECKING:
    from collections.abc import Iterable

# The sentences of storage.aurora.triggers.
_CHANGED: Final = re.compile(r"the SQL of '(?P<kind>[^']*)' or of its .+ was changed")
_UNNOTED: Final = re.compile(r"changes of (?P<source>.+) are not noted for '(?P<kind>[^']*)'")
_UNFIT: Final = re.compile(r"'(?P<kind>[^']*)' depends on (?P<source>.+?), which (?P<fault>.+)")
_ADVICE: Final = re.compile(r": run `duostore migrate`$")
_NO_COLUMN: Final = "has no column"


@dataclass(frozen=True, slots=True)
class Sources:
    """What is wrong, which only a person can mend, and what a migration does by itself."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


def told(lines: Iterable[str], *, advice: str) -> Sources:
    """Return the lines of ``triggers.missing``, those of a kind as one; a note ends by advice."""
    problems: list[str] = []
    unnoted: dict[str, list[str]] = {}
    changed: dict[str, None] = {}
    others: list[str] = []
    for line in lines:
        text = _ADVICE.sub("", line)
        if found := _UNFIT.fullmatch(text):
            problems.append(_unfit(**found.groupdict()))
        elif found := _UNNOTED.fullmatch(text):
            unnoted.setdefault(found["kind"], []).append(found["source"])
        elif found := _CHANGED.fullmatch(text):
            changed[found["kind"]] = None
        else:
            others.append(text)
    notes = [f"changes of {', '.join(of)} are not noted for {kind}" for kind, of in unnoted.items()]
    # What is noted anew is recomputed by the SQL of today anyway.
    notes += [f"the SQL of {kind} was changed" for kind in changed if kind not in unnoted]
    return Sources(tuple(problems), tuple(f"{note}: {advice}" for note in (*notes, *others)))


def unfit(message: str) -> list[str]:
    """Return all problems of a refusal to install triggers; none if it is of another sort."""
    found = [_UNFIT.fullmatch(each) for each in message.split("; ")]
    return [_unfit(**each.groupdict()) for each in found if each]


def _unfit(kind: str, source: str, fault: str) -> str:
    disagree = ": its fields and its table disagree" if fault.startswith(_NO_COLUMN) else ""
    return f"{dotted(('kinds', kind, 'depends_on'))}: {source} {fault}{disagree}"
