"""`duostore config check` with a database: what is wrong with SQL, told before it is served."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore_server.config import load, read_models
from duostore_server.config.sql_files import parse
from duostore_server.domain.errors import StoreUnavailableError
from duostore_server.embedded.postgres import EmbeddedPostgres
from duostore_server.storage.aurora.migrate import migrate
from duostore_server.storage.aurora.sql_check import Checked, Role, check
from duostore_server.storage.aurora.triggers import install
from tests.support.ports import free_port

if TYPE_CHECKING:
    from tests.support.postgres import PostgresServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "proposals" / "duostore.toml"
TYPES = {"tenant": "text", "id": "text", "ids": "text[]", "data": "jsonb", "version": "bigint"}
TABLES = """
CREATE TABLE invoice (id text PRIMARY KEY, payer text NOT NULL, total numeric);
CREATE SEQUENCE drawn;
CREATE FUNCTION pay(text) RETURNS int LANGUAGE sql AS
    'UPDATE invoice SET total = 0 WHERE id = $1; SELECT 1';
"""


@pytest.fixture(scope="module")
def dsn(postgres: PostgresServer) -> str:
    """A database with a table, which no test changes."""
    found = postgres.create_database()
    with psycopg.connect(found) as connection:
        connection.execute(TABLES)
    return found


def problems(sql: str, dsn: str, role: Role = Role.ROWS) -> list[tuple[int, str]]:
    found = check(dsn, [Checked(parse("some.sql", sql), TYPES, role)])
    assert {problem.path for problem in found} <= {"some.sql"}
    return [(problem.line, problem.message) for problem in found]


@pytest.mark.parametrize(
    ("sql", "role"),
    [
        ("SELECT id, total FROM invoice WHERE payer = :id AND id = ANY (:ids)", Role.ROWS),
        ("SELECT 1 AS one", Role.ROWS),
        ("VALUES (:id, :tenant)", Role.ROWS),
        ("TABLE invoice", Role.ROWS),
        ("WITH a AS (SELECT :id AS b) SELECT '100%' AS c, b FROM a -- :d", Role.ROWS),
        ("(SELECT id FROM invoice) UNION ALL (SELECT :id)", Role.ROWS),
        # What only wants for values is none of this check's business.
        ("SELECT 1 / length(:id) AS a", Role.ROWS),
        ("SELECT 1 / count(*) AS a FROM invoice WHERE id = :id", Role.ROWS),
        ("SELECT :id AS id", Role.IDS),
        (
            "SELECT tenant, id, version FROM (SELECT :tenant AS tenant, :id AS id, 1 AS version) a",
            Role.IDS,
        ),
        ("INSERT INTO invoice VALUES (:id, :data ->> 'payer', :version)", Role.WRITES),
        ("UPDATE invoice SET total = :version WHERE id = :id; SELECT pay(:id)", Role.WRITES),
    ],
)
def test_what_the_database_takes_is_no_problem(sql: str, role: Role, dsn: str) -> None:
    assert problems(sql, dsn, role) == []


@pytest.mark.parametrize(
    ("sql", "line", "message"),
    [
        ("SELECT idd\nFROM invoice", 1, 'column "idd" does not exist'),
        ("SELECT id\nFROM\n  invoices", 3, 'relation "invoices" does not exist'),
        ("-- é\n\nSELECT '€',\n :id,\n x", 5, 'column "x" does not exist'),
        ("SELECT id\nFROM invoice\nWHERE\n 1 = :id", 4, "operator does not exist: integer = text"),
        ("SELECT id\nFROM invoice WHERE id =", 2, "syntax error at end of input"),
        ("SELECT id FROM invoice\nWHERE total > :ids", 2, "operator does not exist: numeric > te"),
        ("SELECT\n payed(:id)", 2, "function payed(text) does not exist"),
    ],
)
def test_what_it_does_not_take_is_told_with_the_line_of_the_file(
    sql: str, line: int, message: str, dsn: str
) -> None:
    ((found, text),) = problems(sql, dsn)

    assert found == line
    assert text.startswith(message)


def test_the_hint_of_the_database_is_told(dsn: str) -> None:
    ((_, text),) = problems("SELECT totals FROM invoice", dsn)

    assert text == (
        'column "totals" does not exist '
        '(Perhaps you meant to reference the column "invoice.total".)'
    )


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            'SELECT id, total AS id, payer AS "é", 1 AS "é" FROM invoice',
            [
                'answers 2 columns with the name "id": give each its own, by AS',
                'answers 2 columns with the name "é": give each its own, by AS',
            ],
        ),
        (
            "SELECT :id, :tenant",
            ['answers 2 columns with the name "text": give each its own, by AS'],
        ),
        ("SELECT FROM invoice", ["answers no columns"]),
    ],
)
def test_rows_have_columns_with_names_of_their_own(sql: str, message: list[str], dsn: str) -> None:
    assert problems(f"--\n{sql}", dsn) == [(1, text) for text in message]


def test_what_finds_documents_answers_their_ids(dsn: str) -> None:
    assert problems("SELECT payer, total FROM invoice", dsn, Role.IDS) == [
        (1, "answers no column id, which tells the documents; it answers payer, total")
    ]
    assert problems("SELECT FROM invoice", dsn, Role.IDS) == [(1, "answers no columns")]


@pytest.mark.parametrize("role", [Role.ROWS, Role.IDS])
@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM invoice RETURNING id", "syntax error"),
        (
            "WITH a AS (DELETE FROM invoice RETURNING id) SELECT id FROM a",
            "DECLARE CURSOR must not",
        ),
        ("SELECT id FROM invoice FOR UPDATE", "cannot execute SELECT FOR UPDATE in a read-only"),
        ("SELECT id INTO b FROM invoice", "SELECT ... INTO is not allowed here"),
    ],
)
def test_what_reads_does_not_write(sql: str, message: str, role: Role, dsn: str) -> None:
    ((line, text),) = problems(sql, dsn, role)

    assert line == 1
    assert text.startswith("does not only read: ")
    assert message in text


def test_nothing_is_run(dsn: str) -> None:
    """A sequence would tell: what was drawn from it is not given back by a rollback."""
    writes = parse("writes.sql", "INSERT INTO invoice VALUES (nextval('drawn'), ''); SELECT 1")
    reads = parse("reads.sql", "SELECT nextval('drawn') AS id")

    assert not check(dsn, [Checked(writes, TYPES, Role.WRITES), Checked(reads, TYPES, Role.ROWS)])
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT is_called FROM drawn").fetchone() == (False,)


def test_all_problems_of_all_files_are_told_and_each_once(dsn: str) -> None:
    wrong = Checked(parse("a.sql", "SELECT :id,\n a"), TYPES, Role.ROWS)
    good = Checked(parse("b.sql", "SELECT :id AS id"), TYPES, Role.IDS)
    writes = Checked(parse("c.sql", "DELETE FROM a;\n\nDELETE FROM b"), TYPES, Role.WRITES)
    found = check(dsn, [wrong, good, wrong, writes])

    assert [str(problem) for problem in found] == [
        'a.sql:2: column "a" does not exist',
        'c.sql:1: relation "a" does not exist',
        'c.sql:3: relation "b" does not exist',
    ]


def test_names_are_searched_where_the_role_searches_them(postgres: PostgresServer) -> None:
    dsn = postgres.create_database()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SCHEMA app; CREATE TABLE app.item (id text)")
    assert problems("SELECT id FROM item", dsn)
    assert not problems("SELECT id FROM item", f"{dsn} options='-c search_path=app'")


def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        check(f"host={tmp_path} dbname=none", [])


# The command.


def config_check(config: Path, *arguments: str, dsn: str | None = None) -> tuple[int, str, str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DUOSTORE_")}
    if dsn is not None:
        environ["DUOSTORE__AURORA__DSN"] = dsn
    ran = subprocess.run(
        [sys.executable, "-m", "duostore_server.cli.main", "config", "check", *arguments],
        env={**environ, "DUOSTORE_CONFIG": str(config)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return ran.returncode, ran.stdout, ran.stderr


@pytest.fixture(scope="module")
def migrated(postgres: PostgresServer) -> str:
    """A database as the example wants it, which no test changes."""
    dsn, settings = postgres.create_database(), load(EXAMPLE, {})
    migrate(dsn, own=settings.aurora.own_migrations)
    install(dsn, read_models(settings))
    return dsn


def test_the_sql_of_the_example_is_what_the_database_takes(migrated: str) -> None:
    code, out, err = config_check(EXAMPLE, dsn=migrated)

    assert (code, err) == (0, "")
    assert out.startswith(f"{EXAMPLE}: no problems; ")
    assert out.endswith(" SQL files prepared\n")


def test_without_a_database_it_says_that_nothing_was_prepared_and_how_to(tmp_path: Path) -> None:
    code, out, err = config_check(EXAMPLE)

    assert (code, err) == (0, "")
    assert (
        "SQL files not prepared: to have a database prepare them, set DUOSTORE__AURORA__DSN" in out
    )
    plain = tmp_path / "plain.toml"
    plain.write_text("[kinds.note]\n")
    assert config_check(plain) == (0, f"{plain}: no problems\n", "")
    # With nothing to prepare no database is asked.
    assert config_check(plain, dsn=f"host={tmp_path} dbname=none")[0] == 0


def made(folder: Path) -> Path:
    """Return a configuration of each sort of file, all of them good."""
    (folder / "query.sql").write_text("SELECT id FROM duostore.entity WHERE version > :above")
    (folder / "card.sql").write_text("SELECT :id AS id, :tenant AS tenant")
    (folder / "ids.sql").write_text("SELECT :id AS id WHERE :author <> ''")
    (folder / "save.sql").write_text("SELECT :data, :version")
    (folder / "delete.sql").write_text("SELECT :version + 1")
    config = folder / "duostore.toml"
    source = "{ kind = 'row', fields = ['author'], ids = 'ids.sql' }"
    config.write_text(
        f"""
        [queries.q]
        sql = 'query.sql'
        params = {{ above = 'integer' }}
        [kinds.row]
        read_model = 'card.sql'
        save_sql = 'save.sql'
        delete_sql = 'delete.sql'
        [kinds.card]
        read_model = 'card.sql'
        depends_on = [{source}]
        """
    )
    return config


def test_every_file_is_prepared_with_the_types_of_its_parameters(
    tmp_path: Path, migrated: str
) -> None:
    config = made(tmp_path)
    for name, sql, told in (
        ("query.sql", "SELECT\n:above || 1", "operator does not exist: bigint || integer"),
        ("card.sql", "SELECT\n:id + 1", "operator does not exist: text + integer"),
        ("ids.sql", "SELECT\n:author + 1 AS id", "operator does not exist: text + integer"),
        ("save.sql", "SELECT 1;\nSELECT :data + 1", "operator does not exist: jsonb + integer"),
        ("delete.sql", "SELECT\n:version || 1", "operator does not exist: bigint || integer"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(sql)
        code, out, err = config_check(config, dsn=migrated)
        assert (code, out) == (2, "")
        assert f"{tmp_path / name}:2: {told}" in err
        (tmp_path / name).write_text(before)


def test_it_tells_what_is_to_be_migrated_yet(
    tmp_path: Path, migrated: str, postgres: PostgresServer
) -> None:
    config = made(tmp_path)
    code, out, err = config_check(config, dsn=migrated)
    assert (code, out) == (0, f"{config}: no problems; 5 SQL files prepared\n")
    assert err == "aurora: changes of kind:row are not noted for card: run `duostore migrate`\n"

    code, out, err = config_check(config, dsn=postgres.create_database())
    # What is not there may be made by it: `check && migrate` goes on.
    assert (code, out) == (
        0,
        f"{config}: no problems; of 5 SQL files not all could be judged yet\n",
    )
    assert err.startswith("aurora: the schema lacks 0001_")
    assert f'{tmp_path / "query.sql"}:1: relation "duostore.entity" does not exist' in err

    (tmp_path / "query.sql").write_text("SELECT FROM WHERE :above")
    assert config_check(config, dsn=postgres.create_database())[0] == 2


def test_sql_that_was_changed_is_a_note_and_fields_that_are_not_there_a_problem(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    config, dsn = made(tmp_path), postgres.create_database()
    migrate(dsn)
    install(dsn, read_models(load(config, {})))
    (tmp_path / "card.sql").write_text("SELECT :id AS id")
    code, out, err = config_check(config, dsn=dsn)
    assert (code, out) == (0, f"{config}: no problems; 5 SQL files prepared\n")
    assert err == "aurora: the SQL of card was changed: run `duostore migrate`\n"

    with psycopg.connect(dsn) as connection:
        connection.execute(TABLES)
    source = "kind = 'row', fields = ['author']"
    other = "table = 'public.invoice', fields = ['author', 'id']"
    config.write_text(config.read_text().replace(source, other))
    code, out, err = config_check(config, dsn=dsn)
    assert (code, out) == (2, "")
    assert err == (
        "kinds.card.depends_on: table:public.invoice has no column author: its fields and its "
        "table disagree\n"
    )


def test_a_database_that_cannot_be_reached_is_told_apart_from_problems(tmp_path: Path) -> None:
    code, out, err = config_check(EXAMPLE, dsn=f"host=127.0.0.1 port={free_port()} dbname=none")
    assert (code, out) == (3, "")
    assert "aurora cannot be reached" in err
    assert "the SQL files were not prepared" in err

    code, out, err = config_check(EXAMPLE, "--data", str(tmp_path), dsn="host=127.0.0.1 port=1")
    assert (code, out) == (3, "")
    assert "--data names the folder of a `duostore dev` that is running" in err


def test_the_data_of_a_deployment_for_development_will_do(tmp_path: Path) -> None:
    config = made(tmp_path)
    with EmbeddedPostgres(tmp_path / "data" / "postgres", durable=False) as postgres:
        migrate(postgres.dsn())
        install(postgres.dsn(), read_models(load(config, {})))
        nowhere = f"host=127.0.0.1 port={free_port()} dbname=none"
        ran = config_check(config, "--data", str(tmp_path / "data"), dsn=nowhere)

    assert ran == (0, f"{config}: no problems; 5 SQL files prepared\n", "")


def test_a_configuration_that_is_bad_by_itself_asks_no_database(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text("[queries.q]\nsql = 'gone.sql'\n")
    code, out, err = config_check(config, dsn=f"host={tmp_path} dbname=none")

    assert (code, out) == (2, "")
    assert "queries.q.sql: cannot be read" in err
