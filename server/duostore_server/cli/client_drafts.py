"""The commands for drafts: their options and their help. Imports no grpc, as ``client``."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

from typing import Annotated

import typer

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
    document_of,
    key_of,
    preconditions,
    utf8,
)
from duostore_server.cli.target import Target  # noqa: TC001 - typer reads annotations as it runs

Sequence = Annotated[
    int, typer.Option("--sequence", min=0, help="Which snapshot; the newest if it is 0.")
]


@calling
def snapshot(
    kind: Kind,
    id: Id,  # noqa: A002 - its name on the command line
    stdin: Stdin = None,
    *,
    data: Data = None,
    file: File = None,
    idempotency_key: IdempotencyKey = "",
    tenant: Tenant = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Append a snapshot of an entity, and print its sequence.

    The entity itself does not change, and need not exist: `publish` makes the snapshot its
    next version.
    """
    from duostore_server.cli import remote_drafts

    raise typer.Exit(
        remote_drafts.snapshot(
            where,
            key_of(tenant, kind, id),
            document_of(stdin, data, file),
            idempotency_key=utf8(idempotency_key, "--idempotency-key"),
            timeout=timeout,
        )
    )


@calling
def get_snapshot(
    kind: Kind,
    id: Id,  # noqa: A002 - as above
    *,
    sequence: Sequence = 0,
    tenant: Tenant = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Print a snapshot as JSON: key, sequence, data and time."""
    from duostore_server.cli import remote_drafts

    key = key_of(tenant, kind, id)
    raise typer.Exit(remote_drafts.get_snapshot(where, key, sequence=sequence, timeout=timeout))


@calling
def snapshots(
    kind: Kind,
    id: Id,  # noqa: A002 - as above
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many to show at most.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a line, with the whole document.")
    ] = False,
    tenant: Tenant = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """List the snapshots of an entity, newest first: sequence, time and how the document begins.

    They are kept for as long as the kind's configuration says.
    """
    from duostore_server.cli import remote_drafts

    raise typer.Exit(
        remote_drafts.snapshots(
            where, key_of(tenant, kind, id), limit=limit, as_json=as_json, timeout=timeout
        )
    )


@calling
def publish(
    kind: Kind,
    id: Id,  # noqa: A002 - as above
    *,
    sequence: Sequence = 0,
    if_version: IfVersion = None,
    if_absent: IfAbsent = False,
    idempotency_key: IdempotencyKey = "",
    tenant: Tenant = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Make a snapshot the next version of its entity, and print that version.

    With --if-version nothing is overwritten that somebody else has published meanwhile.
    """
    from duostore_server.cli import remote_drafts

    preconditions(if_version, if_absent=if_absent)
    raise typer.Exit(
        remote_drafts.publish(
            where,
            key_of(tenant, kind, id),
            sequence=sequence,
            if_version=if_version,
            if_absent=if_absent,
            idempotency_key=utf8(idempotency_key, "--idempotency-key"),
            timeout=timeout,
        )
    )
