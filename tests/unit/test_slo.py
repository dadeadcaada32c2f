"""Whether the objectives hold is told from what the processes count, as it was counted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from duostore.v1 import admin_pb2
from duostore_server.domain.entities import Backlog
from duostore_server.domain.errors import Store
from duostore_server.domain.objectives import RPC_BOUNDS, Objectives, Timed
from duostore_server.domain.status import Consistency, Figures
from duostore_server.rpc.status import CODES
from duostore_server.telemetry.figures_file import read_figures, write_figures
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.slo import SloWatch
from duostore_server.telemetry.slo_counts import ADMIN_METHODS, FAULTS

if TYPE_CHECKING:
    from pathlib import Path

    from duostore_server.domain.status import SloStanding

OBJECTIVES = Objectives(
    window=timedelta(days=30),
    read_latency=Timed(0.9, 0.05),
    availability=0.99,
    projection_lag=Timed(0.9, 5.0),
    consistency=0.999,
)
QUICK, SLOW = 0.05, 0.051


@dataclass
class Watched:
    """A watch over one process, and a clock that a test moves."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    at: float = 5_000.0
    measured: float = 0.0

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.registry)
        self.watch = SloWatch(
            OBJECTIVES,
            self.registry,
            shown=self.metrics.slo,
            clock=lambda: self.at,
            now=lambda: self.at,
        )

    def calls(self, count: int, method: str = "Get", code: str = "OK", took: float = QUICK) -> None:
        for _ in range(count):
            self.metrics.rpc_seconds.labels(method, code).observe(took)

    def look(self, after: float = 10.0) -> Figures:
        self.at += after
        self.watch.look()
        return self.watch.figures()

    def slo(self, name: str) -> SloStanding:
        (found,) = [slo for slo in self.watch.figures().slos if slo.name == name]
        return found

    def gauge(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, labels)
        assert value is not None
        return value


def test_the_histogram_of_calls_has_the_bounds_that_objectives_may_have() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.rpc_seconds.labels("Get", "OK").observe(1)
    (family,) = metrics.rpc_seconds.collect()
    bounds = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
    assert bounds == [*RPC_BOUNDS, math.inf]


def test_the_calls_of_operators_are_those_of_the_service_admin() -> None:
    methods = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods
    assert {method.name for method in methods} == set(ADMIN_METHODS)


def test_faults_are_codes_of_which_callers_are_not_to_blame() -> None:
    answered = {code.name for code in CODES.values()} - set(FAULTS)
    assert answered == {
        *("ABORTED", "ALREADY_EXISTS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"),
        *("PERMISSION_DENIED", "UNAUTHENTICATED"),
    }


def test_what_nobody_counted_holds_and_has_no_share() -> None:
    watched = Watched()
    for figures in (watched.watch.figures(), watched.look()):
        assert [slo.name for slo in figures.slos] == list(OBJECTIVES.targets())
        for slo in figures.slos:
            assert (slo.ratio, slo.ratio_hour, slo.burn_rate, slo.holds) == (None, None, 0, True)
        assert figures.stores == ()
        assert figures.consistency == ()
    assert math.isnan(watched.gauge("duostore_slo_good_ratio", slo="availability", window="5m"))
    assert watched.gauge("duostore_slo_holds", slo="availability") == 1


def test_what_was_counted_before_the_first_look_counts() -> None:
    watched = Watched()
    watched.calls(97)
    watched.calls(3, code="INTERNAL")
    watched.look()
    slo = watched.slo("availability")
    assert (slo.ratio, slo.ratio_hour) == (0.97, 0.97)
    assert slo.burn_rate == pytest.approx(3)
    assert not slo.holds
    assert slo.objective == "99 % of calls do not fail by fault of the service"
    assert watched.gauge("duostore_slo_good_ratio", slo="availability", window="1h") == 0.97
    assert watched.gauge("duostore_slo_burn_rate", slo="availability") == pytest.approx(3)
    assert watched.gauge("duostore_slo_holds", slo="availability") == 0


def test_just_the_target_holds() -> None:
    watched = Watched()
    watched.calls(99)
    watched.calls(1, code="UNAVAILABLE")
    watched.look()
    assert watched.slo("availability").burn_rate == pytest.approx(1)
    assert watched.slo("availability").holds


@pytest.mark.parametrize(
    "code", ["NOT_FOUND", "ABORTED", "INVALID_ARGUMENT", "FAILED_PRECONDITION"]
)
def test_what_callers_are_to_blame_for_fails_nobody(code: str) -> None:
    watched = Watched()
    watched.calls(10, method="Save", code=code)
    watched.look()
    assert watched.slo("availability").ratio == 1


def test_calls_of_operators_are_no_part_of_it() -> None:
    watched = Watched()
    watched.calls(10, method="CheckConsistency", code="DEADLINE_EXCEEDED")
    watched.look()
    assert watched.slo("availability").ratio is None


def test_only_gets_that_were_answered_are_slow_or_quick() -> None:
    watched = Watched()
    watched.calls(6)
    watched.calls(2, code="NOT_FOUND")
    watched.calls(2, took=SLOW)
    watched.calls(50, code="UNAVAILABLE", took=SLOW)
    watched.calls(50, method="Save", took=SLOW)
    watched.look()
    assert watched.slo("read_latency").ratio == 0.8
    assert watched.slo("read_latency").objective == "90 % of Gets are answered within 50 ms"


def test_a_failure_that_is_over_holds_again_though_the_hour_remembers_it() -> None:
    watched = Watched()
    watched.calls(100, code="INTERNAL")
    watched.look()
    for _ in range(31):
        watched.calls(10)
        watched.look()
    slo = watched.slo("availability")
    assert slo.ratio == 1
    assert slo.ratio_hour == pytest.approx(310 / 410)
    assert (slo.burn_rate, slo.holds) == (0, True)


def test_a_few_failures_among_many_calls_hold_though_five_minutes_are_bad() -> None:
    watched = Watched()
    watched.calls(10_000)
    watched.look()
    watched.look(after=600)
    watched.calls(10, code="INTERNAL")
    watched.look()
    slo = watched.slo("availability")
    assert slo.ratio == 0
    assert slo.burn_rate == pytest.approx(10 / 10_010 / 0.01)
    assert slo.holds


def test_what_is_older_than_an_hour_is_forgotten() -> None:
    watched = Watched()
    watched.calls(100, code="INTERNAL")
    watched.look()
    for _ in range(360):
        watched.calls(1)
        watched.look()
    slo = watched.slo("availability")
    assert slo.ratio_hour == 1
    assert len(watched.watch._history) <= 362


def test_counts_that_are_lost_take_nothing_from_what_is_known() -> None:
    """A process that dies while it writes leaves none: the sums are less than before."""
    before, after = Watched(), CollectorRegistry()
    before.calls(100)
    before.look()
    less = Metrics(after)
    for _ in range(40):
        less.rpc_seconds.labels("Get", "OK").observe(QUICK)
    before.watch._registry = after
    before.look()
    assert before.slo("availability").ratio_hour == 1
    less.rpc_seconds.labels("Get", "INTERNAL").observe(QUICK)
    before.look()
    assert before.slo("availability").ratio_hour == pytest.approx(100 / 101)


def test_the_lag_counts_by_the_time_in_which_it_is_short() -> None:
    watched = Watched()
    for lag in (0.0, 5.0, 5.1, 2.0):
        watched.metrics.backlog(Backlog(1, lag))
        watched.metrics.background_last_success.labels("backlog").set(watched.at)
        watched.look()
    slo = watched.slo("projection_lag")
    assert slo.ratio == 0.75
    assert slo.objective == "90 % of the time no change waits for more than 5 s to be projected"


def test_a_lag_that_nobody_measures_any_more_is_bad_and_one_that_nobody_did_is_none() -> None:
    watched = Watched()
    watched.metrics.backlog(Backlog(0, 0.0))
    watched.look()
    assert watched.slo("projection_lag").ratio is None
    watched.metrics.background_last_success.labels("backlog").set(watched.at)
    watched.look(after=60)
    assert watched.slo("projection_lag").ratio == 1
    watched.look(after=1)
    assert watched.slo("projection_lag").ratio == 0.5


def test_saves_are_right_or_wrong_a_minute_later_and_those_undecided_are_neither() -> None:
    watched = Watched()
    for age, outcome, count in (
        ("60s", "consistent", 3),
        ("60s", "inconsistent", 1),
        ("60s", "undecided", 9),
        ("1s", "inconsistent", 2),
        ("row", "consistent", 5),
    ):
        for _ in range(count):
            watched.metrics.verified(age, outcome)
    figures = watched.look()
    assert watched.slo("consistency").ratio == 0.75
    assert figures.consistency == (
        Consistency(timedelta(seconds=1), 2, 2),
        Consistency(timedelta(minutes=1), 4, 1),
        Consistency(timedelta(), 5, 0),
    )


def test_stores_are_told_by_their_calls_of_five_minutes() -> None:
    watched = Watched()
    calls, took = watched.metrics.store_calls, watched.metrics.store_call_seconds
    for outcome, count in (
        ("ok", 90),
        ("miss", 4),
        ("conflict", 1),
        ("timeout", 4),
        ("deadline", 1),
    ):
        calls.labels("dynamodb", "read", outcome).inc(count)
    for _ in range(100):
        took.labels("dynamodb", "read").observe(0.004)
    for _ in range(100):
        took.labels("dynamodb", "put").observe(0.02)
    calls.labels("cache", "read", "ok").inc()
    figures = watched.look()
    assert [store.store for store in figures.stores] == [Store.CACHE, Store.DYNAMODB]
    cache, dynamodb = figures.stores
    assert (cache.calls, cache.error_ratio, cache.p95) == (1, 0, None)
    assert (dynamodb.calls, dynamodb.error_ratio) == (100, 0.04)
    # 90 of the 100 between 0.01 and 0.025.
    assert dynamodb.p95 == pytest.approx(0.0235)
    watched.look(after=300)
    assert watched.watch.figures().stores == ()


def test_a_quantile_beyond_the_last_bound_is_that_bound() -> None:
    watched = Watched()
    watched.metrics.store_calls.labels("aurora", "read", "timeout").inc()
    watched.metrics.store_call_seconds.labels("aurora", "read").observe(60)
    (aurora,) = watched.look().stores
    assert aurora.p95 == 5
    assert aurora.error_ratio == 1


def test_figures_are_read_by_others_as_they_were_written(tmp_path: Path) -> None:
    assert read_figures(str(tmp_path)) == Figures()
    watched = Watched()
    watched.calls(3)
    watched.metrics.verified("5m", "consistent")
    watched.metrics.store_calls.labels("aurora", "read", "ok").inc(2)
    watched.metrics.store_call_seconds.labels("aurora", "read").observe(0.01)
    figures = watched.look()
    assert figures.stores
    assert figures.consistency
    write_figures(str(tmp_path), Figures())
    write_figures(str(tmp_path), figures)
    assert read_figures(str(tmp_path)) == figures
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]
