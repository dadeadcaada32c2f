"""What a document may contain, and in which form it is kept."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duostore_server.domain.documents import (
    MAX_DEPTH,
    MAX_WHOLE,
    compact_json,
    document_violations,
    normalized,
)


def violations(data: dict[str, Any]) -> dict[str, str]:
    return {v.field: v.description for v in document_violations(data, "data")}


def nested(levels: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for _ in range(levels - 1):
        data = {"a": data}
    return data


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "finite"),
        (math.inf, "finite"),
        (-math.inf, "finite"),
        (float(MAX_WHOLE + 2), "2^53"),
        (-1e300, "2^53"),
        ("a\0b", "U+0000"),
    ],
)
def test_a_value_that_a_store_would_change_is_named_by_its_path(value: object, words: str) -> None:
    found = violations({"a": [{"b": 1.0}, {"c": value}]})
    assert list(found) == ["data.a[1].c"]
    assert words in found["data.a[1].c"]


def test_every_violation_is_listed() -> None:
    found = violations({"a": math.nan, "b": {"c": 2.0**60}, "d": ["\0"], "e\0": 1.0})
    assert set(found) == {"data.a", "data.b.c", "data.d[0]", "data"}


def test_the_largest_whole_number_is_accepted() -> None:
    assert violations({"a": float(MAX_WHOLE), "b": float(-MAX_WHOLE)}) == {}


def test_nesting_ends_at_the_limit() -> None:
    assert violations(nested(MAX_DEPTH)) == {}
    too_deep = violations(nested(MAX_DEPTH + 1))
    assert list(too_deep.values()) == [f"nests deeper than {MAX_DEPTH} levels"]


def test_lists_count_as_levels() -> None:
    data: Any = 1.0
    for _ in range(MAX_DEPTH):
        data = [data]
    assert violations({"a": data})


def test_numbers_have_one_form() -> None:
    document = normalized({"a": 1.0, "b": -0.0, "c": [0.5, 2.0], "d": True, "e": None})
    assert compact_json(document) == '{"a":1,"b":0,"c":[0.5,2],"d":true,"e":null}'


acceptable = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(-float(MAX_WHOLE), float(MAX_WHOLE))
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), inner)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), acceptable))
def test_what_is_accepted_survives_json_unchanged(data: dict[str, Any]) -> None:
    if not violations(data):
        document = normalized(data)
        assert json.loads(compact_json(document)) == document == data
