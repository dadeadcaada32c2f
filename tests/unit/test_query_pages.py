"""Page tokens: what they name, and what is none."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duostore_server.access.query_pages import (
    DIGEST_BYTES,
    PageToken,
    call_digest,
    page_violations,
    rows_digest,
)
from duostore_server.domain.queries import Column, QueryCall, Result
from tests.support.query_stack import COLUMNS, NOON, ROWS, query

CALL = QueryCall(query(), "acme", {"status": "draft"})
TOKEN = PageToken(7, b"r" * DIGEST_BYTES, call_digest(CALL))


@given(st.integers(1, 2**32 - 1), st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES))
def test_a_token_comes_back_as_it_went_out(offset: int, rows: bytes) -> None:
    token = PageToken(offset, rows, call_digest(CALL))
    assert PageToken.parse(str(token)) == token
    assert str(token).isascii()
    assert "=" not in str(token)


@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_what_is_no_token_is_none(text: str) -> None:
    token = PageToken.parse(text)
    assert token is None or token.offset > 0


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "ü",
        "a b",
        str(TOKEN)[:-2],
        f"{TOKEN}AAAA",
        str(PageToken(0, TOKEN.rows, TOKEN.call)),
        "=" * 8,
    ],
)
def test_what_was_made_of_a_token_is_refused(text: str) -> None:
    (violation,) = page_violations(0, text)
    assert violation.field == "page_token"


def test_a_negative_size_is_refused_and_none_is_not() -> None:
    assert list(page_violations(0, "")) == list(page_violations(2**31 - 1, str(TOKEN))) == []
    (violation,) = page_violations(-1, "")
    assert violation.field == "page_size"


def test_calls_are_told_apart_by_query_tenant_and_values_alone() -> None:
    others = [
        QueryCall(query("other"), "acme", {"status": "draft"}),
        QueryCall(query(), "", {"status": "draft"}),
        QueryCall(query(), "acme", {"status": "published"}),
        QueryCall(query(), "acme", {"status": None}),
    ]
    assert len({call_digest(call) for call in (CALL, *others)}) == 5
    # A change of the configuration alone ends no walk through pages.
    assert call_digest(QueryCall(query(max_rows=5), "acme", CALL.values)) == call_digest(CALL)


def test_results_are_told_apart_by_columns_and_rows_and_not_by_their_time() -> None:
    result = Result(COLUMNS, ROWS, NOON)
    others = [
        Result(COLUMNS, ROWS[::-1], NOON),
        Result(COLUMNS, ROWS[:2], NOON),
        Result(COLUMNS, [["1", None], *ROWS[1:]], NOON),
        Result((Column("id", "uuid"), COLUMNS[1]), ROWS, NOON),
        Result((Column("key", "text"), COLUMNS[1]), ROWS, NOON),
    ]
    assert len({rows_digest(one) for one in (result, *others)}) == 6
    later = Result(COLUMNS, ROWS, NOON.replace(hour=13))
    assert rows_digest(later) == rows_digest(result)
