"""The command line ``duostore``: its commands, their options and their help.

What a command does is imported when it runs, so that help is quick and the supervisor
of a service never imports grpc.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from duostore_server.cli import client, operate
from duostore_server.cli.config_file import (
    DEFAULT_CONFIG,
    UNAVAILABLE,
    ConfigFile,
    Data,
    fail,
    log_as,
    settings_of,
)
from duostore_server.cli.limit import limit_app
from duostore_server.cli.slo import slo_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.config import Settings

app = typer.Typer(
    name="duostore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One store over memcached, DynamoDB and Aurora PostgreSQL: the service and its tools.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at the configuration.")
app.add_typer(config_app, name="config")
app.add_typer(limit_app, name="limit")
app.add_typer(slo_app, name="slo")
client.register(app)
operate.register(app)

Inherited = Annotated[
    int, typer.Option("--settings", help="The file descriptor that holds the settings.")
]


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - an option's callback
    if wanted:
        typer.echo(f"duostore {version('duostore-server')}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigFile = DEFAULT_CONFIG,
    *,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Serving processes; overrides the file.")
    ] = None,
    background: Annotated[
        bool,
        typer.Option(help="Also run the background process. A service needs at least one."),
    ] = True,
) -> None:
    """Run the service: serving processes and the background process, kept alive.

    SIGTERM drains and stops all of them; a second one stops at once.
    """
    from duostore_server.cli.addresses import AddressInUseError
    from duostore_server.cli.serve import supervise

    if workers is not None:
        os.environ["DUOSTORE__SERVER__WORKERS"] = str(workers)
    settings = settings_of(config, process="supervisor", serving=True)
    try:
        code = supervise(settings, background=background)
    except AddressInUseError as error:
        fail(str(error))
    raise typer.Exit(code)


@app.command()
def dev(
    config: ConfigFile = DEFAULT_CONFIG,
    data: Annotated[
        Path, typer.Option(help="Where PostgreSQL keeps its data between runs.")
    ] = Path(".duostore"),
) -> None:
    """Run the service and all its stores in one process, for development.

    PostgreSQL is embedded and keeps its data; DynamoDB is emulated and the cache is in
    memory: both are empty after a restart and filled again from PostgreSQL. Ends with 3 if
    PostgreSQL or DynamoDB dies.
    """
    from duostore_server.cli.addresses import AddressInUseError
    from duostore_server.cli.dev import run
    from duostore_server.embedded.process import EmbeddedStoreDiedError, EmbeddedStoreError
    from duostore_server.storage.aurora.migrate import MigrationError

    try:
        run(settings_of(config, process="dev"), data)
    except EmbeddedStoreDiedError as error:
        fail(str(error), UNAVAILABLE)
    except (AddressInUseError, EmbeddedStoreError, MigrationError) as error:
        fail(str(error))


@app.command()
def migrate(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Bring the schema of Aurora and the tables of DynamoDB up to date. Safe to repeat."""
    from duostore_server.cli.migrate import run

    raise typer.Exit(run(settings_of(config, process="migrate", serving=True)))


@app.command(hidden=True)
def worker(settings: Inherited, name: str = "worker") -> None:
    """Run one serving process; `serve` starts these."""
    from duostore_server.processes import run_worker

    _run_process(run_worker, settings, name)


@app.command(hidden=True)
def background(settings: Inherited) -> None:
    """Run the background process; `serve` starts it."""
    from duostore_server.processes import run_background

    _run_process(run_background, settings, "background")


@config_app.command("check")
def config_check(config: ConfigFile = DEFAULT_CONFIG, data: Data = None) -> None:
    """Report every problem of the configuration at once; exit with 2 if there is one.

    If aurora.dsn is set, or --data given, the database prepares all SQL files and says what is
    wrong with them, each with its file and line. It changes nothing. Exit with 3 if it cannot
    be reached.
    """
    from duostore_server.cli.config_check import run

    raise typer.Exit(run(config, settings_of(config, process="config"), data))


@config_app.command("show")
def config_show(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Show the configuration in force: the file, the environment, the defaults; no secrets."""
    from duostore_server.config import describe

    typer.echo(describe(settings_of(config, process="config")))


@config_app.command("reference")
def config_reference() -> None:
    """Explain every key, with its default and the environment variable that overrides it."""
    from duostore_server.config import render_reference

    typer.echo(render_reference(), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    import json

    from duostore_server.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _run_process(run: Callable[[Settings], None], inherited: int, name: str) -> None:
    from duostore_server.cli.handover import taken_over
    from duostore_server.storage.aurora.migrate import MigrationError

    settings = taken_over(inherited)
    log_as(name, settings)
    try:
        run(settings)
    except MigrationError as error:
        fail(str(error))


def main() -> None:
    """Run the command that the arguments name."""
    app()


if __name__ == "__main__":
    main()
