"""What a check found, for people: a line for each drift, a table of them, and what it comes to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table
from rich.text import Text

from duostore_server.cli.answers_admin import drift_name
from duostore_server.cli.explain_display import finding_lines, place_told
from duostore_server.cli.wording import counted, key_told, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duostore.v1 import admin_pb2

# More are for --json to tell.
MAX_ROWS: Final = 100

_PLACES_A_ROW: Final = 6


class Findings:
    """What a check has found: how far it is, and the drifts of which a table can tell."""

    def __init__(self) -> None:
        self.checked = 0
        self.estimated_total = 0
        self.drift_count = 0
        self.repaired_count = 0
        self.undecided_count = 0
        self.begun = False
        self.done = False
        self.by_drift: Counter[str] = Counter()
        self.first: list[admin_pb2.Drift] = []

    def add(self, answer: admin_pb2.CheckConsistencyResponse) -> None:
        """Take note of what the service tells next."""
        self.begun = True
        self.checked = answer.checked
        self.estimated_total = answer.estimated_total
        self.drift_count = answer.drift_count
        self.repaired_count = answer.repaired_count
        self.undecided_count = answer.undecided_count
        self.done = answer.done
        self.by_drift.update(drift_name(drift.kind) for drift in answer.drifts)
        self.first += answer.drifts[: MAX_ROWS - len(self.first)]

    @property
    def remaining(self) -> int:
        """Return how many drifts are left as they were."""
        return self.drift_count - self.repaired_count

    @property
    def note(self) -> str:
        """Return what to tell beside how far it is."""
        found = [counted(self.drift_count, "drift", "drifts")] if self.drift_count else []
        if self.repaired_count:
            found.append(f"{self.repaired_count:,} repaired")
        if self.undecided_count:
            found.append(f"{self.undecided_count:,} undecided")
        return ", ".join(found)


def drift_line(drift: admin_pb2.Drift, *, repair: bool) -> str:
    """Return a drift in one line, the arguments of `duostore explain` behind its versions."""
    what, *places = finding_lines(drift)
    where = f" ({'; '.join(places)})" if places else ""
    outcome = f": {_outcome(drift)}" if repair else ""
    return f"{what}: {key_told(drift.key)}{where}{outcome}"


def drift_table(drifts: Sequence[admin_pb2.Drift], *, repair: bool) -> Table:
    """Return drifts as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("drift", "entity", "is", "should be", "where"):
        right = head in {"is", "should be"}
        table.add_column(head, justify="right" if right else "left", overflow="fold")
    if repair:
        table.add_column("repaired", overflow="fold")
    for drift in drifts:
        places = [place_told(place) for place in drift.differences[:_PLACES_A_ROW]]
        if len(drift.differences) > _PLACES_A_ROW:
            places.append(f"and {len(drift.differences) - _PLACES_A_ROW} more")
        cells = [
            drift_name(drift.kind),
            key_told(drift.key),
            str(drift.found_version or "-"),
            str(drift.expected_version or "-"),
            "\n".join(places),
        ]
        if repair:
            cells.append(_outcome(drift))
        table.add_row(*map(Text, cells), style="" if drift.repaired else "red")
    return table


def summary_lines(findings: Findings, kind: str, *, repair: bool) -> Iterator[str]:
    """Yield what a check comes to."""
    of = f" of {printable(kind)}" if kind else ""
    head = f"{counted(findings.checked, 'entity or item', 'entities and items')}{of} compared"
    if not findings.drift_count:
        yield f"{head}: no drift"
    else:
        yield f"{head}: {counted(findings.drift_count, 'drift', 'drifts')}{_fate(findings, repair)}"
        for name, count in sorted(findings.by_drift.items()):
            yield f"  {name} {count:,}"
    if findings.undecided_count:
        yield (
            f"{findings.undecided_count:,} could not be compared: they were changed again and "
            "again, or a store could not be asked"
        )


def _fate(findings: Findings, repair: bool) -> str:  # noqa: FBT001 - as the option is
    if not repair:
        return ""
    if findings.remaining:
        return f", {findings.repaired_count:,} repaired and {findings.remaining:,} not"
    return ", all repaired"


def _outcome(drift: admin_pb2.Drift) -> str:
    if drift.repaired:
        return "repaired"
    return f"not repaired, {printable(drift.repair_error) or 'for a reason that is not told'}"
