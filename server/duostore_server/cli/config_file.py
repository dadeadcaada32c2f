"""The option that names the configuration file, and what commands do with it."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

if TYPE_CHECKING:
    from duostore_server.config import Settings

# Exit code of a command whose input or configuration cannot be used.
UNUSABLE: Final = 2

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


def log_as(process: str, settings: Settings) -> None:
    """Log as the settings say, in the name of a process."""
    from duostore_server.telemetry.logs import configure_logs

    configure_logs(level=settings.logging.level, form=settings.logging.format, process=process)


def fail(message: str, code: int = UNUSABLE) -> NoReturn:
    """End the command with a message and an exit code."""
    typer.echo(message, err=True)
    raise typer.Exit(code)
