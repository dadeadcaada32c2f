"""What a configuration says of queries and of kinds that SQL builds, and what must fit together."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from duostore_server.config import ConfigError, Settings, describe, load, queries, read_models
from duostore_server.config.sql_files import parse
from duostore_server.domain.queries import Param, ParamType, Query
from duostore_server.domain.read_models import ReadModel, Source

if TYPE_CHECKING:
    from pathlib import Path

NOTE = "[kinds.note]\n"
FILES = {
    "recent.sql": "SELECT id\nFROM note\nWHERE tenant = :tenant AND time > :since",
    "none.sql": "SELECT 1 AS one",
    "card.sql": "SELECT 1 AS n WHERE :tenant = :id",
    "save.sql": "DELETE FROM card WHERE :id = id; INSERT INTO card SELECT :id, :version, :data",
    "delete.sql": "DELETE FROM card WHERE id = :id AND :version > 1",
    "ids.sql": "SELECT :author AS id",
    "columns.sql": "SELECT :tenant AS tenant, :code AS id",
}
OF_NOTE = '{ kind = "note", fields = ["author"], ids = "ids.sql" }'
OF_TABLE = '{ table = "public.card", fields = ["tenant", "code"], ids = "columns.sql" }'
RECENT = '[queries.recent]\nsql = "recent.sql"\nparams = { since = "date" }\n'
CARD = f'[kinds.card]\nread_model = "card.sql"\ndepends_on = [{OF_NOTE}]\n'
SAVED = 'save_sql = "save.sql"\ndelete_sql = "delete.sql"\nread_model = "card.sql"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def settings(text: str, folder: Path, **environ: str) -> Settings:
    file = folder / "duostore.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ)


def listed(text: str, folder: Path, **environ: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        settings(text, folder, **environ)
    return [(each.key, each.message) for each in caught.value.problems]


def the_problem(text: str, folder: Path, **environ: str) -> tuple[str, str]:
    (found,) = listed(text, folder, **environ)
    return found


def params_fault(params: str, folder: Path) -> str:
    text = f"{NOTE}[queries.recent]\nsql = 'recent.sql'\nparams = {params}\n"
    key, message = the_problem(text, folder)
    assert key == "queries.recent.params"
    return message


def sources_fault(sources: str, folder: Path) -> str:
    key, message = the_problem(
        f"{NOTE}{CARD.partition('depends_on')[0]}depends_on = {sources}", folder
    )
    assert key == "kinds.card.depends_on"
    return message


# Queries.


def test_sql_is_all_that_a_query_must_have(folder: Path) -> None:
    # A deployment may have queries alone.
    assert queries(settings("[queries.one]\nsql = 'none.sql'", folder)) == {
        "one": Query(
            name="one",
            sql=parse(str(folder / "none.sql"), FILES["none.sql"]),
            params={},
            cache_ttl=300,
            max_rows=1000,
            max_bytes=512 << 10,
            timeout=5,
            depends_on=(),
        )
    }
    assert queries(settings(NOTE, folder)) == {}


def test_all_that_is_said_of_a_query_reaches_the_use_cases(folder: Path) -> None:
    (folder / "many.sql").write_text(
        "SELECT :s, :i, :n, :d, :b, :t, :y, :u, :ss, :uu, :o, :oo, :_a1"
    )
    text = """
        [queries."all of it"]
        sql = "many.sql"
        cache_ttl = "0s"
        max_rows = 100000
        max_bytes = "900KiB"
        timeout = "10ms"
        depends_on = ["note", "b.c"]
        [queries."all of it".params]
        S = "string"
        i = { type = "integer", default = 9007199254740993 }
        n = { type = "number", default = 1 }
        d = { type = "decimal", default = "12.50" }
        b = { type = "boolean", default = false }
        t = { type = "timestamp", default = 2020-01-01T02:00:00+02:00 }
        y = { type = "date", default = 2020-01-31 }
        u = { type = "uuid", default = "0B1C64F2-4A3C-4B8E-9A55-1F5F2D9C7E11" }
        ss = { type = "string[]", default = ["a", ""] }
        Uu = "uuid[]"
        o = { type = "integer", optional = true }
        oo = { type = "date[]", optional = false }
        _a1 = { type = "timestamp", default = "2020-01-01T00:00:00Z" }
        [kinds.note]
        [kinds."b.c"]
    """
    loaded = settings(text, folder)
    query = queries(loaded)["all of it"]
    of = ParamType

    assert (query.cache_ttl, query.max_rows, query.max_bytes) == (0, 100_000, 900 << 10)
    assert (query.timeout, query.depends_on) == (0.01, ("note", "b.c"))
    assert query.params == {
        "s": Param("s", of.STRING),
        "i": Param("i", of.INTEGER, required=False, default=2**53 + 1),
        "n": Param("n", of.NUMBER, required=False, default=1.0),
        "d": Param("d", of.DECIMAL, required=False, default=Decimal("12.5")),
        "b": Param("b", of.BOOLEAN, required=False, default=False),
        "t": Param("t", of.TIMESTAMP, required=False, default=datetime(2020, 1, 1, tzinfo=UTC)),
        "y": Param("y", of.DATE, required=False, default=date(2020, 1, 31)),
        "u": Param(
            "u", of.UUID, required=False, default=UUID("0b1c64f2-4a3c-4b8e-9a55-1f5f2d9c7e11")
        ),
        "ss": Param("ss", of.STRING, is_list=True, required=False, default=["a", ""]),
        "uu": Param("uu", of.UUID, is_list=True),
        "o": Param("o", of.INTEGER, required=False),
        "oo": Param("oo", of.DATE, is_list=True),
        "_a1": Param("_a1", of.TIMESTAMP, required=False, default=datetime(2020, 1, 1, tzinfo=UTC)),
    }
    # What is described, and what is handed to another process, is the same again.
    again = folder / "again.toml"
    again.write_text(describe(loaded), encoding="utf-8")
    assert load(again, {}) == loaded
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    assert '"i":{"type":"integer","default":9007199254740993}' in loaded.model_dump_json()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("5", 'must be a table of parameters and their types, such as { status = "string" }'),
        ('{ since = "text" }', '"since" must be one of string, integer, number, decimal, boolean,'),
        ('{ since = "date[][]" }', '"since" must be one of string, integer,'),
        ("{ since = 5 }", '"since" must be a type, or a table such as { type = "string", opt'),
        ("{ since = { default = 5 } }", '"since" must be a type, or a table such as'),
        ("{ since = { type = [] } }", '"since" must be one of string, integer,'),
        ('{ since = { type = "date", dflt = 5 } }', '"since" has no "dflt"; known here: type, def'),
        ('{ since = { type = "date", optional = 1 } }', '"since" has an optional that is neither'),
        (
            '{ since = { type = "date", default = "1 May" } }',
            '"since" has a default that does not fit: it must be a date, such as "2026-01-31"',
        ),
        (
            '{ since = { type = "timestamp", default = 2020-01-01T00:00:00 } }',
            '"since" has a default that does not fit: it must be a timestamp with its zone',
        ),
        (
            '{ since = { type = "integer[]", default = [1, "x"] } }',
            "does not fit: its item 2 must be",
        ),
        (
            '{ since = { type = "date", optional = true, default = 2020-01-01 } }',
            '"since" has both default and optional; one that has a default is optional',
        ),
        ('{ since = "date", SINCE = "date" }', '"since" and "SINCE" differ in case alone'),
        ('{ since = "date", Tenant = "string" }', '"Tenant" is not declared: every SQL is told'),
        ('{ since = "date", "1a" = "date" }', '"1a" is no name: it must be of A-Z a-z 0-9 _'),
        ('{ since = "date", "a-b" = "date" }', '"a-b" is no name'),
        ('{ since = "date", "é" = "date" }', '"é" is no name'),
        ('{ since = "date", "" = "date" }', '"" is no name'),
    ],
)
def test_parameters_that_make_no_sense_are_problems(
    params: str, message: str, folder: Path
) -> None:
    assert message in params_fault(params, folder)


def test_all_problems_of_parameters_are_told_at_once(folder: Path) -> None:
    found = params_fault('{ since = "dat", tenant = 5, "a b" = "string" }', folder)

    assert [part.split()[0] for part in found.split("; ")][:2] == ['"tenant"', '"a']
    assert '"since" must be one of' in found
    assert '"tenant" must be a type' in found


def test_what_a_query_uses_must_be_declared_and_what_is_declared_used(folder: Path) -> None:
    (folder / "some.sql").write_text(
        "SELECT :a,\n  x[1:b], y[:c], z[1],\n  :A_list, ':d'".replace(":A_list", ":a")
    )
    text = NOTE + "[queries.q]\nsql = 'some.sql'\nparams = { d = 'string', e = 'string[]' }\n"
    path = folder / "some.sql"
    known = "known here: :d, :e, :tenant"

    assert listed(text, folder) == [
        ("queries.q.sql", f"{path}:1: :a is no parameter; declare it in queries.q.params; {known}"),
        (
            "queries.q.sql",
            f"{path}:2: :b is no parameter; if it is a slice of an array, write a space: [1: b]",
        ),
        (
            "queries.q.sql",
            f"{path}:2: :c is no parameter; if it is a slice of an array, write a space: [1: c]",
        ),
        ("queries.q.sql", f"{path}:3: :a is no parameter; declare it in queries.q.params; {known}"),
        ("queries.q.params", f"declares d, which {path} does not use"),
        ("queries.q.params", f"declares e, which {path} does not use"),
    ]


def test_a_parameter_is_lower_case_in_sql_however_it_is_declared(folder: Path) -> None:
    (folder / "some.sql").write_text("SELECT :minTotal")
    text = NOTE + "[queries.q]\nsql = 'some.sql'\nparams = { minTotal = 'string' }\n"
    hint = "write :mintotal: parameters are lower case in SQL"
    assert listed(text, folder) == [
        ("queries.q.sql", f"{folder / 'some.sql'}:1: :minTotal is no parameter; {hint}")
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, 'cannot be read: "{path}": No such file or directory'),
        (b"", "{path}:1: holds no statement"),
        (b"SELECT '\xe9'", 'is not UTF-8 text: "{path}", at byte 8'),
        (
            b"\xef\xbb\xbfSELECT 1",
            'begins with a byte order mark, which PostgreSQL does not know: "{path}"',
        ),
        (b"SELECT 1;\nSELECT 2", "{path}:2: a second statement begins, and only save_sql and del"),
        (
            b"\n\nDELETE FROM note",
            "{path}:3: a query may only read: begin with SELECT, WITH, VALUES or TABLE, not DELETE",
        ),
        (b"SELECT\n'a", "{path}:2: here begins a string"),
        ("SELECT :é".encode(), "{path}:1: :é is no name of a parameter"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_problem(
    content: bytes | None, message: str, folder: Path
) -> None:
    path = folder / "broken.sql"
    if content is not None:
        path.write_bytes(content)
    key, found = the_problem("[queries.q]\nsql = 'broken.sql'", folder)

    assert key == "queries.q.sql"
    assert found.startswith(message.format(path=path))


@pytest.mark.parametrize("value", ["5", "''", "true", '"a\\u0000b"'])
def test_the_path_of_a_file_is_text(value: str, folder: Path) -> None:
    assert the_problem(f"[queries.q]\nsql = {value}", folder) == (
        "queries.q.sql",
        "must be the path of a file, in quotes",
    )


def test_a_query_without_sql_is_told_as_such_alone(folder: Path) -> None:
    text = "[queries.q]\nmax_rows = 0\ndepends_on = ['nothing']\nparams = { a = 'string' }\n"

    assert listed(text, folder) == [
        ("queries.q.sql", "is required"),
        ("queries.q.max_rows", "must be 1 to 100000"),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ('""', "the name of the query must not be empty"),
        ('"a#b"', "the name of the query must not hold '#'"),
        ("x" * 65, "the name of the query has 65 bytes"),
    ],
)
def test_the_name_of_a_query_is_checked(name: str, message: str, folder: Path) -> None:
    _, found = the_problem(f"{NOTE}[queries.{name}]\nsql = 'none.sql'", folder)

    assert found.startswith(message)


def test_a_query_depends_on_kinds_that_change_in_aurora(folder: Path) -> None:
    text = (
        RECENT + 'depends_on = ["note", "draft", "nota"]\n[kinds.draft]\nhome = "dynamodb"\n' + NOTE
    )

    assert listed(text, folder) == [
        (
            "queries.recent.depends_on",
            'names "draft", which is at home in DynamoDB: Aurora does not note its changes',
        ),
        (
            "queries.recent.depends_on",
            'names "nota", which is no configured kind (configured: draft, note)',
        ),
    ]
    assert the_problem(NOTE + RECENT + 'depends_on = ["note", "note"]', folder) == (
        "queries.recent.depends_on",
        'lists "note" twice',
    )
    for wrong in ('"note"', "[5]", "5"):
        assert the_problem(f"{NOTE}{RECENT}depends_on = {wrong}", folder)[1].startswith(
            "must be a l"
        )


def test_a_result_fits_into_an_answer(folder: Path) -> None:
    text = RECENT + "max_bytes = '500KiB'\n[server]\nmax_answer_bytes = "

    assert settings(f"{text}'516KiB'", folder).queries["recent"].max_bytes == 500 << 10
    assert the_problem(f"{text}'515KiB'", folder) == (
        "queries.recent.max_bytes",
        "needs server.max_answer_bytes to be at least 516KiB, and it is 515KiB",
    )


def test_the_environment_overrides_queries_of_the_file(folder: Path) -> None:
    (folder / "other.sql").write_text("SELECT :a, :b")
    loaded = settings(
        NOTE + RECENT + CARD,
        folder,
        DUOSTORE__QUERIES__RECENT__SQL="other.sql",
        DUOSTORE__QUERIES__RECENT__PARAMS="a=string, b=integer[]",
        DUOSTORE__QUERIES__RECENT__DEPENDS_ON="note, card",
        DUOSTORE__QUERIES__RECENT__CACHE_TTL="1s",
        DUOSTORE__KINDS__CARD__DEPENDS_ON=f"[{OF_TABLE}]",
    )

    query = queries(loaded)["recent"]
    assert [place.name for place in query.sql.placeholders()] == ["a", "b"]
    assert query.params["b"] == Param("b", ParamType.INTEGER, is_list=True)
    assert (query.depends_on, query.cache_ttl) == (("note", "card"), 1)
    assert [source.table for source in read_models(loaded)["card"].sources] == ["public.card"]

    inline = '{ a = { type = "string", optional = true }, b = "date" }'
    loaded = settings(
        NOTE + RECENT,
        folder,
        DUOSTORE__QUERIES__RECENT__SQL="other.sql",
        DUOSTORE__QUERIES__RECENT__PARAMS=inline,
    )
    assert not queries(loaded)["recent"].params["a"].required


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("QUERIES__RECENT__PARAMS", "since", "must be a table of parameters"),
        ("QUERIES__RECENT__PARAMS", "{ since", "must be a table of parameters"),
        ("QUERIES__RECENT__PARAMS", "since=7", '"since" must be a type'),
        ("KINDS__CARD__DEPENDS_ON", "note", "must be a list of tables"),
        ("KINDS__CARD__DEPENDS_ON", "[{ kind", "must be a list of tables"),
    ],
)
def test_a_variable_that_makes_no_sense_is_a_problem(
    name: str, value: str, message: str, folder: Path
) -> None:
    _, found = the_problem(NOTE + RECENT + CARD, folder, **{f"DUOSTORE__{name}": value})

    assert found.startswith(message)
    assert found.endswith(f"(set by DUOSTORE__{name})")


def test_without_a_file_the_environment_names_queries(folder: Path) -> None:
    loaded = load(None, {"DUOSTORE__QUERIES__ONE__SQL": str(folder / "none.sql")})

    assert list(queries(loaded)) == ["one"]


def test_what_was_read_is_used_though_the_file_is_edited_meanwhile(folder: Path) -> None:
    loaded = settings(RECENT, folder)
    (folder / "recent.sql").unlink()
    handed = pickle.loads(pickle.dumps(loaded))

    assert handed == loaded
    assert "FROM note" in str(queries(handed)["recent"].sql.statement)


# Kinds that SQL builds.


def test_a_kind_without_sql_has_no_read_model(folder: Path) -> None:
    assert read_models(settings(NOTE, folder)) == {}


def test_a_derived_kind_is_built_of_its_sources(folder: Path) -> None:
    text = NOTE + CARD.replace(f"[{OF_NOTE}]", f"[{OF_NOTE}, {OF_TABLE}]") + "max_bytes = '8KiB'"
    found = read_models(settings(text, folder))

    assert found == {
        "card": ReadModel(
            kind="card",
            sql=parse(str(folder / "card.sql"), FILES["card.sql"]),
            max_bytes=8 << 10,
            sources=(
                Source(
                    kind="note",
                    table=None,
                    fields=("author",),
                    ids=parse(str(folder / "ids.sql"), FILES["ids.sql"]),
                ),
                Source(
                    kind=None,
                    table="public.card",
                    fields=("tenant", "code"),
                    ids=parse(str(folder / "columns.sql"), FILES["columns.sql"]),
                ),
            ),
        )
    }
    assert found["card"].is_derived


def test_a_relational_kind_writes_rows_and_reads_them_back(folder: Path) -> None:
    text = f"[kinds.card]\n{SAVED}depends_on = [{OF_TABLE}]\nschema = 'any.json'\n"
    (folder / "any.json").write_text("{}")
    loaded = settings(text + "projection = 'async'\n[kinds.card.snapshots]\n", folder)
    model = read_models(loaded)["card"]

    assert not model.is_derived
    assert model.save == parse(str(folder / "save.sql"), FILES["save.sql"])
    assert model.delete == parse(str(folder / "delete.sql"), FILES["delete.sql"])
    again = folder / "again.toml"
    again.write_text(describe(loaded), encoding="utf-8")
    assert load(again, {}) == loaded
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    assert '"fields":["tenant","code"]' in loaded.model_dump_json()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            "save_sql",
            [("delete_sql", "is required with kinds.card.save_sql"), ("read_model", "is r")],
        ),
        ("delete_sql", [("save_sql", "is required with kinds.card.delete_sql")]),
        ("save_sql delete_sql", [("read_model", "is required with kinds.card.save_sql")]),
        ("save_sql read_model", [("delete_sql", "is required with kinds.card.save_sql")]),
        ("delete_sql read_model", [("save_sql", "is required with kinds.card.delete_sql")]),
        ("depends_on", [("read_model", "is required with kinds.card.depends_on")]),
        ("read_model", [("read_model", "needs kinds.card.depends_on, for a derived kind, or ki")]),
    ],
)
def test_keys_that_need_others_say_so(
    keys: str, expected: list[tuple[str, str]], folder: Path
) -> None:
    values = {
        "save_sql": "'save.sql'",
        "delete_sql": "'delete.sql'",
        "read_model": "'card.sql'",
        "depends_on": f"[{OF_NOTE}]",
    }
    lines = "".join(f"{key} = {values[key]}\n" for key in keys.split())
    found = listed(f"{NOTE}[kinds.card]\n{lines}", folder)

    assert [key for key, _ in found] == [f"kinds.card.{key}" for key, _ in expected]
    assert all(
        message.startswith(begin) for (_, message), (_, begin) in zip(found, expected, strict=True)
    )


def test_a_derived_kind_has_nothing_that_is_of_saves(folder: Path) -> None:
    (folder / "any.json").write_text("{}")
    text = NOTE + CARD + "schema = 'any.json'\nprojection = 'async'\n[kinds.card.snapshots]\n"
    found = listed(text, folder)

    assert [key for key, _ in found] == [
        "kinds.card.schema",
        "kinds.card.snapshots",
        "kinds.card.projection",
    ]
    (message,) = {message for _, message in found}
    assert message == (
        "must not be set: with kinds.card.read_model and no kinds.card.save_sql the kind is "
        "derived, and nobody saves it"
    )


@pytest.mark.parametrize("kind", [CARD, f"[kinds.card]\n{SAVED}"])
def test_what_sql_builds_is_at_home_in_aurora(kind: str, folder: Path) -> None:
    assert the_problem(f"{NOTE}{kind}home = 'dynamodb'", folder) == (
        "kinds.card.read_model",
        'needs kinds.card.home = "aurora"',
    )


def changed(source: str, old: str, new: str) -> str:
    assert old in source
    return f"[{source.replace(old, new)}]"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("5", 'must be a list of tables, such as [{ kind = "proposal", fields = ["author"], ids ='),
        ("[5]", "entry 1 must be a table with kind or table, fields and ids"),
        ("[{}]", "entry 1 must name one kind or one table; must have fields, a list of names of "),
        (f"[{OF_NOTE}, {OF_NOTE}]", "entry 2 is kind:note once more"),
        (f"[{OF_TABLE}, {OF_NOTE}, {OF_TABLE}]", "entry 3 is table:public.card once more"),
        (
            changed(OF_NOTE, "kind", 'table = "a.b", kind'),
            "entry 1 must name one kind or one table",
        ),
        (changed(OF_NOTE, "kind", "kin"), "entry 1 has no kin; known here: kind, table, fie"),
        (changed(OF_NOTE, '"note"', "5"), "entry 1 must name its kind in quotes"),
        (
            changed(OF_TABLE, "public.", ""),
            "entry 1 must name its table with the schema, suc",
        ),
        (changed(OF_TABLE, "public", "a b"), "entry 1 must name its table with the schema"),
        (changed(OF_TABLE, '"public.card"', "7"), "entry 1 must name its table with the sch"),
        (
            changed(OF_TABLE, "public.card", "duostore.entity"),
            "entry 1 names duostore.entity, which is Duostore's own: name the kind",
        ),
        (
            changed(OF_NOTE, '["author"]', '"author"'),
            "entry 1 must have fields, a list of na",
        ),
        (
            changed(OF_NOTE, '"author"', "7"),
            "entry 1 must have fields, a list of names of fi",
        ),
        (
            changed(OF_NOTE, '"author"', '"the author"'),
            'entry 1 has the field "the author", and a name must be of A-Z a-z 0-9 _',
        ),
        (changed(OF_NOTE, '"author"', '"author", "a-b"'), 'entry 1 has the field "a-b", and'),
        (
            changed(OF_NOTE, '"author"', '"author", "tenant"'),
            'entry 1 has the field "tenant", and ids is told the tenant of the entity by that name',
        ),
        (changed(OF_NOTE, '"author"', '"author", "id"'), 'entry 1 has the field "id", and i'),
        (
            changed(OF_NOTE, '"author"', '"author", "author"'),
            'entry 1 has the field "author" twice',
        ),
        (
            changed(OF_TABLE, '["tenant", "code"]', "[]"),
            "entry 1 must have at least one column as its fields",
        ),
        (
            changed(OF_NOTE, "ids.sql", "gone.sql"),
            "entry 1 has ids that cannot be used: cann",
        ),
        (changed(OF_NOTE, "ids.sql", "save.sql"), "entry 1 has ids that cannot be used: /"),
        ('[{ kind = "note", fields = [] }]', "entry 1 has ids that cannot be used: must be the pa"),
    ],
)
def test_sources_that_make_no_sense_are_problems(sources: str, message: str, folder: Path) -> None:
    assert sources_fault(sources, folder).startswith(message)


def test_all_problems_of_sources_are_told_at_once(folder: Path) -> None:
    found = sources_fault('[{ kind = "note", fields = [] }, 5, { fields = [], ids = "x" }]', folder)

    assert [part.split()[:2] for part in found.split("; ") if part.startswith("entry")] == [
        ["entry", "1"],
        ["entry", "2"],
        ["entry", "3"],
    ]


def test_a_change_of_a_kind_may_touch_documents_whatever_its_fields(folder: Path) -> None:
    (folder / "same.sql").write_text("SELECT :id AS id, :tenant AS tenant")
    source = '{ kind = "note", fields = [], ids = "same.sql" }'

    assert settings(NOTE + CARD.replace(OF_NOTE, source), folder).kinds["card"].depends_on


def test_sql_of_kinds_is_told_what_it_uses(folder: Path) -> None:
    (folder / "card.sql").write_text("SELECT :id, :version")
    (folder / "save.sql").write_text("UPDATE a SET b = :data;\nDELETE FROM a WHERE :author = ''")
    (folder / "delete.sql").write_text("DELETE FROM a WHERE b = :data")
    (folder / "columns.sql").write_text("SELECT :code AS id,\n:id")
    (folder / "ids.sql").write_text("SELECT :author AS id, :code, :id, :tenant")
    text = f"{NOTE}[kinds.card]\n{SAVED}depends_on = [{OF_NOTE}, {OF_TABLE}]"

    def fault(file: str, line: int, name: str, known: str) -> str:
        return f"{folder / file}:{line}: :{name} is no parameter; known here: {known}"

    assert listed(text, folder) == [
        ("kinds.card.read_model", fault("card.sql", 1, "version", ":tenant, :id")),
        ("kinds.card.save_sql", fault("save.sql", 2, "author", ":tenant, :id, :version, :data")),
        ("kinds.card.delete_sql", fault("delete.sql", 1, "data", ":tenant, :id, :version")),
        ("kinds.card.depends_on", fault("ids.sql", 1, "code", ":tenant, :id, :author")),
        ("kinds.card.depends_on", fault("columns.sql", 2, "id", ":tenant, :code")),
    ]


def test_a_derived_kind_depends_on_kinds_that_change_in_aurora(folder: Path) -> None:
    assert the_problem(CARD + "[kinds.nota]", folder) == (
        "kinds.card.depends_on",
        'names "note", which is no configured kind (configured: card, nota)',
    )
    assert the_problem(f"{NOTE}home = 'dynamodb'\n{CARD}", folder) == (
        "kinds.card.depends_on",
        'names "note", which is at home in DynamoDB: Aurora does not note its changes',
    )


def derived(name: str, *of: str) -> str:
    sources = ", ".join(OF_NOTE.replace("note", each) for each in of)
    return f'[kinds.{name}]\nread_model = "card.sql"\ndepends_on = [{sources}]\n'


@pytest.mark.parametrize(
    ("text", "circles"),
    [
        (derived("a", "a"), ["a <- a"]),
        (derived("a", "b") + derived("b", "c") + derived("c", "note", "a"), ["a <- b <- c <- a"]),
        (
            derived("a", "b", "c") + derived("b", "a") + derived("c", "d") + derived("d", "c", "a"),
            ["a <- b <- a", "c <- d <- c", "a <- c <- d <- a"],
        ),
        (derived("x", "a") + derived("a", "b") + derived("b", "a"), ["a <- b <- a"]),
    ],
)
def test_kinds_do_not_depend_on_themselves(text: str, circles: list[str], folder: Path) -> None:
    assert listed(NOTE + text, folder) == [
        (f"kinds.{circle[0]}.depends_on", f"leads back to the kind itself: {circle}")
        for circle in circles
    ]


def test_two_ways_to_the_same_kind_are_no_circle(folder: Path) -> None:
    text = derived("a", "b", "c") + derived("b", "d") + derived("c", "d") + derived("d", "note")

    assert len(read_models(settings(NOTE + text, folder))) == 4


def test_what_is_bad_by_itself_is_told_once(folder: Path) -> None:
    text = (
        "[kinds.card]\nhome = 'x'\nread_model = 'gone.sql'\nsave_sql = 'save.sql'\n"
        "[queries.q]\nsql = 'gone.sql'\nparams = { a = 'string' }\ndepends_on = ['card']\n"
    )
    assert [key for key, _ in listed(text, folder)] == [
        "kinds.card.home",
        "kinds.card.read_model",
        "queries.q.sql",
        "kinds.card.delete_sql",
    ]


# Migrations of the user's own.


def test_migrations_are_read_in_the_order_of_their_numbers(folder: Path) -> None:
    own = folder / "own"
    own.mkdir()
    for name in ("10_c.sql", "2_b.sql", "0001_a-B.sql", "README.md"):
        (own / name).write_text(f"SELECT '{name}'")
    loaded = settings(f"{NOTE}[aurora]\nmigrations = 'own'", folder)
    (own / "2_b.sql").write_text("edited meanwhile")

    assert loaded.aurora.own_migrations == (
        ("0001_a-B", b"SELECT '0001_a-B.sql'"),
        ("2_b", b"SELECT '2_b.sql'"),
        ("10_c", b"SELECT '10_c.sql'"),
    )
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    assert f'\nmigrations = "{own}"\n' in describe(loaded)
    assert settings(NOTE, folder).aurora.own_migrations == ()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, 'cannot be read: "{own}": No such file or directory'),
        ((), 'holds no SQL file: "{own}"'),
        (("README.md",), 'holds no SQL file: "{own}"'),
        (("a.sql", "1_a.sql"), 'holds "a.sql", whose name must be a number, which tells its place'),
        (("1.sql",), 'holds "1.sql", whose name must be a number'),
        (("1_a b.sql",), 'holds "1_a b.sql", whose name must be a number'),
        (("1_a.sql", "01_b.sql"), 'holds "01_b.sql" and "1_a.sql", which have the same number'),
    ],
)
def test_a_folder_of_migrations_that_cannot_be_used_is_a_problem(
    files: tuple[str, ...] | None, message: str, folder: Path
) -> None:
    own = folder / "own"
    if files is not None:
        own.mkdir()
        for name in files:
            (own / name).write_text("SELECT 1")
    key, found = the_problem(f"{NOTE}[aurora]\nmigrations = 'own'", folder)

    assert key == "aurora.migrations"
    assert found.startswith(message.format(own=own))


# What else there is to say.


def test_a_client_that_stalls_is_cut_off_before_its_deadline(folder: Path) -> None:
    text = f"{NOTE}[server]\nexport_deadline = '10s'\n"

    assert the_problem(text, folder) == (
        "server.export_stall",
        "must be at most server.export_deadline, which is 10s",
    )


def test_the_embedded_default_has_no_readers(folder: Path) -> None:
    loaded = settings(f"{NOTE}[aurora]\nreader_dsn = 'host=replica'\n", folder)

    assert "replica" not in describe(loaded)
    assert "replica" not in repr(loaded)
    assert (
        loaded.embedded(dsn="host=here", endpoint_url="http://127.0.0.1:1").aurora.reader_dsn
        is None
    )
