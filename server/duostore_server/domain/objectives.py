"""What is promised of the service: its objectives, and the bounds by which calls are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import timedelta

# Of the histogram of RPCs, in seconds: from a hit of the cache to a call that is given up.
# Whether a call was quicker than something else is not known afterwards.
RPC_BOUNDS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)

# The age at which saves have to be found right, as the verifier names it.
CONSISTENCY_AGE: Final = "60s"


@dataclass(frozen=True, slots=True)
class Timed:
    """A share of something that has to be within ``threshold`` seconds."""

    target: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Objectives:
    """The objectives of a deployment; every target is a share between 0 and 1.

    ``read_latency`` is of Gets that were answered, by one of ``RPC_BOUNDS``; ``availability`` of
    calls that do not fail by fault of the service; ``projection_lag`` of the time in which the
    oldest change that waits is young enough; ``consistency`` of saves that are found right
    ``CONSISTENCY_AGE`` after they were made. ``window`` is the time over which they are to be met.
    """

    window: timedelta
    read_latency: Timed
    availability: float
    projection_lag: Timed
    consistency: float

    def targets(self) -> dict[str, float]:
        """Return the target of each, by its name, in the order in which they are told."""
        return {
            "read_latency": self.read_latency.target,
            "availability": self.availability,
            "projection_lag": self.projection_lag.target,
            "consistency": self.consistency,
        }

    def words(self) -> dict[str, str]:
        """Return what each promises, by its name, as ``99.9 % of ...``."""
        share = {name: f"{target * 100:.10g} %" for name, target in self.targets().items()}
        return {
            "read_latency": f"{share['read_latency']} of Gets are answered within "
            f"{_shown(self.read_latency.threshold)}",
            "availability": f"{share['availability']} of calls do not fail by fault of the service",
            "projection_lag": f"{share['projection_lag']} of the time no change waits for more "
            f"than {_shown(self.projection_lag.threshold)} to be projected",
            "consistency": f"{share['consistency']} of saves are found right in DynamoDB and the "
            "cache 60 s after they were made",
        }


def _shown(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
