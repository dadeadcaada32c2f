"""The definition of the objectives of the service."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from duostore_server.config.section import Section, duration, setting
from duostore_server.config.values import Duration, Form, duration_text
from duostore_server.domain.objectives import RPC_BOUNDS

# By which calls are counted; those that can be written as a duration.
_THRESHOLDS: Final = tuple(
    duration_text(bound) for bound in RPC_BOUNDS if (bound * 1000).is_integer()
)


def _share(value: object) -> float:
    try:
        share = float(value) if isinstance(value, (str, float)) else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ValueError("must be a share between 0 and 1, such as 0.999")
    return share


def _counted(seconds: float) -> float:
    if seconds not in RPC_BOUNDS:
        raise ValueError(f"must be one of {', '.join(_THRESHOLDS)}: calls are counted by these")
    return seconds


Share: TypeAlias = Annotated[
    float,
    BeforeValidator(_share),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
    Form("share between 0 and 1", float),
]
Threshold: TypeAlias = Annotated[Duration, AfterValidator(_counted)]


class ReadLatency(Section):
    """``[slo.read_latency]``."""

    target: Share = setting(0.95, "The share of Gets that are answered within `threshold`.")
    threshold: Threshold = duration(
        "50ms",
        f"How long a Get may take: {', '.join(f'`{bound}`' for bound in _THRESHOLDS)}.",
        "1ms",
        "30s",
    )


class Availability(Section):
    """``[slo.availability]``."""

    target: Share = setting(0.999, "The share of calls that do not fail by fault of the service.")


class ProjectionLag(Section):
    """``[slo.projection_lag]``."""

    target: Share = setting(0.999, "The share of time in which the lag is within `threshold`.")
    threshold: Duration = duration(
        "5s", "How old the oldest change may be that is not projected yet.", "1s", "1h"
    )


class Consistency(Section):
    """``[slo.consistency]``."""

    target: Share = setting(
        0.9999, "The share of verified saves that are found right 60 s after they were made."
    )


class Slo(Section):
    """``[slo]``."""

    window: Duration = duration(
        "30d",
        "The time over which the targets are to be met, for which Prometheus has to keep what it "
        "scrapes.",
        "7d",
        "90d",
    )
    read_latency: ReadLatency = Field(
        default_factory=ReadLatency, description="How long a Get takes."
    )
    availability: Availability = Field(
        default_factory=Availability, description="How many calls fail."
    )
    projection_lag: ProjectionLag = Field(
        default_factory=ProjectionLag, description="How long changes wait to be projected."
    )
    consistency: Consistency = Field(
        default_factory=Consistency, description="Whether the stores agree, as the verifier finds."
    )
