"""The triggers that note changes of sources, as the configuration wants them.

A trigger has a name made of what it does, so that one of that name is the one that is wanted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, TypeAlias

import psycopg
from psycopg import sql

from duostore_server.storage.aurora.connection import milliseconds
from duostore_server.storage.aurora.definitions import LOCK, digest, digest_of
from duostore_server.storage.aurora.migrate import MigrationError, connected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from duostore_server.domain.read_models import ReadModel, Source
    from duostore_server.storage.aurora.connection import BoundedConnection, Conninfo

# All that change triggers of a database take this lock: the bytes of "triggers".
_LOCK: Final = int.from_bytes(b"triggers", "big")
# Whoever waits for a table's lock holds up all that come later and want the table: it waits
# briefly, gives up all locks, lets the others go on, and tries again.
_LOCK_SECONDS: Final = 10.0
_TRY_SECONDS: Final = 0.5
_PAUSE_SECONDS: Final = 0.5
_POLITE: Final = "SELECT set_config('lock_timeout', %s, true)"

_ENTITY: Final = ("duostore", "entity")
_ON_ENTITY: Final = (
    "CREATE TRIGGER {name} AFTER INSERT OR UPDATE ON {table} FOR EACH ROW WHEN (new.kind = {kind})"
    " EXECUTE FUNCTION duostore.note_entity({arguments})"
)
# Of a partitioned table these see what goes through it, and those on a partition what is
# written to that directly.
_ON_TABLE: Final = {
    event: f"CREATE TRIGGER {{name}} AFTER {event} ON {{table}} {images} FOR EACH STATEMENT"
    " EXECUTE FUNCTION duostore.note_rows({arguments})"
    for event, images in (
        ("INSERT", "REFERENCING NEW TABLE AS after_rows"),
        ("UPDATE", "REFERENCING OLD TABLE AS before_rows NEW TABLE AS after_rows"),
        ("DELETE", "REFERENCING OLD TABLE AS before_rows"),
        ("TRUNCATE", ""),
    )
}

_FIND_TABLE: Final = """
SELECT c.oid, c.relkind IN ('r', 'p'), ARRAY (
    SELECT attname::text FROM pg_catalog.pg_attribute
    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
)
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""

_FIND_PARTITIONS: Final = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_partition_tree(%s) AS p
JOIN pg_catalog.pg_class AS c ON c.oid = p.relid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE p.level > 0 AND c.relkind IN ('r', 'p')
ORDER BY 1, 2
"""

# Those that are disabled are not there.
_FIND_TRIGGERS: Final = """
SELECT n.nspname::text, c.relname::text, t.tgname::text, t.tgargs, t.tgenabled IN ('O', 'A')
FROM pg_catalog.pg_trigger AS t
JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgfoid IN (
    to_regprocedure('duostore.note_entity()'), to_regprocedure('duostore.note_rows()')
)
ORDER BY 1, 2, 3
"""

_FIND_DIGESTS: Final = "SELECT kind, source, digest FROM duostore.read_model"

_REMEMBER: Final = """
INSERT INTO duostore.read_model (kind, source, digest, install_time)
VALUES (%s, %s, %s, clock_timestamp())
ON CONFLICT (kind, source) DO UPDATE SET
    digest = excluded.digest,
    install_time = excluded.install_time
"""

# What was noted before is a part of it.
_FORGET_CHANGES: Final = "DELETE FROM duostore.source_change WHERE kind = %s AND source = %s"
_NOTE_ALL: Final = "INSERT INTO duostore.source_change (kind, source) VALUES (%s, %s)"

_FORGET: Final = "DELETE FROM duostore.read_model WHERE kind = %s AND source = %s"
_FORGET_STALE: Final = "DELETE FROM duostore.stale WHERE kind = %s"

_Place: TypeAlias = tuple[str, str, str]


class Why(Enum):
    """Why changes of a source are not noted as configured."""

    NO_TABLE = auto()
    NO_COLUMN = auto()
    NOT_WATCHED = auto()
    CHANGED = auto()


@dataclass(frozen=True, slots=True)
class Unnoted:
    """A source of a kind whose changes are not noted as configured.

    ``fault`` is what is wrong with the table, if the configuration does not fit that.
    """

    kind: str
    source: str
    why: Why
    fault: str = ""

    @property
    def is_unfit(self) -> bool:
        """Whether a person has to change the table or the configuration."""
        return bool(self.fault)

    def __str__(self) -> str:
        """Return it as a sentence without its stop."""
        if self.is_unfit:
            return f"{self.kind!r} depends on {self.source}, which {self.fault}"
        if self.why is Why.CHANGED:
            return f"the SQL of {self.kind!r} or of its {self.source} was changed"
        return f"changes of {self.source} are not noted for {self.kind!r}"


class UnfitSourcesError(MigrationError):
    """The configuration names tables or columns that are not there."""

    def __init__(self, sources: Sequence[Unnoted]) -> None:
        self.sources = tuple(sources)
        super().__init__("; ".join(map(str, sources)))


class _UnfitError(Exception):
    """A table does not fit; for what, and what is wrong with it."""

    def __init__(self, why: Why, fault: str) -> None:
        self.why = why
        self.fault = fault
        super().__init__(fault)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A source of a kind: its triggers by schema, table and name, as SQL that makes them.

    ``own`` are those without which it is not watched, which those on partitions are not.
    """

    kind: str
    source: str
    digest: str
    triggers: Mapping[_Place, sql.Composed]
    own: frozenset[_Place]

    @property
    def of(self) -> tuple[str, str]:
        """Return the kind and its source."""
        return self.kind, self.source


@dataclass(frozen=True, slots=True)
class _Found:
    """A trigger of ours that is there, and the kind and the source that it was made for."""

    place: _Place
    of: tuple[str, str]
    enabled: bool


def install(
    conninfo: Conninfo,
    read_models: Mapping[str, ReadModel],
    *,
    lock_timeout: float = _LOCK_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Have every change of the sources noted from now on; return what was done, a line each.

    In one transaction; does nothing, and takes no lock on a table, if all is as it should be.
    What is new or was changed, or was not watched for a while, is recomputed as a whole, in
    the background. Locks are tried for ``lock_timeout`` seconds, with a ``pause`` in between,
    so that nobody who writes waits for long. Raises as ``migrate``, and ``MigrationError`` if a
    table or column is not there or the role may not have triggers on a table.
    """
    until = time.monotonic() + lock_timeout
    with connected(conninfo) as connection:
        while True:
            try:
                return _installed(connection, read_models, min(lock_timeout, _TRY_SECONDS))
            except psycopg.errors.LockNotAvailable as error:
                if time.monotonic() >= until:
                    raise MigrationError(
                        "triggers were not installed: other sessions keep a table locked; try "
                        "again when long transactions have ended"
                    ) from error
            pause(_PAUSE_SECONDS)


def _installed(
    connection: BoundedConnection, read_models: Mapping[str, ReadModel], lock_timeout: float
) -> list[str]:
    with connection.transaction():
        connection.execute(_POLITE, (str(milliseconds(lock_timeout)),))
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        wanted, unfit = _wanted(connection, read_models)
        if unfit:
            raise UnfitSourcesError(unfit)
        return _changed(connection, wanted)


def missing(conninfo: Conninfo, read_models: Mapping[str, ReadModel]) -> list[str]:
    """Return ``unnoted`` as lines that say what to do; raises as that."""
    return [f"{each}: run `duostore migrate`" for each in unnoted(conninfo, read_models)]


def unnoted(conninfo: Conninfo, read_models: Mapping[str, ReadModel]) -> list[Unnoted]:
    """Return the sources whose changes are not noted as configured.

    Triggers for what is not configured here are another deployment's concern, a newer one's
    perhaps. Raises as ``migrate``.
    """
    if not any(model.sources for model in read_models.values()):
        return []
    with connected(conninfo) as connection:
        wanted, found = _wanted(connection, read_models)
        there = {trigger.place for trigger in _found(connection) if trigger.enabled}
        digests = _digests(connection)
    for each in wanted:
        if not each.own <= there:
            found.append(Unnoted(*each.of, Why.NOT_WATCHED))
        elif digests.get(each.of) != each.digest:
            found.append(Unnoted(*each.of, Why.CHANGED))
    return found


def _changed(connection: BoundedConnection, wanted: Sequence[_Wanted]) -> list[str]:
    found, digests = _found(connection), _digests(connection)
    kept = {place for each in wanted for place in each.triggers}
    alterations = [
        (old.place, _drop(old.place)) for old in found if old.place not in kept or not old.enabled
    ]
    there = {old.place for old in found if old.enabled}
    absent = {
        place: statement
        for each in wanted
        for place, statement in each.triggers.items()
        if place not in there
    }
    renewed = [
        each
        for each in wanted
        if digests.get(each.of) != each.digest or not absent.keys().isdisjoint(each.triggers)
    ]
    watched = {old.of for old in found} | set(digests)
    gone = sorted(watched - {each.of for each in wanted})
    if not (alterations or renewed or gone):
        return []
    # Documents are recomputed as they are defined when that is committed.
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
    for place, statement in _in_order([*alterations, *absent.items()]):
        _alter(connection, place, statement)
    done = []
    for each in renewed:
        # The definition first, as who works off a change takes these locks.
        connection.execute(_REMEMBER, (*each.of, each.digest))
        connection.execute(_FORGET_CHANGES, each.of)
        connection.execute(_NOTE_ALL, each.of)
        how = "as configured now" if each.of in watched else "from now on"
        done.append(
            f"{each.kind}: changes of {each.source} are noted {how}; all will be recomputed"
        )
    kinds = {each.kind for each in wanted}
    for kind, source in gone:
        connection.execute(_FORGET, (kind, source))
        connection.execute(_FORGET_CHANGES, (kind, source))
        if kind not in kinds:
            connection.execute(_FORGET_STALE, (kind,))
        done.append(f"{kind}: changes of {source} are no longer noted")
    return done


def _in_order(
    alterations: Iterable[tuple[_Place, sql.Composed]],
) -> list[tuple[_Place, sql.Composed]]:
    """Return them in the order of the locks that they take; those of a table stay as they are.

    The entities come last: who waits for a user's table does not hold up every Save.
    """
    return sorted(alterations, key=lambda each: (each[0][:2] == _ENTITY, each[0][:2]))


def _drop(place: _Place) -> sql.Composed:
    schema, table, name = place
    return sql.SQL("DROP TRIGGER {} ON {}").format(
        sql.Identifier(name), sql.Identifier(schema, table)
    )


def _alter(connection: BoundedConnection, place: _Place, statement: sql.Composed) -> None:
    try:
        connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        schema, table, _ = place
        raise MigrationError(
            f"the role may not add and remove triggers of {schema}.{table}: run `duostore migrate` "
            "as its owner, or as a member of the owner's role"
        ) from error


def _wanted(
    connection: BoundedConnection, read_models: Mapping[str, ReadModel]
) -> tuple[list[_Wanted], list[Unnoted]]:
    wanted: list[_Wanted] = []
    unfit: list[Unnoted] = []
    for model in read_models.values():
        for source in model.sources:
            try:
                tables = _tables(connection, source)
            except _UnfitError as error:
                unfit.append(Unnoted(model.kind, source.name, error.why, error.fault))
            else:
                wanted.append(_wanted_of(model, source, tables))
    return wanted, unfit


def _tables(connection: BoundedConnection, source: Source) -> list[tuple[str, str]]:
    """Return the tables that need triggers, the source first; raises ``_UnfitError``."""
    if source.table is None:
        return [_ENTITY]
    schema, _, table = source.table.partition(".")
    rows = connection.execute(_FIND_TABLE, (schema, table)).fetchall()
    if not rows:
        raise _UnfitError(Why.NO_TABLE, "does not exist")
    ((oid, is_table, columns),) = rows
    if not is_table:
        raise _UnfitError(Why.NO_TABLE, "is no table: name those that it is made from")
    if gone := [field for field in source.fields if field not in columns]:
        raise _UnfitError(Why.NO_COLUMN, f"has no column {', '.join(gone)}")
    partitions = connection.execute(_FIND_PARTITIONS, (oid,)).fetchall()
    return [(schema, table), *partitions]


def _wanted_of(model: ReadModel, source: Source, tables: Sequence[tuple[str, str]]) -> _Wanted:
    arguments = [model.kind, source.name, *source.fields]
    name = f"duostore_{digest(arguments)[:16]}"
    templates = {"": _ON_ENTITY} if source.table is None else _ON_TABLE
    triggers: dict[_Place, sql.Composed] = {}
    for schema, table in tables:
        for event, template in templates.items():
            place = (schema, table, f"{name}_{event.lower()}" if event else name)
            triggers[place] = sql.SQL(template).format(
                name=sql.Identifier(place[2]),
                table=sql.Identifier(schema, table),
                kind=sql.Literal(source.kind),
                arguments=sql.SQL(", ").join(map(sql.Literal, arguments)),
            )
    own = frozenset(place for place in triggers if place[:2] == tables[0])
    return _Wanted(model.kind, source.name, digest_of(model, source), triggers, own)


def _found(connection: BoundedConnection) -> list[_Found]:
    found = []
    for *place, arguments, enabled in connection.execute(_FIND_TRIGGERS).fetchall():
        # Each ends with a zero byte; our triggers have two at least.
        kind, source, *_ = bytes(arguments).decode().split("\0")
        schema, table, name = place
        found.append(_Found((schema, table, name), (kind, source), enabled))
    return found


def _digests(connection: BoundedConnection) -> Mapping[tuple[str, str], str]:
    ((exists,),) = connection.execute("SELECT to_regclass('duostore.read_model') IS NOT NULL")
    if not exists:
        return {}
    rows = connection.execute(_FIND_DIGESTS).fetchall()
    return {(kind, source): digest for kind, source, digest in rows}
