"""The fan-out: from the change of a source to the documents that it touches."""

from __future__ import annotations

import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Protocol

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreError, StoreTimeoutError
from duostore_server.workers.loop import IncompleteRoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from duostore_server.access.propagation import Propagation
    from duostore_server.domain.ports import Outbox, SourceChanges, StaleDocuments
    from duostore_server.domain.read_models import Outcome, SourceChange, StaleDocument

_CLAIM_SECONDS: Final = 2.0
# As long as a claim of changes holds, or nearly: what is left then is another's to claim.
_ROUND_SECONDS: Final = 4.0
_TOGETHER_SECONDS: Final = 3.0
_PAGE_SECONDS: Final = 60.0
# Each page of a change finds all that it touches: the fewer pages, the less is found in vain.
_LONG_PAGE_SECONDS: Final = 0.5
_LARGEST_PAGE: Final = 20_000
# Changes whose pages have grown. More are hardly under way, and to forget them does no harm.
_MOST_GROWN: Final = 1000
_LOT_SECONDS: Final = 30.0
_PROPAGATE_SECONDS: Final = 5.0
_COMPLETE_SECONDS: Final = 2.0
# Documents that are recomputed in one transaction. It holds their locks until it ends.
_LOT: Final = 25


class Brought(Enum):
    """How far a lot of stale documents has come."""

    NOT_RECOMPUTED = auto()
    NOT_ON = auto()
    NOTHING = auto()
    ON = auto()


class Each(Protocol):
    """Applies a function to lots and yields the results in their order: ``map``, for one."""

    def __call__(
        self,
        function: Callable[[Sequence[StaleDocument]], Brought],
        lots: Iterable[Sequence[StaleDocument]],
        /,
    ) -> Iterable[Brought]:
        """Yield ``function(lot)`` for each lot, in order."""
        ...


class Expander:
    """Works off changes of sources: finds the documents that they touch, a page at a time.

    A page and how far the change has come are committed together, so that one that dies
    repeats nothing and leaves nothing out. Small changes of one source are expanded
    together. A change that touches millions of documents goes on only while few documents
    wait to be recomputed: what smaller changes touch is then never behind more than those,
    and its own page, which grows while pages of it take long.
    """

    def __init__(
        self,
        *,
        changes: SourceChanges,
        batch: int,
        page: int,
        most_stale: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``page`` documents of a change are found at a time, at first.

        Of changes that are begun no more are found while ``most_stale`` documents wait.
        """
        self._changes = changes
        self._batch = batch
        self._page = page
        self._most_stale = most_stale
        self._clock = clock
        self._grown: dict[int, int] = {}
        # Kept from round to round, so that what is too much in the time of one is done in more.
        self._together = batch

    def run_once(self) -> bool:
        """Expand one batch of changes by a page each; return True if there may be more.

        Raises ``IncompleteRoundError`` if some could not be; they fall due again, and so do
        those that are not come to in time.
        """
        waiting = self._changes.waiting(self._most_stale, Deadline.after(_CLAIM_SECONDS))
        room = self._most_stale - waiting
        round_ = Deadline.after(_ROUND_SECONDS, clock=self._clock)
        changes = self._changes.claim(self._batch, Deadline.after(_CLAIM_SECONDS), fresh=room <= 0)
        failed = 0
        # Taken from its end.
        left = _grouped(changes, self._together)[::-1]
        while left and not round_.is_over():
            group = left.pop()
            if group[0].begun and room <= 0:
                # Due again when its claim runs out.
                continue
            try:
                touched = self._expand(group)
            except (StoreError, DeadlineExceededError):
                failed += len(group)
                continue
            if touched is None:
                self._together = half = len(group) // 2
                left += [group[half:], group[:half]]
            else:
                room -= touched
                if not group[0].alone:
                    self._together = min(max(self._together, 2 * len(group)), self._batch)
        if failed:
            raise IncompleteRoundError(
                f"{failed} of {len(changes)} changes of sources could not be expanded yet"
            )
        return bool(changes)

    def _expand(self, group: Sequence[SourceChange]) -> int | None:
        """Return how many documents became stale; None if it has to be done in parts."""
        if len(group) > 1:
            deadline = Deadline.after(_TOGETHER_SECONDS)
            try:
                together = self._changes.expand_together(group, self._page, deadline)
            except (StoreTimeoutError, DeadlineExceededError):
                return None
            return None if together is None else together.touched
        (change,) = group
        deadline = Deadline.after(_PAGE_SECONDS)
        page = self._grown.pop(change.id, self._page)
        began = self._clock()
        expansion = self._changes.expand(change, page, deadline)
        if expansion.touched and not expansion.done:
            if self._clock() - began > _LONG_PAGE_SECONDS:
                page = max(page, min(2 * page, _LARGEST_PAGE))
            if len(self._grown) >= _MOST_GROWN:
                self._grown.clear()
            self._grown[change.id] = page
        return expansion.touched


def _grouped(changes: Sequence[SourceChange], most: int) -> list[Sequence[SourceChange]]:
    """Return changes in groups of up to ``most`` that may be expanded together.

    In the order of their first ones, but for groups that are parted: those stay together.
    """
    groups: dict[tuple[str, ...], list[SourceChange]] = {}
    for change in changes:
        alone = (str(change.id),) if change.alone or change.begun else ()
        groups.setdefault((change.kind, change.source, *alone), []).append(change)
    return [
        group[start : start + most]
        for group in groups.values()
        for start in range(0, len(group), most)
    ]


class Recomputer:
    """Works off stale documents: recomputes them and brings those that changed to readers.

    A document is stale until a recomputation that began after the last change that touched
    it was committed. What is then committed has an outbox row, like any change: should
    this process die, the projector brings it on. While it cannot be brought on, no more than
    a lot is recomputed in a round, to find out, so that the outbox does not fill up with it.
    """

    def __init__(
        self,
        *,
        stale: StaleDocuments,
        propagation: Propagation,
        outbox: Outbox,
        batch: int,
        recomputed: Callable[[str, Outcome], None],
        each: Each = map,
    ) -> None:
        """``recomputed`` counts, by kind; ``each`` is ``map``, or one with threads."""
        self._stale = stale
        self._propagation = propagation
        self._outbox = outbox
        self._batch = batch
        self._recomputed = recomputed
        self._each = each
        self._only_one = False

    def run_once(self) -> bool:
        """Recompute one batch of documents; return True if there may be more.

        Raises ``IncompleteRoundError`` if some could not be recomputed, which fall due again,
        or not be brought on, which is left to the projector.
        """
        most = min(_LOT, self._batch) if self._only_one else self._batch
        stale = self._stale.claim(most, Deadline.after(_CLAIM_SECONDS))
        lots = [stale[start : start + _LOT] for start in range(0, len(stale), _LOT)]
        done = list(self._each(self._bring, lots))
        if Brought.NOT_ON in done:
            self._only_one = True
        elif Brought.ON in done:
            self._only_one = False
        if failed := done.count(Brought.NOT_ON) + done.count(Brought.NOT_RECOMPUTED):
            raise IncompleteRoundError(
                f"{failed} of {len(done)} lots of documents could not be brought on yet"
            )
        return len(stale) == most

    def _bring(self, lot: Sequence[StaleDocument]) -> Brought:
        try:
            recomputed = self._stale.recompute(lot, Deadline.after(_LOT_SECONDS))
        except (StoreError, DeadlineExceededError):
            return Brought.NOT_RECOMPUTED
        for one in recomputed:
            self._recomputed(one.key.kind, one.outcome)
        written = [one.written for one in recomputed if one.written is not None]
        if not written:
            return Brought.NOTHING
        entities = [one.entity for one in written]
        if not self._propagation.propagate(entities, Deadline.after(_PROPAGATE_SECONDS)):
            return Brought.NOT_ON
        try:
            self._outbox.complete([one.row for one in written], Deadline.after(_COMPLETE_SECONDS))
        except (StoreError, DeadlineExceededError):
            # The projector does it again, and completes them.
            return Brought.NOT_ON
        return Brought.ON
