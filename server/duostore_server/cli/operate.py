"""The commands that operate a service: their options and their help. Imports no grpc."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - as Target
from typing import Annotated, Final

import typer

from duostore_server.cli.client_options import (
    AsJson,
    Id,
    Kind,
    Tenant,
    Timeout,
    key_of,
    operating,
    reflowed,
    utf8,
)
from duostore_server.cli.operate_controls import flag_app, readonly_app
from duostore_server.cli.target import Target  # noqa: TC001 - typer reads annotations as it runs
from duostore_server.domain.backfills import DEFAULT_PARTS, MAX_PARTS, MAX_RATE

PANEL: Final = "Operation of a running service"

_DEFAULT_SAMPLE: Final = 1000
_MAX_SAMPLE: Final = 1_000_000


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (status, explain, check, backfill):
        app.command(help=reflowed(command.__doc__ or ""), rich_help_panel=PANEL)(command)
    app.add_typer(readonly_app, name="readonly", rich_help_panel=PANEL)
    app.add_typer(flag_app, name="flag", rich_help_panel=PANEL)


@operating
def status(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it every 2 seconds, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg", metavar="FILE", help="Also draw it, as a picture.", show_default=False
        ),
    ] = None,
    where: Target,
    timeout: Timeout = 10.0,
) -> None:
    """Print how the service is: stores, what waits, what is read-only, objectives, consistency.

    The first line says what needs attention. Calls and objectives are of all processes of the
    machine that answers; a burn rate of 1 uses up the error budget just at the end of its
    window. With --watch --json each status is an object in a line of its own.

    Exit codes: 0 every store is up and every objective holds; 1 not so, or a fault; 2 bad
    input; 3 the service is unavailable. With --watch 0, once it has answered.

    Examples: duostore status --watch

    duostore status --json | jq '.slos[] | select(.holds | not)'
    """
    from duostore_server.cli import remote_status

    if svg is not None and (watch or as_json):
        raise typer.BadParameter("--svg draws what is printed once, and not as JSON")
    if watch:
        raise typer.Exit(remote_status.watch(where, as_json=as_json, timeout=timeout))
    raise typer.Exit(remote_status.status(where, as_json=as_json, picture=svg, timeout=timeout))


@operating
def explain(
    kind: Kind,
    id: Id,  # noqa: A002 - its name on the command line
    *,
    tenant: Tenant = "",
    as_json: AsJson = False,
    where: Target,
    timeout: Timeout = 10.0,
) -> None:
    """Print what each store holds of an entity, whether they agree, and what follows from it.

    Of each store the version, size, age and, in the cache, when the entry goes; then the outbox,
    the newest snapshot, the verifier's last look, and every drift with the places that differ.
    The last line is the verdict. Changes nothing: no entry of the cache is filled or dropped.

    Examples: duostore explain proposal p1 --tenant acme

    duostore explain proposal p1 --json | jq -r .verdict

    Exit codes as for `duostore get`; 0 whatever the stores hold.
    """
    from duostore_server.cli import remote_explain

    key = key_of(tenant, kind, id)
    raise typer.Exit(remote_explain.explain(where, key, as_json=as_json, timeout=timeout))


@operating
def check(
    *,
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="Only this kind; else all of Aurora's.")
    ] = "",
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="N",
            min=1,
            max=_MAX_SAMPLE,
            show_default=False,
            help="Compare so many entities at random, and as many items of DynamoDB; "
            f"{_DEFAULT_SAMPLE} by default.",
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Compare every entity and every item.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Project anew what does not agree.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a line: each drift, then a summary.")
    ] = False,
    where: Target,
) -> None:
    """Compare what DynamoDB and the cache hold with Aurora, content as well as version.

    Safe beside live traffic, with --repair too: a write that comes meanwhile wins. What an
    outbox row stands for is on its way and no drift. On a terminal drifts are a table; elsewhere
    each is a line, as it is found.

    With --json the last line is {"summary": {...}}, with "done" false if the check broke off;
    each line before it is one drift.

    Exit codes: 0 all that was compared agrees, or was repaired; 1 there is drift, with --repair
    drift that could not be repaired, or a fault; 2 bad input; 3 there is none, but some could
    not be compared, or the service was unavailable; 130 interrupted.

    Examples: duostore check --kind proposal --sample 5000

    duostore check --all --repair

    duostore check --all --json | jq -r 'select(.drift).key.id'
    """
    from duostore_server.cli import remote_check

    if everything and sample is not None:
        raise typer.BadParameter("--all and --sample exclude each other")
    what = remote_check.Check(
        kind=utf8(kind, "--kind"),
        sample=None if everything else sample or _DEFAULT_SAMPLE,
        repair=repair,
    )
    raise typer.Exit(remote_check.check(where, what, as_json=as_json))


@operating
def backfill(
    *,
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="Of this kind.", show_default=False)
    ],
    rate: Annotated[
        int | None,
        typer.Option(
            "--rate",
            metavar="N",
            min=1,
            max=MAX_RATE,
            show_default=False,
            help="The most entities a second; by default as many as go. Of one that is under way "
            "it sets the rate anew.",
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel",
            metavar="N",
            min=1,
            max=MAX_PARTS,
            show_default=False,
            help=f"Parts that are done side by side; {DEFAULT_PARTS} by default.",
        ),
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Start it, and do not watch.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print how it stands, once.")] = False,
    pause: Annotated[
        bool, typer.Option("--pause", help="Stop it where it is; the next start goes on there.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End it; the next start begins anew.")
    ] = False,
    retry_for: Annotated[
        float,
        typer.Option("--retry-for", min=0, help="Seconds to watch on while the service is down."),
    ] = 600.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print how it stands in the end as JSON.")
    ] = False,
    where: Target,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=0.001, help="Seconds to wait for an answer; not for the end."
        ),
    ] = 10.0,
) -> None:
    """Project all entities of a kind anew, beside live traffic, and watch it to its end.

    The background processes of the service do the work, and note in Aurora how far they are: it
    goes on without this command, and over restarts of theirs. Ctrl-C only ends the watching. If
    one is under way, or paused, the command joins it and goes on with it. Entities that
    DynamoDB has as they are cost a read each, and no write.

    Exit codes: 0 done, and without watching: carried out; 1 some entities could not be
    projected, or somebody paused or cancelled it, or there is none to show, pause or cancel; 2
    bad input; 3 the service was unavailable for too long; 130 detached by Ctrl-C, and it goes on.

    Examples: duostore backfill --kind proposal --rate 2000

    duostore backfill --kind proposal --pause
    """
    from duostore_server.cli import remote_backfill
    from duostore_server.cli.remote_backfill import Action

    chosen = [
        name
        for name, given in (("START", start), ("SHOW", show), ("PAUSE", pause), ("CANCEL", cancel))
        if given
    ]
    if len(chosen) > 1:
        raise typer.BadParameter("--start, --show, --pause and --cancel exclude each other")
    if chosen not in ([], ["START"]) and (rate, parallel) != (None, None):
        raise typer.BadParameter("--rate and --parallel are for starting one")
    order = remote_backfill.Order(
        kind=utf8(kind, "--kind"),
        action=Action.Value(f"ACTION_{chosen[0] if chosen else 'RUN'}"),
        rate=rate or 0,
        parallel=parallel or 0,
        retry_for=retry_for,
    )
    raise typer.Exit(remote_backfill.backfill(where, order, as_json=as_json, timeout=timeout))
