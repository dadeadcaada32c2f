"""The figures of a round, and how far those of several rounds lie apart."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class BenchError(Exception):
    """A measurement did not measure what it says it does."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one side did in one round.

    ``p50`` and ``p99`` are the seconds that a call took; ``cpu`` those of CPU that the process
    which is measured spent on it, ``sent`` its requests to DynamoDB for it, and ``wal`` the
    bytes that PostgreSQL wrote to its log for it, where these are measured.
    """

    per_second: float
    p50: float
    p99: float
    cpu: float | None = None
    sent: float | None = None
    wal: float | None = None

    @classmethod
    def of(cls, latencies: Sequence[float], elapsed: float) -> Figures:
        """Return the figures of calls that together took ``elapsed`` seconds.

        Raises ``BenchError`` if there was no call.
        """
        if not latencies:
            raise BenchError("no call was answered in a whole round")
        ordered = sorted(latencies)
        return cls(len(ordered) / elapsed, _quantile(ordered, 0.50), _quantile(ordered, 0.99))


def _quantile(ordered: Sequence[float], part: float) -> float:
    """Return the smallest value that at least this part of the values does not exceed."""
    return ordered[math.ceil(part * len(ordered)) - 1]


@dataclass(frozen=True, slots=True)
class Spread:
    """The least, the middle and the greatest of some values."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(min(values), statistics.median(values), max(values))
