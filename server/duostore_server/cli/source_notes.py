"""What is said of the sources of kinds by those who look at the database: a line for a kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duostore_server.config.entries import dotted
from duostore_server.storage.aurora.triggers import Why

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duostore_server.storage.aurora.triggers import Unnoted


@dataclass(frozen=True, slots=True)
class Sources:
    """What is wrong, which only a person can mend, and what a migration does by itself."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


def told(sources: Iterable[Unnoted], *, advice: str) -> Sources:
    """Return what is said of sources, of those of a kind in one line; a note ends by advice."""
    problems: list[str] = []
    unnoted: dict[str, list[str]] = {}
    changed: dict[str, None] = {}
    for each in sources:
        if each.is_unfit:
            problems.append(unfit(each))
        elif each.why is Why.CHANGED:
            changed[each.kind] = None
        else:
            unnoted.setdefault(each.kind, []).append(each.source)
    notes = [f"changes of {', '.join(of)} are not noted for {kind}" for kind, of in unnoted.items()]
    # What is noted anew is recomputed by the SQL of today anyway.
    notes += [f"the SQL of {kind} was changed" for kind in changed if kind not in unnoted]
    return Sources(tuple(problems), tuple(f"{note}: {advice}" for note in notes))


def unfit(source: Unnoted) -> str:
    """Return where the configuration does not fit the table of a source, and how."""
    disagree = ": its fields and its table disagree" if source.why is Why.NO_COLUMN else ""
    at = dotted(("kinds", source.kind, "depends_on"))
    return f"{at}: {source.source} {source.fault}{disagree}"
