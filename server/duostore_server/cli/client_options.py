"""The options that the commands which call a running service have in common."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from duostore_server.cli.target import Target
from duostore_server.domain.keys import EntityKey

_TLS_PANEL: Final = "TLS"

Kind = Annotated[str, typer.Argument(metavar="KIND", show_default=False)]
Id = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
Tenant = Annotated[str, typer.Option("--tenant", help="The tenant; empty if there is but one.")]
IfVersion = Annotated[
    int | None, typer.Option("--if-version", min=1, help="Only if it exists with this version.")
]
IfAbsent = Annotated[bool, typer.Option("--if-absent", help="Only if it does not exist.")]
IdempotencyKey = Annotated[
    str,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        help="Makes the command safe to repeat: with the same key it is applied once.",
    ),
]
# One way, of three, to give the document of a command.
Stdin = Annotated[
    str | None, typer.Argument(metavar="-", help="Read the document from standard input.")
]
Data = Annotated[str | None, typer.Option("--data", help="The document, as JSON.")]
File = Annotated[Path | None, typer.Option("--file", help="A file with the document.")]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.001, help="Seconds to wait for the answer.")
]
Address = Annotated[
    str,
    typer.Option("--target", metavar="HOST:PORT", envvar="DUOSTORE_TARGET", help="The service."),
]
Tls = Annotated[
    bool,
    typer.Option("--tls", envvar="DUOSTORE_TLS", help="Use TLS.", rich_help_panel=_TLS_PANEL),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        envvar="DUOSTORE_CA_FILE",
        help="Certificates to trust, in PEM, instead of the system's.",
        rich_help_panel=_TLS_PANEL,
    ),
]
CertFile = Annotated[
    Path | None,
    typer.Option(
        "--cert-file",
        envvar="DUOSTORE_CERT_FILE",
        help="The certificate to show, in PEM.",
        rich_help_panel=_TLS_PANEL,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        envvar="DUOSTORE_KEY_FILE",
        help="The key of that certificate, in PEM.",
        rich_help_panel=_TLS_PANEL,
    ),
]
ServerName = Annotated[
    str | None,
    typer.Option(
        "--server-name",
        envvar="DUOSTORE_SERVER_NAME",
        help="The name in the service's certificate, if not that of the target.",
        rich_help_panel=_TLS_PANEL,
    ),
]
Caller = Annotated[
    str | None,
    typer.Option(
        "--caller",
        metavar="NAME",
        envvar="DUOSTORE_CALLER",
        help="Who calls, for the service's log and audit.",
    ),
]


def target_of(  # noqa: PLR0917 - the options in their order
    address: str,
    tls: bool,  # noqa: FBT001 - as above
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    server_name: str | None,
    caller: str | None,
) -> Target:
    """Return the service that the options name, and who calls it."""
    target = Target(address, tls, ca_file, cert_file, key_file, server_name, caller)
    if problem := target.problem():
        raise typer.BadParameter(problem)
    return target


def key_of(tenant: str, kind: str, id: str) -> EntityKey:  # noqa: A002 - its name
    """Return the key that the arguments name."""
    return EntityKey(utf8(tenant, "--tenant"), utf8(kind, "KIND"), utf8(id, "ID"))


def utf8(argument: str, name: str) -> str:
    """Return the argument if it was UTF-8."""
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter("is not UTF-8", param_hint=name) from error
    return argument


def preconditions(if_version: int | None, *, if_absent: bool) -> None:
    """Refuse two preconditions at once."""
    if if_absent and if_version is not None:
        raise typer.BadParameter("--if-absent and --if-version exclude each other")


def document_of(stdin: str | None, data: str | None, file: Path | None) -> bytes:
    """Return the document that is given in one of three ways."""
    if sum(source is not None for source in (stdin, data, file)) != 1:
        raise typer.BadParameter("give the document once: by --data, by --file, or by -")
    if data is not None:
        return data.encode(errors="surrogateescape")
    if file is not None:
        return content_of(file, "--file")
    if stdin != "-":
        raise typer.BadParameter(f"{stdin!r}: only - can stand here, for standard input")
    return sys.stdin.buffer.read()


def content_of(file: Path, name: str) -> bytes:
    """Return what a file holds."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(
            f"{file} cannot be read: {error.strerror}", param_hint=name
        ) from error


def reflowed(docstring: str) -> str:
    """Return a text with each paragraph on one line: a terminal breaks lines by itself."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
