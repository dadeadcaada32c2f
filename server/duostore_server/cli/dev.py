"""`duostore dev`: a whole deployment in one process, and what to try on it."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console

from duostore_server.cli.addresses import check_free
from duostore_server.cli.config_check import problems_of_sql
from duostore_server.cli.source_notes import unfit
from duostore_server.domain.errors import StoreError
from duostore_server.embedded.postgres_address import running_dsn
from duostore_server.processes import run_dev
from duostore_server.storage.aurora.migrate import MigrationError
from duostore_server.storage.aurora.triggers import UnfitSourcesError

if TYPE_CHECKING:
    from duostore_server.config import Settings

_CTRL_C: Final = {signal.SIGINT: "Ctrl-C (SIGINT)"}
_LIST_TABLES: Final = "AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any aws dynamodb list-tables"
# Not changed for the stores that come along, but nothing asks for them.
_UNUSED: Final = {
    "server": {"workers"},
    "cache": {"nodes", "namespace", "timeout", "connect_timeout", "compress_above"},
    "admin": {"token", "callers"},
}
_STARTED_ALL_THE_SAME: Final = (
    "It runs all the same. What is named here fails until it is mended: `duostore config check "
    "--data {data}` looks again."
)
_OUT_OF_REACH: Final = (
    "Its PostgreSQL has stopped with it. Make the table as configured by a file in the folder of "
    "aurora.migrations, which is applied before; or take those depends_on out, start, and use the "
    "psql command that is told then."
)


def run(settings: Settings, data: Path) -> None:
    """Run the deployment until Ctrl-C; raises ``AddressInUseError`` if a port is taken."""
    check_free(settings.server.address)
    if settings.metrics.address is not None:
        check_free(settings.metrics.address)
    console = Console(highlight=False, soft_wrap=True)
    with console.status("Starting PostgreSQL, DynamoDB and the cache…") as status:

        def ready(endpoint_url: str) -> None:
            dsn = running_dsn(data / "postgres")
            wrong = _wrong_sql(dsn, settings, data)
            status.stop()
            for line in wrong:
                typer.echo(line, err=True)
            for line in greeting(settings, data, program(sys.argv[0]), dsn, endpoint_url):
                console.print(line, markup=False)

        try:
            ended_by = run_dev(settings, data, ready)
        except UnfitSourcesError as error:
            problems = map(unfit, error.sources)
            raise MigrationError("\n".join([*problems, _OUT_OF_REACH])) from error
    console.print(f"Stopped by {_CTRL_C.get(ended_by, ended_by.name)}.")


def _wrong_sql(dsn: str, settings: Settings, data: Path) -> list[str]:
    try:
        problems = problems_of_sql(dsn, settings)
    except (MigrationError, StoreError) as error:
        return [f"the SQL files were not prepared: {error}"]
    return (
        [*problems, _STARTED_ALL_THE_SAME.format(data=shlex.quote(str(data)))] if problems else []
    )


def program(argument: str) -> str:
    """Return what a person types to run the program that was started by this ``argv[0]``."""
    path = Path(argument)
    if path.suffix == ".py":
        return f"{shlex.quote(sys.executable)} -m duostore_server.cli.main"
    found = shutil.which(path.name)
    is_on_the_path = found is not None and Path(found).resolve() == path.resolve()
    return path.name if is_on_the_path else shlex.quote(argument)


def greeting(
    settings: Settings, data: Path, duostore: str, dsn: str, endpoint_url: str
) -> list[str]:
    """Return what a person reads once the deployment answers; its commands work as pasted.

    ``duostore`` is what this program is called there, ``dsn`` how to reach its PostgreSQL, and
    ``endpoint_url`` its DynamoDB; a secret in those would be shown.
    """
    address = str(settings.server.address)
    here = settings.embedded(dsn=dsn, endpoint_url=endpoint_url)
    lines = [
        f"Duostore answers on {address}.",
        f"Kept between runs: PostgreSQL, in {data / 'postgres'}. To look into it:",
        f"  psql {shlex.quote(dsn)}",
        "Not kept: DynamoDB (emulated) and the cache. What is at home in PostgreSQL fills them",
        "again; snapshots, and kinds at home in DynamoDB, are gone when this ends. To look into",
        "DynamoDB, with any credentials:",
        f"  {_LIST_TABLES} --endpoint-url {endpoint_url} --region {here.dynamodb.region}",
        *_of_no_account(passed_over(settings, here)),
        "Everybody who reaches it may operate it, without a token:",
        f"  {duostore} status --target {address}",
        "",
        *_to_try(settings, address, duostore),
    ]
    if settings.metrics.address is not None:
        lines += ["", f"Metrics: http://{settings.metrics.address}/metrics"]
    return [*lines, "Stop it with Ctrl-C."]


def passed_over(settings: Settings, here: Settings) -> list[str]:
    """Return the keys that were set, and of which ``here`` makes nothing."""
    keys: list[str] = []
    for table in ("server", "aurora", "dynamodb", "cache", "admin"):
        said, done = getattr(settings, table), getattr(here, table)
        unused = _UNUSED.get(table, ())
        keys += [
            f"{table}.{name}"
            for name in type(said).model_fields
            if name in said.model_fields_set
            and (name in unused or getattr(said, name) != getattr(done, name))
        ]
    return keys


def _of_no_account(keys: list[str]) -> list[str]:
    return ["Of no account here, with stores of its own:", f"  {', '.join(keys)}"] if keys else []


def _to_try(settings: Settings, address: str, duostore: str) -> list[str]:
    """Return what to do with the first kind that can be saved; without one, with what there is."""
    kind = next((name for name, kind in settings.kinds.items() if not kind.is_derived), None)
    if kind is not None:
        return _saving(settings, kind, address, duostore)
    if settings.quotas:
        quota = next(iter(settings.quotas))
        return [
            "Use a quota:",
            f"  {_grpcurl(address, 'Quota', {'quota': quota, 'subject': 'alice'})}",
            "or, without grpcurl:",
            f"  {duostore} quota {shlex.quote(quota)} alice --target {address}",
        ]
    if settings.queries:
        query = next(iter(settings.queries))
        return [
            "Ask a query:",
            f"  {_grpcurl(address, 'Query', {'query': query})}",
            "or, without grpcurl:",
            f"  {duostore} query {shlex.quote(query)} --target {address}",
        ]
    key = {"kind": next(iter(settings.kinds)), "id": "1"}
    return ["Read something:", f"  {_grpcurl(address, 'Get', {'key': key})}"]


def _saving(settings: Settings, kind: str, address: str, duostore: str) -> list[str]:
    schema = settings.kinds[kind].document_schema
    document = schema.example if schema else {"hello": "world"}
    key = {"kind": kind, "id": "1"}
    save = f"  {_grpcurl(address, 'Save', {'key': key, 'data': document})}"
    # Without an example nobody knows what the schema would take.
    return [
        *(["Read something:"] if document is None else ["Save something and read it back:", save]),
        f"  {_grpcurl(address, 'Get', {'key': key})}",
        "or, without grpcurl:",
        f"  {duostore} get {shlex.quote(kind)} 1 --target {address}",
    ]


def _grpcurl(address: str, method: str, request: dict[str, object]) -> str:
    body = shlex.quote(json.dumps(request, ensure_ascii=False))
    return f"grpcurl -plaintext -d {body} {address} duostore.v1.DataAccess/{method}"
