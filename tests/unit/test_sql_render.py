"""SQL of the configuration, as the driver and PREPARE take it."""

from __future__ import annotations

import pytest

from duostore_server.config.sql_files import parse
from duostore_server.domain.queries import Param, ParamType
from duostore_server.storage.aurora.sql_render import bound, prepared, rendered, types_of

TEXT = """SELECT '100%', ':no', a::text, -- :neither
    %s % 2 /* %(x)s */
FROM t
WHERE b = :b
    AND c = ANY (:c) AND d < :b"""
TYPES = {"b": "bigint", "c": "text[]"}


def test_values_are_bound_where_their_placeholders_stand() -> None:
    statement = parse("x.sql", TEXT).statement
    assert rendered(statement, TYPES) == (
        "SELECT '100%%', ':no', a::text, -- :neither\n"
        "    %%s %% 2 /* %%(x)s */\n"
        "FROM t\n"
        "WHERE b = (%(b)s::bigint)\n"
        "    AND c = ANY ((%(c)s::text[])) AND d < (%(b)s::bigint)"
    )


def test_what_is_prepared_has_one_number_for_each_name() -> None:
    found = prepared(parse("x.sql", TEXT).statement, TYPES)
    assert found.names == ("b", "c")
    assert found.sql == TEXT.replace(":b", "($1::bigint)").replace(":c", "($2::text[])")


def test_a_place_in_what_is_prepared_is_told_as_a_line_of_the_file() -> None:
    text = "\n\n/* a\nb */ SELECT 1;\n\nSELECT :a,\n  :b\n, c -- d\n\n, :a"
    file = parse("x.sql", text)
    found = prepared(file.statements[1], {"a": "text", "b": "bigint"})
    lines = {word: text.count("\n", 0, text.rindex(word)) + 1 for word in ("SELECT", "c ", "-- d")}
    for word, line in lines.items():
        assert found.line_of(found.sql.index(word) + 1) == line
    assert found.line_of(found.sql.index("($1") + 1) == 6
    assert found.line_of(found.sql.index("($2") + 1) == 7
    assert found.line_of(found.sql.rindex("($1") + 1) == 10
    assert found.line_of(len(found.sql)) == 10
    assert found.line_of(1) == 6


def test_a_statement_may_begin_with_a_parameter() -> None:
    found = prepared(parse("x.sql", "\n:a").statement, {"a": "text"})
    assert (found.sql, found.line_of(1)) == ("($1::text)", 2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ParamType.STRING, "text"),
        (ParamType.INTEGER, "bigint"),
        (ParamType.NUMBER, "double precision"),
        (ParamType.DECIMAL, "numeric"),
        (ParamType.BOOLEAN, "boolean"),
        (ParamType.TIMESTAMP, "timestamptz"),
        (ParamType.DATE, "date"),
        (ParamType.UUID, "uuid"),
    ],
)
def test_each_type_of_a_parameter_has_one_of_the_server(kind: ParamType, expected: str) -> None:
    types = types_of({"a": Param("a", kind), "b": Param("b", kind, is_list=True)})
    assert types == {"a": expected, "b": f"{expected}[]", "tenant": "text"}


def test_integers_are_sent_in_one_width_whatever_their_size() -> None:
    sent = bound({"a": 1, "b": [1, 2**62, None], "c": True, "d": [False], "e": "1", "f": None})  # type: ignore[list-item]
    assert {type(value).__name__ for value in (sent["a"], *sent["b"][:2])} == {"Int8"}  # type: ignore[index]
    assert sent["b"][2] is None  # type: ignore[index]
    assert (sent["c"], sent["d"], sent["e"], sent["f"]) == (True, [False], "1", None)
