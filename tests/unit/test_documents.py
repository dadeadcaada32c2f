"""What a document may contain, and in which form it is kept."""

from __future__ import annotations

import json
import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from duostore_server.domain.documents import (
    MAX_DEPTH,
    MAX_SHOWN_NAME,
    MAX_WHOLE,
    compact_json,
    compact_size,
    document_violations,
    most_struct_bytes,
    normalized,
    path_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


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


class Name(str):
    """A field name that counts how often it was copied into a path."""

    __slots__ = ("copies",)
    copies: int

    def __format__(self, spec: str) -> str:
        self.copies += 1
        return super().__format__(spec)


def test_a_path_is_made_for_a_violation_and_not_for_a_value() -> None:
    outer, inner = Name("outer"), Name("inner")
    outer.copies = inner.copies = 0
    values = [{"a": 1.0}, *[None] * 1000, "x", math.nan, *[1.0] * 1000]
    assert list(violations({outer: {inner: values}})) == ["data.outer.inner[1002]"]
    assert (outer.copies, inner.copies) == (1, 1)


class Values(list[Any]):
    """Values that count how many of them were looked at."""

    seen = 0

    def __iter__(self) -> Iterator[Any]:
        for value in super().__iter__():
            self.seen += 1
            yield value


def test_who_has_seen_enough_violations_pays_for_no_more() -> None:
    values = Values([1.0, math.nan] * 1000)
    found = list(islice(document_violations({"a": [values]}, "data"), 3))
    assert [v.field for v in found] == ["data.a[0][1]", "data.a[0][3]", "data.a[0][5]"]
    assert values.seen == 6


def test_a_path_shows_the_beginning_of_a_long_name() -> None:
    assert path_text("data", ["n" * MAX_SHOWN_NAME, 7]) == f"data.{'n' * MAX_SHOWN_NAME}[7]"
    shown = path_text("data", ["n" * (MAX_SHOWN_NAME + 1), 7, "b"])
    assert shown == f"data.{'n' * (MAX_SHOWN_NAME - 1)}…[7].b"
    [field] = violations({"n" * 1_000_000: [[math.nan]]})
    assert len(field) < 2 * MAX_SHOWN_NAME


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


documents = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0")), acceptable
)


@given(documents)
def test_the_size_is_that_of_the_compact_json(data: dict[str, Any]) -> None:
    assert compact_size(data) == len(compact_json(data).encode())


def test_the_size_of_what_is_not_json_can_be_asked_for() -> None:
    assert compact_size({"a": math.nan, "b": [-math.inf]}) > 20


def struct_bytes(data: dict[str, Any]) -> int:
    struct = Struct()
    struct.update(data)
    return struct.ByteSize()


@given(documents)
def test_no_document_grows_more_as_protobuf_than_is_reckoned_with(data: dict[str, Any]) -> None:
    document = normalized(data)
    assert struct_bytes(document) <= most_struct_bytes(compact_size(document))


@pytest.mark.parametrize("size", [1, 11, 12, 13, 1489, 1490, 1491, 50_000, 190_651])
def test_a_list_of_small_numbers_grows_most(size: int) -> None:
    for document in ({"a": [1] * size}, {"": [1] * size}, {"a": [[1] * size] * 2}):
        grown, reckoned = struct_bytes(document), most_struct_bytes(compact_size(document))
        assert grown <= reckoned
        assert reckoned - grown < 60
