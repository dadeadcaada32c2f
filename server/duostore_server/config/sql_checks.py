"""What must hold between SQL files, the parameters they are told, and the kinds they speak of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.config.entries import dotted
from duostore_server.config.finding import Finding
from duostore_server.config.values import size_text
from duostore_server.domain.keys import listed
from duostore_server.domain.queries import TENANT
from duostore_server.domain.read_models import DATA, ID, VERSION
from duostore_server.domain.sql import Placeholder, Text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from duostore_server.config.entries import Key
    from duostore_server.config.kind_settings import Kind
    from duostore_server.config.query_settings import Query
    from duostore_server.config.settings import Settings
    from duostore_server.domain.sql import SqlFile

# What stands around the rows of a result in a message: columns, their types, a page token.
_AROUND_ROWS: Final = 16 << 10
_OF_READ_MODEL: Final = (TENANT, ID)
_OF_DELETE: Final = (TENANT, ID, VERSION)
_OF_SAVE: Final = (TENANT, ID, VERSION, DATA)


def query_findings(settings: Settings) -> Iterator[Finding]:
    """Yield what does not fit in the queries."""
    answer = settings.server.max_answer_bytes
    for name, query in settings.queries.items():
        at = ("queries", name)
        yield from _parameters(at, query)
        yield from _kinds(settings, (*at, "depends_on"), query.depends_on)
        needed = query.max_bytes + _AROUND_ROWS
        if needed > answer:
            limit = ("server", "max_answer_bytes")
            yield Finding(
                ((*at, "max_bytes"), limit),
                f"needs {dotted(limit)} to be at least {size_text(needed)}, and it is "
                f"{size_text(answer)}",
            )


def kind_findings(settings: Settings) -> Iterator[Finding]:
    """Yield what does not fit in the kinds whose documents SQL builds, and in those it does not."""
    for name, kind in settings.kinds.items():
        at = ("kinds", name)
        yield from _companions(at, kind)
        if kind.read_model is not None:
            yield from _built(at, kind)
        for key, file, told in (
            ("read_model", kind.read_model, _OF_READ_MODEL),
            ("save_sql", kind.save_sql, _OF_SAVE),
            ("delete_sql", kind.delete_sql, _OF_DELETE),
        ):
            if file is not None:
                yield from _untold((*at, key), file, told)
        depends_on = (*at, "depends_on")
        for source in kind.depends_on:
            of_entity = (TENANT, ID) if source.kind is not None else ()
            yield from _untold(depends_on, source.ids, (*of_entity, *source.fields))
        yield from _kinds(settings, depends_on, _kinds_of(kind))
    yield from _circles(settings)


def _parameters(at: Key, query: Query) -> Iterator[Finding]:
    sql, params = (*at, "sql"), (*at, "params")
    yield from _untold(sql, query.sql, (*query.params, TENANT), declared_in=params)
    used = {place.name.lower() for place in query.sql.placeholders()}
    for name in query.params:
        if name not in used:
            yield Finding((params, sql), f"declares {name}, which {query.sql.path} does not use")


def _untold(
    at: Key, file: SqlFile, told: Collection[str], declared_in: Key | None = None
) -> Iterator[Finding]:
    """Yield the places where a file uses what it is not told."""
    known = ", ".join(f":{name}" for name in told) or "none"
    for statement in file.statements:
        before = ""
        for part in statement.parts:
            match part:
                case Text():
                    before += part.text
                case Placeholder():
                    if part.name not in told:
                        hint = f"known here: {known}"
                        if part.name.lower() in told:
                            hint = f"write :{part.name.lower()}: parameters are lower case in SQL"
                        elif before.rfind("[") > before.rfind("]"):
                            hint = f"if it is a slice of an array, write a space: [1: {part.name}]"
                        elif declared_in:
                            hint = f"declare it in {dotted(declared_in)}; {hint}"
                        where = f"{file.path}:{part.line}"
                        paths = (at, declared_in) if declared_in else (at,)
                        yield Finding(paths, f"{where}: :{part.name} is no parameter; {hint}")
                    before += f":{part.name}"


def _companions(at: Key, kind: Kind) -> Iterator[Finding]:
    """Yield the keys that need others beside them."""
    read_model, depends_on = (*at, "read_model"), (*at, "depends_on")
    save, delete = (*at, "save_sql"), (*at, "delete_sql")
    if kind.save_sql is not None and kind.delete_sql is None:
        yield Finding((delete, save), f"is required with {dotted(save)}")
    if kind.delete_sql is not None and kind.save_sql is None:
        yield Finding((save, delete), f"is required with {dotted(delete)}")
    if kind.read_model is not None:
        if kind.save_sql is None and kind.delete_sql is None and not kind.depends_on:
            yield Finding(
                (read_model, depends_on, save, delete),
                f"needs {dotted(depends_on)}, for a derived kind, or {dotted(save)} and "
                f"{dotted(delete)}, for a relational one",
            )
        return
    for key, value in ((save, kind.save_sql), (depends_on, kind.depends_on)):
        if value:
            yield Finding((read_model, key), f"is required with {dotted(key)}")


def _built(at: Key, kind: Kind) -> Iterator[Finding]:
    """Yield what a kind says that one with a read model cannot do."""
    read_model, home, save = (*at, "read_model"), (*at, "home"), (*at, "save_sql")
    if kind.home != "aurora":
        yield Finding((read_model, home), f'needs {dotted(home)} = "aurora"')
    if not kind.is_derived:
        return
    for key, said in (
        ("schema", kind.document_schema is not None),
        ("snapshots", kind.snapshots is not None),
        ("projection", kind.projection == "async"),
    ):
        if said:
            yield Finding(
                ((*at, key), read_model, save, (*at, "delete_sql")),
                f"must not be set: with {dotted(read_model)} and no {dotted(save)} the kind is "
                "derived, and nobody saves it",
            )


def _kinds(settings: Settings, at: Key, names: Collection[str]) -> Iterator[Finding]:
    """Yield the names of kinds that changes cannot be noted of."""
    for name in names:
        kind = settings.kinds.get(name)
        if kind is None:
            yield Finding(
                (at, ("kinds", name)),
                f'names "{name}", which is no configured kind (configured: '
                f"{listed(settings.kinds)})",
            )
        elif kind.home != "aurora":
            yield Finding(
                (at, ("kinds", name, "home")),
                f'names "{name}", which is at home in DynamoDB: Aurora does not note its changes',
            )


def _kinds_of(kind: Kind) -> tuple[str, ...]:
    return tuple(source.kind for source in kind.depends_on if source.kind is not None)


def _circles(settings: Settings) -> Iterator[Finding]:
    """Yield each circle of kinds that depend on each other, once."""
    edges = {name: _kinds_of(kind) for name, kind in settings.kinds.items()}
    done: set[str] = set()
    for start, of_start in edges.items():
        # Depth first: the way there, and what is still to be tried from each of its kinds.
        way, left = [start], [iter(of_start)]
        while way:
            name = next(left[-1], None)
            if name is None:
                done.add(way.pop())
                left.pop()
            elif name in way:
                circle = [*way[way.index(name) :], name]
                paths = tuple(("kinds", each, "depends_on") for each in circle[:-1])
                yield Finding(paths, f"leads back to the kind itself: {' <- '.join(circle)}")
            elif name in edges and name not in done:
                way.append(name)
                left.append(iter(edges[name]))
