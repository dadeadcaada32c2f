"""The objectives that a configuration declares, as the rest of the server takes them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from duostore_server.domain.objectives import Objectives, Timed

if TYPE_CHECKING:
    from duostore_server.config.settings import Settings


def objectives(settings: Settings) -> Objectives:
    """Return what is promised of a deployment."""
    slo = settings.slo
    return Objectives(
        window=timedelta(seconds=slo.window),
        read_latency=Timed(slo.read_latency.target, slo.read_latency.threshold),
        availability=slo.availability.target,
        projection_lag=Timed(slo.projection_lag.target, slo.projection_lag.threshold),
        consistency=slo.consistency.target,
    )
