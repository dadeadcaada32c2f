"""What was found, as tables for people and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console

    from bench.bulk import Bulk
    from bench.contest import Outcome
    from bench.figures import Spread
    from bench.unused import Unused

_FIGURES: Final = {
    "per_second": ("calls/s", 1, ",.0f"),
    "p50": ("p50, ms", 1000, ".2f"),
    "p99": ("p99, ms", 1000, ".2f"),
    "cpu": ("CPU, µs", 1_000_000, ",.0f"),
    "sent": ("requests", 1, ".4g"),
    "wal": ("WAL, bytes", 1, ",.0f"),
}
_STORES: Final = ("cache", "dynamodb", "aurora")


@dataclass(slots=True)
class Report:
    """The results of a run.

    ``store_calls`` are by RPC, then by store, operation and outcome; ``unused`` is what leases
    leave of limits; ``bulks`` are of exports and of the fan-out.
    """

    machine: Mapping[str, str]
    warnings: list[str]
    outcomes: list[Outcome] = field(default_factory=list)
    store_calls: Mapping[str, Mapping[tuple[str, str, str], float]] = field(default_factory=dict)
    unused: list[Unused] = field(default_factory=list)
    bulks: list[Bulk] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Print the tables, and what the numbers were measured on."""
        for name, value in self.machine.items():
            console.print(f"{name + ':':<11}{value}", highlight=False)
        for warning in self.warnings:
            console.print(f"warning: {warning}", style="yellow", highlight=False)
        if self.outcomes:
            console.print(_contests(self.outcomes))
            console.print(
                _conditions(
                    (each.contest.name, f"{each.contest.duostore.name}: {each.contest.condition}")
                    for each in self.outcomes
                )
            )
        if self.store_calls:
            console.print(_calls(self.store_calls))
        if self.unused:
            console.print(_unused(self.unused))
        if self.bulks:
            console.print(_bulks(self.bulks))
            console.print(_conditions((each.name, each.condition) for each in self.bulks))

    def plain(self) -> dict[str, Any]:
        """Return all of it, every round included, as JSON has it; times are seconds."""
        return {
            "machine": dict(self.machine),
            "warnings": self.warnings,
            "contests": [
                {
                    "name": outcome.contest.name,
                    "condition": outcome.contest.condition,
                    "sides": [
                        {
                            "name": side.name,
                            "rounds": [asdict(figures[index]) for figures in outcome.rounds],
                        }
                        for index, side in enumerate(outcome.contest.sides)
                    ],
                    "ratios": {
                        floor.name: {
                            compared.figure: asdict(compared.ratio)
                            for compared in outcome.against(index)
                        }
                        for index, floor in enumerate(outcome.contest.floors)
                    },
                }
                for outcome in self.outcomes
            ],
            "store_calls": {
                rpc: [
                    {"store": store, "op": op, "outcome": outcome, "calls": calls}
                    for (store, op, outcome), calls in sorted(made.items())
                ]
                for rpc, made in self.store_calls.items()
            },
            "quota_unused": [asdict(each) for each in self.unused],
            "bulks": [asdict(each) for each in self.bulks],
        }


def _contests(outcomes: list[Outcome]) -> Table:
    table = Table(title="min / median / max of the rounds; the ratio is taken in each round")
    table.add_column("measurement")
    table.add_column("figure", no_wrap=True)
    for title in ("Duostore", "floor", "Duostore : floor"):
        table.add_column(title, no_wrap=True, justify="right")
    for outcome in outcomes:
        for index, floor in enumerate(outcome.contest.floors):
            for compared in outcome.against(index):
                title, factor, form = _FIGURES[compared.figure]
                first = compared.figure == "per_second"
                table.add_row(
                    f"{outcome.contest.name} : {floor.name}" if first else "",
                    title,
                    _spread(compared.duostore, factor, form),
                    _spread(compared.floor, factor, form),
                    _spread(compared.ratio, 1, ".2f"),
                )
            table.add_section()
    return table


def _conditions(conditions: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False)
    for row in conditions:
        table.add_row(*row)
    return table


def _calls(store_calls: Mapping[str, Mapping[tuple[str, str, str], float]]) -> Table:
    table = Table(title="calls of the stores that one RPC makes")
    for title in ("RPC", *_STORES):
        table.add_column(title)
    for rpc, made in store_calls.items():
        table.add_row(rpc, *(", ".join(_of_store(made, store)) for store in _STORES))
    return table


def _unused(measured: list[Unused]) -> Table:
    table = Table(title="what leases leave of a limit, a fifth more than which is asked for")
    table.add_column("algorithm")
    for title in ("not admitted in a window, %", "calls denied, %", "writes for a unit"):
        table.add_column(title, no_wrap=True, justify="right")
    for each in measured:
        table.add_row(
            each.algorithm,
            _spread(each.share, 100, ".1f"),
            f"{each.denied * 100:.1f}",
            f"{each.writes:.3f}",
        )
    return table


def _bulks(bulks: list[Bulk]) -> Table:
    table = Table(title="what is done in bulk; min / median / max of the rounds")
    table.add_column("measurement : floor")
    for title in ("Duostore, a second", "floor", "Duostore : floor", "growth, MiB"):
        table.add_column(title, no_wrap=True, justify="right")
    for bulk in bulks:
        table.add_row(
            f"{bulk.name} : {bulk.floor}",
            f"{_spread(bulk.per_second, 1, ',.0f')} {bulk.unit}",
            _spread(bulk.floor_per_second, 1, ",.0f"),
            _spread(bulk.ratio, 1, ".2f"),
            "" if bulk.growth is None else _spread(bulk.growth, 1 / 2**20, ".1f"),
        )
    return table


def _of_store(made: Mapping[tuple[str, str, str], float], store: str) -> Iterator[str]:
    for (of, op, outcome), calls in sorted(made.items()):
        if of == store:
            yield f"{calls:g} {op}" + ("" if outcome == "ok" else f" ({outcome})")


def _spread(spread: Spread, factor: float, form: str) -> str:
    return " / ".join(
        f"{value * factor:{form}}" for value in (spread.low, spread.median, spread.high)
    )
