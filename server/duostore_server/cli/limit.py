"""The commands ``duostore limit``: limits of single subjects, set at run time."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

from typing import Annotated

import typer

from duostore_server.cli.client_options import reflowed, utf8
from duostore_server.cli.config_file import DEFAULT_CONFIG, ConfigFile, Data, settings_of
from duostore_server.domain.limits import LimitKey

limit_app = typer.Typer(
    no_args_is_help=True,
    help="Limits of single subjects of a quota, set at run time: no restart, no change of the "
    "configuration.",
)

Quota = Annotated[
    str, typer.Argument(metavar="QUOTA", show_default=False, help="As the configuration names it.")
]
Subject = Annotated[
    str, typer.Argument(metavar="SUBJECT", show_default=False, help="Whom it limits.")
]
Tenant = Annotated[
    str | None,
    typer.Option(
        "--tenant",
        help="Only in this tenant, which may be empty; in every tenant if it is left out.",
        show_default=False,
    ),
]
Caller = Annotated[
    str | None,
    typer.Option(
        "--caller",
        metavar="NAME",
        envvar="DUOSTORE_CALLER",
        help="Who sets it, for `duostore limit list`; your login if it is left out.",
        show_default=False,
    ),
]


def _set(
    quota: Quota,
    subject: Subject,
    limit: Annotated[
        int,
        typer.Argument(
            metavar="LIMIT",
            min=0,
            show_default=False,
            help="Units in a window; 0 blocks the subject.",
        ),
    ],
    *,
    tenant: Tenant = None,
    caller: Caller = None,
    config: ConfigFile = DEFAULT_CONFIG,
    data: Data = None,
) -> None:
    """Set the limit of a subject, for as long as it is not unset. Safe to repeat.

    In force within two seconds in every server that can reach Aurora, and after restarts. It
    goes before what the configuration says of the subject. What was used before counts on.

    A limit of 0 blocks the subject: all that it asks for is denied.

    Example: duostore limit set api_calls alice 5000 --tenant acme

    While `make run` runs: duostore limit set api_calls alice 5000 --config
    examples/proposals/duostore.toml --data .duostore

    Exit codes, here and for unset and list: 0 done; 1 nothing was set, or the schema of Aurora is
    not migrated; 2 bad input, such as a quota that is not configured; 3 Aurora, or the
    PostgreSQL of --data, is unavailable.
    """
    from duostore_server.cli import limits

    raise typer.Exit(
        limits.set_(
            settings_of(config, process="limit"),
            utf8(quota, "QUOTA"),
            _key(subject, tenant),
            limit,
            caller=limits.login() if caller is None else utf8(caller, "--caller"),
            data=data,
        )
    )


def _unset(
    quota: Quota,
    subject: Subject,
    *,
    tenant: Tenant = None,
    config: ConfigFile = DEFAULT_CONFIG,
    data: Data = None,
) -> None:
    """Forget the limit that was set for a subject, also of a quota that is no longer configured.

    Within two seconds what else fits the subject is in force: a limit set for it in every
    tenant, one of the configuration, or the limit of the quota.
    """
    from duostore_server.cli import limits

    raise typer.Exit(
        limits.unset(
            settings_of(config, process="limit"),
            utf8(quota, "QUOTA"),
            _key(subject, tenant),
            data=data,
        )
    )


def _list(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    data: Data = None,
) -> None:
    """Print all limits that are set at run time, who set them and when.

    Those of the configuration are in `duostore config show`.
    """
    from duostore_server.cli import limits

    settings = settings_of(config, process="limit")
    raise typer.Exit(limits.list_(settings, as_json=as_json, data=data))


def _key(subject: str, tenant: str | None) -> LimitKey:
    return LimitKey(tenant and utf8(tenant, "--tenant"), utf8(subject, "SUBJECT"))


for _name, _command in (("set", _set), ("unset", _unset), ("list", _list)):
    limit_app.command(_name, help=reflowed(_command.__doc__ or ""))(_command)
