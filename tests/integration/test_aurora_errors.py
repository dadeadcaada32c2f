from __future__ import annotations

import psycopg
import pytest
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from duostore_server.domain.errors import (
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)
from duostore_server.storage.aurora.errors import breaks_connection, is_contention, translated

SECRET = "password=hunter2 host=db-1.internal"


def with_state(state: str) -> psycopg.Error:
    return psycopg.errors.lookup(state)(SECRET)


LOST = ["57P01", "57P02", "57P03", "08000", "08003", "08006"]
ROLLED_BACK = {
    "25006": StoreUnavailableError,
    "57014": StoreTimeoutError,
    "55P03": StoreTimeoutError,
    "40001": StoreOverloadedError,
    "40P01": StoreOverloadedError,
    "53100": StoreOverloadedError,
    "53300": StoreOverloadedError,
}
OURS = ["23514", "42P01", "22P02", "0A000", "XX000", "28P01"]


@pytest.mark.parametrize("state", LOST)
def test_a_lost_connection_leaves_the_outcome_of_a_write_open(state: str) -> None:
    error = with_state(state)
    assert breaks_connection(error)
    assert type(translated(error, repeatable=False)) is WriteOutcomeUnknownError
    assert type(translated(error)) is StoreUnavailableError


def test_an_error_of_the_driver_alone_is_a_lost_connection() -> None:
    error = psycopg.OperationalError(SECRET)
    assert breaks_connection(error)
    assert type(translated(error, repeatable=False, gave_up=True)) is WriteOutcomeUnknownError
    assert type(translated(error, gave_up=True)) is StoreTimeoutError
    assert type(translated(error)) is StoreUnavailableError


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize("state", ROLLED_BACK)
def test_an_error_inside_the_transaction_says_that_nothing_was_done(
    state: str, *, repeatable: bool
) -> None:
    failure = translated(with_state(state), repeatable=repeatable)
    assert type(failure) is ROLLED_BACK[state]
    assert failure.store is Store.AURORA
    assert SECRET not in str(failure)


def test_only_a_server_that_is_no_writer_breaks_a_connection_that_answers() -> None:
    assert [s for s in (*ROLLED_BACK, *OURS) if breaks_connection(with_state(s))] == ["25006"]


def test_only_contention_is_worth_another_try() -> None:
    states = [s for s in (*ROLLED_BACK, *OURS, *LOST) if is_contention(with_state(s))]
    assert states == ["40001", "40P01"]


@pytest.mark.parametrize("state", OURS)
def test_a_fault_of_ours_is_not_blamed_on_the_store(state: str) -> None:
    assert translated(with_state(state), repeatable=False) is None


def test_a_value_that_the_driver_refuses_is_a_fault_of_ours() -> None:
    assert translated(psycopg.DataError(SECRET), repeatable=False) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PoolTimeout(SECRET), StoreUnavailableError),
        (PoolClosed(SECRET), StoreUnavailableError),
        (TooManyRequests(SECRET), StoreOverloadedError),
    ],
)
def test_without_a_connection_nothing_was_sent(
    error: psycopg.Error, expected: type[Exception]
) -> None:
    assert type(translated(error, repeatable=False)) is expected
