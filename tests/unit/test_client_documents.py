"""Documents on their way to a Struct and back."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any

import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from duostore import InvalidRequestError
from duostore.documents import from_struct, to_struct
from duostore_server.codec import plain
from duostore_server.domain.documents import document_violations, normalized


class Level(IntEnum):
    LOW = 1


class Colour(StrEnum):
    RED = "red"


class Shape(Enum):
    ROUND = "round"


@dataclass
class Point:
    x: int


NUMBERS = st.integers(1 - 2**53, 2**53 - 1) | st.floats(1 - 2.0**53, 2.0**53 - 1)
DOCUMENTS = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | NUMBERS | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    ),
)


def kinds(value: Any) -> Any:
    """Return the types of a value, through and through: 1, 1.0 and True are equal."""
    if isinstance(value, dict):
        return {name: kinds(item) for name, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value]
    return type(value)


@given(DOCUMENTS)
def test_a_document_comes_back_as_the_server_keeps_it(document: dict[str, Any]) -> None:
    wire = to_struct(document).SerializeToString()
    back = from_struct(Struct.FromString(wire))
    assert back == document
    assert kinds(back) == kinds(normalized(document))
    assert kinds(back) == kinds(normalized(plain(Struct.FromString(wire))))


@pytest.mark.parametrize(
    ("sent", "back"),
    [
        (1, 1),
        (1.0, 1),
        (-0.0, 0),
        (0.5, 0.5),
        (2**53 - 1, 2**53 - 1),
        (1 - 2.0**53, 1 - 2**53),
        (True, True),
        ((1, (2,)), [1, [2]]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (Level.LOW, 1),
        (Colour.RED, "red"),
        ([], []),
        ({}, {}),
        (None, None),
        ("\0", "\0"),  # the server's to refuse
    ],
)
def test_what_comes_back(sent: Any, back: Any) -> None:
    found = from_struct(to_struct({"value": sent}))["value"]
    assert found == back
    assert kinds(found) == kinds(back)


def test_numbers_of_other_writers_are_not_rounded() -> None:
    struct = Struct()
    for name, number in {
        "large": 2.0**60,
        "first": 2.0**53,
        "nan": math.nan,
        "inf": math.inf,
    }.items():
        struct.fields[name].number_value = number
    back = from_struct(struct)
    assert kinds(back) == {"large": float, "first": float, "nan": float, "inf": float}
    assert back["large"] == 2.0**60


def test_a_value_that_is_not_set_is_none() -> None:
    struct = Struct(fields={"a": Value(list_value=ListValue(values=[Value()]))})
    assert from_struct(struct) == {"a": [None]}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (2**53, "2^53 or beyond, which a double rounds; send str(value)"),
        (-(2.0**53), "send str(value)"),
        (10**400, "send str(value)"),
        (1e300, "send str(value)"),
        (math.nan, "is nan, which JSON does not have; send None"),
        (math.inf, "is inf"),
        (-math.inf, "is -inf"),
        (datetime(2024, 1, 1, tzinfo=UTC), "type datetime; send value.isoformat()"),
        (date(2024, 1, 1), "type date; send value.isoformat()"),
        (time(1), "type time; send value.isoformat()"),
        (timedelta(1), "send value.total_seconds()"),
        (Decimal("1.10"), "type Decimal; send str(value)"),
        (uuid.UUID(int=1), "type UUID; send str(value)"),
        (b"x", "type bytes; send base64.b64encode(value).decode()"),
        (bytearray(b"x"), "send base64"),
        ({1, 2}, "type set; send sorted(value), a list"),
        (Shape.ROUND, "type Shape; send value.value"),
        (1j, "type complex"),
        (Point(1), "type Point; send dataclasses.asdict(value)"),
        (object(), "type object; send only dict, list, str, int, float, bool and None"),
        ("a\ud800", "lone surrogate at position 1"),
        ({7: 1}, "has the key 7, of type int; send its keys as strings"),
        ({None: 1}, "has the key None"),
        ({"\ud800": 1}, "has the key '\\ud800', that is not Unicode"),
    ],
)
def test_what_would_not_come_back_is_refused_by_its_path(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.a\[1\]\.b: ") as raised:
        to_struct({"a": [0, {"b": value}]})
    assert isinstance(raised.value, InvalidRequestError)
    [violation] = raised.value.field_violations
    assert violation.field == "data.a[1].b"
    assert says in violation.description


def test_every_mistake_is_named_up_to_a_hundred() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        to_struct({"a": b"", "b": [math.nan, "fine", {"c": 2**60}], 5: 1})  # type: ignore[dict-item]
    assert [violation.field for violation in raised.value.field_violations] == [
        "data.a",
        "data.b[0]",
        "data.b[2].c",
        "data",
    ]
    with pytest.raises(InvalidRequestError) as raised:
        to_struct({"a": [math.nan] * 1000})
    assert len(raised.value.field_violations) == 100


@pytest.mark.parametrize("document", [None, [], "{}", 1])
def test_a_document_is_a_dict(document: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^data: is of type .* a document is a dict"):
        to_struct(document)


def nested(levels: int, *, lists: bool) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels - 1):
        value = [value] if lists else {"a": value}
    return {"a": value}


@pytest.mark.parametrize("lists", [True, False])
def test_depth_ends_where_the_server_ends_it(*, lists: bool) -> None:
    deepest = nested(20, lists=lists)
    assert from_struct(to_struct(deepest)) == deepest
    assert list(document_violations(deepest, "data")) == []
    with pytest.raises(InvalidRequestError, match="deeper than 20 levels") as raised:
        to_struct(nested(21, lists=lists))
    [said] = document_violations(nested(21, lists=lists), "data")
    assert [v.field for v in raised.value.field_violations] == [said.field]


def test_a_document_that_contains_itself_is_refused() -> None:
    document: dict[str, Any] = {}
    document["a"] = [document]
    with pytest.raises(InvalidRequestError, match="or contains itself"):
        to_struct(document)
