"""What panels of the dashboard are made of, and the forms of query that they share.

Where nothing is the healthy state a query answers 0: an empty panel says that nothing is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

AT: Final = 'job="$job",instance=~"$instance"'
KIND: Final = 'kind=~"$kind"'
RANGE: Final = "[$__rate_interval]"
GREEN_TO_RED: Final = ((0, "green"), (1, "red"))
RED_TO_GREEN: Final = ((0, "red"), (1, "green"))


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of Prometheus, and how a series of the answer is called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; ``unit`` is one of Grafana's, ``width`` of 24, ``colours`` begin at values."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    form: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    decimals: int | None = None
    least: float | None = 0
    most: float | None = None
    words: Mapping[int, str] = field(default_factory=dict)
    colours: tuple[tuple[float, str], ...] = ()


def rate(labels: str, selector: str) -> str:
    """Return the rate of counters, added up by some labels."""
    return f"sum by ({labels}) (rate({selector}{RANGE}))"


def of(metric: str, *matchers: str) -> str:
    """Return the series of a metric that are chosen above the panels."""
    return f"{metric}{{{','.join((AT, *matchers))}}}"


def share(labels: str, metric: str, part: str, *matchers: str) -> str:
    """Return the share of a part by some labels, 0 where there is none of it."""
    whole = rate(labels, of(metric, *matchers))
    return f"({rate(labels, of(metric, *matchers, part))} or {whole} * 0) / ({whole} > 0)"


def quantiles(labels: str, legend: str, metric: str, *matchers: str) -> tuple[Query, ...]:
    """Return median, 95th and 99th percentile of a histogram."""
    buckets = rate(f"{labels}, le", of(f"{metric}_bucket", *matchers))
    return tuple(
        Query(f"histogram_quantile({q}, {buckets})", f"p{round(q * 100)} {legend}")
        for q in (0.5, 0.95, 0.99)
    )


def or_zero(expr: str, label: str, name: str) -> str:
    """Return the expression, and a zero that is called by a name while it answers nothing."""
    return f'{expr} or on () label_replace(vector(0), "{label}", "{name}", "", "")'
