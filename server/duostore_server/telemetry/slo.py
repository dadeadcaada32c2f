"""Tells whether the objectives hold now, from what the processes of this machine count."""

from __future__ import annotations

import time
from collections import Counter, deque
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from duostore_server.domain.errors import Store
from duostore_server.domain.status import Consistency, Figures, SloStanding, StoreCalls
from duostore_server.telemetry.slo_counts import LAG_SECONDS, Counted, Key, counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from duostore_server.domain.objectives import Objectives

# How often to look; an hour of looks is kept.
EVERY_SECONDS: Final = 10.0

_SHORT_SECONDS: Final = 300.0
_LONG_SECONDS: Final = 3600.0
_QUANTILE: Final = 0.95
# The ages of the verifier by their names in metrics; zero of rows at random.
_AGES: Final = {
    "1s": timedelta(seconds=1),
    "60s": timedelta(minutes=1),
    "5m": timedelta(minutes=5),
    "row": timedelta(),
}


class Shown(Protocol):
    """Shows how an objective is met; ``Metrics.slo``."""

    def __call__(
        self,
        name: str,
        *,
        ratio: float | None,
        ratio_hour: float | None,
        burn_rate: float,
        holds: bool,
    ) -> None:
        """Show it, instead of what was shown before."""
        ...


class SloWatch:
    """Looks at a registry again and again, and knows what was counted in the last hour.

    An objective holds unless its budget is used up too fast over the last five minutes and over
    the last hour alike: a failure that is over is one no more, and one of many calls is none yet.
    """

    def __init__(
        self,
        objectives: Objectives,
        registry: CollectorRegistry,
        *,
        shown: Shown,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``registry`` adds up all processes; ``clock`` never goes back, ``now`` is the epoch's."""
        self._objectives = objectives
        self._registry = registry
        self._shown = shown
        self._clock = clock
        self._now = now
        self._last: Counter[Key] = Counter()
        # Sums that never go down, from the time that the watch began.
        self._sums: Counter[Key] = Counter()
        self._history: deque[tuple[float, Counter[Key]]] = deque([(clock(), Counter())])
        self._figures = self._evaluated()

    def look(self) -> bool:
        """Take a look and show how the objectives are met; there is never more to do at once."""
        found = counted(self._registry.collect(), self._objectives)
        self._add(found)
        at = self._clock()
        self._history.append((at, self._sums.copy()))
        while len(self._history) > 1 and self._history[1][0] <= at - _LONG_SECONDS:
            self._history.popleft()
        self._figures = self._evaluated()
        for slo in self._figures.slos:
            self._shown(
                slo.name,
                ratio=slo.ratio,
                ratio_hour=slo.ratio_hour,
                burn_rate=slo.burn_rate,
                holds=slo.holds,
            )
        return False

    def figures(self) -> Figures:
        """Return what the last look found."""
        return self._figures

    def _add(self, found: Counted) -> None:
        for key, value in found.sums.items():
            # Less than before: the counts of a process were lost.
            self._sums[key] += max(0, value - self._last[key])
        self._last = found.sums
        if found.lag is not None:
            self._sums["projection_lag", "all"] += 1
            # What nobody measures any more may be anything.
            fresh = self._now() - found.lag.measured <= LAG_SECONDS
            if fresh and found.lag.seconds <= self._objectives.projection_lag.threshold:
                self._sums["projection_lag", "good"] += 1

    def _evaluated(self) -> Figures:
        recent, hour = self._since(_SHORT_SECONDS), self._since(_LONG_SECONDS)
        words = self._objectives.words()
        return Figures(
            stores=tuple(_store(store, recent) for store in Store if recent["calls", store.value]),
            slos=tuple(
                _standing(name, words[name], target, recent, hour)
                for name, target in self._objectives.targets().items()
            ),
            consistency=tuple(
                _consistency(name, age, hour)
                for name, age in _AGES.items()
                if hour["verified", name, "consistent"] or hour["verified", name, "inconsistent"]
            ),
        )

    def _since(self, seconds: float) -> Counter[Key]:
        """Return what was counted in the last so many seconds, or since the watch began."""
        at = self._history[-1][0]
        past = self._history[0][1]
        for when, sums in reversed(self._history):
            if when <= at - seconds:
                past = sums
                break
        return Counter({key: value - past[key] for key, value in self._sums.items()})


def _standing(
    name: str, objective: str, target: float, recent: Counter[Key], hour: Counter[Key]
) -> SloStanding:
    ratio, ratio_hour = _share(name, recent), _share(name, hour)
    burn_rate = 0.0
    if ratio is not None and ratio_hour is not None:
        burn_rate = (1 - max(ratio, ratio_hour)) / (1 - target)
    return SloStanding(
        name=name,
        objective=objective,
        target=target,
        ratio=ratio,
        ratio_hour=ratio_hour,
        burn_rate=burn_rate,
        holds=burn_rate <= 1,
    )


def _share(name: str, counts: Counter[Key]) -> float | None:
    total = counts[name, "all"]
    return min(1.0, counts[name, "good"] / total) if total else None


def _store(store: Store, counts: Counter[Key]) -> StoreCalls:
    calls = counts["calls", store.value]
    return StoreCalls(
        store=store,
        calls=round(calls),
        error_ratio=counts["failed", store.value] / calls,
        p95=_quantile(
            sorted(
                (float(key[2]), count)
                for key, count in counts.items()
                if key[:2] == ("took", store.value)
            )
        ),
    )


def _quantile(buckets: list[tuple[float, int]]) -> float | None:
    """Return below which bound 95 of 100 lie, as Prometheus' histogram_quantile has it."""
    if not buckets or not buckets[-1][1]:
        return None
    rank = _QUANTILE * buckets[-1][1]
    low, below = 0.0, 0
    for bound, count in buckets[:-1]:
        if count >= rank:
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    # Beyond the last bound nothing is known.
    return low


def _consistency(name: str, age: timedelta, counts: Counter[Key]) -> Consistency:
    consistent, inconsistent = (
        round(counts["verified", name, outcome]) for outcome in ("consistent", "inconsistent")
    )
    return Consistency(age=age, verified=consistent + inconsistent, inconsistent=inconsistent)
