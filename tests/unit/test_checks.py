"""What is refused, and what is not even looked at."""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.access.checks import MAX_VIOLATIONS, Checks
from duostore_server.domain.documents import compact_size
from duostore_server.domain.errors import FieldViolation, InvalidRequestError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import KindPolicy, Policies, ProjectionMode
from duostore_server.domain.transactions import Save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NOTE = EntityKey("", "note", "1")


def never(_: dict[str, Any]) -> Iterator[FieldViolation]:
    raise AssertionError("the schema was asked about a document that is refused anyway")


def endless(_: dict[str, Any]) -> Iterator[FieldViolation]:
    return (FieldViolation(f"data.a[{n}]", "is wrong") for n in count())


def checks(
    schema: Callable[[dict[str, Any]], Iterable[FieldViolation]] = lambda _: (),
    max_bytes: int = 1000,
    kinds: Iterable[str] = ("note",),
) -> Checks:
    policy = KindPolicy(60, 10, ProjectionMode.INLINE, max_bytes, schema)
    return Checks(Policies(dict.fromkeys(kinds, policy)))


def refused(
    by: Checks, key: EntityKey, data: dict[str, Any] | None, *others: FieldViolation
) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as error:
        by.document(key, data, *others)
    return {violation.field: violation.description for violation in error.value.violations}


def test_a_document_is_returned_in_its_one_form() -> None:
    assert checks().document(NOTE, {"a": [1.0, -0.0, 0.5]}) == {"a": [1, 0, 0.5]}


def test_a_snapshot_of_a_derived_kind_is_refused_as_its_save_is() -> None:
    policy = KindPolicy(60, 10, ProjectionMode.INLINE, 1000, lambda _: (), derived=True)
    by = Checks(Policies({"note": policy}))
    with pytest.raises(InvalidRequestError) as snapshot:
        by.snapshot(NOTE, {}, "")
    with pytest.raises(InvalidRequestError) as save:
        by.write(Save(NOTE, {}, None), "")
    assert snapshot.value.violations == save.value.violations
    assert "'note' is derived: " in snapshot.value.violations[0].description


def test_the_size_is_that_of_the_normalized_document() -> None:
    data = {"a": [1.0] * 100}
    size = compact_size({"a": [1] * 100})
    assert checks(max_bytes=size).document(NOTE, data)
    assert refused(checks(max_bytes=size - 1), NOTE, data) == {
        "data": f"has {size} bytes as compact JSON; its kind allows {size - 1}"
    }


def test_of_a_document_that_is_too_large_nothing_else_is_looked_at() -> None:
    found = refused(checks(never), NOTE, {"a": [math.nan] * 1000}, FieldViolation("b", "is bad"))
    assert set(found) == {"b", "data"}
    assert "bytes" in found["data"]


def test_of_a_document_of_bad_form_the_schema_is_not_asked() -> None:
    assert set(refused(checks(never), NOTE, {"a": math.nan})) == {"data.a"}
    assert set(refused(checks(never), EntityKey("", "note", ""), {"a": 1.0})) == {"key.id"}
    assert set(refused(checks(never), EntityKey("", "other", "1"), {"a": math.nan})) == {
        "key.kind",
        "data.a",
    }


@pytest.mark.parametrize(
    ("by", "data"),
    [
        pytest.param(checks(endless), {}, id="schema"),
        pytest.param(checks(never, 10**6), {"a": [math.nan] * 1000}, id="form"),
    ],
)
def test_so_many_violations_are_listed_and_no_more(by: Checks, data: dict[str, Any]) -> None:
    found = refused(by, NOTE, data)
    assert list(found) == [*(f"data.a[{n}]" for n in range(MAX_VIOLATIONS)), ""]
    assert found[""] == f"there are more than {MAX_VIOLATIONS} violations"


def test_what_is_missing_is_listed_with_all_else() -> None:
    assert list(refused(checks(), EntityKey("#", "", ""), None)) == [
        "key.tenant",
        "key.kind",
        "key.id",
        "data",
    ]


def test_a_kind_that_is_too_long_to_be_one_is_not_quoted() -> None:
    long = "é" * 20_000
    found = refused(checks(), EntityKey("", long, "1"), {})
    assert found == {"key.kind": "has 40000 bytes of UTF-8; at most 64 are allowed"}


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ([], "none"),
        (["b", "a"], "a, b"),
        ([f"k{n}" for n in range(10)], "k0, k1, k2, k3, k4, k5, k6, k7, k8, k9"),
        (
            [f"k{n}" for n in range(10, 90)],
            ", ".join(f"k{n}" for n in range(10, 20)) + " and 70 more",
        ),
    ],
)
def test_of_the_configured_kinds_the_first_few_are_told(kinds: list[str], told: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        checks(kinds=kinds).key(EntityKey("", "k" * 64, "1"))
    [violation] = error.value.violations
    assert violation.description == f"'{'k' * 64}' is not a configured kind (configured: {told})"


@pytest.mark.parametrize("number", [0, 501])
def test_a_batch_has_one_to_five_hundred_keys(number: int) -> None:
    keys = [EntityKey("", "note", str(n)) for n in range(number)]
    with pytest.raises(InvalidRequestError, match=f"has {number} keys; 1 to 500 are allowed"):
        checks().batch(keys)
    checks().batch([EntityKey("", "note", str(n)) for n in range(500)])
