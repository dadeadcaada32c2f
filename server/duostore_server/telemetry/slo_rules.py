"""The objectives as rules for Prometheus: what is recorded of them, and when to tell whom.

The alerts are those of the SRE workbook's chapter on alerting: a budget burns too fast over a
long window, and over a short one still. All is by job, so that one Prometheus may watch several
deployments.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from duostore_server.domain.objectives import CONSISTENCY_AGE
from duostore_server.telemetry.alerts import ALERTS
from duostore_server.telemetry.rule_files import Alert, Group, Recording, written
from duostore_server.telemetry.slo_counts import ADMIN_METHODS, FAULTS, LAG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.objectives import Objectives

# Longer than 5m, of which the counts themselves are.
_WINDOWS: Final = ("30m", "1h", "2h", "6h", "1d", "3d")
# severity, the share of the budget that may go in the long window, the two windows, and how long
# it has to go on: what was scraped for minutes only is a short window, too.
_BURNS: Final = (
    ("page", 0.02, "1h", "5m", "2m"),
    ("page", 0.05, "6h", "30m", "15m"),
    ("ticket", 0.10, "1d", "2h", "1h"),
    ("ticket", 0.10, "3d", "6h", "3h"),
)
_HOURS: Final = {"1h": 1, "6h": 6, "1d": 24, "3d": 72}
_RUNBOOK: Final = "docs/operations.md#slos-and-alerts"
_PREFACE: Final = """\
Written by `duostore slo rules`, from [slo] of the configuration: do not edit.

Severities: page wakes somebody, ticket waits for the day. What a burn of a page says, the
ticket of the same slo and job need not say again: inhibit it in Alertmanager."""

_FAULTY: Final = f'code=~"{"|".join(FAULTS)}"'
_ANSWERED: Final = f'code!~"{"|".join(FAULTS)}"'
_PUBLIC: Final = f'method!~"{"|".join(ADMIN_METHODS)}"'


def rules(objectives: Objectives) -> str:
    """Return the file of rules for a deployment, in YAML."""
    groups = (
        Group("duostore_slo", "30s", (*_counts(objectives), *_burns())),
        Group("duostore_slo_budget", "5m", tuple(_budget(objectives))),
        Group("duostore_slo_alerts", "30s", tuple(_alerts(objectives))),
        Group("duostore_alerts", "30s", ALERTS),
    )
    return written(_PREFACE, groups, _RUNBOOK)


def _counts(objectives: Objectives) -> Iterator[Recording]:
    """Yield what there was a second, and what of it was bad: the same series of both."""
    for name, target in objectives.targets().items():
        yield Recording("duostore:slo_budget:ratio", f"vector({1 - target:.10g})", {"slo": name})
    measured = 'duostore_background_last_success_timestamp_seconds{work="backlog"}'
    yield Recording(
        "duostore:projection_lag:seconds",
        f"""
        max by (job) (
          duostore_projection_lag_seconds
          and on (job, instance)
          time() - {measured} < {LAG_SECONDS:g}
        )
        """,
    )
    # What nobody measures any more is late.
    yield Recording(
        "duostore:projection_late:bool",
        f"""
        duostore:projection_lag:seconds > bool {objectives.projection_lag.threshold:g}
        or
        group by (job) ({measured})
        """,
    )
    calls = "duostore_rpc_duration_seconds"
    # As the client of Prometheus writes bounds.
    within = repr(objectives.read_latency.threshold)
    verified = f'duostore_verified_total{{age="{CONSISTENCY_AGE}",outcome='
    gets = _rate(f'{calls}_count{{method="Get",{_ANSWERED}}}')
    quick = _rate(f'{calls}_bucket{{method="Get",{_ANSWERED},le="{within}"}}')
    public = _rate(f"{calls}_count{{{_PUBLIC}}}")
    failed = _rate(f"{calls}_count{{{_PUBLIC},{_FAULTY}}}")
    looks = _rate(f'{verified}~"consistent|inconsistent"}}')
    wrong = _rate(f'{verified}"inconsistent"}}')
    waited = "avg_over_time(duostore:projection_late:bool[5m])"
    for slo, total, bad in (
        ("read_latency", gets, f"clamp_min(\n  {gets}\n  -\n  {quick},\n  0\n)"),
        ("availability", public, _or_none(failed, public)),
        ("projection_lag", f"{waited} * 0 + 1", waited),
        ("consistency", looks, _or_none(wrong, looks)),
    ):
        yield Recording("duostore:slo_total:rate5m", total, {"slo": slo})
        yield Recording("duostore:slo_bad:rate5m", bad, {"slo": slo})


def _rate(selector: str) -> str:
    return f"sum by (job) (rate({selector}[5m]))"


def _or_none(bad: str, total: str) -> str:
    """Return what was bad, 0 where nothing ever was."""
    return f"{bad}\nor\n{total} * 0"


def _burns() -> Iterator[Recording]:
    """Yield how fast budgets burn over each window; nothing of windows without a call.

    Long windows weigh each moment by its calls.
    """
    yield Recording(
        "duostore:slo_burn:rate5m",
        """
        duostore:slo_bad:rate5m / (duostore:slo_total:rate5m > 0)
        / on (slo) group_left
        duostore:slo_budget:ratio
        """,
    )
    for window in _WINDOWS:
        yield Recording(f"duostore:slo_burn:rate{window}", _burn(window))


def _burn(window: str) -> str:
    return f"""
        avg_over_time(duostore:slo_bad:rate5m[{window}])
        / (avg_over_time(duostore:slo_total:rate5m[{window}]) > 0)
        / on (slo) group_left
        duostore:slo_budget:ratio
        """


def _budget(objectives: Objectives) -> Iterator[Recording]:
    """Yield what is left of budgets; seldom, since it reads all of the window."""
    burnt = f"duostore:slo_burn:rate{_days(objectives)}d"
    yield Recording(burnt, _burn(f"{_days(objectives)}d"))
    yield Recording("duostore:slo_budget_left:ratio", f"1 - {burnt}")


def _days(objectives: Objectives) -> int:
    # Of a window of hours, whole days are near enough.
    return round(objectives.window / timedelta(days=1))


def _alerts(objectives: Objectives) -> Iterator[Alert]:
    for severity, share, long, short, hold in _BURNS:
        hours = objectives.window / timedelta(hours=1)
        # Slower than 1 it lasts.
        factor = f"{max(1.0, share * hours / _HOURS[long]):.4g}"
        yield Alert(
            "DuostoreSloBurn",
            severity,
            f"duostore:slo_burn:rate{long} > {factor} and duostore:slo_burn:rate{short} > {factor}",
            hold,
            "{{ $labels.job }}: the error budget of {{ $labels.slo }} burns "
            "{{ $value | humanize }} times too fast",
            f"Over the last {long}, and still over the last {short}, so much failed the "
            f"objective {{{{ $labels.slo }}}} that what may fail in {_days(objectives)} days "
            f"burns more than {factor} times too fast.",
            {"long": long, "short": short},
        )
