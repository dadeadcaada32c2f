from __future__ import annotations

import json
import math
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from duostore.v1 import entity_pb2
from duostore_server.cli.json_document import DocumentError, id_at, parse_document
from duostore_server.codec import plain
from duostore_server.domain.documents import normalized
from duostore_server.domain.errors import FieldViolation


def _violations(text: str | bytes) -> list[tuple[str, str]]:
    with pytest.raises(DocumentError) as caught:
        parse_document(text if isinstance(text, bytes) else text.encode())
    return [(v.field, v.description) for v in caught.value.violations]


_CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(1 - 2**53, 2**53 - 1)
    | st.floats(1 - 2.0**53, 2.0**53 - 1)
    | st.text(_CHARACTERS)
)
_NAMES = st.text(_CHARACTERS)
_DOCUMENTS = st.dictionaries(
    _NAMES,
    st.recursive(
        _SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_NAMES, inner), max_leaves=20
    ),
)


@given(_DOCUMENTS)
def test_whatever_is_accepted_comes_back_from_a_struct(document: dict[str, object]) -> None:
    entity = entity_pb2.Entity()
    entity.data.update(parse_document(json.dumps(document).encode()))
    assert normalized(plain(entity.data)) == document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9007199254740991", 2**53 - 1),
        ("-9007199254740991", 1 - 2**53),
        ("9007199254740991.0", 2**53 - 1),
        ("-0", 0),
        ("0.1", 0.1),
        ("0.10000", 0.1),
        ("1.0", 1.0),
        ("1e3", 1000.0),
        ("19.99", 19.99),
        ("0.30000000000000004", 0.1 + 0.2),
        ("0.10000000000000001", 0.1),  # as C writes it by "%.17g"
        ("123456789.012345", 123456789.012345),
        ("2.2250738585072014e-308", 2.2250738585072014e-308),
        ("5e-324", 5e-324),
        ("4.9406564584124654e-324", 5e-324),  # as C writes it
        ("0.0", 0.0),
        ("0e99999999999999999999", 0.0),
    ],
)
def test_a_number_that_a_double_gives_back_is_accepted(text: str, value: float) -> None:
    assert parse_document(b'{"n": %s}' % text.encode()) == {"n": value}


@pytest.mark.parametrize(
    "text",
    [
        "9007199254740992",  # which others write for 9007199254740993
        "-9007199254740992",
        "9007199254740992.0",
        "9007199254740993",
        "12345678901234567890",
        "1e16",
        "1e400",
        "-1e999999999999999999999",
        "9" * 5000,
    ],
)
def test_a_number_of_2_to_the_53_or_beyond_is_refused_with_its_path(text: str) -> None:
    [(field, description)] = _violations('{"a": [0, {"n": ' + text + "}]}")
    assert field == "data.a[1].n"
    assert "2^53 or beyond" in description
    assert "send it as a string" in description
    assert len(description) < 200


@pytest.mark.parametrize(
    ("text", "rounded"),
    [
        ("3.14159265358979323846", "3.141592653589793"),
        ("0.1234567890123456789", "0.12345678901234568"),
        ("1e-400", "0.0"),
        ("5.1e-324", "5e-324"),
        ("1.23456789e-320", "1.2347e-320"),
        ("8999.999999999997", "8999.999999999996"),
    ],
)
def test_a_decimal_that_a_double_rounds_is_refused(text: str, rounded: str) -> None:
    [(field, description)] = _violations('{"n": ' + text + "}")
    assert field == "data.n"
    assert f"would turn into {rounded}" in description


@given(st.decimals(min_value=0, max_value=999_999_999, places=6))
def test_fifteen_digits_are_always_kept(amount: Decimal) -> None:
    [accepted] = parse_document(b'{"n": %s}' % f"{amount:f}".encode()).values()
    assert Decimal(repr(accepted)) == amount


@given(st.decimals(min_value=0, max_value=9000, places=13))
def test_no_digit_is_lost_in_silence(amount: Decimal) -> None:
    try:
        [accepted] = parse_document(b'{"n": %s}' % f"{amount:f}".encode()).values()
    except DocumentError:
        assert len(amount.normalize().as_tuple().digits) > 15
    else:
        digits = len(amount.normalize().as_tuple().digits)
        assert amount in {Decimal(repr(accepted)), Decimal(f"{accepted:.{digits - 1}e}")}


@example(2.0**-24)  # its 16 digits are shortest, but not its 17 digits rounded
@given(st.floats(1 - 2.0**53, 2.0**53 - 1))
def test_every_double_is_accepted_as_c_and_python_write_it(value: float) -> None:
    for text in (repr(value), f"{value:.17g}", f"{value:.16e}"):
        accepted = parse_document(b'{"n": %s}' % text.encode())["n"]
        assert accepted == value
        assert math.copysign(1, accepted) == math.copysign(1, value) or value == 0


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(text: str) -> None:
    assert _violations('{"n": ' + text + "}") == [("data.n", f"is {text}; JSON has no such value")]


def test_everything_that_is_wrong_is_listed() -> None:
    text = r'{"a": 1e400, "b": {"x": 1, "x": 2}, "c": ["\ud800"], "d": "\u0000", "\udc00": NaN}'
    fields = [field for field, _ in _violations(text)]
    assert sorted(fields) == ["data", "data.\\udc00", "data.a", "data.b", "data.c[0]", "data.d"]


def test_a_name_given_twice_is_refused_since_a_value_would_be_lost() -> None:
    assert _violations('{"a": 1, "b": 2, "a": 1}') == [("data", "has the name 'a' twice")]


def test_violations_can_be_printed_whatever_the_input() -> None:
    for _, description in _violations(r'{"\ud800": {"x": 1, "x": 2}}'):
        description.encode()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "is not JSON: Expecting value: column 1"),
        (b'{"a": 1', "is not JSON: "),
        (b'{"a": 1} x', "is not JSON: Extra data"),
        (b"[1]", "is not a JSON object but a list"),
        (b"null", "is not a JSON object but null"),
        (b"true", "is not a JSON object but true or false"),
        (b'"a"', "is not a JSON object but a string"),
        (b"12", "is not a JSON object but a number"),
        (b"1e400", "is not a JSON object but a number"),
        (b'{"a": "\xe9"}', "is not UTF-8: byte 0xe9 at position 7"),
        (b'{"a":' + b"[" * 200_000, "nests deeper than 20 levels"),
    ],
)
def test_what_is_no_object_is_refused(text: bytes, problem: str) -> None:
    [(field, description)] = _violations(text)
    assert field == "data"
    assert description.startswith(problem)


def test_what_nests_too_deep_is_refused_with_its_path() -> None:
    # The document is the first level.
    deepest = '{"a": ' + "[" * 19 + "]" * 19 + "}"
    assert parse_document(deepest.encode())
    [(field, description)] = _violations('{"a": ' + "[" * 20 + "1e400" + "]" * 20 + "}")
    assert field == "data.a" + "[0]" * 19
    assert description == "nests deeper than 20 levels"


@pytest.mark.parametrize(
    ("document", "path", "id_"),
    [
        ({"id": "a"}, "id", "a"),
        ({"id": 7}, "id", "7"),
        ({"id": 0}, "id", "0"),
        ({"meta": {"key": {"id": "x y"}}}, "meta.key.id", "x y"),
    ],
)
def test_an_id_is_found_by_its_path(document: dict[str, object], path: str, id_: str) -> None:
    assert id_at(document, path) == id_


@pytest.mark.parametrize(
    ("document", "path", "problem"),
    [
        ({}, "id", "is missing; it holds the id"),
        ({"meta": {}}, "meta.id", "is missing; it holds the id"),
        ({"meta": "id"}, "meta.id", "is missing; it holds the id"),
        ({"id": ""}, "id", "is empty; it holds the id"),
        ({"id": True}, "id", "holds the id: it must be a string or a whole number, not true"),
        ({"id": None}, "id", "holds the id: it must be a string or a whole number, not null"),
        ({"id": 1.5}, "id", "holds the id: it must be a string or a whole number, not a number"),
        ({"id": []}, "id", "holds the id: it must be a string or a whole number, not a list"),
        ({"id": {}}, "id", "holds the id: it must be a string or a whole number, not an object"),
    ],
)
def test_what_is_no_id_is_refused(document: dict[str, object], path: str, problem: str) -> None:
    with pytest.raises(DocumentError) as caught:
        id_at(document, path)
    [violation] = caught.value.violations
    assert violation.field == f"data.{path}"
    assert violation.description.startswith(problem)


def test_an_error_reads_as_one_line() -> None:
    error = DocumentError(FieldViolation("data.a", "is bad"), FieldViolation("data.b", "too"))
    assert str(error) == "data.a: is bad; data.b: too"
