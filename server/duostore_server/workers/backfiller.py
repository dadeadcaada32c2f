"""The backfiller: projects all entities of a kind anew, part by part, beside live traffic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from duostore_server.domain.backfills import Batch
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreError
from duostore_server.workers.loop import IncompleteRoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from duostore_server.access.reprojecting import Reprojecting
    from duostore_server.domain.admin_ports import Backfills, Entities
    from duostore_server.domain.backfills import BackfillPart

# What is set is in force everywhere within two seconds. A batch that began before would leave
# behind what others still write without a shape that was switched on.
SETTLE_SECONDS: Final = 2.5

_AURORA_SECONDS: Final = 2.0
_CLAIM_EVERY_SECONDS: Final = 1.0
# Of a part that was noted so long ago the claim is renewed before anything else. It may have to
# wait for a round that is under way, which lasts as long as a claim of others, a batch and its
# checkpoint: all of it is less than ``CLAIM_SECONDS``.
_HOLD_EVERY_SECONDS: Final = 1.5
_BATCH_SECONDS: Final = 6.0
# A batch of a part with a rate is what that allows in this time.
_PACE_SECONDS: Final = 0.5
# What is made up for of time that was lost.
_MOST_BEHIND_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Held:
    """A part that is held: None once it is not. Times are of the clock.

    Its claim was last renewed at ``noted``. From ``since`` on ``done`` entities are to be paid
    for, by waiting, at the rate that the part has by now.
    """

    part: BackfillPart | None
    since: float
    noted: float
    done: int = 0

    def due(self, part: BackfillPart) -> float:
        """Return when the next batch of the part may begin."""
        return self.since + (self.done / part.rate if part.rate else 0.0)

    def is_due(self, now: float) -> bool:
        """Return whether the next batch may begin."""
        return self.part is not None and self.due(self.part) <= now

    def is_slipping(self, now: float) -> bool:
        """Return whether the claim has to be renewed."""
        return now >= self.noted + _HOLD_EVERY_SECONDS


class Each(Protocol):
    """Applies a function to parts and yields the results in their order: ``map``, for one."""

    def __call__(
        self, function: Callable[[Held], bool], parts: Iterable[Held], /
    ) -> Iterable[bool]:
        """Yield ``function(part)`` for each part, in order."""
        ...


class Backfiller:
    """Works off parts of backfills, a batch of each at a time.

    A process that dies loses what it did since the last checkpoint, at most a batch of each
    part; doing it again changes nothing, for only what DynamoDB lacks is put, and only if it
    is newer or lacks a shape. A part of which anything fails is let go, and taken up when its
    claim has run out, by whomever. Any number of processes may work side by side.
    """

    def __init__(
        self,
        *,
        backfills: Backfills,
        entities: Entities,
        reprojecting: Reprojecting,
        kinds: Collection[str],
        workers: int,
        batch: int,
        clock: Callable[[], float],
        backfilled: Callable[[str, str, int], None],
        each: Each = map,
        settle: float = SETTLE_SECONDS,
    ) -> None:
        """``workers`` is the most parts that are held at a time; ``each`` may do them at once.

        ``kinds`` are those that are at home in Aurora here. ``clock`` is monotonic, in
        seconds. ``backfilled`` counts entities by kind and outcome. The first batch begins
        ``settle`` seconds after a backfill was found.
        """
        self._backfills = backfills
        self._entities = entities
        self._reprojecting = reprojecting
        self._kinds = kinds
        self._workers = workers
        self._batch = batch
        self._clock = clock
        self._backfilled = backfilled
        self._each = each
        self._settle = settle
        self._held: list[Held] = []
        self._claim_at = 0.0
        # When the first batch of each backfill that is held may begin.
        self._begin: dict[int, float] = {}

    def run_once(self) -> bool:
        """Do a batch of each part that is due; return True if one is due at once.

        Raises ``IncompleteRoundError`` if some failed; they are taken up again by themselves.
        """
        now = self._clock()
        if len(self._held) < self._workers and now >= self._claim_at:
            self._claim(now)
            now = self._clock()
        ready = [held for held in self._held if held.is_due(now) or held.is_slipping(now)]
        before = len(self._held)
        try:
            done = list(self._each(self._step, ready))
        finally:
            self._held = [held for held in self._held if held.part is not None]
        if failed := done.count(False):
            raise IncompleteRoundError(
                f"{failed} of {len(ready)} parts of backfills could not go on yet"
            )
        now = self._clock()
        if len(self._held) < before:
            # Others may wait for the place of a part that has come to its end.
            self._claim_at = now
            return True
        return any(held.is_due(now) for held in self._held)

    def _claim(self, now: float) -> None:
        self._claim_at = now + _CLAIM_EVERY_SECONDS
        room = self._workers - len(self._held)
        parts = self._backfills.claim(self._kinds, room, self._within(_AURORA_SECONDS))
        held = {held.part.backfill for held in self._held if held.part is not None}
        held |= {part.backfill for part in parts}
        # One of which nothing is held any more may have been paused, and flags set meanwhile.
        self._begin = {id_: self._begin.get(id_, now + self._settle) for id_ in held}
        # Those who hold others hear by then that the rate is shared by one more.
        paced = now + _PACE_SECONDS
        for part in parts:
            begin = self._begin[part.backfill]
            self._held.append(Held(part, max(begin, paced) if part.rate else begin, now))

    def _step(self, held: Held) -> bool:
        """Do a batch of a part, or hold on to it; return False if it had to be let go."""
        part, held.part = held.part, None
        if part is None:
            return True
        try:
            held.part = self._go_on(part, held)
        except (StoreError, DeadlineExceededError) as error:
            _log.warning(
                "part of a backfill let go",
                kind=part.kind,
                part=part.number,
                error=str(error),
            )
            return False
        return True

    def _go_on(self, part: BackfillPart, held: Held) -> BackfillPart | None:
        began = self._clock()
        if held.is_slipping(began):
            again = self._backfills.hold(part, self._within(_AURORA_SECONDS))
            if again is None:
                return None
            held.noted, part, began = began, again, self._clock()
        due = held.due(part)
        if due > began:
            return part
        batch = self._do(part, self._within(_BATCH_SECONDS))
        noted = self._clock()
        # With time of its own: what is done must not be done again.
        advanced = self._backfills.advance(part, batch, self._within(_AURORA_SECONDS))
        if advanced.is_counted:
            self._count(part.kind, batch)
        held.noted = noted
        held.since, held.done = max(due, began - _MOST_BEHIND_SECONDS), batch.done
        return advanced.part

    def _do(self, part: BackfillPart, deadline: Deadline) -> Batch:
        limit = self._batch
        if part.rate:
            limit = max(1, min(limit, math.ceil(part.rate * _PACE_SECONDS)))
        page = self._entities.page(part.kind, part.after, part.until, limit, deadline)
        projected, failed = self._reprojecting.bring(page.entities, deadline)
        return Batch(page.last, len(page.entities), projected, failed)

    def _within(self, seconds: float) -> Deadline:
        return Deadline.after(seconds, clock=self._clock)

    def _count(self, kind: str, batch: Batch) -> None:
        unchanged = batch.done - batch.projected - batch.failed
        for outcome, count in (
            ("projected", batch.projected),
            ("unchanged", unchanged),
            ("failed", batch.failed),
        ):
            if count:
                self._backfilled(kind, outcome, count)
