"""Queries by themselves: what is cached, for how long and under what; and pages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    QueryTimeoutError,
    ResultChangedError,
    ResultTooLargeError,
    Store,
)
from duostore_server.domain.keys import GenerationKey
from duostore_server.domain.queries import Param, ParamType
from tests.support.query_stack import (
    CHANGED,
    COLUMNS,
    GENERATION,
    NOON,
    ROWS,
    TENANT,
    QueryStack,
    Rows,
    as_of,
    query,
    row_bytes,
    rows_of,
    sql_file,
)

if TYPE_CHECKING:
    from duostore_server.domain.queries import Query, QueryCall, Row


def test_a_result_is_computed_once_and_then_found() -> None:
    stack = QueryStack()
    first, second = stack.query(), stack.query()
    assert rows_of(first) == rows_of(second) == ROWS
    assert first.payload == second.payload
    assert (first.served_from, first.cached_time) == (Store.AURORA, None)
    assert (second.served_from, second.cached_time) == (Store.CACHE, NOON)
    assert as_of(second) == as_of(first)
    assert stack.served == [("by_status", Store.AURORA), ("by_status", Store.CACHE)]
    assert (stack.runs, stack.database.queries.open_now) == (1, 0)


def test_a_hit_costs_two_reads_of_the_cache() -> None:
    stack = QueryStack()
    stack.query()
    stack.asked.clear()
    stack.query()
    assert stack.asked == ["cache.read", "cache.read"]


def test_a_change_of_a_kind_that_it_depends_on_is_seen() -> None:
    stack = QueryStack()
    stack.query()
    stack.database.rows = Rows(CHANGED)
    assert rows_of(stack.query()) == ROWS
    stack.entries.invalidate((GENERATION,))
    assert rows_of(stack.query()) == CHANGED
    assert rows_of(stack.query()) == CHANGED
    assert stack.runs == 2


@pytest.mark.parametrize(("kind", "runs"), [("proposal", 2), ("note", 2), ("other", 1)])
def test_each_of_the_kinds_that_it_depends_on_ends_a_result(kind: str, runs: int) -> None:
    stack = QueryStack(query(depends_on=("proposal", "note")))
    stack.query()
    stack.entries.invalidate((GenerationKey(TENANT, kind),))
    stack.query()
    assert stack.runs == runs


def test_a_change_in_another_tenant_ends_nothing_here() -> None:
    stack = QueryStack()
    stack.query()
    stack.entries.invalidate((GenerationKey("other", "proposal"), GenerationKey("", "proposal")))
    assert stack.query().served_from is Store.CACHE


def test_what_depends_on_nothing_is_cached_for_its_time() -> None:
    stack = QueryStack(query(depends_on=()))
    stack.query()
    assert "cache.fill" in stack.asked
    assert stack.query().served_from is Store.CACHE
    assert stack.runs == 1


@pytest.mark.parametrize(("ttl", "jitter", "lasts"), [(300.0, 0.9, 270.0), (0.2, 0.9, 1.0)])
def test_a_result_ends_with_its_own_time(ttl: float, jitter: float, lasts: float) -> None:
    stack = QueryStack(query(cache_ttl=ttl), jitter=jitter)
    stack.query()
    filled = stack.clock.now
    stack.clock.now = filled + lasts - 0.1
    assert stack.query().served_from is Store.CACHE
    stack.clock.now = filled + lasts + 0.1
    assert stack.query().served_from is Store.AURORA


def test_a_query_that_is_not_to_be_cached_asks_the_database_alone() -> None:
    stack = QueryStack(query(cache_ttl=0.0))
    stack.query()
    stack.database.rows = Rows(CHANGED)
    assert rows_of(stack.query()) == CHANGED
    assert stack.asked == []


def same_result(stack: QueryStack, *asked: dict[str, Any]) -> bool:
    for options in asked:
        stack.query(**options)
    return stack.runs == 1


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ({}, {"params": {"status": "draft"}}, True),
        ({"params": {"Status": "x"}}, {"params": {"STATUS": "x"}}, True),
        ({"params": {"status": None}}, {}, True),
        ({}, {"page_size": 2}, True),
        ({}, {"params": {"status": "x"}}, False),
        ({}, {"tenant": ""}, False),
        ({}, {"tenant": "other"}, False),
        ({}, {"name": "other"}, False),
    ],
)
def test_what_was_asked_for_decides_what_is_found(
    one: dict[str, Any], two: dict[str, Any], *, same: bool
) -> None:
    assert same_result(QueryStack(query(), query("other")), one, two) is same


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"sql": sql_file("SELECT 2")}, False),
        ({"max_rows": 5}, False),
        ({"max_bytes": 5_000}, False),
        ({"depends_on": ("proposal", "note")}, False),
        ({"params": {"status": Param("status", ParamType.DATE, required=False)}}, False),
        (
            {"params": {"status": Param("status", ParamType.STRING, is_list=True, required=False)}},
            False,
        ),
        ({"timeout": 1.0}, True),
        ({"cache_ttl": 60.0}, True),
    ],
)
def test_another_configuration_finds_what_is_right_for_it(
    change: dict[str, Any], *, same: bool
) -> None:
    before = QueryStack(query())
    before.query()
    after = QueryStack(replace(query(), **change), beside=before)
    assert (after.query().served_from is Store.CACHE) is same


def test_what_is_no_query_or_parameter_is_refused_before_anybody_is_asked() -> None:
    stack = QueryStack()
    with pytest.raises(InvalidRequestError) as error:
        stack.query({"statsu": "x"}, tenant="a#b", page_size=-1, page_token="?")
    fields = {violation.field for violation in error.value.violations}
    assert fields == {"tenant", "page_size", "page_token", "params.statsu"}
    with pytest.raises(InvalidRequestError, match="by_stauts") as error:
        stack.query(name="by_stauts")
    assert [violation.field for violation in error.value.violations] == ["query"]
    assert (stack.asked, stack.runs) == ([], 0)


def bounded(at: str, limit: int) -> Query:
    bounds: dict[str, Any] = {at: limit}
    return query(**bounds)


@pytest.mark.parametrize("at", ["max_rows", "max_bytes"])
def test_a_result_may_be_as_large_as_its_bound_and_no_larger(at: str) -> None:
    exact = {"max_rows": len(ROWS), "max_bytes": sum(map(row_bytes, ROWS))}[at]
    assert rows_of(QueryStack(bounded(at, exact)).query()) == ROWS
    stack = QueryStack(bounded(at, exact - 1))
    with pytest.raises(ResultTooLargeError) as error:
        stack.query()
    assert error.value.metadata == {"query": "by_status", "bound": at, "limit": str(exact - 1)}
    assert stack.result_keys() == [], "nobody is made to wait for it"
    assert stack.database.queries.open_now == 0


def test_no_more_is_fetched_than_shows_that_it_is_too_large() -> None:
    stack = QueryStack(query(max_rows=3))
    stack.database.rows = Rows(ROWS * 100)
    with pytest.raises(ResultTooLargeError):
        stack.query()
    assert stack.database.rows.fetched == [0, 2]


def test_a_result_that_the_cache_does_not_take_is_answered_all_the_same() -> None:
    stack = QueryStack(item_max=700)
    stack.database.rows = Rows([["1", "x" * 1000]])
    for _ in range(2):
        assert stack.query().served_from is Store.AURORA
    assert stack.result_keys() == []
    assert stack.paused == []


def pages_of(stack: QueryStack, size: int) -> list[list[Row]]:
    found, token = [], ""
    for _ in range(10):
        page = stack.query(page_size=size, page_token=token)
        found.append(rows_of(page))
        token = page.next_page_token
        if not token:
            return found
    raise AssertionError("there is no last page")


@pytest.mark.parametrize(
    ("size", "pages"),
    [
        (1, [ROWS[:1], ROWS[1:2], ROWS[2:]]),
        (2, [ROWS[:2], ROWS[2:]]),
        (3, [ROWS]),
        (2**31 - 1, [ROWS]),
        (0, [ROWS]),
    ],
)
@pytest.mark.parametrize("ttl", [300.0, 0.0])
def test_pages_are_the_result_in_its_order(size: int, pages: list[list[Row]], ttl: float) -> None:
    stack = QueryStack(query(cache_ttl=ttl))
    assert pages_of(stack, size) == pages
    assert stack.runs == (1 if ttl else len(pages))


def test_an_empty_result_has_one_page() -> None:
    stack = QueryStack()
    stack.database.rows = Rows([])
    assert pages_of(stack, 2) == [[]]


def test_without_a_size_the_rest_comes_at_once() -> None:
    stack = QueryStack()
    token = stack.query(page_size=1).next_page_token
    page = stack.query(page_token=token)
    assert (rows_of(page), page.next_page_token) == (ROWS[1:], "")


def test_each_page_says_where_it_came_from() -> None:
    stack = QueryStack()
    first = stack.query(page_size=2)
    second = stack.query(page_size=2, page_token=first.next_page_token)
    assert (first.served_from, second.served_from) == (Store.AURORA, Store.CACHE)
    assert as_of(first) == as_of(second)


@pytest.mark.parametrize("ttl", [300.0, 0.0])
def test_a_page_of_a_result_that_has_changed_is_refused(ttl: float) -> None:
    stack = QueryStack(query(cache_ttl=ttl))
    token = stack.query(page_size=1).next_page_token
    stack.database.rows = Rows(CHANGED)
    stack.entries.invalidate((GENERATION,))
    with pytest.raises(ResultChangedError):
        stack.query(page_size=1, page_token=token)
    assert pages_of(stack, 2) == [CHANGED[:2], CHANGED[2:]]


def test_a_page_of_a_result_that_was_computed_anew_and_is_the_same_goes_on() -> None:
    stack = QueryStack()
    token = stack.query(page_size=1).next_page_token
    stack.entries.invalidate((GENERATION,))
    assert rows_of(stack.query(page_size=1, page_token=token)) == ROWS[1:2]
    assert stack.runs == 2


@pytest.mark.parametrize(
    "other", [{"name": "other"}, {"tenant": ""}, {"params": {"status": "x"}}], ids=str
)
def test_a_page_of_another_call_is_refused(other: dict[str, Any]) -> None:
    stack = QueryStack(query(), query("other"))
    token = stack.query(page_size=1).next_page_token
    stack.forget_calls()
    with pytest.raises(InvalidRequestError, match="page_token"):
        stack.query(page_size=1, page_token=token, **other)
    assert stack.runs == 0


def test_a_token_that_was_made_up_finds_nothing_more_than_there_is() -> None:
    stack = QueryStack()
    raw = stack.query(page_size=1).next_page_token
    # The offset is in front: of 2^24 rows and more.
    page = stack.query(page_size=5, page_token=f"AQAA{raw[4:]}")
    assert (rows_of(page), page.next_page_token) == ([], "")


def test_the_columns_are_answered_as_the_database_names_them() -> None:
    stack = QueryStack(query(params={"n": Param("n", ParamType.INTEGER)}))
    page = stack.query({"N": 5.0})
    assert stack.database.calls == [{"n": 5}]
    for column in COLUMNS:
        assert column.name in page.payload.decode()
        assert column.type in page.payload.decode()


def test_a_query_takes_no_longer_in_all_than_it_may() -> None:
    stack = QueryStack(query(timeout=2.0))

    def take(_: QueryCall) -> None:
        stack.clock.now += 1.5

    # Each portion for itself is quick enough.
    stack.database.queries.during = take
    assert rows_of(stack.query()) == ROWS
    stack = QueryStack(query(timeout=1.0))
    stack.database.queries.during = take
    with pytest.raises(QueryTimeoutError):
        stack.query()
    with pytest.raises(DeadlineExceededError):
        stack.query(within=0.5)
    assert stack.result_keys() == []
