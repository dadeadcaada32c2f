"""The options that name the configuration and the data of `duostore dev`, and their use."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

if TYPE_CHECKING:
    from duostore_server.config import Settings

# Exit codes of a command: its input or configuration cannot be used; a store cannot be reached.
UNUSABLE: Final = 2
UNAVAILABLE: Final = 3

ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        envvar="DUOSTORE_CONFIG",
        help="The configuration file; `duostore config reference` explains every key.",
    ),
]
DEFAULT_CONFIG: Final = Path("duostore.toml")

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Reach the PostgreSQL of the `duostore dev` that runs with this folder, whatever the "
        "configuration names. That of `make run` is .duostore.",
        show_default=False,
    ),
]


def settings_of(path: Path, *, process: str, serving: bool = False) -> Settings:
    """Return what a file and the environment say; end the command if they have problems.

    Logs from then on as they say, in the name of ``process``.
    """
    from duostore_server.config import ConfigError, load

    try:
        settings = load(path, os.environ, serving=serving)
    except ConfigError as error:
        fail(f"{path}: {error}")
    log_as(process, settings)
    return settings


def dsn_of_dev(data: Path) -> str:
    """Return how to reach the PostgreSQL of the `duostore dev` that runs with a folder.

    Ends the command if none is running.
    """
    from duostore_server.embedded.postgres_address import running_dsn
    from duostore_server.embedded.process import EmbeddedStoreError

    try:
        # Where `duostore dev` keeps it.
        return running_dsn(data / "postgres")
    except EmbeddedStoreError as error:
        hint = "--data names the folder of a `duostore dev` that is running"
        fail(f"{error}; {hint}", UNAVAILABLE)


def log_as(process: str, settings: Settings) -> None:
    """Log as the settings say, in the name of a process."""
    from duostore_server.telemetry.logs import configure_logs

    configure_logs(level=settings.logging.level, form=settings.logging.format, process=process)


def fail(message: str, code: int = UNUSABLE) -> NoReturn:
    """End the command with a message and an exit code."""
    typer.echo(message, err=True)
    raise typer.Exit(code)
