"""SQL files: where their parameters are, where their statements end, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duostore_server.config.sql_files import SqlFileError, one_select, parse, writes
from duostore_server.domain.sql import Placeholder, SqlFile, SqlStatement, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH = "sql/some.sql"


def names(text: str) -> list[str]:
    return [place.name for place in parse(PATH, text).placeholders()]


def joined(statement: SqlStatement) -> str:
    return "".join(
        f":{part.name}" if isinstance(part, Placeholder) else part.text for part in statement.parts
    )


def statements(text: str) -> list[str]:
    return [joined(statement) for statement in parse(PATH, text).statements]


def faults(text: str) -> list[tuple[int, str]]:
    with pytest.raises(SqlFileError) as caught:
        parse(PATH, text)
    return list(caught.value.faults)


def test_a_file_is_text_and_the_places_of_its_parameters_with_their_lines() -> None:
    text = "SELECT a,\n  :since::date\nFROM b\nWHERE c = :since AND d = :tenant;\n"

    assert parse(PATH, text) == SqlFile(
        path=PATH,
        statements=(
            SqlStatement(
                (
                    Text("SELECT a,\n  ", 1),
                    Placeholder("since", 2),
                    Text("::date\nFROM b\nWHERE c = ", 2),
                    Placeholder("since", 4),
                    Text(" AND d = ", 4),
                    Placeholder("tenant", 4),
                )
            ),
        ),
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT ':a', 'it''s :b', :c", ["c"]),
        (r"SELECT 'a\', :b, '\'", ["b"]),
        (r"SELECT E'it\':a', e'\\', :b", ["b"]),
        ("SELECT U&'\\0041:a', n':b', :c", ["c"]),
        ('SELECT "a:b", "c""d:e", :f', ["f"]),
        ("SELECT $$ :a $$, $q$ :b $$ :c $q$, $é$:d$é$, :e", ["e"]),
        ("SELECT x -- :a\n, :b --:c", ["b"]),
        ("SELECT /* :a /* :b */ :c */ :d", ["d"]),
        ("/*+ IndexScan(t :a) */ SELECT :b", ["b"]),
        ("SELECT a::text, b ::int, :c::text, :d ::text, e:::f", ["c", "d", "f"]),
        ("SELECT a[1:2], a[ :b : :c ], a[1:d], a[:e]", ["b", "c", "d", "e"]),
        ("SELECT a := :b, c => :d, e->>:f, g#>>:h, i@>:j, k<:l, m?:n, o%:p, q||:r", [*"bdfhjlnpr"]),
        (
            "SELECT :order, :group by, :timestamp with, :e'x', :n'y'",
            ["order", "group", "timestamp", *"en"],
        ),
        ("SELECT a$b$, :c", ["c"]),
        ("SELECT : a, :1, :'b', :\"c\"", []),
        ("SELECT (:a),:b", ["a", "b"]),
        (":a", ["a"]),
        ("SELECT :_a1, 𐍈, :b_2", ["_a1", "b_2"]),
        ("CALL note(:a, :b)", ["a", "b"]),
        ("SELECT {# :a #}, {{ :b }}", ["b"]),
    ],
)
def test_a_colon_directly_before_a_name_is_a_parameter_unless_it_is_quoted(
    text: str, expected: list[str]
) -> None:
    assert names(text) == expected
    assert statements(text) == [text.removesuffix(" --:c")]


def test_statements_end_at_semicolons_that_are_not_quoted() -> None:
    text = """
        -- First ; of all
        INSERT INTO a VALUES (';', $$;$$, ";", :a);;
        DELETE FROM b -- gone
        ;
        /* hint; */ UPDATE c SET d = :d /* nothing */;
        -- That was all;
    """
    assert statements(text) == [
        "-- First ; of all\n        INSERT INTO a VALUES (';', $$;$$, \";\", :a)",
        "DELETE FROM b",
        "/* hint; */ UPDATE c SET d = :d",
    ]
    assert [statement.parts[0].line for statement in parse(PATH, text).statements] == [2, 4, 6]


@pytest.mark.parametrize("text", ["", " \n", ";", "-- :a", "/* SELECT 1 */;"])
def test_a_file_without_a_statement_is_refused(text: str) -> None:
    assert faults(text) == [(1, "holds no statement")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SELECT 'abc\n:a", 1),
        ('SELECT\n\n"abc\n', 3),
        ("SELECT\n$$abc\n\n", 2),
        ("SELECT 1\n/* abc /* */\n", 2),
        ("SELECT 1,\n  E'abc\\'\n\n", 2),
    ],
)
def test_what_does_not_end_is_told_with_the_line_where_it_begins(text: str, line: int) -> None:
    assert faults(text) == [
        (
            line,
            "here begins a string, a quoted name or a comment that does not end or cannot be read",
        )
    ]


def test_all_that_is_wrong_with_a_file_is_told_at_once() -> None:
    found = faults("SELECT :été,\n $1,\n :é, :a$b,\n '$2 :C', :ok, '\0'")

    assert [line for line, _ in found] == [4, 1, 2, 3, 3]
    assert found[0][1] == "holds the character U+0000"
    assert found[1][1] == (":été is no name of a parameter: they are of A-Z, a-z, 0-9 and _")
    assert found[2][1] == "$1 is no parameter; parameters have names, such as :id"
    assert [fault.split()[0] for _, fault in found[3:]] == [":é", ":a$b"]
    with pytest.raises(SqlFileError, match=r"^sql/some.sql:4: holds .*; sql/some.sql:1: :été"):
        parse(PATH, "SELECT :été,\n\n\n'\0'")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "-- a\nselect 1;",
        "(SELECT 1) UNION (SELECT 2)",
        "With a AS (SELECT 1) TABLE a",
        "VALUES (1)",
        "TABLE a",
    ],
)
def test_what_reads_is_one_select(text: str) -> None:
    file = parse(PATH, text)

    assert one_select(file) is file
    assert writes(file) is file


@pytest.mark.parametrize(
    "text",
    ["INSERT INTO a VALUES (1); UPDATE a SET b = 1", "DELETE FROM a; SELECT b()", "MERGE INTO a"],
)
def test_what_writes_may_be_several_statements(text: str) -> None:
    file = parse(PATH, text)

    assert writes(file) is file
    with pytest.raises(SqlFileError, match=r"^sql/some.sql:1: a query may only read: begin"):
        one_select(file)


@pytest.mark.parametrize(
    "word",
    ["BEGIN", "COMMIT", "rollback", "SAVEPOINT", "SET", "COPY", "EXPLAIN", "DO", "PREPARE", "CALL"],
)
def test_what_would_part_the_rows_from_their_entity_is_refused(word: str) -> None:
    file = parse(PATH, f"DELETE FROM a\n;\n-- {word}\n {word} x;\n{word};")

    with pytest.raises(SqlFileError) as caught:
        writes(file)
    assert [line for line, _ in caught.value.faults] == [4, 5]
    assert caught.value.faults[0][1] == (
        f"{word.upper()} cannot begin a statement here; known are DELETE, INSERT, MERGE, "
        "SELECT, TABLE, UPDATE, VALUES, WITH"
    )
    with pytest.raises(SqlFileError):
        one_select(parse(PATH, word))


def test_a_second_statement_of_what_reads_is_told_with_its_line() -> None:
    with pytest.raises(SqlFileError) as caught:
        one_select(parse(PATH, "EXPLAIN :a;\n\n-- more\nSELECT 2; SELECT 3"))

    assert caught.value.faults == (
        (1, "a query may only read: begin with SELECT, WITH, VALUES or TABLE, not EXPLAIN"),
        (4, "a second statement begins, and only save_sql and delete_sql may have several"),
    )


def test_who_is_handed_a_file_needs_no_tokenizer() -> None:
    """A tokenizer takes 17 MB, which each process of a service would spend in vain."""
    code = (
        "import pickle, sys; from duostore_server.config import Settings;"
        "print(pickle.load(sys.stdin.buffer).path, 'sqlglot' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(parse(PATH, "SELECT :a")),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.decode() == f"{PATH} False\n"


@dataclass(frozen=True)
class Piece:
    """A stretch of SQL that ends by itself, and what it is to be found as."""

    text: str
    name: str | None = None
    ends: bool = False
    is_comment: bool = False


_ANYTHING = st.text("ab:;'\"$-/*\\{#}%\n é\U0001f600", max_size=12)
_WORD = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True)


def _comment(text: str) -> Piece:
    return Piece(text, is_comment=True)


_PIECES = st.one_of(
    _WORD.map(Piece),
    _WORD.map(lambda name: Piece(f":{name}", name=name)),
    st.sampled_from(["::", "->>", "(", ")", ",", "*", "@>", "1", "1.5", "[1:2]", ":=", "%"]).map(
        Piece
    ),
    st.sampled_from([r"E'it\':a;'", r"e'\\'", "U&'\\0041:b;'", "x'00'"]).map(Piece),
    _ANYTHING.map(lambda text: Piece("'" + text.replace("'", "''") + "'")),
    _ANYTHING.map(lambda text: Piece('"' + text.replace('"', '""') + '"')),
    _ANYTHING.map(lambda text: Piece("$q$" + text.replace("$", "") + "$q$")),
    _ANYTHING.map(lambda text: _comment("--" + text.replace("\n", "") + "\n")),
    _ANYTHING.map(lambda text: _comment("/*" + text.replace("*", "").replace("/", "") + "*/")),
    _ANYTHING.map(
        lambda text: _comment("/* :a /* ; */ " + text.replace("*", "").replace("/", "") + "*/")
    ),
    st.just(Piece(";", ends=True)),
)


def expected(pieces: Sequence[Piece], spaces: Sequence[str]) -> tuple[str, list[str]]:
    """Return the pieces as one text, and the statements in it."""
    text, found = "", []
    begin: int | None = None
    end = 0
    for piece, space in zip(pieces, spaces, strict=True):
        text += space
        if piece.ends:
            if end:
                found.append(text[begin:end])
            begin, end = None, 0
        elif begin is None:
            begin = len(text)
        text += piece.text
        if not piece.ends and not piece.is_comment:
            end = len(text)
    return text, [*found, text[begin:end]] if end else found


@given(
    st.lists(
        st.tuples(_PIECES, st.sampled_from([" ", "\n", "\r\n", " \t\n "])), min_size=1, max_size=25
    )
)
def test_nothing_is_lost_and_nothing_quoted_is_taken_for_a_parameter(
    made: list[tuple[Piece, str]],
) -> None:
    pieces, spaces = [piece for piece, _ in made], [space for _, space in made]
    text, wanted = expected(pieces, spaces)
    if not wanted:
        assert faults(text) == [(1, "holds no statement")]
        return
    file = parse(PATH, text)

    assert [joined(statement) for statement in file.statements] == wanted
    assert [place.name for place in file.placeholders()] == [
        piece.name for piece in pieces if piece.name
    ]
    position = 0
    for statement, whole in zip(file.statements, wanted, strict=True):
        position = text.index(whole, position)
        for part in statement.parts:
            assert part.line == text.count("\n", 0, position) + 1
            position += len(part.text) if isinstance(part, Text) else len(part.name) + 1
            assert isinstance(part, Placeholder) or part.text
