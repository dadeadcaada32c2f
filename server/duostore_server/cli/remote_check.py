"""`duostore check`: compares the stores, tells of each drift, and repairs if it is told to."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from duostore.v1 import admin_pb2
from duostore_server.cli.answers_admin import drift_shown
from duostore_server.cli.check_display import (
    MAX_ROWS,
    Findings,
    drift_line,
    drift_table,
    summary_lines,
)
from duostore_server.cli.failure import FAILED, UNAVAILABLE
from duostore_server.cli.one_call import complain, print_json_line
from duostore_server.cli.progress_display import displaying
from duostore_server.cli.remote_admin import run_admin
from duostore_server.cli.terminal import console_on

if TYPE_CHECKING:
    from duostore.v1.admin_pb2_grpc import AdminStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target


@dataclass(frozen=True, slots=True)
class Check:
    """What to compare, and whether to repair.

    ``sample`` is how many entities at random, None for all; an empty ``kind`` is all kinds.
    """

    kind: str
    sample: int | None
    repair: bool

    @property
    def request(self) -> admin_pb2.CheckConsistencyRequest:
        """Return it as it is sent."""
        request = admin_pb2.CheckConsistencyRequest(kind=self.kind, repair=self.repair)
        if self.sample is None:
            request.all = True
        else:
            request.sample = self.sample
        return request


def check(target: Target, what: Check, *, as_json: bool) -> int:
    """Compare, print what was found, and return the exit code."""
    findings = Findings()
    as_table = not as_json and sys.stdout.isatty()

    def work(stub: AdminStub, metadata: Metadata) -> None:
        stream = stub.CheckConsistency(what.request, metadata=metadata)
        # A bar between the drifts themselves would be in their way.
        bar = not (as_json and sys.stdout.isatty())
        title = f"check {what.kind}".rstrip()
        try:
            with displaying(title, err=sys.stderr, clock=time.monotonic, shown=bar) as display:
                for answer in stream:
                    findings.add(answer)
                    for drift in answer.drifts:
                        if as_json:
                            print_json_line(drift_shown(drift))
                        elif not as_table:
                            typer.echo(drift_line(drift, repair=what.repair))
                    display.show(findings.checked, findings.estimated_total, findings.note)
        finally:
            # Else the service would go on until it notices by itself.
            stream.cancel()

    code = run_admin(target, work)
    if code and not findings.begun:
        return code
    if as_json:
        print_json_line({"summary": _summary(findings)})
    else:
        _print(findings, what, as_table=as_table)
    if not findings.done:
        complain("The check did not come to its end: what it did not reach may not agree.")
        return code or UNAVAILABLE
    if findings.remaining:
        return FAILED
    return UNAVAILABLE if findings.undecided_count else 0


def _print(findings: Findings, what: Check, *, as_table: bool) -> None:
    if as_table and findings.first:
        console_on(sys.stdout).print(drift_table(findings.first, repair=what.repair))
        if (more := findings.drift_count - len(findings.first)) > 0:
            typer.echo(f"and {more:,} more: --json tells of all, the table of {MAX_ROWS}")
    for line in summary_lines(findings, what.kind, repair=what.repair):
        typer.echo(line)
    if findings.remaining and not what.repair:
        complain("--repair mends them; `duostore explain KIND ID` looks at one.")


def _summary(findings: Findings) -> dict[str, object]:
    return {
        "checked": findings.checked,
        "estimated_total": findings.estimated_total,
        "drifts": findings.drift_count,
        "repaired": findings.repaired_count,
        "undecided": findings.undecided_count,
        "by_drift": dict(sorted(findings.by_drift.items())),
        "done": findings.done,
    }
