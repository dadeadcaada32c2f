"""The commands for queries: their options and their help. Imports no grpc, as ``client``."""

# ruff: noqa: PLC0415 - a command imports its work when it runs

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from duostore_server.cli.client_options import Tenant, Timeout, calling, utf8
from duostore_server.cli.target import Target  # noqa: TC001 - typer reads annotations as it runs

if TYPE_CHECKING:
    from duostore_server.cli.query_question import Question


class QueryFormat(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"


class ExportFormat(StrEnum):
    """How rows are written."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


Name = Annotated[str, typer.Argument(metavar="QUERY", show_default=False)]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        "-p",
        metavar="NAME=VALUE",
        show_default=False,
        help="A parameter; NAME:=JSON gives its value as JSON. Can be repeated.",
    ),
]
ParamsJson = Annotated[
    str | None, typer.Option("--params-json", metavar="JSON", help="Parameters as a JSON object.")
]


@calling
def query(
    query: Name,
    *,
    param: Params = None,
    params_json: ParamsJson = None,
    page_size: Annotated[
        int, typer.Option(min=0, max=100_000, help="The most rows; 0: all that the query allows.")
    ] = 0,
    page_token: Annotated[
        str, typer.Option("--page-token", metavar="TOKEN", help="Begin with the page it names.")
    ] = "",
    all_pages: Annotated[
        bool, typer.Option("--all", help="Print the pages that follow, too.")
    ] = False,
    format_: Annotated[
        QueryFormat, typer.Option("--format", help="How to print the rows.")
    ] = QueryFormat.TABLE,
    tenant: Tenant = "",
    where: Target,
    timeout: Timeout = 5.0,
) -> None:
    """Print the result of a query of the service's configuration.

    duostore query proposals_by_status -p status=published -p since=2026-01-31T00:00:00Z

    A VALUE is sent as JSON if it is a number, true, false, null or a list (-p limit=10, -p
    'ids=["p1", "p2"]'), and as a string otherwise. To send a string that looks like one of
    those, give it as JSON: -p 'code:="42"'.

    A table is cut to be read by people. The other formats have every value in full.
    """
    from duostore_server.cli import remote_queries

    raise typer.Exit(
        remote_queries.query(
            where,
            _question(tenant, query, param, params_json),
            page_size=page_size,
            page_token=utf8(page_token, "--page-token"),
            all_pages=all_pages,
            format_=format_.value,
            timeout=timeout,
        )
    )


@calling
def export(
    query: Name,
    *,
    param: Params = None,
    params_json: ParamsJson = None,
    format_: Annotated[
        ExportFormat | None,
        typer.Option(
            "--format", help="How to write the rows; by FILE's ending, jsonl if it has none."
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE|-", help="- is standard output.")
    ] = "-",
    tenant: Tenant = "",
    where: Target,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            min=0.001,
            show_default=False,
            help="Seconds for all of it; by default what the service allows.",
        ),
    ] = None,
) -> None:
    """Write all rows of a query, however many, as they come from the database.

    duostore export proposals_by_status -p status=published -o published.parquet

    Parameters are given as for `duostore query`. FILE is there once all rows are, and not at
    all if anything goes wrong: a file that was there before stays as it was.

    jsonl is a JSON object a row. csv has a header, nothing for NULL, "" for an empty string and
    JSON for lists and objects. parquet has numbers, booleans, dates and timestamps as such and all
    else as strings; it needs the extra "parquet" of duostore-server.
    """
    from duostore_server.cli import remote_export

    path = _file(output)
    format_ = format_ or _by_ending(path)
    if format_ is ExportFormat.PARQUET and path is None and sys.stdout.isatty():
        raise typer.BadParameter("Parquet is not for a terminal: name a file with --output")
    raise typer.Exit(
        remote_export.export(
            where,
            _question(tenant, query, param, params_json),
            path=path,
            format_=format_.value,
            timeout=timeout,
        )
    )


def _file(output: str) -> Path | None:
    """Return the file that shall be written; None is standard output."""
    if output == "-":
        return None
    if not output:
        raise typer.BadParameter("--output is empty: name a file, or - for standard output")
    return Path(utf8(output, "--output"))


def _by_ending(path: Path | None) -> ExportFormat:
    ending = path.suffix.removeprefix(".") if path else ""
    if not ending or (path and path.is_dir()):
        return ExportFormat.JSONL
    try:
        return ExportFormat(ending.lower())
    except ValueError:
        known = ", ".join(f".{each}" for each in ExportFormat)
        raise typer.BadParameter(
            f"{path} ends in none of {known}: say with --format how to write it"
        ) from None


def _question(
    tenant: str, query: str, param: list[str] | None, params_json: str | None
) -> Question:
    from duostore_server.cli.query_question import BadParamError, Question, params_of

    try:
        params = params_of(
            [utf8(pair, "--param") for pair in param or ()],
            None if params_json is None else utf8(params_json, "--params-json"),
        )
    except BadParamError as error:
        raise typer.BadParameter(str(error)) from error
    return Question(utf8(tenant, "--tenant"), utf8(query, "QUERY"), params)
