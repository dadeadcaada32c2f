"""What `duostore config check` does once the file is found to be good by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from duostore_server.cli.config_file import UNAVAILABLE, UNUSABLE, dsn_of_dev, fail
from duostore_server.cli.source_notes import Sources, told
from duostore_server.config import queries, read_models
from duostore_server.domain.errors import StoreError
from duostore_server.domain.queries import TENANT
from duostore_server.domain.read_models import DATA, ID, VERSION
from duostore_server.storage.aurora.migrate import MigrationError, pending
from duostore_server.storage.aurora.sql_check import Checked, Role, check
from duostore_server.storage.aurora.sql_render import types_of
from duostore_server.storage.aurora.triggers import unnoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duostore_server.config import Settings
    from duostore_server.domain.read_models import ReadModel, Source
    from duostore_server.storage.aurora.sql_check import SqlProblem

_OF_ENTITY: Final = {TENANT: "text", ID: "text"}
_OF_CHANGE: Final = {**_OF_ENTITY, VERSION: "bigint", DATA: "jsonb"}
_MIGRATE: Final = "run `duostore migrate`"
_RESTART: Final = "restart `duostore dev`"
_HOW: Final = (
    "to have a database prepare them, set DUOSTORE__AURORA__DSN or, while a `duostore dev` runs, "
    "give --data"
)


def run(config: Path, settings: Settings, data: Path | None) -> int:
    """Have the database prepare all SQL, say what is wrong, and return the exit code.

    ``data`` is the folder of a deployment of `duostore dev` that runs.
    """
    wanted = list(_wanted(settings))
    files = len({each.file.path for each in wanted})
    named = f"{files} SQL {'file' if files == 1 else 'files'}"
    dsn = _dsn(settings, data)
    if not wanted:
        typer.echo(f"{config}: no problems")
    elif dsn is None:
        typer.echo(f"{config}: no problems; {named} not prepared: {_HOW}")
    else:
        found = _checked(dsn, wanted)
        advice = _MIGRATE if data is None else _RESTART
        lacking, sources = _lacking(dsn, settings, advice)
        # What a migration may yet make is no problem before it.
        problems = [each for each in found if not (lacking and each.is_absent)]
        for note in (*lacking, *sources.notes):
            typer.echo(f"aurora: {note}", err=True)
        for problem in sources.problems:
            typer.echo(problem, err=True)
        for each in found:
            typer.echo(str(each), err=True)
        if problems or sources.problems:
            return UNUSABLE
        said = f"; of {named} not all could be judged yet" if found else f"; {named} prepared"
        typer.echo(f"{config}: no problems{said}")
    return 0


def problems_of_sql(dsn: str, settings: Settings) -> list[str]:
    """Return what a migrated database does not like in the SQL of a configuration, a line each.

    Raises ``MigrationError`` or ``StoreError`` if it cannot be asked.
    """
    wanted = list(_wanted(settings))
    return [str(problem) for problem in check(dsn, wanted)] if wanted else []


def _wanted(settings: Settings) -> Iterator[Checked]:
    for query in queries(settings).values():
        yield Checked(query.sql, types_of(query.params), Role.ROWS)
    for model in read_models(settings).values():
        yield from _of_model(model)


def _of_model(model: ReadModel) -> Iterator[Checked]:
    yield Checked(model.sql, _OF_ENTITY, Role.ROWS)
    for file in (model.save, model.delete):
        if file is not None:
            yield Checked(file, _OF_CHANGE, Role.WRITES)
    for source in model.sources:
        yield Checked(source.ids, _of_source(source), Role.IDS)


def _of_source(source: Source) -> dict[str, str]:
    return {**_OF_ENTITY, **dict.fromkeys(source.fields, "text")}


def _dsn(settings: Settings, data: Path | None) -> str | None:
    if data is not None:
        return dsn_of_dev(data)
    return settings.aurora.dsn.get_secret_value() if settings.aurora.dsn else None


def _checked(dsn: str, wanted: list[Checked]) -> list[SqlProblem]:
    try:
        return check(dsn, wanted)
    except (MigrationError, StoreError) as error:
        # Shown to whoever runs the deployment: here the driver's words help.
        fail(f"{error} ({error.__cause__}); the SQL files were not prepared", UNAVAILABLE)


def _lacking(dsn: str, settings: Settings, advice: str) -> tuple[list[str], Sources]:
    """Return a note if migrations are to be applied, without which SQL may name what is not there.

    Else what is said of the sources, or why that is not known.
    """
    try:
        lacking = pending(dsn, own=settings.aurora.own_migrations)
        if lacking:
            text = f"the schema lacks {', '.join(lacking)}: {advice}, and check again"
            return [text], Sources((), ())
        return [], told(unnoted(dsn, read_models(settings)), advice=advice)
    except (MigrationError, StoreError) as error:
        return [str(error)], Sources((), ())
