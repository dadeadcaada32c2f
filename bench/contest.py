"""Contests: Duostore and its floors, measured in turn."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.figures import BenchError, Figures, Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_WARM_UP_SECONDS: Final = 0.5
_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Side:
    """One way to do the work. ``run`` does it for about so many seconds."""

    name: str
    run: Callable[[float], Figures]


@dataclass(frozen=True, slots=True)
class Contest:
    """Duostore against its floors, under a condition that holds for all."""

    name: str
    condition: str
    duostore: Side
    floors: Sequence[Side]

    @property
    def sides(self) -> tuple[Side, ...]:
        """Return who takes part: Duostore first."""
        return (self.duostore, *self.floors)

    def rounds(self, count: int, seconds: float) -> Iterator[tuple[Figures, ...]]:
        """Yield the figures of each round, in the order of the sides.

        A first round that is not yielded lets connections open and caches fill. A round
        that did not measure what it should is repeated, twice at most: the cache is given
        up for a second if a busy machine makes it late once.
        """
        self._round(min(_WARM_UP_SECONDS, seconds))
        for _ in range(count):
            yield self._round(seconds)

    def _round(self, seconds: float) -> tuple[Figures, ...]:
        for _ in range(_ATTEMPTS - 1):
            with suppress(BenchError):
                return tuple(side.run(seconds) for side in self.sides)
        return tuple(side.run(seconds) for side in self.sides)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of Duostore and of one floor, over all rounds.

    ``ratio`` is that of the ratios of the rounds, and not of the spreads.
    """

    figure: str
    duostore: Spread
    floor: Spread
    ratio: Spread


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a contest."""

    contest: Contest
    rounds: Sequence[tuple[Figures, ...]]

    def against(self, floor: int) -> Iterator[Comparison]:
        """Yield the comparison with a floor, figure by figure, of those that both have."""
        for figure in ("per_second", "p50", "p99", "cpu", "sent", "wal"):
            ours = [getattr(sides[0], figure) for sides in self.rounds]
            theirs = [getattr(sides[1 + floor], figure) for sides in self.rounds]
            if None in ours or None in theirs:
                continue
            ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
            yield Comparison(figure, Spread.of(ours), Spread.of(theirs), Spread.of(ratios))
