"""Where two documents differ."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duostore_server.access.comparing import document_differences, entity_differences
from duostore_server.domain.drift import MAX_DIFFERENCES
from duostore_server.domain.entities import Entity
from duostore_server.domain.keys import EntityKey

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)

SCALARS = (
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2.5, 2.5) | st.text(max_size=3)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.text(max_size=2), VALUES, max_size=4)


def told(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [f"{each.path} {each.departure.value}" for each in document_differences(expected, found)]


@pytest.mark.parametrize(
    ("expected", "found", "differences"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {}, ["a missing"]),
        ({}, {"a": 1}, ["a extra"]),
        ({"a": 1}, {"a": 2}, ["a value"]),
        ({"a": 1}, {"a": "1"}, ["a type"]),
        ({"a": 1}, {"a": 1.5}, ["a value"]),
        ({"a": None}, {}, ["a missing"]),
        ({"a": None}, {"a": 0}, ["a type"]),
        ({"a": {}}, {"a": []}, ["a type"]),
        ({"author": {"name": "x"}}, {"author": {"name": "y"}}, ["author.name value"]),
        ({"author": {"name": "x"}}, {"author": "x"}, ["author type"]),
        ({"tags": ["a", "b", "c"]}, {"tags": ["a", "x"]}, ["tags[1] value", "tags[2] missing"]),
        ({"tags": ["a"]}, {"tags": ["a", {"b": 1}]}, ["tags[1] extra"]),
        ({"a": [[{"b": 1}]]}, {"a": [[{"b": 2, "c": 3}]]}, ["a[0][0].b value", "a[0][0].c extra"]),
        ({"b": 1, "a": 1}, {}, ["a missing", "b missing"]),
    ],
)
def test_a_difference_is_told_by_its_path(
    expected: dict[str, Any], found: dict[str, Any], differences: list[str]
) -> None:
    assert told(expected, found) == differences


@pytest.mark.parametrize("truth", [0, 1, 0.0, 1.0])
def test_true_is_no_number(truth: float) -> None:
    assert told({"a": truth}, {"a": bool(truth)}) == ["a type"]
    assert told({"a": bool(truth)}, {"a": truth}) == ["a type"]


def test_what_is_not_a_number_differs_from_everything() -> None:
    assert told({"a": 1}, {"a": float("nan")}) == ["a value"]


def test_no_more_than_twenty_places_are_told() -> None:
    found = {f"f{number:03}": number for number in range(100)}
    assert len(told({}, found)) == MAX_DIFFERENCES == 20


def test_a_long_name_is_cut() -> None:
    (difference,) = document_differences({}, {"x" * 100_000: 1})
    assert len(difference.path) == 100


@given(DOCUMENTS)
def test_a_document_does_not_differ_from_itself(document: dict[str, Any]) -> None:
    assert told(document, document) == []


@given(DOCUMENTS, DOCUMENTS)
def test_there_is_a_difference_if_and_only_if_documents_are_not_the_same(
    expected: dict[str, Any], found: dict[str, Any]
) -> None:
    def typed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: typed(each) for name, each in value.items()}
        if isinstance(value, list):
            return [typed(each) for each in value]
        return (isinstance(value, bool), value)

    assert (told(expected, found) == []) == (typed(expected) == typed(found))


def test_what_stands_around_a_document_is_compared_too() -> None:
    entity = Entity(EntityKey("", "note", "1"), 3, {"a": 1}, NOON, NOON)
    other = replace(
        entity,
        key=EntityKey("", "note", "2"),
        version=4,
        data={"a": 2},
        create_time=NOON - timedelta(seconds=1),
        update_time=NOON + timedelta(seconds=1),
    )
    assert entity_differences(entity, entity) == ()
    assert [each.path for each in entity_differences(entity, other)] == [
        "@key",
        "@version",
        "@create_time",
        "@update_time",
        "a",
    ]
