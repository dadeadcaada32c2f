"""Parameters of queries: one form for each value, and refusals that name the field alone."""

from __future__ import annotations

import string
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duostore_server.domain.documents import MAX_WHOLE
from duostore_server.domain.queries import Param, ParamType
from duostore_server.domain.query_params import MAX_LIST, accepted, canonical, parse_value
from tests.support.query_stack import query

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    from duostore_server.domain.errors import FieldViolation
    from duostore_server.domain.queries import ParamValue

INT64 = st.integers(-(2**63), 2**63 - 1)
# Whole numbers too, which is where forms meet.
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-99, 99).map(float)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis takes naive bounds
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=4) | st.decimals(
    "-1e30", "1e30", allow_nan=False
)
VALUES: dict[ParamType, st.SearchStrategy[Any]] = {
    ParamType.STRING: TEXT,
    ParamType.INTEGER: INT64,
    ParamType.NUMBER: NUMBERS,
    ParamType.DECIMAL: DECIMALS,
    ParamType.BOOLEAN: st.booleans(),
    ParamType.TIMESTAMP: TIMES,
    ParamType.DATE: st.dates(),
    ParamType.UUID: st.uuids(),
}
TYPES = st.sampled_from(ParamType)
quick = settings(max_examples=60, deadline=None)


def params(**types: ParamType) -> dict[str, Param]:
    return {name: Param(name, type_) for name, type_ in types.items()}


def taken(given_: dict[str, Any], **types: ParamType) -> dict[str, ParamValue]:
    values, wrong = accepted(query(params=params(**types)), given_)
    assert wrong == []
    return dict(values)


def refused(given_: dict[str, Any], *configured: Param) -> list[FieldViolation]:
    _, wrong = accepted(query(params={param.name: param for param in configured}), given_)
    return wrong


def _whole(value: int) -> list[Any]:
    exact = [value, str(value)]
    zeros = [f"0{value}"] if 0 <= value < 10**18 else []
    return [*exact, *zeros, *([float(value)] if abs(value) <= MAX_WHOLE else [])]


def _decimal(value: Decimal) -> list[Any]:
    text = format(value, "f")
    more = f"{text}0" if "." in text else f"{text}.000"
    signed = text.removeprefix("-")
    return [text, more, text.replace(signed, f"00{signed}")]


def _time(value: datetime) -> list[Any]:
    away = value.astimezone(timezone(timedelta(hours=5, minutes=30)))
    text = value.isoformat()
    return [
        text,
        away.isoformat(),
        text.replace("+00:00", "Z"),
        text.replace("T", " ").replace("+00:00", "z"),
        value.isoformat(timespec="microseconds").replace("+00:00", "-00:00"),
    ]


FORMS: dict[ParamType, Callable[[Any], list[Any]]] = {
    ParamType.STRING: lambda value: [value],
    ParamType.INTEGER: _whole,
    ParamType.NUMBER: lambda value: [value, *([int(value)] if value.is_integer() else [])],
    ParamType.DECIMAL: _decimal,
    ParamType.BOOLEAN: lambda value: [value],
    ParamType.TIMESTAMP: _time,
    ParamType.DATE: lambda value: [value.isoformat()],
    ParamType.UUID: lambda value: [str(value), str(value).upper(), value.hex],
}


@quick
@given(st.data(), TYPES)
def test_all_forms_of_a_value_are_one_value_and_one_text(data: st.DataObject, type_: Any) -> None:
    value = data.draw(VALUES[type_])
    found = [parse_value(type_, form) for form in FORMS[type_](value)]
    assert all(one == value for one in found)
    assert len({canonical({"p": one}) for one in found}) == 1


@pytest.mark.parametrize(
    ("type_", "forms"),
    [
        (ParamType.INTEGER, [0, "0", "-0", 0.0, -0.0]),
        (ParamType.NUMBER, [0, 0.0, -0.0]),
        (ParamType.DECIMAL, ["0", "-0", "-0.000", "00.0", 0, 0.0, -0.0]),
        (ParamType.DECIMAL, ["12.5", "012.50", 12.5]),
        (ParamType.DECIMAL, ["1000", "1000.0", 1000, 1e3]),
        (ParamType.DECIMAL, ["0.0000001", "0.00000010", 1e-7]),
    ],
)
def test_a_number_is_one_text_however_it_is_written(type_: ParamType, forms: list[Any]) -> None:
    assert len({canonical({"p": parse_value(type_, form)}) for form in forms}) == 1


@quick
@given(st.data(), TYPES)
def test_different_values_are_different_texts(data: st.DataObject, type_: Any) -> None:
    one, two = (
        parse_value(type_, data.draw(st.sampled_from(FORMS[type_](data.draw(VALUES[type_])))))
        for _ in range(2)
    )
    assert (canonical({"p": one}) == canonical({"p": two})) == (one == two)


@quick
@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4))
def test_lists_are_one_text_if_they_are_equal_in_their_order(
    one: list[str], two: list[str]
) -> None:
    def text(items: list[str]) -> str:
        return canonical({"p": parse_value(ParamType.STRING, items, is_list=True)})

    assert (text(one) == text(two)) == (one == two)
    # Nor is a list taken for the text that it would be.
    assert text(one) != canonical({"p": text(one)})


@quick
@given(st.data())
def test_neither_the_order_nor_the_case_of_names_counts(data: st.DataObject) -> None:
    types = {"a": ParamType.STRING, "b_c": ParamType.INTEGER, "d": ParamType.BOOLEAN}
    given_ = {name: data.draw(VALUES[type_]) for name, type_ in types.items()}
    shuffled = {
        data.draw(st.sampled_from([name, name.upper(), name.title()])): given_[name]
        for name in data.draw(st.permutations(sorted(given_)))
    }
    assert canonical(taken(shuffled, **types)) == canonical(taken(given_, **types))


def test_what_is_alike_in_two_parameters_is_not_alike() -> None:
    types = {"a": ParamType.STRING, "b": ParamType.STRING}
    assert canonical(taken({"a": "1", "b": "2"}, **types)) != canonical(
        taken({"a": "2", "b": "1"}, **types)
    )


# What no type takes as a value, and each type's own.
_NEITHER = [{}, {"secret": 1}, [], ["secret"]]
REFUSED: dict[ParamType, list[Any]] = {
    ParamType.STRING: [5, True, "secret\0", *_NEITHER],
    ParamType.INTEGER: [
        "secret",
        "5.0",
        " 5",
        "+5",
        "5_0",
        "\u0665",
        "",
        5.5,
        True,
        float("nan"),
        float("inf"),
        float(2**53),
        -(2.0**60),
        str(2**63),
        str(-(2**63) - 1),
        "9" * 20,
        *_NEITHER,
    ],
    ParamType.NUMBER: [
        "5",
        "secret",
        10**400,
        2**53 + 1,
        True,
        float("nan"),
        float("inf"),
        *_NEITHER,
    ],
    ParamType.DECIMAL: [
        float(2**53),
        "secret",
        "1e5",
        "NaN",
        "Infinity",
        ".5",
        "5.",
        "1,5",
        "\u0665",
        "",
        True,
        float("nan"),
        float("inf"),
        "9" * 201,
        f"0.{'9' * 201}",
        *_NEITHER,
    ],
    ParamType.BOOLEAN: ["yes!", 1, 0.0, "", *_NEITHER],
    ParamType.TIMESTAMP: [
        "secret",
        "2027-01-31",
        "2027-01-31T12:00:00",
        "2027-02-30T12:00:00Z",
        "2027-01-31T25:00:00Z",
        "2027-01-31T12:00:60Z",
        "2027-01-31T12:00:00.1234567Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        1769860800,
        True,
        *_NEITHER,
    ],
    ParamType.DATE: ["secret", "2027-02-30", "0000-01-01", "20270131", "2027-W05-6", 5, *_NEITHER],
    ParamType.UUID: ["secret", "0" * 31, "g" * 32, "{" + "0" * 32 + "}", 5, *_NEITHER],
}


@pytest.mark.parametrize(
    ("type_", "value"), [(type_, value) for type_, values in REFUSED.items() for value in values]
)
def test_a_refusal_names_the_field_and_never_quotes_the_value(type_: ParamType, value: Any) -> None:
    (violation,) = refused({"P": value}, Param("p", type_))
    assert violation.field == "params.P"
    assert violation.description
    for shown in ("secret", *([value] if isinstance(value, str) and len(value) > 3 else [])):
        assert shown not in violation.description


@pytest.mark.parametrize("type_", ParamType)
def test_a_refused_item_is_named_by_its_place(type_: ParamType) -> None:
    good: Any = {
        ParamType.STRING: "x",
        ParamType.BOOLEAN: True,
        ParamType.TIMESTAMP: "2026-01-31T12:00:00Z",
        ParamType.DATE: "2026-01-31",
        ParamType.UUID: str(UUID(int=7)),
    }.get(type_, 5)
    for bad in (None, {"secret": 1}, [good]):
        (violation,) = refused({"p": [good, bad, good]}, Param("p", type_, is_list=True))
        assert violation.field == "params.p[1]"
        assert violation.description.startswith("must be ")
        assert "secret" not in violation.description
    assert len(taken_list(type_, [good, good])) == 2


@pytest.mark.parametrize("value", [2.0**63, -(2.0**64), 1e300, 2**63, str(2**63), "9" * 30])
def test_what_no_64_bits_hold_is_told_so_however_it_is_written(value: Any) -> None:
    (violation,) = refused({"p": value}, Param("p", ParamType.INTEGER))
    assert violation.description == "is beyond the whole numbers of 64 bits"


def test_a_fraction_is_told_that_it_is_none() -> None:
    (violation,) = refused({"p": 2.5}, Param("p", ParamType.INTEGER))
    assert violation.description == "must be a whole number"
    (violation,) = refused({"p": 2.0**53}, Param("p", ParamType.INTEGER))
    assert "send it as a string" in violation.description


def taken_list(type_: ParamType, items: list[Any]) -> list[Any]:
    values, wrong = accepted(query(params={"p": Param("p", type_, is_list=True)}), {"p": items})
    assert wrong == []
    found = values["p"]
    assert isinstance(found, list)
    return found


def test_a_list_is_a_list_and_no_longer_than_is_allowed() -> None:
    param = Param("p", ParamType.INTEGER, is_list=True)
    assert taken_list(ParamType.INTEGER, []) == []
    assert len(taken_list(ParamType.INTEGER, [1] * MAX_LIST)) == MAX_LIST
    (violation,) = refused({"p": [1] * (MAX_LIST + 1)}, param)
    assert f"at most {MAX_LIST}" in violation.description
    (violation,) = refused({"p": 5}, param)
    assert violation.description.startswith("must be a list, each item a whole number")


def test_what_is_not_given_has_its_default() -> None:
    day = date(2020, 1, 1)
    configured = {
        "since": Param("since", ParamType.DATE, required=False, default=day),
        "kind": Param("kind", ParamType.STRING, required=False),
    }
    for given_ in ({}, {"since": None, "kind": None}, {"SINCE": None}):
        values, wrong = accepted(query(params=configured), given_)
        assert (dict(values), wrong) == ({"since": day, "kind": None}, [])
    values, _ = accepted(query(params=configured), {"since": "2021-01-01"})
    assert values["since"] == date(2021, 1, 1)
    spelled_out, _ = accepted(query(params=configured), {"since": "2020-01-01"})
    omitted, _ = accepted(query(params=configured), {})
    assert canonical(spelled_out) == canonical(omitted)


def test_null_is_neither_a_text_nor_an_empty_list() -> None:
    values: list[ParamValue] = [None, "None", "null", "", [], ["None"]]
    assert len({canonical({"p": value}) for value in values}) == 6


@pytest.mark.parametrize("given_", [{}, {"p": None}, {"P": None}])
def test_what_is_required_and_missing_is_named_with_what_it_is(given_: dict[str, Any]) -> None:
    (violation,) = refused(given_, Param("p", ParamType.UUID))
    assert violation.field == "params.p"
    assert violation.description.startswith("is required, and is a UUID")
    (violation,) = refused(given_, Param("p", ParamType.UUID, is_list=True))
    assert violation.description.startswith("is required, and is a list, each item a UUID")


@pytest.mark.parametrize("first", ["x", None])
def test_one_parameter_under_two_names_is_refused_whatever_they_say(first: str | None) -> None:
    wrong = refused({"Status": first, "STATUS": "y"}, Param("status", ParamType.STRING))
    assert [one.field for one in wrong if "same parameter as 'Status'" in one.description] == [
        "params.STATUS"
    ]


def test_an_unknown_parameter_is_named_beside_those_that_are_known() -> None:
    wrong = refused({"stauts": "secret"}, Param("status", ParamType.STRING))
    assert [one.field for one in wrong] == ["params.stauts", "params.status"]
    assert "'stauts' is no parameter of 'by_status' (parameters: status)" in wrong[0].description
    assert "secret" not in wrong[0].description


def test_a_name_as_long_as_callers_like_is_cut() -> None:
    (violation,) = refused({"x" * 100_000: 1})
    assert len(violation.field) + len(violation.description) < 400


def test_everything_that_is_wrong_is_told_at_once() -> None:
    wrong = refused(
        {"a": "x", "b": True, "d": 1},
        *(Param(name, ParamType.INTEGER) for name in "abc"),
    )
    assert [one.field for one in wrong] == ["params.a", "params.b", "params.d", "params.c"]


@quick
@given(st.dictionaries(st.text(string.printable, max_size=4), st.none() | TEXT | NUMBERS))
def test_whatever_is_given_is_answered_with_a_value_or_a_violation(given_: dict[str, Any]) -> None:
    configured = params(a=ParamType.INTEGER, b=ParamType.STRING)
    values, wrong = accepted(query(params=configured), given_)
    assert set(values) == set(configured)
    fields = {violation.field.lower() for violation in wrong}
    for name in configured:
        assert values[name] is not None or f"params.{name}" in fields
