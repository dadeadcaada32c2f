"""What is done in bulk: so many rows or documents, one after the other, and none waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.figures import Spread

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Round:
    """What Duostore did in a second of one round, and what its floor did.

    ``growth``, where it is measured, is by how many bytes the process that did it grew.
    """

    per_second: float
    floor: float
    growth: float | None = None


@dataclass(frozen=True, slots=True)
class Bulk:
    """What came of some rounds; ``unit`` is what was counted, ``floor`` what it is held against."""

    name: str
    unit: str
    floor: str
    condition: str
    rounds: Sequence[Round]

    @property
    def per_second(self) -> Spread:
        """Return what Duostore did in a second."""
        return Spread.of([each.per_second for each in self.rounds])

    @property
    def floor_per_second(self) -> Spread:
        """Return what the floor did in a second."""
        return Spread.of([each.floor for each in self.rounds])

    @property
    def ratio(self) -> Spread:
        """Return the ratio of the two, taken in each round."""
        return Spread.of([each.per_second / each.floor for each in self.rounds])

    @property
    def growth(self) -> Spread | None:
        """Return by how many bytes the process grew, where that was measured."""
        grown = [each.growth for each in self.rounds if each.growth is not None]
        return Spread.of(grown) if grown else None
