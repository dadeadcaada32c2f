"""How the service is, in panels: what needs attention first, then stores, work and objectives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from duostore.v1 import admin_pb2
from duostore_server.cli.answers_admin import state_name, store_name
from duostore_server.cli.controls_display import read_only_lines
from duostore_server.cli.wording import (
    counted,
    milliseconds,
    percent,
    printable,
    seconds_of,
    span,
    whose,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

_GOOD: Final = "green"
_BAD: Final = "bold red"
_NOTABLE: Final = "yellow"
_UNKNOWN: Final = "-"
# Of fewer looks nines say nothing.
_LEAST_VERIFIED: Final = 10
# On fewer columns objectives are not put into words.
_NARROW: Final = 84


def troubles(answer: admin_pb2.GetStatusResponse) -> list[str]:
    """Return what is not as it should be; empty if all stores are up and all objectives hold."""
    down = [f"{store_name(store.store)} is down" for store in answer.stores if not store.up]
    missed = [f"{printable(slo.name)} does not hold" for slo in answer.slos if not slo.holds]
    return down + missed


def status_view(
    answer: admin_pb2.GetStatusResponse, address: str, now: float, *, width: int
) -> RenderableType:
    """Return what to print on so many columns; ``now`` is in seconds of the epoch."""
    parts: list[RenderableType] = [_headline(answer, address, now)]
    parts.append(_panel("Stores, in the last 5 min", _stores(answer)))
    parts.append(_panel("Now", _work(answer, now)))
    if answer.slos:
        parts.append(_panel("Objectives", _objectives(answer, is_narrow=width < _NARROW)))
    if answer.consistency:
        parts.append(_panel("Consistency, in the last hour", _consistency(answer)))
    return Group(*parts)


def nines(verified: int, inconsistent: int) -> str:
    """Return a consistency in nines, rounded down: 999 right of 1,000 are 3.0.

    With nothing wrong it is at least what one wrong would have made of it.
    """
    if verified < _LEAST_VERIFIED:
        return _UNKNOWN
    share = max(inconsistent, 1) / verified
    found = math.floor(round(-math.log10(share), 6) * 10) / 10
    return f"{'' if inconsistent else '≥ '}{found:.1f}"


def _headline(answer: admin_pb2.GetStatusResponse, address: str, now: float) -> Text:
    up = span(max(now - seconds_of(answer.start_time), 0))
    head = Text(f" Duostore {printable(answer.release)} at {address}, up {up}: ")
    found = troubles(answer)
    head.append("; ".join(found) or "all is well", style=_BAD if found else f"bold {_GOOD}")
    if answer.read_only:
        kinds = ", ".join(whose(each.kind) for each in answer.read_only)
        head.append(f"; read-only: {kinds}", style=_NOTABLE)
    return head


def _stores(answer: admin_pb2.GetStatusResponse) -> Table:
    table = _table("store", "state", numbers=("calls", "errors", "p95"))
    for store in answer.stores:
        table.add_row(
            store_name(store.store),
            Text("up", style=_GOOD) if store.up else Text("down", style=_BAD),
            f"{store.calls:,}",
            Text(_errors(store.error_ratio), style=_NOTABLE if store.error_ratio else "")
            if store.calls
            else _UNKNOWN,
            milliseconds(seconds_of(store.p95)) if store.HasField("p95") else _UNKNOWN,
        )
    return table


def _work(answer: admin_pb2.GetStatusResponse, now: float) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("outbox", _outbox(answer))
    lines = list(read_only_lines(answer.read_only, now))
    told = Text("\n".join(lines), style=_NOTABLE) if lines else Text("nothing")
    table.add_row("read-only", told)
    backfills = "\n".join(map(_backfill, answer.backfills))
    table.add_row("backfills", Text(backfills or "none"))
    return table


def _outbox(answer: admin_pb2.GetStatusResponse) -> Text:
    if not answer.HasField("projection_lag"):
        return Text("unknown: Aurora could not be asked", style=_NOTABLE)
    if not answer.outbox_depth:
        return Text("nothing waits to be projected")
    waits = counted(answer.outbox_depth, "key waits", "keys wait")
    lag = span(seconds_of(answer.projection_lag))
    return Text(f"{waits} to be projected, the oldest for {lag}")


def _backfill(answer: admin_pb2.BackfillResponse) -> str:
    total = max(answer.estimated_total, answer.done_count, 1)
    left = f", about {span(seconds_of(answer.remaining))} left" if _has_remaining(answer) else ""
    failed = f", {answer.failed_count:,} failed" if answer.failed_count else ""
    share = percent(math.floor(answer.done_count / total * 100) / 100)
    return (
        f"{printable(answer.kind)}: {state_name(answer.state)}, {share} of about {total:,} "
        f"done{failed}{left}"
    )


def _has_remaining(answer: admin_pb2.BackfillResponse) -> bool:
    running = answer.state == admin_pb2.BackfillResponse.STATE_RUNNING
    return running and answer.HasField("remaining")


def _objectives(answer: admin_pb2.GetStatusResponse, *, is_narrow: bool) -> Table:
    table = _table("objective", *(() if is_narrow else ("promise",)))
    if not is_narrow:
        table.columns[1].no_wrap = False
    for head in ("target", "5 min", "1 h", "burn rate"):
        table.add_column(head, justify="right", no_wrap=head != "burn rate")
    table.add_column("")
    for slo in answer.slos:
        table.add_row(
            printable(slo.name),
            *(() if is_narrow else (Text(printable(slo.objective)),)),
            percent(slo.target),
            percent(slo.ratio) if slo.HasField("ratio") else _UNKNOWN,
            percent(slo.ratio_hour) if slo.HasField("ratio_hour") else _UNKNOWN,
            f"{slo.burn_rate:.2f}",
            _standing(slo),
        )
    return table


def _standing(slo: admin_pb2.SloStatus) -> Text:
    if not slo.holds:
        return Text("does not hold", style=_BAD)
    if not (slo.HasField("ratio") or slo.HasField("ratio_hour")):
        return Text("nothing counted")
    return Text("holds", style=_GOOD)


def _consistency(answer: admin_pb2.GetStatusResponse) -> Table:
    table = _table("looked at", numbers=("verified", "wrong", "consistent", "nines"))
    for found in answer.consistency:
        age = seconds_of(found.age)
        wrong = Text(f"{found.inconsistent:,}", style=_BAD if found.inconsistent else "")
        share = 1 - found.inconsistent / found.verified if found.verified else None
        table.add_row(
            f"{span(age)} after a save" if age else "rows at random",
            f"{found.verified:,}",
            wrong,
            _UNKNOWN if share is None else percent(share),
            nines(found.verified, found.inconsistent),
        )
    return table


def _errors(ratio: float) -> str:
    # Rounded up: what is not none is never told to be.
    return f"{math.ceil(round(ratio * 100_000, 6)) / 1000:g} %"


def _table(*heads: str, numbers: Sequence[str] = ()) -> Table:
    """Return a table with these columns, and these of numbers behind them."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bright_black")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for head in numbers:
        table.add_column(head, justify="right")
    return table


def _panel(title: str, inside: RenderableType) -> Panel:
    return Panel(
        inside, title=title, title_align="left", box=box.ROUNDED, border_style="bright_black"
    )
