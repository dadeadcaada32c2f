"""Parameters of a query on the command line: what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duostore_server.cli.query_question import BadParamError, params_of


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("p=published", "published"),
        ("p=", ""),
        ("p= a b ", " a b "),
        ("p=a=b", "a=b"),
        ("p=a:=b", "a:=b"),
        ("p=line\nline", "line\nline"),
        ("p=5", 5),
        ("p=-0.5", -0.5),
        ("p=1e3", 1000.0),
        ("p=true", True),
        ("p=null", None),
        ('p=["a", 1, null]', ["a", 1, None]),
        ("p=[]", []),
        # What is JSON, but neither number, word nor list, is text.
        ('p="quoted"', '"quoted"'),
        ('p={"a": 1}', '{"a": 1}'),
        # What is no JSON is text, however much it looks like it.
        ("p=007", "007"),
        ("p=5.", "5."),
        ("p=NaN", "NaN"),
        ("p=-Infinity", "-Infinity"),
        ("p=True", "True"),
        ("p=[a", "[a"),
        ("p=2026-01-31", "2026-01-31"),
        # What a double would round comes as it is written.
        ("p=9007199254740991", 9007199254740991),
        ("p=9007199254740992", "9007199254740992"),
        ("p=" + "9" * 5000, "9" * 5000),
        ("p=19.99", 19.99),
        ("p=0.1234567890123456789", "0.1234567890123456789"),
        ("p=0.10000000000000001", 0.1),
        ("p=1e300", 1e300),
        ("p=1e400", "1e400"),
        ("p=[9007199254740993, 0.1]", ["9007199254740993", 0.1]),
        ('p:="007"', "007"),
        ("p:=5", 5),
        ("p:= [1, 2] ", [1, 2]),
        ("p:=9007199254740993", "9007199254740993"),
    ],
)
def test_a_value_is_json_where_it_looks_like_it(pair: str, value: object) -> None:
    params = params_of([pair], None)
    assert params == {"p": value}
    assert type(params["p"]) is type(value)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_is_sent_as_text_or_as_the_json_that_it_is(text: str) -> None:
    value: Any = params_of([f"p={text}"], None)["p"]
    assert value == text or not isinstance(value, str)


def test_parameters_come_from_pairs_and_an_object() -> None:
    params = params_of(["a=1", "b:=null"], '{"c": ["x"], "d": 12345678901234567890}')
    assert params == {"a": 1, "b": None, "c": ["x"], "d": "12345678901234567890"}
    assert params_of([], None) == {}
    assert params_of([], "{}") == {}


@pytest.mark.parametrize(
    ("pairs", "whole", "problem"),
    [
        (["p"], None, "'p' is neither name=value nor name:=json"),
        (["=v"], None, "neither name=value"),
        ([""], None, "neither name=value"),
        (["p=1", "p=2"], None, "'p' is given twice"),
        (["p=1"], '{"p": 1}', "'p' is given twice"),
        (["p:=x"], None, "'p' is not JSON: Expecting value"),
        (["p:="], None, "'p' is not JSON"),
        (["p:=NaN"], None, "'p' is not JSON: NaN is no JSON value"),
        (['p:={"a": 1}'], None, "'p' holds {'a': 1}; it may be a value or a list of them"),
        (["p=[[1]]"], None, "'p' holds [1]"),
        (["p=" + "[" * 100_000], None, "'p': nests too deep"),
        (['p:="\\ud800"'], None, "'p' holds one half of a surrogate pair"),
        ([], '{"\\ud800": 1}', "holds one half of a surrogate pair"),
        ([], '{"p": 1, "p": 2}', "an object has a name twice"),
        ([], "[1]", "--params-json is not a JSON object"),
        ([], "{", "--params-json is not JSON"),
    ],
)
def test_what_cannot_be_sent_is_refused(pairs: list[str], whole: str | None, problem: str) -> None:
    with pytest.raises(BadParamError) as raised:
        params_of(pairs, whole)
    assert problem in str(raised.value)
