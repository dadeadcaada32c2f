"""What is wrong with a configuration, in words for the person who wrote it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from duostore_server.config.entries import dotted, entries, entry_at, known_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

    from duostore_server.config.entries import Entry, Key

_EXPECTED: Final = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "missing": "is required",
    "string_type": "must be text in quotes",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    ``key`` is the dotted key of the file; for a variable that matches no key its name,
    and for a file that cannot be read its path.
    """

    key: str
    message: str

    def __str__(self) -> str:
        """Return both, as one line."""
        return f"{self.key}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used. Lists all that is wrong with it; holds no secret."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = "1 problem" if count == 1 else f"{count} problems"
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"the configuration has {title}:{lines}")


def message_of(error: ErrorDetails, path: Key) -> str:
    """Return what a finding of pydantic means for the value at ``path``. Quotes no value."""
    kind = error["type"]
    entry = entry_at(path)
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        return _unknown(path)
    if entry is None:
        return f"must be a table: [{dotted(path)}]"
    if entry.choices:
        return f"must be {entry.form.label}"
    if kind in {"greater_than_equal", "less_than_equal"}:
        return f"must be {bounds_text(entry)}"
    return _EXPECTED.get(kind, f"must be of type {entry.form.label}")


def bounds_text(entry: Entry) -> str:
    """Return the bounds of a key as people write them; empty if it has none."""
    if entry.low is None or entry.high is None:
        return ""
    return f"{entry.form.write(entry.low)} to {entry.form.write(entry.high)}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the known name that was most likely meant, as a question; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f'did you mean "{near[0]}"?' if near else ""


def _unknown(path: Key) -> str:
    *table, name = path
    siblings = known_names(tuple(table))
    elsewhere = [dotted(entry.path) for entry in entries() if entry.path[-1] == name]
    hint = (
        suggestion(name, siblings)
        or (elsewhere and f'did you mean "{elsewhere[0]}"?')
        or f"known here: {', '.join(siblings)}"
    )
    return f"is not known; {hint}"
