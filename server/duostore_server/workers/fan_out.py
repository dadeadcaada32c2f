"""The fan-out: from the change of a source to the documents that it touches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreError
from duostore_server.workers.loop import IncompleteRoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from duostore_server.access.propagation import Propagation
    from duostore_server.domain.ports import Outbox, SourceChanges, StaleDocuments
    from duostore_server.domain.read_models import Outcome, SourceChange, StaleDocument

_CLAIM_SECONDS: Final = 2.0
_PAGE_SECONDS: Final = 30.0
_LOT_SECONDS: Final = 30.0
_PROPAGATE_SECONDS: Final = 5.0
_COMPLETE_SECONDS: Final = 2.0
# Documents that are recomputed in one transaction. It holds their locks until it ends.
_LOT: Final = 25


class Each(Protocol):
    """Applies a function to lots and yields the results in their order: ``map``, for one."""

    def __call__(
        self,
        function: Callable[[Sequence[StaleDocument]], bool],
        lots: Iterable[Sequence[StaleDocument]],
        /,
    ) -> Iterable[bool]:
        """Yield ``function(lot)`` for each lot, in order."""
        ...


class Expander:
    """Works off changes of sources: finds the documents that they touch, a page at a time.

    A page and how far the change has come are committed together, so that one that dies
    repeats nothing and leaves nothing out. A change that touches millions of documents
    goes on only while few documents wait to be recomputed: what smaller changes touch is
    then never behind more than those.
    """

    def __init__(self, *, changes: SourceChanges, batch: int, page: int, most_stale: int) -> None:
        """``page`` documents of a change are found at a time.

        Of changes that are begun no more are found while ``most_stale`` documents wait.
        """
        self._changes = changes
        self._batch = batch
        self._page = page
        self._most_stale = most_stale

    def run_once(self) -> bool:
        """Expand one batch of changes by a page each; return True if there may be more.

        Raises ``IncompleteRoundError`` if some could not be; they fall due again.
        """
        waiting = self._changes.backlog(Deadline.after(_CLAIM_SECONDS)).stale
        room = self._most_stale - waiting
        changes = self._changes.claim(self._batch, Deadline.after(_CLAIM_SECONDS), fresh=room <= 0)
        failed = 0
        for change in changes:
            if change.begun and room <= 0:
                # Due again when its claim runs out.
                continue
            touched = self._expand(change)
            if touched is None:
                failed += 1
            else:
                room -= touched
        if failed:
            raise IncompleteRoundError(
                f"{failed} of {len(changes)} changes of sources could not be expanded yet"
            )
        return bool(changes)

    def _expand(self, change: SourceChange) -> int | None:
        """Return how many documents became stale; None if the change could not be expanded."""
        try:
            deadline = Deadline.after(_PAGE_SECONDS)
            return self._changes.expand(change, self._page, deadline).touched
        except (StoreError, DeadlineExceededError):
            return None


class Recomputer:
    """Works off stale documents: recomputes them and brings those that changed to readers.

    A document is stale until a recomputation that began after the last change that touched
    it was committed. What is then committed has an outbox row, like any change: should
    this process die, the projector brings it on. While it cannot be brought on, no more is
    recomputed, so that the outbox does not fill up with it.
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

    def run_once(self) -> bool:
        """Recompute one batch of documents; return True if there may be more.

        Raises ``IncompleteRoundError`` if some could not be recomputed, which fall due again,
        or not be brought on, which is left to the projector.
        """
        stale = self._stale.claim(self._batch, Deadline.after(_CLAIM_SECONDS))
        lots = [stale[start : start + _LOT] for start in range(0, len(stale), _LOT)]
        done = list(self._each(self._bring, lots))
        if not all(done):
            raise IncompleteRoundError(
                f"{done.count(False)} of {len(done)} lots of documents could not be brought on yet"
            )
        return len(stale) == self._batch

    def _bring(self, lot: Sequence[StaleDocument]) -> bool:
        try:
            recomputed = self._stale.recompute(lot, Deadline.after(_LOT_SECONDS))
        except (StoreError, DeadlineExceededError):
            return False
        for one in recomputed:
            self._recomputed(one.key.kind, one.outcome)
        written = [one.written for one in recomputed if one.written is not None]
        if not written:
            return True
        entities = [one.entity for one in written]
        if not self._propagation.propagate(entities, Deadline.after(_PROPAGATE_SECONDS)):
            return False
        try:
            self._outbox.complete(
                [one.outbox_id for one in written], Deadline.after(_COMPLETE_SECONDS)
            )
        except (StoreError, DeadlineExceededError):
            # The projector does it again, and completes them.
            return False
        return True
