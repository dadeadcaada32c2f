"""Tells from what callers saw whether a quota was over-admitted (C7).

Of an admission its caller knows when it asked and when it was answered: it was admitted
somewhere in between. So what is counted against a window is what can be of no other: what
was asked and answered inside of it, or has a ``reset_time`` that rules the later one out.
Given one clock, none of that is ever a false alarm, however slow the answers are.

It knows of a quota what its configuration promises, and nothing of how it is counted.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from duostore_server.domain.quotas import AlgorithmName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from duostore_server.domain.quotas import Quota

_NOTHING: Final = -(10**40)


@dataclass(frozen=True, slots=True)
class Refund:
    """Units that were, or may have been, given back, and not before ``time``.

    By a settlement, answered or not: when it was first sent. By expiry: when that was.
    """

    time: int
    units: int


@dataclass(frozen=True, slots=True)
class Admission:
    """Units that were allowed to one subject. Times are nanoseconds since 1970.

    ``start`` is before the call was sent for the first time, ``end`` after its answer came.
    ``reset_time`` is the answer's, or None if it was ``replayed``. What was allowed
    ``unchecked`` is no admission.
    """

    start: int
    end: int
    cost: int
    reset_time: int | None = None
    refunds: tuple[Refund, ...] = ()

    @property
    def used(self) -> int:
        """How many units were used up in the end."""
        return max(0, self.cost - sum(refund.units for refund in self.refunds))


@dataclass(frozen=True, slots=True)
class Violation:
    """More was admitted between two moments than is allowed there, or at a wrong time.

    ``rule`` names what was counted: a ``window`` (or several in a row), a ``rolling window``,
    a window's ``slots``, an ``interval``. A ``label`` is a reset time before the call began.
    """

    rule: str
    first: int
    last: int
    admitted: int
    allowed: int

    def __str__(self) -> str:
        return f"{self.rule} [{self.first}, {self.last}]: {self.admitted} of {self.allowed}"


def violations(
    quota: Quota, limit: int, admissions: Iterable[Admission], *, exact_labels: bool = False
) -> list[Violation]:
    """Return where too much was admitted to one subject with this limit; empty if nowhere.

    Takes O(n log n), and with refunds that times the sub-windows. Of windows and intervals
    only the worst is named. ``exact_labels``: a reset time tells the very slot that was
    debited, and not merely the last one that it can be.
    """
    window = quota.window // timedelta(microseconds=1) * 1000
    history = sorted(admissions, key=lambda each: each.start)
    match quota.algorithm:
        case AlgorithmName.FIXED_WINDOW:
            slots = _Slots(window, 0, history, exact=exact_labels)
            return [*slots.mislabelled(), *_of_windows(limit, slots), *slots.overfull(limit)]
        case AlgorithmName.SLIDING_WINDOW:
            length = -(-window // quota.sub_windows)
            slots = _Slots(length, quota.sub_windows, history, exact=exact_labels)
            return [
                *slots.mislabelled(),
                *_of_rolling_windows(limit, window, history),
                *slots.overfull(limit),
            ]
        case AlgorithmName.TOKEN_BUCKET:
            return list(_of_intervals(limit, window, history))


class _Slots:
    """Admissions by the slots of which they can be, from the first to the last."""

    def __init__(
        self, length: int, past: int, history: Sequence[Admission], *, exact: bool
    ) -> None:
        self.length = length
        self._past = past
        self.ranges: list[tuple[int, int, Admission]] = []
        self._wrong: list[Admission] = []
        for each in history:
            first, last = each.start // length, each.end // length
            if each.reset_time is not None:
                label = -(-each.reset_time // length) - past - 1
                if label < first or (exact and label > last):
                    self._wrong.append(each)
                    continue
                first, last = (label if exact else first), min(label, last)
            self.ranges.append((first, last, each))

    def mislabelled(self) -> Iterator[Violation]:
        """Yield what resets before it can have been used."""
        for each in self._wrong:
            yield Violation("label", each.start, each.end, each.cost, 0)

    def overfull(self, limit: int) -> Iterator[Violation]:
        """Yield the slots that were over the limit together with those before them.

        At any moment: what was given back later was used until then.
        """
        together: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for first, last, each in self.ranges:
            changes = [(each.end, each.cost)]
            changes.extend((max(each.end, r.time), -r.units) for r in each.refunds)
            for slot in range(last, first + self._past + 1):
                together[slot].extend(changes)
        for slot, changes in sorted(together.items()):
            most = used = 0
            for _, change in sorted(changes):
                used += change
                most = max(most, used)
            if most > limit:
                begin = (slot - self._past) * self.length
                yield Violation("slots", begin, (slot + 1) * self.length, most, limit)


def _of_windows(limit: int, slots: _Slots) -> Iterator[Violation]:
    """Yield the worst row of windows: over any row, what can be of no other has to fit."""
    points = [(first, last, each.used) for first, last, each in slots.ranges]
    densest = _densest(points, limit)
    if densest is not None and densest.excess > limit:
        windows = densest.last - densest.first + 1
        first, last = densest.first * slots.length, (densest.last + 1) * slots.length
        yield Violation("window", first, last, densest.weight, limit * windows)


def _of_rolling_windows(
    limit: int, window: int, history: Sequence[Admission]
) -> Iterator[Violation]:
    """Yield the worst rolling window, its end not included."""
    worst = Violation("rolling window", 0, 0, 0, limit)
    inside: list[tuple[int, int]] = []
    used = 0
    for each in reversed(history):
        end = each.start + window
        heapq.heappush(inside, (-each.end, each.used))
        used += each.used
        while inside and -inside[0][0] >= end:
            used -= heapq.heappop(inside)[1]
        if used > worst.admitted:
            worst = Violation("rolling window", each.start, end, used, limit)
    if worst.admitted > limit:
        yield worst


def _of_intervals(limit: int, window: int, history: Sequence[Admission]) -> Iterator[Violation]:
    """Yield the worst interval: ``limit`` at once, and as many again in each window.

    What was given back after the interval was used in it.
    """
    # In units times nanoseconds, so that nothing is rounded.
    points = []
    for each in history:
        points.append((each.start, each.end, each.cost * window))
        points.extend(
            (each.start, max(each.end, refund.time), -refund.units * window)
            for refund in each.refunds
        )
    densest = _densest(points, limit)
    if densest is not None and densest.excess > limit * window:
        first, last = densest.first, densest.last
        allowed = limit + limit * (last - first) // window
        yield Violation("interval", first, last, densest.weight // window, allowed)


@dataclass(frozen=True, slots=True)
class _Densest:
    """The interval with the most weight in it, less what flows off: ``excess``."""

    first: int
    last: int
    weight: int
    excess: int


def _densest(points: Sequence[tuple[int, int, int]], rate: int) -> _Densest | None:
    """Return the interval ``[first, last]`` of the greatest excess, None if there is no point.

    A point is its first, its last and a weight, which counts for an interval that both lie
    in. The excess is the sum of weights less ``rate`` times the interval's length.
    """
    if not points:
        return None
    # At the same moment, what is given back comes first.
    by_last = sorted(range(len(points)), key=lambda index: points[index][1:])
    place = {index: position for position, index in enumerate(by_last)}
    lasts = [points[index][1] for index in by_last]
    row = _Row([later - sooner for sooner, later in pairwise(lasts[:1] + lasts)], rate)
    worst: _Densest | None = None
    by_first = sorted(range(len(points)), key=lambda index: points[index][0], reverse=True)
    for position, index in enumerate(by_first):
        first, _, weight = points[index]
        row.put(place[index], weight)
        following = by_first[position + 1 : position + 2]
        if following and points[following[0]][0] == first:
            continue
        best, end = row.best
        excess = best + rate * (first - lasts[0])
        if end is not None and (worst is None or excess > worst.excess):
            length = lasts[end] - first
            worst = _Densest(first, lasts[end], excess + rate * length, excess)
    return worst


class _Row:
    """The greatest sum that a row has from its beginning up to a weight above 0.

    The row consists of gaps, which count ``-rate`` each, and of a weight after each of them;
    those are put one by one.
    """

    def __init__(self, gaps: Sequence[int], rate: int) -> None:
        self._size = 1 << (len(gaps) - 1).bit_length()
        self._sums = [0] * (2 * self._size)
        self._bests: list[tuple[int, int | None]] = [(_NOTHING, None)] * (2 * self._size)
        for place, gap in enumerate(gaps):
            self._sums[self._size + place] = -rate * gap
        for node in range(self._size - 1, 0, -1):
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]

    @property
    def best(self) -> tuple[int, int | None]:
        """The greatest sum, and the place at which it ends, if there is any."""
        return self._bests[1]

    def put(self, place: int, weight: int) -> None:
        """Put a weight at its place."""
        node = self._size + place
        self._sums[node] += weight
        if weight > 0:
            self._bests[node] = self._sums[node], place
        while node > 1:
            node //= 2
            left, right = 2 * node, 2 * node + 1
            best, end = self._bests[right]
            best += self._sums[left]
            self._sums[node] = self._sums[left] + self._sums[right]
            # Less than nothing is never the best.
            here = self._bests[left]
            self._bests[node] = here if end is None or best <= here[0] else (best, end)
