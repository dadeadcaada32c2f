"""What PostgreSQL answers comes out as JSON, with no digit lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.queries import Column
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.queries import AuroraQueries
from duostore_server.storage.aurora.sql_values import JsonRows, LearntTypes, documents_of
from tests.support.named_queries import call, querying

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import PostgresServer

TYPES = """
CREATE SCHEMA other;
CREATE TYPE other.mood AS ENUM ('sad', 'so, so', 'glad');
CREATE DOMAIN price AS numeric CHECK (VALUE >= 0);
CREATE DOMAIN net_price AS price;
CREATE DOMAIN prices AS numeric[];
CREATE TYPE pair AS (a int, b text);
"""

INSTANT = "timestamp with time zone"
LOCAL = "timestamp without time zone"


@pytest.fixture(scope="module")
def dsn(postgres: PostgresServer) -> str:
    dsn = postgres.create_database()
    with psycopg.connect(dsn) as connection:
        connection.execute(TYPES)
    return dsn


@pytest.fixture(scope="module")
def queries(dsn: str) -> Iterator[AuroraQueries]:
    with querying(dsn) as queries:
        yield queries


def answered(queries: AuroraQueries, expression: str) -> tuple[Any, str]:
    """Return the one value of an expression, and its type."""
    sql = f"SELECT {expression} AS it UNION ALL SELECT NULL"
    with queries.open(call(sql), Deadline.after(30)) as results:
        ((value,), (null,)) = next(results.portions())
        (column,) = results.columns
    assert null is None
    assert column.name == "it"
    return value, column.type


def nested(brackets: str, levels: int) -> str:
    return brackets[0] * levels + brackets[1] * levels


@pytest.mark.parametrize(
    ("expression", "value", "type_"),
    [
        ("true", True, "boolean"),
        ("1::smallint", 1, "smallint"),
        ("-2147483648", -2147483648, "integer"),
        ("9007199254740991::bigint", 2**53 - 1, "bigint"),
        ("9007199254740992::bigint", "9007199254740992", "bigint"),
        ("-9007199254740991::bigint", -(2**53 - 1), "bigint"),
        ("-9223372036854775807::bigint", "-9223372036854775807", "bigint"),
        ("4294967295::oid", 4294967295, "oid"),
        ("1.10", "1.10", "numeric"),
        ("1::numeric", "1", "numeric"),
        (
            "12345678901234567890.000000000000000000001::numeric(60, 21)",
            "12345678901234567890.000000000000000000001",
            "numeric",
        ),
        ("'NaN'::numeric", "NaN", "numeric"),
        ("0.1::real", 0.1, "real"),
        ("0.1::double precision", 0.1, "double precision"),
        ("1e300::double precision", 1e300, "double precision"),
        ("0.1::double precision + 0.2", 0.30000000000000004, "double precision"),
        ("'NaN'::double precision", "NaN", "double precision"),
        ("'-Infinity'::real", "-Infinity", "real"),
        ("'Infinity'::double precision", "Infinity", "double precision"),
        ("'a' || chr(127881)", "a\N{PARTY POPPER}", "text"),
        ("'a%s'::varchar(9)", "a%s", "character varying"),
        ("'a'::char(3)", "a  ", "character"),
        ("'a'::\"char\"", "a", '"char"'),
        ("'a'::name", "a", "name"),
        ("timestamptz '2026-01-31 12:00:00+05:30'", "2026-01-31T06:30:00Z", INSTANT),
        ("timestamptz '2026-01-31 12:00:00.123456Z'", "2026-01-31T12:00:00.123456Z", INSTANT),
        ("timestamptz '2026-01-31 12:00:00.5Z'", "2026-01-31T12:00:00.5Z", INSTANT),
        ("timestamptz '0001-01-01 00:00:00Z'", "0001-01-01T00:00:00Z", INSTANT),
        ("timestamptz 'infinity'", "infinity", INSTANT),
        ("timestamptz '0044-03-15 12:00:00Z BC'", "0044-03-15 12:00:00+00 BC", INSTANT),
        ("timestamp '2026-01-31 12:00:00.25'", "2026-01-31T12:00:00.25", LOCAL),
        ("timestamp '-infinity'", "-infinity", LOCAL),
        ("timestamp '0044-03-15 12:00 BC'", "0044-03-15 12:00:00 BC", LOCAL),
        ("date '2026-01-31'", "2026-01-31", "date"),
        ("date '0044-03-15 BC'", "0044-03-15 BC", "date"),
        ("time '12:00:00.5'", "12:00:00.5", "time without time zone"),
        ("timetz '12:00+02'", "12:00:00+02", "time with time zone"),
        ("interval '1 day 02:03'", "1 day 02:03:00", "interval"),
        (
            "'0B1C64F2-4A3C-4B8E-9A55-1F5F2D9C7E11'::uuid",
            "0b1c64f2-4a3c-4b8e-9a55-1f5f2d9c7e11",
            "uuid",
        ),
        (r"'\x00ff10'::bytea", "AP8Q", "bytea"),
        ("''::bytea", "", "bytea"),
        ("'10.0.0.1/8'::inet", "10.0.0.1/8", "inet"),
        ("'[1,5)'::int4range", "[1,5)", "int4range"),
        ("'(1,2)'::point", "(1,2)", "point"),
        ("pg_current_snapshot() IS NULL", False, "boolean"),
        ("'1:1:'::pg_snapshot", "1:1:", "pg_snapshot"),
        ("'1 2 3'::int2vector", "1 2 3", "int2vector"),
        ("ROW(1, 'x y')", '(1,"x y")', "record"),
        ("ROW(1, 'x y')::pair", '(1,"x y")', "pair"),
        ("'so, so'::other.mood", "so, so", "other.mood"),
        ("1.50::price", "1.50", "numeric"),
        ("2.50::net_price", "2.50", "numeric"),
        ("ARRAY[1, NULL, 3]", [1, None, 3], "integer[]"),
        ("ARRAY[9007199254740993, 1]", ["9007199254740993", 1], "bigint[]"),
        ("ARRAY[[1.5, 2], [3, NULL]]", [["1.5", "2"], ["3", None]], "numeric[]"),
        ("'[0:1]={1,2}'::int[]", [1, 2], "integer[]"),
        ("'{}'::text[]", [], "text[]"),
        (
            """ARRAY['a,b', '"', '{', '', 'NULL', NULL, E'\\\\', ' ']""",
            ["a,b", '"', "{", "", "NULL", None, "\\", " "],
            "text[]",
        ),
        ("ARRAY[timestamptz '2026-01-01Z']", ["2026-01-01T00:00:00Z"], f"{INSTANT}[]"),
        (r"ARRAY['\xff'::bytea]", ["/w=="], "bytea[]"),
        ("ARRAY['{\"a\": [1]}'::jsonb]", [{"a": [1]}], "jsonb[]"),
        ("ARRAY['(0,0),(1,1)'::box, NULL]", ["(1,1),(0,0)", None], "box[]"),
        ("ARRAY['so, so', NULL]::other.mood[]", ["so, so", None], "other.mood[]"),
        ("ARRAY[1.5, 2]::price[]", ["1.5", "2"], "price[]"),
        ("ARRAY[2.50::net_price]", ["2.50"], "net_price[]"),
        ("ARRAY[1.5, 2]::prices", ["1.5", "2"], "numeric[]"),
        ("ARRAY[ARRAY[1.5, 2]::prices, ARRAY[3]::prices]", [["1.5", "2"], ["3"]], "prices[]"),
        ("ARRAY[ROW(1, 'x')::pair]", ["(1,x)"], "pair[]"),
        ("'null'::jsonb", None, "jsonb"),
        ("""'"a"'::json""", "a", "json"),
        (
            """'{"b": [1, 2.5, true, null, "x"], "a": {}}'::jsonb""",
            {"a": {}, "b": [1, 2.5, True, None, "x"]},
            "jsonb",
        ),
        ("'[0.1, 1.10, 1e3, -0.5]'::json", [0.1, 1.1, 1000.0, -0.5], "json"),
        ("'[9007199254740991, 9007199254740992]'::jsonb", [2**53 - 1, "9007199254740992"], "jsonb"),
        ("'[1e400, 1e-400, 1e22]'::json", ["1e400", "1e-400", "1e22"], "json"),
        (
            "'[0.12345678901234567, 0.12345678901234568]'::jsonb",
            ["0.12345678901234567", 0.12345678901234568],
            "jsonb",
        ),
        (f"'{nested('[]', 20)}'::jsonb", json.loads(nested("[]", 20)), "jsonb"),
        (f"'{nested('[]', 21)}'::jsonb", nested("[]", 21), "jsonb"),
        (f"'{nested('[]', 5000)}'::json", nested("[]", 5000), "json"),
        (f"'{'[' + ','.join(['{}'] * 30) + ']'}'::json", [{}] * 30, "json"),
        (r"""'"\ud83d\ude00"'::json""", "\N{GRINNING FACE}", "json"),
        (r"""'["\ud83d"]'::json""", r'["\ud83d"]', "json"),
    ],
)
def test_a_value_of_each_type(
    queries: AuroraQueries, expression: str, value: object, type_: str
) -> None:
    found, found_type = answered(queries, expression)
    assert (found, type(found)) == (value, type(value))
    assert repr(found) == repr(value)  # 1 is no True, and 1.0 no 1
    assert found_type == type_
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


CHANGED = {
    "datestyle": "German",
    "intervalstyle": "iso_8601",
    "timezone": "Asia/Kolkata",
    "extra_float_digits": "-10",
    "bytea_output": "escape",
}


def is_read_as_ever(queries: AuroraQueries) -> None:
    for expression, expected in {
        "timestamptz '2026-01-31 12:00:00Z'": "2026-01-31T12:00:00Z",
        "date '2026-02-01'": "2026-02-01",
        "interval '1 day 02:03'": "1 day 02:03:00",
        "0.1::double precision + 0.2": 0.30000000000000004,
        r"'\x00ff'::bytea": "AP8=",
    }.items():
        assert answered(queries, expression)[0] == expected


def test_the_settings_of_a_database_change_nothing(dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(dsn, autocommit=True) as connection:
        for setting, value in CHANGED.items():
            connection.execute(f'ALTER DATABASE "{name}" SET {setting} = "{value}"'.encode())
        try:
            with querying(dsn) as queries:
                is_read_as_ever(queries)
        finally:
            connection.execute(f'ALTER DATABASE "{name}" RESET ALL'.encode())


def test_nor_does_what_others_did_to_a_session_that_a_pooler_shares(dsn: str) -> None:
    with AuroraPool(dsn, min_size=0, max_size=1, wait=5, pooler=True) as pool:
        for setting, value in CHANGED.items():
            pool.execute("SELECT set_config(%s, %s, false)", (setting, value), Deadline.after(30))
        is_read_as_ever(AuroraQueries(pool))


def test_columns_may_share_a_name_and_have_none(queries: AuroraQueries) -> None:
    with queries.open(call("SELECT 1 AS a, 'x' AS a, 2"), Deadline.after(30)) as results:
        assert list(results.portions()) == [[[1, "x", 2]]]
        assert results.columns == (
            Column("a", "integer"),
            Column("a", "text"),
            Column("?column?", "integer"),
        )


def test_rows_without_columns_are_rows(queries: AuroraQueries) -> None:
    with queries.open(call("SELECT FROM generate_series(1, 3)"), Deadline.after(30)) as results:
        assert list(results.portions()) == [[[], [], []]]
        assert results.columns == ()


def test_rows_as_documents(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        cursor = connection.execute(
            "SELECT n AS id, n::other.mood IS NULL AS none, ARRAY[n]::other.mood[] AS moods"
            " FROM unnest(ARRAY['sad', 'glad']) AS n"
        )
        assert documents_of(cursor) == [
            {"id": "sad", "none": False, "moods": ["sad"]},
            {"id": "glad", "none": False, "moods": ["glad"]},
        ]
        assert documents_of(connection.execute("SELECT 1 AS id WHERE false")) == []


def test_types_are_asked_for_once_in_some_minutes(dsn: str) -> None:
    now = 0.0
    learnt = LearntTypes(lambda: now)
    asked: list[object] = []
    with psycopg.connect(dsn) as connection:

        def look_up(sql: Any, params: Any) -> list[Any]:
            asked.append(params)
            return connection.execute(sql, params).fetchall()

        def read(sql: bytes, database: bytes = b"one") -> tuple[list[Any], str]:
            result = connection.execute(sql).pgresult
            assert result is not None
            rows = JsonRows(result, (b"host", b"5432", database), look_up, learnt)
            return rows.of(result), rows.columns[0].type

        for _ in range(2):
            assert read(b"SELECT 'sad'::other.mood") == ([["sad"]], "other.mood")
            assert len(asked) == 1
        assert read(b"SELECT ARRAY[1.5]::price[]") == ([[["1.5"]]], "price[]")
        assert len(asked) == 2
        # Another database has other types by the same numbers.
        read(b"SELECT 'sad'::other.mood", b"other")
        assert len(asked) == 3

        connection.execute("ALTER TYPE other.mood RENAME TO humour")
        assert read(b"SELECT 'sad'::other.humour") == ([["sad"]], "other.mood")
        now = 301.0
        assert read(b"SELECT 'sad'::other.humour") == ([["sad"]], "other.humour")
        assert len(asked) == 4
        connection.rollback()


def test_a_wide_row_may_be_of_a_type_that_is_not_known_yet(dsn: str) -> None:
    with querying(dsn, max_size=2) as queries:
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TYPE hue AS ENUM ('red')")
        sql = call("SELECT 'red'::hue, repeat('x', 300000) FROM generate_series(1, 3)")
        with queries.open(sql, Deadline.after(30)) as results:
            rows = [row for portion in results.portions() for row in portion]
            assert results.columns[0].type == "hue"
        assert [row[0] for row in rows] == ["red"] * 3
