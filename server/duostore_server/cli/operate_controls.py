"""The commands for what is set while the service runs: read-only mode and flags."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

import re
from typing import Annotated

import typer

from duostore_server.cli.client_options import AsJson, Timeout, operating, reflowed, utf8
from duostore_server.cli.target import Target  # noqa: TC001 - typer reads annotations as it runs
from duostore_server.domain.controls import MAX_REASON_BYTES
from duostore_server.domain.documents import MAX_WHOLE

readonly_app = typer.Typer(
    no_args_is_help=True, help="Refuse writes for a while, of the whole service or of a kind."
)
flag_app = typer.Typer(
    no_args_is_help=True, help="Flags, such as those that move a kind to a new projection version."
)


def _not_empty(kind: str | None) -> str | None:
    # An empty variable of a script, which is not meant for the whole service.
    if kind == "":
        raise typer.BadParameter("is empty: leave it out for the whole service")
    return kind


OfKind = Annotated[
    str | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        help="Only this kind; else the whole service.",
        callback=_not_empty,
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]


@operating
def _on(
    *,
    reason: Annotated[
        str,
        typer.Option(
            "--reason", metavar="TEXT", help="Why, for those who are refused.", show_default=False
        ),
    ],
    kind: OfKind = None,
    as_json: AsJson = False,
    where: Target,
    timeout: Timeout = 10.0,
) -> None:
    """Refuse writes: Save, Delete and Transact answer FAILED_PRECONDITION with the reason.

    In force within two seconds in every process, and after restarts, until it is turned off.
    Reads, snapshots and quotas go on; so does what is done in the background. Safe to repeat,
    also with another reason.

    Example: duostore readonly on --reason "moving to a larger Aurora, until 14:00 UTC"
    """
    from duostore_server.cli import remote_controls

    told = utf8(reason, "--reason")
    if not told.strip() or len(told.encode()) > MAX_REASON_BYTES:
        raise typer.BadParameter(
            f"say why, in up to {MAX_REASON_BYTES} bytes", param_hint="--reason"
        )
    raise typer.Exit(
        remote_controls.set_read_only(
            where, utf8(kind or "", "--kind"), told, as_json=as_json, timeout=timeout
        )
    )


@operating
def _off(
    *, kind: OfKind = None, as_json: AsJson = False, where: Target, timeout: Timeout = 10.0
) -> None:
    """Take writes again, within two seconds in every process. Safe to repeat.

    Without --kind it takes back what was said of the whole service; kinds that were made
    read-only by themselves stay so, and are listed.
    """
    from duostore_server.cli import remote_controls

    raise typer.Exit(
        remote_controls.set_read_only(
            where, utf8(kind or "", "--kind"), None, as_json=as_json, timeout=timeout
        )
    )


@operating
def _show(*, as_json: AsJson = False, where: Target, timeout: Timeout = 10.0) -> None:
    """Print what is read-only, why, who said so and when. Exit with 0 whatever it is.

    As it is set, which within two seconds is in force in every process; while Aurora cannot be
    asked, as it is in force in the process that answers.
    """
    from duostore_server.cli import remote_controls

    raise typer.Exit(remote_controls.show_read_only(where, as_json=as_json, timeout=timeout))


@operating
def _list(*, as_json: AsJson = False, where: Target, timeout: Timeout = 10.0) -> None:
    """Print every flag: what it is, its default, who set it and when, and what it does."""
    from duostore_server.cli import remote_controls

    raise typer.Exit(remote_controls.list_flags(where, as_json=as_json, timeout=timeout))


@operating
def _set(
    name: Name,
    value: Annotated[str, typer.Argument(metavar="VALUE", show_default=False)],
    *,
    where: Target,
    timeout: Timeout = 10.0,
) -> None:
    """Set a flag: a word or a whole number. `duostore flag list` says what it may be.

    In force within two seconds in every process, and after restarts, until it is unset. Safe to
    repeat.

    Examples: duostore flag set projection_write.proposal.2 both

    duostore flag set projection_read.proposal.2 25

    Exit codes, here and for the others: 0 done; 1 the flags are set elsewhere, or a fault; 2 no
    such flag or value; 3 the service is unavailable.
    """
    from duostore_server.cli import remote_controls

    given: str | int = utf8(value, "VALUE")
    if re.fullmatch("[0-9]+", value):
        given = int(value)
        if given > MAX_WHOLE:
            raise typer.BadParameter(f"may be up to {MAX_WHOLE}", param_hint="VALUE")
    raise typer.Exit(remote_controls.set_flag(where, utf8(name, "NAME"), given, timeout=timeout))


@operating
def _unset(name: Name, *, where: Target, timeout: Timeout = 10.0) -> None:
    """Forget what is set of a flag: within two seconds its default is in force again.

    Also of a flag that nobody asks for any more.
    """
    from duostore_server.cli import remote_controls

    raise typer.Exit(remote_controls.set_flag(where, utf8(name, "NAME"), None, timeout=timeout))


for _app, _commands in (
    (readonly_app, {"on": _on, "off": _off, "show": _show}),
    (flag_app, {"list": _list, "set": _set, "unset": _unset}),
):
    for _word, _command in _commands.items():
        _app.command(_word, help=reflowed(_command.__doc__ or ""))(_command)
