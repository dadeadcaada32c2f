"""The options that the commands which call a running service have in common."""

from __future__ import annotations

import getpass
import inspect
import os
import sys
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from duostore_server.cli.target import DEFAULT_ADDRESS, Target
from duostore_server.domain.keys import EntityKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TLS_PANEL: Final = "TLS"
_ADMIN_PANEL: Final = "Permission"
_BEARER: Final = "DUOSTORE_TOKEN"

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
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
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


TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="DUOSTORE_TOKEN_FILE",
        help="A file with the token that the service's admin.token is. The token itself can be in "
        f"the environment, as {_BEARER}; never among the arguments, which all can read.",
        rich_help_panel=_ADMIN_PANEL,
    ),
]
PlaintextToken = Annotated[
    bool,
    typer.Option(
        "--plaintext-token",
        envvar="DUOSTORE_PLAINTEXT_TOKEN",
        help="Send the token without TLS to another machine: something else encrypts the way "
        "there, such as a mesh.",
        rich_help_panel=_ADMIN_PANEL,
    ),
]

# In the order of the fields of Target. The rest follow all options of a command.
_TARGET: Final = {"target": (Address, DEFAULT_ADDRESS)}
_REST: Final[dict[str, tuple[object, object]]] = {
    "tls": (Tls, False),
    "ca_file": (CaFile, None),
    "cert_file": (CertFile, None),
    "key_file": (KeyFile, None),
    "server_name": (ServerName, None),
    "caller": (Caller, None),
}
_TOKENS: Final[dict[str, tuple[object, object]]] = {
    "token_file": (TokenFile, None),
    "plaintext_token": (PlaintextToken, False),
}


def calling(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a service and who calls it.

    They make its argument ``where``. ``--target`` has that one's place among the options.
    """

    def called(**given: object) -> None:
        where = _target(given)
        command(where=_checked(where), **given)

    return _with_options(command, called, _REST)


def operating(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of ``calling``, and the token.

    Who calls is by default whoever runs the command: the service keeps who has set what.
    """

    def called(**given: object) -> None:
        token = _token(given.pop("token_file"))
        plaintext = bool(given.pop("plaintext_token"))
        where = replace(_target(given), token=token, plaintext_token=plaintext)
        if where.caller is None:
            where = replace(where, caller=_login(where))
        command(where=_checked(where), **given)

    return _with_options(command, called, {**_REST, **_TOKENS})


def _target(given: dict[str, object]) -> Target:
    """Take what makes a target out of the arguments that were given."""
    return Target(*[given.pop(name) for name in (*_TARGET, *_REST)])  # type: ignore[arg-type]


def _checked(target: Target) -> Target:
    if problem := target.problem():
        raise typer.BadParameter(problem)
    return target


def _token(file: object) -> str | None:
    if not isinstance(file, Path):
        return os.environ.get(_BEARER) or None
    token = content_of(file, "--token-file").decode(errors="replace").strip()
    if not token:
        raise typer.BadParameter(f"{file} is empty", param_hint="--token-file")
    return token


def _login(target: Target) -> str | None:
    try:
        login = getpass.getuser()
    except (OSError, KeyError):
        return None
    return login if target.takes_caller(login) else None


def _with_options(
    command: Callable[..., None],
    called: Callable[..., None],
    rest: Mapping[str, tuple[object, object]],
) -> Callable[..., None]:
    """Return ``called`` in the name of a command, and with options instead of ``where``."""
    signature = inspect.signature(command, eval_str=True)
    options: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        options += _options(_TARGET) if parameter.name == "where" else [parameter]
    options += _options(rest)
    called = wraps(command)(called)
    called.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    return called


def _options(described: Mapping[str, tuple[object, object]]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in described.items()
    ]


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
