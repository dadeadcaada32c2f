"""The commands that call a running service: their options and their help.

Imports no grpc; what a command does is imported when it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from duostore_server.cli import client_drafts, client_queries, client_quotas
from duostore_server.cli.client_options import (
    Data,
    File,
    Id,
    IdempotencyKey,
    IfAbsent,
    IfVersion,
    Kind,
    Stdin,
    Tenant,
    Timeout,
    calling,
    content_of,
    document_of,
    key_of,
    preconditions,
    reflowed,
    utf8,
)
from duostore_server.cli.target import Target  # noqa: TC001 - typer reads annotations as it runs

_PANEL: Final = "Calls of a running service"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    drafts = (
        client_drafts.snapshot,
        client_drafts.get_snapshot,
        client_drafts.snapshots,
        client_drafts.publish,
    )
    quotas = (client_quotas.quota, client_quotas.settle)
    queries = (client_queries.query, client_queries.export)
    for command in (get, save, delete, transact, *drafts, *queries, *quotas, load, health):
        app.command(help=reflowed(command.__doc__ or ""), rich_help_panel=_PANEL)(command)


@calling
def get(
    kind: Kind,
    id: Id,  # noqa: A002 - its name on the command line
    *,
    tenant: Tenant = "",
    min_version: Annotated[
        int | None, typer.Option(min=0, help="Read this version or a newer one.")
    ] = None,
    strong: Annotated[bool, typer.Option("--strong", help="Read from Aurora's writer.")] = False,
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Print an entity as JSON: key, version, data, times and the store that served it.

    Exit codes, here and for the other calls: 0 done; 1 not found, a precondition that does
    not hold, or a fault; 2 bad input; 3 the service is unavailable or too slow; of a quota, 4
    there is no room.
    """
    from duostore_server.cli import remote

    if strong and min_version is not None:
        raise typer.BadParameter("--strong and --min-version exclude each other")
    raise typer.Exit(
        remote.get(
            where,
            key_of(tenant, kind, id),
            min_version=min_version,
            strong=strong,
            timeout=timeout,
        )
    )


@calling
def save(
    kind: Kind,
    id: Id,  # noqa: A002 - as above
    stdin: Stdin = None,
    *,
    data: Data = None,
    file: File = None,
    if_version: IfVersion = None,
    if_absent: IfAbsent = False,
    idempotency_key: IdempotencyKey = "",
    tenant: Tenant = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Create an entity or replace its data, and print its new version.

    Numbers are doubles. One that a double may have changed, such as a whole number of 2^53
    or beyond, is refused: send a string.
    """
    from duostore_server.cli import remote

    preconditions(if_version, if_absent=if_absent)
    raise typer.Exit(
        remote.save(
            where,
            key_of(tenant, kind, id),
            document_of(stdin, data, file),
            if_version=if_version,
            if_absent=if_absent,
            idempotency_key=utf8(idempotency_key, "--idempotency-key"),
            timeout=timeout,
        )
    )


@calling
def delete(
    kind: Kind,
    id: Id,  # noqa: A002 - as above
    *,
    if_version: IfVersion = None,
    idempotency_key: IdempotencyKey = "",
    tenant: Tenant = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Delete an entity, and print the version that the deletion is."""
    from duostore_server.cli import remote

    raise typer.Exit(
        remote.delete(
            where,
            key_of(tenant, kind, id),
            if_version=if_version,
            idempotency_key=utf8(idempotency_key, "--idempotency-key"),
            timeout=timeout,
        )
    )


@calling
def transact(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", show_default=False, help="The mutations; - is standard input."
        ),
    ],
    *,
    idempotency_key: IdempotencyKey = "",
    tenant: Annotated[
        str, typer.Option("--tenant", help="The tenant of mutations that name none.")
    ] = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Apply up to 100 mutations in one transaction, all or none, and print the new versions.

    A mutation is a JSON object, as in the API: {"save": {"key": {"kind": "account", "id":
    "a"}, "data": {"balance": 70}, "if_version": 4}}, or with "delete" or "check" in place of
    "save". Give one a line, or all as a JSON array.

    If one of them is refused nothing is changed, and the error names it, by its index from 0
    and by its line.
    """
    from duostore_server.cli import remote_transact

    text = sys.stdin.buffer.read() if source == "-" else content_of(Path(source), "FILE")
    raise typer.Exit(
        remote_transact.transact(
            where,
            text,
            tenant=utf8(tenant, "--tenant"),
            idempotency_key=utf8(idempotency_key, "--idempotency-key"),
            timeout=timeout,
        )
    )


@calling
def health(
    *,
    service: Annotated[
        str | None,
        typer.Option(help="Only this: aurora, dynamodb, cache, or a gRPC service by full name."),
    ] = None,
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Print whether the service serves, and each store behind it. Exit with 1 if it does not."""
    from duostore_server.cli import remote

    raise typer.Exit(remote.health(where, service=service, timeout=timeout))


@calling
def load(
    source: Annotated[
        Path, typer.Argument(metavar="FILE.jsonl", show_default=False, help="A JSON object a line.")
    ],
    *,
    kind: Annotated[str, typer.Option(help="The kind of the entities.", show_default=False)],
    id: Annotated[  # noqa: A002 - as above
        str,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="Where the id stands in each object: a name, or a dotted path such as meta.id.",
        ),
    ],
    tenant: Tenant = "",
    in_flight: Annotated[
        int, typer.Option(min=1, max=1000, help="How many lines are under way at a time.")
    ] = 16,
    if_absent: Annotated[
        bool, typer.Option("--if-absent", help="Leave entities that exist as they are.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew; forget an interrupted load.")
    ] = False,
    retry_for: Annotated[
        float, typer.Option(min=0, help="Seconds to retry a line for while the service is down.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    where: Target,
    timeout: Timeout = 10.0,
) -> None:
    """Save every line of a file as an entity. Repeat the command to resume it.

    Progress is kept beside the file in FILE.jsonl.load-progress until all is done; lines
    that cannot be saved go to FILE.jsonl.rejected, with line number and reason. Lines of one
    id are saved in the order of the file.

    No line is lost and none is saved twice, however often the load is killed (-9) and the
    command repeated within 24 hours: each line has an idempotency key, made of the load and
    the line's number. Once all is done, or with --restart, the same command is another load
    and saves every line anew.

    Exit codes: 0 all lines are saved; 1 some were rejected, or a fault; 2 it cannot begin so;
    3 the service was unavailable for too long; 130 interrupted by Ctrl-C or SIGTERM.
    """
    from duostore_server.cli.load import Load
    from duostore_server.cli.load import load as run
    from duostore_server.cli.load_outcome import Limits

    if not all(id.split(".")):
        raise typer.BadParameter(f"{id!r} is no dotted path", param_hint="--id")
    what = Load(
        source=source,
        target=where,
        tenant=utf8(tenant, "--tenant"),
        kind=utf8(kind, "--kind"),
        id_path=id,
        if_absent=if_absent,
        restart=restart,
        limits=Limits(in_flight=in_flight, timeout=timeout, retry_for=retry_for),
    )
    raise typer.Exit(run(what, as_json=as_json))
