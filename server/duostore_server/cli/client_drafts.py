"""The commands for drafts: their options and their help. Imports no grpc, as ``client``."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

from typing import Annotated

import typer

from duostore_server.cli.client_options import (
    Address,
    CaFile,
    Caller,
    CertFile,
    Data,
    File,
    Id,
    IdempotencyKey,
    IfAbsent,
    IfVersion,
    KeyFile,
    Kind,
    ServerName,
    Stdin,
    Tenant,
    Timeout,
    Tls,
    document_of,
    key_of,
    preconditions,
    target_of,
    utf8,
)
from duostore_server.cli.target import DEFAULT_ADDRESS

Sequence = Annotated[
    int, typer.Option("--sequence", min=0, help="Which snapshot; the newest if it is 0.")
]


def snapshot(
    kind: Kind,
    id: Id,  # noqa: A002 - its name on the command line
    stdin: Stdin = None,
    *,
    data: Data = None,
    file: File = None,
    idempotency_key: IdempotencyKey = "",
    tenant: Tenant = "",
    target: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 5.0,
    tls: Tls = False,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
    caller: Caller = None,
) -> None:
    """Append a snapshot of an entity, and print its sequence.

    The entity itself does not change, and need not exist: `publish` makes the snapshot its
    next version.
    """
    from duostore_server.cli import remote_drafts

    where = target_of(target, tls, ca_file, cert_file, key_file, server_name, caller)
    raise typer.Exit(
        remote_drafts.snapshot(
            where,
            key_of(tenant, kind, id),
            document_of(stdin, data, file),
            idempotency_key=utf8(idempotency_key, "--idempotency-key"),
            timeout=timeout,
        )
    )


def get_snapshot(
    kind: Kind,
    id: Id,  # noqa: A002 - as above
    *,
    sequence: Sequence = 0,
    tenant: Tenant = "",
    target: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 5.0,
    tls: Tls = False,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
    caller: Caller = None,
) -> None:
    """Print a snapshot as JSON: key, sequence, data and time."""
    from duostore_server.cli import remote_drafts

    where = target_of(target, tls, ca_file, cert_file, key_file, server_name, caller)
    key = key_of(tenant, kind, id)
    raise typer.Exit(remote_drafts.get_snapshot(where, key, sequence=sequence, timeout=timeout))


def snapshots(
    kind: Kind,
    id: Id,  # noqa: A002 - as above
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many to show at most.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a line, with the whole document.")
    ] = False,
    tenant: Tenant = "",
    target: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 5.0,
    tls: Tls = False,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
    caller: Caller = None,
) -> None:
    """List the snapshots of an entity, newest first: sequence, time and how the document begins.

    They are kept for as long as the kind's configuration says.
    """
    from duostore_server.cli import remote_drafts

    where = target_of(target, tls, ca_file, cert_file, key_file, server_name, caller)
    raise typer.Exit(
        remote_drafts.snapshots(
            where, key_of(tenant, kind, id), limit=limit, as_json=as_json, timeout=timeout
        )
    )


def publish(
    kind: Kind,
    id: Id,  # noqa: A002 - as above
    *,
    sequence: Sequence = 0,
    if_version: IfVersion = None,
    if_absent: IfAbsent = False,
    idempotency_key: IdempotencyKey = "",
    tenant: Tenant = "",
    target: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 5.0,
    tls: Tls = False,
    ca_file: CaFile = None,
    cert_file: CertFile = None,
    key_file: KeyFile = None,
    server_name: ServerName = None,
    caller: Caller = None,
) -> None:
    """Make a snapshot the next version of its entity, and print that version.

    With --if-version nothing is overwritten that somebody else has published meanwhile.
    """
    from duostore_server.cli import remote_drafts

    preconditions(if_version, if_absent=if_absent)
    where = target_of(target, tls, ca_file, cert_file, key_file, server_name, caller)
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
