"""What each store holds of one entity, as a table and a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from duostore.v1 import admin_pb2
from duostore_server.cli.answers_admin import drift_name, holding_name
from duostore_server.cli.wording import ago, key_told, printable, seconds_of, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

_State: Final = admin_pb2.TierState
_HOLDINGS: Final = {
    _State.HOLDING_NOTHING: "nothing",
    _State.HOLDING_VALUE: "the document",
    _State.HOLDING_ABSENT: "a tombstone",
    _State.HOLDING_STUB: "too large: read Aurora",
    _State.HOLDING_LEASE: "a reader's lease",
    _State.HOLDING_UNREADABLE: "unreadable",
    _State.HOLDING_UNKNOWN: "unknown",
}
_CACHED_ABSENCE: Final = "that it does not exist"
_STYLES: Final = {_State.HOLDING_UNREADABLE: "red", _State.HOLDING_UNKNOWN: "yellow"}
_NOTHING: Final = "-"
_HEADS: Final = (
    "store",
    "holds",
    "version",
    "size",
    "written",
    "goes in",
    "projections",
    "why",
)
_NUMBERS: Final = {"version", "size"}
_PLAIN: Final = {"size", "why"}
# On fewer columns the stores are a list.
_NARROW: Final = 80


def explained_view(answer: admin_pb2.ExplainResponse, now: float, *, width: int) -> RenderableType:
    """Return what to print on so many columns; ``now`` is in seconds of the epoch."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    parts: list[RenderableType] = [Text(key_told(answer.key), style="bold")]
    if width < _NARROW:
        for style, (name, *cells) in _stores(answer, now):
            facts.add_row(name, Text(", ".join(_labelled(cells)), style=style))
    else:
        parts.append(_tiers(answer, now))
    for name, *lines in _facts(answer, now):
        facts.add_row(name, Text("\n").join(map(Text, lines)))
    agrees = not answer.drifts
    verdict = Text(printable(answer.verdict), style="bold green" if agrees else "bold red")
    return Group(*parts, facts, Text(), verdict)


def finding_lines(drift: admin_pb2.Drift) -> Iterator[str]:
    """Yield what does not agree: the versions, then every place that differs."""
    found, expected = drift.found_version, drift.expected_version
    if found == expected:
        yield f"{drift_name(drift.kind)}, of version {found}"
    else:
        yield f"{drift_name(drift.kind)}: {_version(found)} where {_version(expected)} is right"
    for place in drift.differences:
        yield place_told(place)


def place_told(place: admin_pb2.Difference) -> str:
    """Return one place that differs, such as ``author.name: missing``."""
    return printable(f"{place.path}: {place.difference}")


def _version(number: int) -> str:
    return f"version {number}" if number else "nothing"


def _stores(answer: admin_pb2.ExplainResponse, now: float) -> list[tuple[str, tuple[str, ...]]]:
    """Return of each store how to write it, and its cells."""
    tiers = {"aurora": answer.aurora, "dynamodb": answer.dynamodb, "cache": answer.cache}
    return [
        (_STYLES.get(tier.holding, ""), _cells(name, tier, now))
        for name, tier in tiers.items()
        if answer.HasField(name)  # type: ignore[arg-type] # as the names are
    ]


def _labelled(cells: Sequence[str]) -> Iterator[str]:
    """Yield what is told of a store, where no column says what it is."""
    holds, *others = cells
    yield holds
    for head, cell in zip(_HEADS[2:], others, strict=True):
        if cell:
            yield cell if head in _PLAIN else f"{head} {cell}"


def _tiers(answer: admin_pb2.ExplainResponse, now: float) -> Table:
    rows = _stores(answer, now)
    # What no store tells takes no room.
    told = [index for index in range(len(_HEADS)) if any(cells[index] for _, cells in rows)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index in told:
        right = _HEADS[index] in _NUMBERS
        table.add_column(_HEADS[index], justify="right" if right else "left", overflow="fold")
    for style, cells in rows:
        table.add_row(*(Text(cells[index] or _NOTHING) for index in told), style=style)
    return table


def _cells(name: str, tier: admin_pb2.TierState, now: float) -> tuple[str, ...]:
    """Return what to tell of a store below ``_HEADS``, empty what there is not to tell."""
    holding = _HOLDINGS.get(tier.holding) or holding_name(tier.holding)
    if name == "cache" and tier.holding == _State.HOLDING_ABSENT:
        holding = _CACHED_ABSENCE
    left = seconds_of(tier.expire_time) - now
    return (
        name,
        holding,
        str(tier.version) if tier.version else "",
        decimal(tier.stored_bytes) if tier.stored_bytes else "",
        ago(tier.time, now) if tier.HasField("time") else "",
        span(max(left, 0)) if tier.HasField("expire_time") else "",
        ", ".join(map(str, tier.projection_versions)),
        printable(tier.fault),
    )


def _facts(answer: admin_pb2.ExplainResponse, now: float) -> Iterator[Sequence[str]]:
    if not answer.HasField("aurora"):
        yield "home", "DynamoDB: Aurora has no part in it"
    # What Aurora would have told, had it been asked.
    unknown = answer.aurora.holding == _State.HOLDING_UNKNOWN
    if answer.HasField("outbox"):
        waits = span(max(now - seconds_of(answer.outbox.create_time), 0))
        due = seconds_of(answer.outbox.due_time) - now
        taken = f"taken up in {span(due)}" if due > 0 else "due"
        yield "outbox", f"its newest version waits to be projected, for {waits}; {taken}"
    elif answer.HasField("aurora"):
        yield "outbox", "unknown" if unknown else "nothing waits"
    if answer.HasField("snapshot"):
        when = ago(answer.snapshot.snapshot_time, now)
        yield "snapshot", f"number {answer.snapshot.sequence} is the newest, {when}"
    if answer.HasField("verification"):
        look = answer.verification
        found = ", ".join(map(drift_name, look.drifts)) or "all agreed"
        yield "verified", f"{ago(look.verify_time, now)}, at version {look.version}: {found}"
    elif answer.HasField("aurora"):
        yield "verified", "unknown" if unknown else "not in the last week"
    for drift in answer.drifts:
        first, *places = finding_lines(drift)
        yield "drift", first, *(f"  {place}" for place in places)
