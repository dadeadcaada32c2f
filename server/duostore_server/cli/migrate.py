"""`duostore migrate`: the schema of Aurora and the tables of DynamoDB."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import typer

from duostore_server.bootstrap import dsn_of, dynamodb_client
from duostore_server.config import read_models
from duostore_server.domain.errors import StoreError
from duostore_server.storage.aurora.migrate import MigrationError, migrate
from duostore_server.storage.aurora.triggers import install
from duostore_server.storage.dynamodb.tables import create_tables

if TYPE_CHECKING:
    from duostore_server.config import Settings


def run(settings: Settings) -> int:
    """Apply what is missing, say what was done, and return the exit code."""
    try:
        applied = migrate(dsn_of(settings), own=settings.aurora.own_migrations)
        for name in applied:
            typer.echo(f"aurora: applied {name}")
        if not applied:
            typer.echo("aurora: up to date")
        for line in install(dsn_of(settings), read_models(settings)):
            typer.echo(f"aurora: {line}")
        _create_tables(settings)
    except (MigrationError, StoreError) as error:
        # Shown to the person who set the store up: here the driver's words help.
        typer.echo(f"{error}" + (f" ({error.__cause__})" if error.__cause__ else ""), err=True)
        return 1
    return 0


def _create_tables(settings: Settings) -> None:
    # To make a table takes longer than a call may.
    client = dynamodb_client(settings.unhurried())
    try:
        created = create_tables(
            client,
            prefix=settings.dynamodb.table_prefix,
            pause=threading.Event().wait,
            progress=lambda table, status: typer.echo(f"dynamodb: {table} is {status}"),
        )
    finally:
        client.close()
    for table in created:
        typer.echo(f"dynamodb: created {table}")
    if not created:
        typer.echo("dynamodb: up to date")
