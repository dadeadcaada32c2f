"""The command line: ``python -m bench``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console

from bench import hits, machine, queries, quotas, reads, saves, snapshots
from bench.backfill import backfill, get_beside, get_beside_slow
from bench.contest import Outcome
from bench.deployment import deployed
from bench.exports import exports
from bench.fan_out import fan_out
from bench.figures import BenchError
from bench.report import Report
from bench.store_calls import store_calls
from bench.unused import unused
from duostore_server.embedded.process import EmbeddedStoreError
from tests.support.installed import MissingProgramError

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTESTS: Final = {
    "get-hit": hits.get_hit,
    "get-alone": hits.get_alone,
    "get-miss": reads.get_miss,
    "batch-get": reads.batch_get,
    "coalesced": reads.coalesced,
    "save": saves.save,
    "snapshot": snapshots.snapshot,
    "append": snapshots.append,
    "append-head": snapshots.append_head,
    "append-once": snapshots.append_once,
    "queries": queries.queries,
    "quota": quotas.quota,
    "quota-cores": quotas.quota_cores,
    "quota-denied": quotas.quota_denied,
    "quota-leased": quotas.quota_leased,
    "quota-each": quotas.quota_each,
    "get-beside": get_beside,
    "get-beside-slow": get_beside_slow,
}
_STORE_CALLS: Final = "store-calls"
_UNUSED: Final = "quota-unused"
_EXPORTS: Final = "exports"
_FAN_OUT: Final = "fan-out"
_BACKFILL: Final = "backfill"
_NAMES: Final = (*_CONTESTS, _STORE_CALLS, _UNUSED, _EXPORTS, _FAN_OUT, _BACKFILL)
# What is measured with it.
_WITH: Final = {_BACKFILL: ("get-beside", "get-beside-slow")}
# Of what is written into a file.
_WIDTH: Final = 120
# The cached entity of get-hit has to last for a round.
_MOST_SECONDS: Final = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 if that was not possible."""
    chosen = _parser().parse_args(arguments)
    # So that a run that is told to end stops its stores, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        report = _measured(chosen.only or _NAMES, chosen.rounds, chosen.seconds)
    except (BenchError, MissingProgramError, EmbeddedStoreError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if chosen.json:
        print(json.dumps(report.plain(), indent=2))
    else:
        report.show(Console() if sys.stdout.isatty() else Console(width=_WIDTH))
    return 0


def _measured(names: Sequence[str], rounds: int, seconds: float) -> Report:
    warning = machine.busy()
    progress = Console(stderr=True)
    names = [*names, *(beside for name in names for beside in _WITH.get(name, ()))]
    with progress.status("starting the stores and the service") as status, deployed() as deployment:
        report = Report(machine.described(), [] if warning is None else [warning])
        for name in (name for name in _CONTESTS if name in names):
            status.update(f"{name}: warming up")
            with _CONTESTS[name](deployment) as contest:
                measured = []
                for figures in contest.rounds(rounds, seconds):
                    measured.append(figures)
                    status.update(f"{name}: {len(measured)} of {rounds} rounds")
                report.outcomes.append(Outcome(contest, measured))
        if _STORE_CALLS in names:
            status.update(_STORE_CALLS)
            report.store_calls = store_calls(deployment)
        if _UNUSED in names:
            status.update(_UNUSED)
            report.unused = unused(deployment)
        if _EXPORTS in names:
            status.update(_EXPORTS)
            report.bulks.append(exports(deployment, rounds))
        if _FAN_OUT in names:
            status.update(_FAN_OUT)
            report.bulks += fan_out(deployment, rounds)
        if _BACKFILL in names:
            status.update(_BACKFILL)
            report.bulks += backfill(deployment, rounds)
        status.update("stopping the stores and the service")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the service against the least that its work can cost.",
    )
    parser.add_argument("--rounds", type=_rounds, default=5, help="of each contest; default: 5")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=1.0,
        help=f"that each side has in a round, up to {_MOST_SECONDS:g}; default: 1",
    )
    parser.add_argument(
        "--only", action="append", choices=_NAMES, help="measure this alone; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every round")
    return parser


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError("at least one round is needed")
    return rounds


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= _MOST_SECONDS:  # noqa: PLR2004 - less measures the clock
        raise argparse.ArgumentTypeError(f"0.1 to {_MOST_SECONDS:g} seconds are possible")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
