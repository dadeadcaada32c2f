"""Exports: portions straight through, and an end however they end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duostore_server.access.exporting import Exporting, ExportPortion
from duostore_server.access.query_checks import QueryChecks
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    Store,
    StoreUnavailableError,
)
from tests.support.query_stack import COLUMNS, NOON, ROWS, TENANT, Database, Rows, query

if TYPE_CHECKING:
    from duostore_server.domain.queries import QueryCall


class Stack:
    """An export of one query, bounded far below what it has."""

    def __init__(self) -> None:
        self.database = Database("by_status")
        checks = QueryChecks({"by_status": query(max_rows=1, max_bytes=1)})
        self.exporting = Exporting(checks, self.database.queries)

    def export(self, name: str = "by_status", **params: object) -> list[ExportPortion]:
        return list(self.exporting.export(TENANT, name, dict(params), Deadline.after(10)))


def test_all_rows_come_in_portions_and_the_first_says_what_they_are() -> None:
    stack = Stack()
    first, second = stack.export(status="published")
    assert first.columns == COLUMNS
    assert first.as_of == NOON
    assert (second.columns, second.as_of) == ((), None)
    assert [*first.rows, *second.rows] == ROWS
    assert stack.database.calls == [{"status": "published"}]
    assert stack.database.queries.open_now == 0


def test_a_result_without_rows_says_its_columns_all_the_same() -> None:
    stack = Stack()
    stack.database.rows = Rows([])
    (portion,) = stack.export()
    assert (list(portion.rows), portion.columns) == ([], COLUMNS)
    assert portion.as_of == NOON


def test_a_portion_is_fetched_when_it_is_asked_for_and_not_before() -> None:
    stack = Stack()
    stack.database.rows = Rows(ROWS * 3)
    portions = stack.exporting.export(TENANT, "by_status", {}, Deadline.after(10))
    assert next(portions).rows == ROWS[:2]
    assert stack.database.rows.fetched == [0]
    assert stack.database.queries.open_now == 1
    next(portions)
    assert stack.database.rows.fetched == [0, 2]


def test_who_takes_no_more_ends_the_query() -> None:
    stack = Stack()
    portions = stack.exporting.export(TENANT, "by_status", {}, Deadline.after(10))
    next(portions)
    portions.close()
    assert stack.database.rows.fetched == [0]
    assert stack.database.queries.open_now == 0


def test_a_failure_on_the_way_is_the_callers_and_ends_the_query() -> None:
    stack = Stack()

    def fail(_: QueryCall) -> None:
        raise StoreUnavailableError(Store.AURORA)

    stack.database.queries.during = fail
    with pytest.raises(StoreUnavailableError):
        stack.export()
    assert stack.database.queries.open_now == 0


def test_what_cannot_be_asked_is_refused_before_anything_is_opened() -> None:
    stack = Stack()
    with pytest.raises(InvalidRequestError, match="by_stauts"):
        stack.export("by_stauts")
    with pytest.raises(InvalidRequestError, match=r"params\.statsu"):
        stack.export(statsu="x")
    assert stack.database.calls == []


def test_past_its_deadline_nothing_is_opened() -> None:
    stack = Stack()
    with pytest.raises(DeadlineExceededError):
        list(stack.exporting.export(TENANT, "by_status", {}, Deadline.after(0)))
    assert stack.database.calls == []
