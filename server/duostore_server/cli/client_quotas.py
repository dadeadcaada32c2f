"""The commands for quotas: their options and their help. Imports no grpc, as ``client``."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

from typing import Annotated, Final

import typer

from duostore_server.cli.client_options import IdempotencyKey, Tenant, Timeout, calling, utf8
from duostore_server.cli.target import Target  # noqa: TC001 - typer reads annotations as it runs

# Units travel as 64-bit numbers.
_MOST_UNITS: Final = 2**63 - 1


@calling
def quota(
    quota: Annotated[str, typer.Argument(metavar="QUOTA", show_default=False)],
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT", show_default=False, help="Who is limited: a user, a key, an address."
        ),
    ],
    *,
    cost: Annotated[
        int, typer.Option("--cost", metavar="N", min=1, max=_MOST_UNITS, help="How many units.")
    ] = 1,
    peek: Annotated[
        bool, typer.Option("--peek", help="Tell whether it would be allowed; debit nothing.")
    ] = False,
    reserve: Annotated[
        bool, typer.Option("--reserve", help="Hold the units, for `duostore settle`.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    idempotency_key: IdempotencyKey = "",
    tenant: Tenant = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Debit a quota, and print whether that is allowed and what is left.

    Exit codes: 0 allowed; 4 denied; others as for `duostore get`. With --peek, what it would be.
    """
    from duostore_server.cli import remote_quotas

    if peek and reserve:
        raise typer.BadParameter("--peek and --reserve exclude each other")
    if peek and idempotency_key:
        raise typer.BadParameter("--peek debits nothing, and needs no --idempotency-key")
    question = remote_quotas.Question(
        tenant=utf8(tenant, "--tenant"),
        quota=utf8(quota, "QUOTA"),
        subject=utf8(subject, "SUBJECT"),
        cost=cost,
        peek=peek,
        reserve=reserve,
        idempotency_key=utf8(idempotency_key, "--idempotency-key"),
    )
    raise typer.Exit(remote_quotas.quota(where, question, as_json=as_json, timeout=timeout))


@calling
def settle(
    reservation: Annotated[
        str,
        typer.Argument(
            metavar="RESERVATION", show_default=False, help="As `duostore quota --reserve` told it."
        ),
    ],
    *,
    cost: Annotated[
        int | None,
        typer.Option(
            "--cost", metavar="N", min=0, max=_MOST_UNITS, help="Commit the units that were used."
        ),
    ] = None,
    release: Annotated[bool, typer.Option("--release", help="Give all units back.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    tenant: Tenant = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Settle a reservation, once, and print how many units count as used. Safe to repeat.

    More units than were reserved may be committed: the rest is debited if the quota has room.

    Exit codes: 0 done; 4 done, but for the rest, for which there was no room; others as for
    `duostore get`.
    """
    from duostore_server.cli import remote_quotas

    if (cost is None) is not release:
        raise typer.BadParameter("give one of --cost and --release")
    raise typer.Exit(
        remote_quotas.settle(
            where,
            utf8(reservation, "RESERVATION"),
            cost=cost,
            tenant=utf8(tenant, "--tenant"),
            as_json=as_json,
            timeout=timeout,
        )
    )
