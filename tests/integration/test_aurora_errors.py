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
from duostore_server.storage.aurora.errors import (
    breaks_connection,
    is_contention,
    is_stale,
    translated,
)

SECRET = "password=hunter2 host=db-1.internal"


def with_state(state: str) -> psycopg.Error:
    return psycopg.errors.lookup(state)(SECRET)


LOST = [
    *("57P01", "57P02", "57P03", "57P04", "57P05"),
    *("08000", "08003", "08006", "08007", "08P01", "40003"),
]
ROLLED_BACK = {
    "25006": StoreUnavailableError,
    "57014": StoreTimeoutError,
    "55P03": StoreOverloadedError,
    "40001": StoreOverloadedError,
    "40P01": StoreOverloadedError,
    "53000": StoreOverloadedError,
    "53100": StoreOverloadedError,
    "53200": StoreOverloadedError,
    "53300": StoreOverloadedError,
    "53400": StoreOverloadedError,
    "55000": StoreUnavailableError,
    "57000": StoreUnavailableError,
    "58000": StoreUnavailableError,
    "58030": StoreUnavailableError,
    "58P01": StoreUnavailableError,
}
# Of ours or of the server's own: nothing that another try would mend.
INTERNAL = [
    *("22P02", "22003", "23514", "23505", "42P01", "42703", "42501", "28P01", "3D000"),
    *("54000", "54001", "55006", "0A000", "26000", "XX000", "XX001", "XX002"),
]


@pytest.mark.parametrize("state", LOST)
def test_a_lost_connection_leaves_the_outcome_of_a_write_open(state: str) -> None:
    error = with_state(state)
    assert breaks_connection(error)
    assert type(translated(error, repeatable=False)) is WriteOutcomeUnknownError
    assert type(translated(error)) is StoreUnavailableError


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError(SECRET),
        psycopg.errors.PipelineAborted(SECRET),
        psycopg.InternalError(SECRET),  # an answer that the driver cannot make sense of
        OSError(SECRET),
        TimeoutError(SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_driver_alone_is_a_lost_connection(error: psycopg.Error | OSError) -> None:
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
    assert [s for s in (*ROLLED_BACK, *INTERNAL) if breaks_connection(with_state(s))] == ["25006"]


def test_only_contention_is_worth_another_try() -> None:
    states = [s for s in (*ROLLED_BACK, *INTERNAL, *LOST) if is_contention(with_state(s))]
    assert states == ["40001", "40P01"]


def test_only_a_preparation_that_is_of_no_use_is_worth_a_try_without_one() -> None:
    states = [s for s in (*ROLLED_BACK, *INTERNAL, *LOST) if is_stale(with_state(s))]
    assert states == ["0A000", "26000"]


@pytest.mark.parametrize("state", INTERNAL)
def test_a_fault_that_no_repetition_mends_is_not_blamed_on_the_store(state: str) -> None:
    assert translated(with_state(state), repeatable=False) is None


@pytest.mark.parametrize(
    "kind", [psycopg.DataError, psycopg.InterfaceError, psycopg.NotSupportedError]
)
def test_a_use_that_the_driver_refuses_is_a_fault_of_ours(kind: type[psycopg.Error]) -> None:
    assert translated(kind(SECRET), repeatable=False) is None
    assert not breaks_connection(kind(SECRET))


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
