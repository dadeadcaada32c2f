"""Whatever a caller sends as a parameter is a value, and never a part of the SQL."""

from __future__ import annotations

import json
from base64 import b64decode
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.documents import MAX_WHOLE
from duostore_server.domain.errors import QueryFailedError
from duostore_server.domain.queries import ParamType, QueryCall
from duostore_server.domain.query_params import accepted
from tests.support.authority_faults import query
from tests.support.named_queries import named, querying

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.queries import Query
    from duostore_server.storage.aurora.queries import AuroraQueries
    from tests.support.servers import PostgresServer

CANARY: Final = [(1, "alive")]

# What has got through to a database somewhere.
HOSTILE: Final = (
    *("'", "''", "\\", "\\'", '"', "`", ";", "--", "/*", "*/", "$1", "$$", "$a$", "%", "%s", "%%"),
    *(":tenant", ":text", "::int", "{", "}", "{}", '{"', "NULL", "(", ")", "E'", "U&'\\0041", "\n"),
    *("' OR '1'='1", "1; DROP TABLE canary; --", "'; DELETE FROM canary; --", "%(text)s", "\x1a"),
    *("$1); DROP TABLE canary; --", "') UNION SELECT name FROM canary --", "\u02bc", "\uff07"),
    *("'||(SELECT sing())||'", "x'); COMMIT; DROP TABLE canary; BEGIN; --", "\u2028", "\ufeff"),
)
# Pieces of SQL in any order, with any text between.
TEXTS: Final = st.lists(
    st.sampled_from(HOSTILE) | st.text(st.characters(exclude_characters="\0", codec="utf-8")),
    max_size=5,
).map("".join)
INTEGERS: Final = st.integers(-(2**63), 2**63 - 1)
NUMBERS: Final = st.floats(allow_nan=False, allow_infinity=False)
DECIMALS: Final = st.decimals(allow_nan=False, allow_infinity=False, places=9).map(
    lambda value: format(value, "f")
)
TIMESTAMPS: Final = st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)
DATES: Final = st.dates().map(str)
UUIDS: Final = st.uuids().map(str)
JSON: Final = st.recursive(
    st.none() | st.booleans() | TEXTS | st.integers(-MAX_WHOLE, MAX_WHOLE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)

SCALARS: Final = {
    "text": (ParamType.STRING, TEXTS),
    "whole": (ParamType.INTEGER, INTEGERS.map(str)),
    "number": (ParamType.NUMBER, NUMBERS),
    "decimal": (ParamType.DECIMAL, DECIMALS),
    "flag": (ParamType.BOOLEAN, st.booleans()),
    "at": (ParamType.TIMESTAMP, TIMESTAMPS),
    "day": (ParamType.DATE, DATES),
    "uuid": (ParamType.UUID, UUIDS),
}
# Lists, which ``named`` knows by the last letter of their names.
LISTS: Final = {f"{name}s": (type_, st.lists(each)) for name, (type_, each) in SCALARS.items()}
PARAMS: Final = {**SCALARS, **LISTS}

ECHO: Final = named(
    "SELECT :tenant AS tenant, "
    + ", ".join(f":{name} AS {name}" for name in PARAMS)
    + " FROM canary -- :text '%s'",
    **{name: type_ for name, (type_, _) in PARAMS.items()},  # type: ignore[arg-type]
)
# Where a text goes in SQL that people write.
USES: Final = named(
    """
    SELECT
        (SELECT count(*) FROM canary WHERE name = :text),
        (SELECT count(*) FROM canary WHERE name = ANY (:texts)),
        (SELECT count(*) FROM canary WHERE name IN (:text, :text || 'x')),
        (SELECT count(*) FROM canary WHERE strpos(name, :text) = 1),
        'a' || :text || 'b',
        encode(convert_to(:text, 'UTF8'), 'base64'),
        to_jsonb(:text),
        jsonb_build_object('of', :text, 'all', to_jsonb(:texts)),
        to_json(:text)::text,
        array_position(:texts, :text),
        quote_literal(:text),
        length(:text)
    """,
    text=ParamType.STRING,
    texts=ParamType.STRING,
)
PATTERN: Final = named(
    "SELECT name LIKE :text, name ILIKE '%' || :text || '%' FROM canary", text=ParamType.STRING
)
DOCUMENT: Final = named(
    "SELECT :text::jsonb, :text::jsonb ->> 'a' FROM canary", text=ParamType.STRING
)
CASTS: Final = named(
    "SELECT :text::int, :text::timestamptz, :text::regclass FROM canary", text=ParamType.STRING
)

many = settings(max_examples=120, deadline=None, database=None)


@pytest.fixture(scope="module")
def dsn(postgres: PostgresServer) -> str:
    dsn = postgres.create_database()
    query(
        dsn,
        "CREATE TABLE canary AS SELECT 1 AS n, 'alive'::text AS name;"
        "CREATE FUNCTION sing() RETURNS text LANGUAGE sql AS"
        " $$ DELETE FROM canary RETURNING name $$",
    )
    return dsn


@pytest.fixture(scope="module")
def queries(dsn: str) -> Iterator[AuroraQueries]:
    with querying(dsn) as queries:
        yield queries
        assert query(dsn, "SELECT * FROM canary") == CANARY


def asked(
    queries: AuroraQueries, what: Query, params: dict[str, Any], tenant: str = "acme"
) -> list[Any]:
    """Ask as a caller does; return the only row."""
    values, wrong = accepted(what, params)
    assert not wrong
    with queries.open(QueryCall(what, tenant, values), Deadline.after(30)) as results:
        ((row,),) = results.portions()
    return list(row)


def shown(type_: ParamType, value: Any) -> Any:
    """Return what a value that was sent comes back as."""
    if isinstance(value, list):
        return [shown(type_, item) for item in value]
    if type_ is ParamType.INTEGER and abs(int(value)) <= MAX_WHOLE:
        return int(value)
    if type_ is ParamType.DECIMAL:
        return Decimal(value)
    if type_ is ParamType.TIMESTAMP:
        return datetime.fromisoformat(value)
    return value


def read(type_: ParamType, value: Any) -> Any:
    """Return what came back, as ``shown`` has it."""
    if isinstance(value, list):
        return [read(type_, item) for item in value]
    if type_ is ParamType.DECIMAL:
        return Decimal(value)
    if type_ is ParamType.TIMESTAMP:
        return datetime.fromisoformat(value)
    return value


def test_who_pasted_these_texts_into_the_sql_would_lose_the_canary(dsn: str) -> None:
    lost = set()
    for text in HOSTILE:
        pasted = f"SELECT name FROM canary WHERE name = '{text}'"
        with psycopg.connect(dsn) as connection:
            with suppress(psycopg.Error):
                connection.execute(pasted.encode())
                if not connection.execute("SELECT * FROM canary").fetchall():
                    lost.add(text)
            connection.rollback()
    assert lost


@many
@given(st.fixed_dictionaries({name: each for name, (_, each) in PARAMS.items()}), TEXTS)
def test_a_parameter_of_each_type_comes_back_as_it_was_sent(
    queries: AuroraQueries, params: dict[str, Any], tenant: str
) -> None:
    found_tenant, *found = asked(queries, ECHO, params, tenant)
    assert found_tenant == tenant
    for (name, (type_, _)), value in zip(PARAMS.items(), found, strict=True):
        assert read(type_, value) == shown(type_, params[name]), name


@many
@given(TEXTS, st.lists(TEXTS, max_size=4))
@example("alive", ["x", "alive"])
@example("'; DELETE FROM canary; --", ["{", "}", ",", '"', "\\", "NULL", ""])
def test_a_text_is_one_wherever_it_is_used(
    queries: AuroraQueries, text: str, texts: list[str]
) -> None:
    is_it = int(text == "alive")
    is_one = int("alive" in texts)
    position = texts.index(text) + 1 if text in texts else None
    row = asked(queries, USES, {"text": text, "texts": texts})
    equal, among, listed, begins, joined, raw, value, object_, written, found, literal, length = row
    assert (equal, among, listed) == (is_it, is_one, is_it)
    assert begins == int("alive".startswith(text))
    assert joined == f"a{text}b"
    assert b64decode(raw).decode() == text
    assert value == text
    assert object_ == {"of": text, "all": texts}
    assert json.loads(written) == text
    assert found == position
    assert literal.endswith("'")
    assert length == len(text)


@many
@given(TEXTS)
@example("%")
@example("al_ve")
@example("\\")
def test_a_pattern_matches_or_is_refused(queries: AuroraQueries, text: str) -> None:
    try:
        matches, holds = asked(queries, PATTERN, {"text": text})
    except QueryFailedError as error:
        assert error.sqlstate == "22025"  # noqa: PT017 - one of two outcomes
        assert text.endswith("\\")
    else:
        if text.isascii() and not set(text) & {"%", "_", "\\"}:
            assert matches == (text == "alive")
            assert holds == (text.lower() in "alive")


@many
@given(JSON.map(lambda value: json.dumps(value, ensure_ascii=False)) | TEXTS)
@example('{"a": "\'; DELETE FROM canary; --"}')
def test_a_document_is_read_or_refused(queries: AuroraQueries, text: str) -> None:
    try:
        value, field = asked(queries, DOCUMENT, {"text": text})
    except QueryFailedError as error:
        assert error.sqlstate in {"22P02", "22P05", "22003"}  # noqa: PT017 - one of two outcomes
    else:
        sent = json.loads(text)
        assert value == sent
        if isinstance(sent, dict) and isinstance(sent.get("a"), str):
            assert field == sent["a"]


@many
@given(TEXTS)
@example("canary; DROP TABLE canary")
@example("1")
def test_a_text_is_cast_or_refused(queries: AuroraQueries, text: str) -> None:
    """To a number or a time it is refused as such, and the name of a table reads no table."""
    with pytest.raises(QueryFailedError) as raised:
        asked(queries, CASTS, {"text": text})
    assert raised.value.sqlstate[:2] == "22"


@many
@given(TEXTS, st.sampled_from(sorted(PARAMS)))
def test_a_text_in_the_place_of_any_parameter_is_a_value_of_its_type_or_refused(
    queries: AuroraQueries, text: str, name: str
) -> None:
    what = named(f"SELECT :{name} AS it FROM canary", **{name: PARAMS[name][0]})  # type: ignore[arg-type]
    _, wrong = accepted(what, {name: text})
    _, wrong_item = accepted(what, {name: [text]})
    if not wrong:
        asked(queries, what, {name: text})
    if not wrong_item:
        asked(queries, what, {name: [text]})
    # By the name of a parameter nothing gets in at all.
    _, wrong_name = accepted(what, {text: "x", name: None})
    assert any("no parameter" in each.description for each in wrong_name) or text.lower() == name
