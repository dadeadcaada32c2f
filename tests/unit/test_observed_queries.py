from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import QueryTimeoutError
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.observed_queries import ObservedQueries
from tests.support.fake_queries import FakeQueries
from tests.support.named_queries import NAME, answer, call

if TYPE_CHECKING:
    from duostore_server.domain.queries import QueryCall

SQL = "SELECT 1"


def calls(registry: CollectorRegistry, outcome: str) -> float | None:
    labels = {"store": "aurora", "op": "query_open", "outcome": outcome}
    return registry.get_sample_value("duostore_store_calls_total", labels)


def observed(fake: FakeQueries) -> tuple[ObservedQueries, CollectorRegistry]:
    registry = CollectorRegistry()
    return ObservedQueries(fake, Metrics(registry)), registry


def fake() -> FakeQueries:
    return FakeQueries({NAME: [[1], [2]]}, columns={NAME: ()}, portion=1)


def test_a_query_is_measured_when_its_first_rows_are_there() -> None:
    delegate = fake()
    queries, registry = observed(delegate)
    with queries.open(call(SQL), Deadline.after(60)) as results:
        assert calls(registry, "ok") == 1
        assert list(results.portions()) == [[[1]], [[2]]]
        assert delegate.open_now == 1
    assert delegate.open_now == 0
    assert calls(registry, "ok") == 1


def test_a_query_that_takes_too_long_is_a_timeout() -> None:
    delegate = fake()

    def fail(asked: QueryCall) -> None:
        raise QueryTimeoutError(asked.query.name)

    delegate.during = fail
    queries, registry = observed(delegate)
    with pytest.raises(QueryTimeoutError):
        answer(queries, SQL)
    assert calls(registry, "timeout") == 1
    assert calls(registry, "ok") == 0
    assert delegate.open_now == 0


def test_what_goes_wrong_in_the_block_is_no_fault_of_the_query() -> None:
    delegate = fake()
    queries, registry = observed(delegate)

    def leave() -> None:
        with queries.open(call(SQL), Deadline.after(60)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert calls(registry, "ok") == 1
    assert delegate.open_now == 0
