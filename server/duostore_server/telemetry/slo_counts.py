"""What the objectives count, read off the metrics; the rules of Prometheus say it in PromQL."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from duostore_server.domain.objectives import CONSISTENCY_AGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import Metric
    from prometheus_client.samples import Sample

    from duostore_server.domain.objectives import Objectives

# Codes by which a call fails by fault of the service, or may. That the caller's own deadline was
# too short cannot be told from a service that hangs.
FAULTS: Final = (
    "DATA_LOSS",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "UNKNOWN",
)
# Calls of those who operate the service are no part of what is promised to its callers.
ADMIN_METHODS: Final = (
    "Backfill",
    "CheckConsistency",
    "Explain",
    "GetStatus",
    "ListFlags",
    "SetFlag",
    "SetReadOnly",
)
# Outcomes by which a call of a store fails by fault of the store.
STORE_FAULTS: Final = ("error", "overloaded", "timeout", "unavailable", "unknown")
# How old the measurement of the projection lag may be to be one.
LAG_SECONDS: Final = 60.0

# What is counted: of an objective ("read_latency", "good" or "all"); of a store ("calls",
# "aurora"), ("failed", "aurora") and, up to a bound, ("took", "aurora", "0.05"); of the verifier
# ("verified", "60s", "consistent").
Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lag:
    """The projection lag in seconds, and when it was measured, since the epoch."""

    seconds: float
    measured: float


@dataclass(slots=True)
class Counted:
    """Sums since the processes began; ``lag`` is None if nobody measures it here."""

    sums: Counter[Key] = field(default_factory=Counter)
    lag: Lag | None = None


def counted(families: Iterable[Metric], objectives: Objectives) -> Counted:
    """Return what the metrics say that matters to the objectives."""
    found = Counted()
    lag, measured = 0.0, None
    for family in families:
        for sample in family.samples:
            if sample.name == "duostore_projection_lag_seconds":
                lag = sample.value
            elif sample.name == "duostore_background_last_success_timestamp_seconds":
                if sample.labels["work"] == "backlog":
                    measured = sample.value
            else:
                for key in _keys(sample, objectives):
                    found.sums[key] += round(sample.value)
    if measured is not None:
        found.lag = Lag(lag, measured)
    return found


def _keys(sample: Sample, objectives: Objectives) -> Iterable[Key]:
    """Yield the sums that a sample is a part of."""
    labels = sample.labels
    match sample.name:
        case "duostore_rpc_duration_seconds_count":
            yield from _calls(labels)
        case "duostore_rpc_duration_seconds_bucket":
            if (
                _is_answered_get(labels)
                and float(labels["le"]) == objectives.read_latency.threshold
            ):
                yield ("read_latency", "good")
        case "duostore_store_calls_total":
            yield ("calls", labels["store"])
            if labels["outcome"] in STORE_FAULTS:
                yield ("failed", labels["store"])
        case "duostore_store_call_duration_seconds_bucket":
            yield ("took", labels["store"], labels["le"])
        case "duostore_verified_total":
            yield from _verified(labels)


def _calls(labels: Mapping[str, str]) -> Iterable[Key]:
    if labels["method"] not in ADMIN_METHODS:
        yield ("availability", "all")
        if labels["code"] not in FAULTS:
            yield ("availability", "good")
    if _is_answered_get(labels):
        yield ("read_latency", "all")


def _verified(labels: Mapping[str, str]) -> Iterable[Key]:
    yield ("verified", labels["age"], labels["outcome"])
    if labels["age"] == CONSISTENCY_AGE and labels["outcome"] != "undecided":
        yield ("consistency", "all")
        if labels["outcome"] == "consistent":
            yield ("consistency", "good")


def _is_answered_get(labels: Mapping[str, str]) -> bool:
    return labels["method"] == "Get" and labels["code"] not in FAULTS
