"""What every engine of the queries promises."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    QueryFailedError,
    QueryTimeoutError,
)
from duostore_server.domain.queries import Column, ParamType
from tests.support.authority_faults import query
from tests.support.fake_queries import FakeQueries
from tests.support.named_queries import answer, call, named, querying
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.domain.ports import Queries
    from duostore_server.domain.queries import QueryCall, Row

COLUMNS = (Column("n", "integer"), Column("told", "text"))
NUMBERS = named(
    "SELECT n, :tenant || ' ' || :told AS told FROM generate_series(1, :count::int) AS n",
    name="numbers",
    told=ParamType.STRING,
    count=ParamType.INTEGER,
)
FAILING = named("SELECT 1 / n FROM generate_series(0, 1) AS n", name="failing")
SLOW = named("SELECT pg_sleep(30)", name="slow", timeout=0.1)
WAITING = named("SELECT pg_sleep(30)", name="waiting")


@dataclass
class Engine:
    """Queries that answer ``NUMBERS``, fail ``FAILING``, and take too long for the others.

    ``noticing`` does what the process does in the background.
    """

    queries: Queries
    is_at_rest: Callable[[], bool]
    notice: Callable[[], object]

    @contextmanager
    def noticing(self) -> Iterator[None]:
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.05):
                self.notice()

        with ThreadPoolExecutor(1) as thread:
            working = thread.submit(work)
            try:
                yield
            finally:
                stop.set()
            working.result()


def numbers(count: int, told: str = "x") -> list[Row]:
    return [[n, f"acme {told}"] for n in range(1, count + 1)]


def _numbers(asked: QueryCall) -> list[Row]:
    count, told = asked.values["count"], asked.values["told"]
    assert isinstance(count, int)
    return [[n, f"{asked.tenant} {told}"] for n in range(1, count + 1)]


def _trouble(deadlines: list[Deadline]) -> Callable[[QueryCall], None]:
    def during(asked: QueryCall) -> None:
        name = asked.query.name
        if name == FAILING.name:
            raise QueryFailedError(name, "22012")
        if name == SLOW.name:
            raise QueryTimeoutError(name)
        if name == WAITING.name:
            (deadline,) = deadlines
            eventually(deadline.is_abandoned, within=10, what="nobody waits any more")

    return during


# The deadlines of those who ask for WAITING, which a fake is told in no other way.
_waiting: list[Deadline] = []


@pytest.fixture(params=["postgresql", "fake"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "fake":
        _waiting.clear()
        fake = FakeQueries(
            {"numbers": _numbers, "failing": (), "slow": (), "waiting": ()},
            columns=dict.fromkeys(("numbers", "failing", "slow", "waiting"), COLUMNS),
            during=_trouble(_waiting),
        )
        yield Engine(fake, lambda: fake.open_now == 0, lambda: None)
        return
    dsn = request.getfixturevalue("postgres_dsn")
    with querying(dsn) as queries:
        yield Engine(
            queries,
            lambda: (
                query(
                    dsn,
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'duostore'"
                    " AND datname = current_database() AND state <> 'idle'",
                )
                == [(0,)]
            ),
            queries.cancel_abandoned,
        )


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 301, 5000])
def test_all_rows_come_once_and_in_their_order(engine: Engine, count: int) -> None:
    asked = call(NUMBERS, {"count": count, "told": "x"})
    with engine.queries.open(asked, Deadline.after(30)) as results:
        found = [list(portion) for portion in results.portions()]
        assert results.columns == COLUMNS
    assert [row for portion in found for row in portion] == numbers(count)
    assert all(found), "a portion has rows"
    assert max(map(len, found), default=0) <= 1000
    assert engine.is_at_rest()


def test_a_query_is_told_its_parameters_and_the_tenant(engine: Engine) -> None:
    for told in ("x", "a 'quoted' %s :count $1 -- \N{GRINNING FACE}", ""):
        assert answer(engine.queries, NUMBERS, {"count": 2, "told": told}) == numbers(2, told)


def test_as_of_is_between_the_call_and_its_answer(engine: Engine) -> None:
    # The clock of a server of the same machine.
    earliest = datetime.now(UTC)
    for _ in range(3):
        asked = call(NUMBERS, {"count": 1, "told": "x"})
        with engine.queries.open(asked, Deadline.after(30)) as results:
            assert earliest <= results.as_of <= datetime.now(UTC)
            assert results.as_of.utcoffset() == timedelta(0)
            earliest = results.as_of


def test_what_cannot_be_computed_is_refused(engine: Engine) -> None:
    with pytest.raises(QueryFailedError) as raised:
        answer(engine.queries, FAILING)
    assert raised.value.metadata == {"query": "failing", "sqlstate": "22012"}
    assert engine.is_at_rest()


def test_what_takes_longer_than_it_may_is_ended(engine: Engine) -> None:
    with pytest.raises(QueryTimeoutError) as raised:
        answer(engine.queries, SLOW)
    assert raised.value.metadata == {"query": "slow"}
    assert engine.is_at_rest()


def test_nothing_is_begun_for_those_who_do_not_wait(engine: Engine) -> None:
    for deadline in (Deadline.after(0), Deadline.after(10, cancelled=lambda: True)):
        with pytest.raises(DeadlineExceededError):
            answer(engine.queries, NUMBERS, {"count": 1, "told": "x"}, deadline)
    assert engine.is_at_rest()


@pytest.mark.parametrize("how", ["deadline", "gone"])
def test_what_nobody_waits_for_any_more_is_ended(engine: Engine, how: str) -> None:
    gone = threading.Event()
    deadline = Deadline.after(0.3 if how == "deadline" else 60, cancelled=gone.is_set)
    _waiting[:] = [deadline]
    with engine.noticing(), ThreadPoolExecutor(1) as threads:
        asking = threads.submit(answer, engine.queries, WAITING, None, deadline)
        eventually(lambda: not engine.is_at_rest(), within=10, what="it is under way")
        if how == "gone":
            gone.set()
        with pytest.raises(DeadlineExceededError):
            asking.result(5)
        eventually(engine.is_at_rest, within=1, what="it has ended")


def test_no_rows_are_fetched_for_who_has_gone(engine: Engine) -> None:
    gone = threading.Event()
    asked = call(NUMBERS, {"count": 1000, "told": "x"})
    deadline = Deadline.after(60, cancelled=gone.is_set)
    with engine.noticing(), engine.queries.open(asked, deadline) as results:
        found = results.portions()
        assert next(found)
        gone.set()
        with pytest.raises(DeadlineExceededError):
            list(found)
    eventually(engine.is_at_rest, within=1, what="it has ended")


def test_who_leaves_early_leaves_nothing_behind(engine: Engine) -> None:
    asked = call(NUMBERS, {"count": 1000, "told": "x"})
    with engine.queries.open(asked, Deadline.after(30)) as results:
        assert len(next(results.portions())) == 100
    assert engine.is_at_rest()
    with engine.queries.open(asked, Deadline.after(30)):
        pass
    assert engine.is_at_rest()


def test_results_that_are_open_at_once_are_apart(engine: Engine) -> None:
    one, other = (call(NUMBERS, {"count": 300, "told": told}) for told in "ab")
    with (
        engine.queries.open(one, Deadline.after(30)) as first,
        engine.queries.open(other, Deadline.after(30)) as second,
    ):
        a, b = first.portions(), second.portions()
        found: list[list[Row]] = [[], []]
        for portion, another in zip(a, b, strict=True):
            found[0] += portion
            found[1] += another
    assert found == [numbers(300, "a"), numbers(300, "b")]
