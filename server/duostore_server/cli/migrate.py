"""`duostore migrate`: the schema of Aurora and the tables of DynamoDB."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import typer

from duostore_server.bootstrap import dynamodb_client
from duostore_server.storage.aurora.migrate import migrate
from duostore_server.storage.dynamodb.tables import create_tables

if TYPE_CHECKING:
    from duostore_server.config import Settings


def run(settings: Settings) -> None:
    """Apply what is missing and say what was done."""
    assert settings.aurora.dsn is not None, "the settings were checked for serving"  # noqa: S101
    applied = migrate(settings.aurora.dsn.get_secret_value())
    for name in applied:
        typer.echo(f"aurora: applied {name}")
    if not applied:
        typer.echo("aurora: up to date")
    client = dynamodb_client(settings)
    created = create_tables(
        client,
        prefix=settings.dynamodb.table_prefix,
        pause=threading.Event().wait,
        progress=lambda table, status: typer.echo(f"dynamodb: {table} is {status}"),
    )
    if not created:
        typer.echo("dynamodb: up to date")
