"""The projector: brings what the requests did not to DynamoDB and the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreError
from duostore_server.workers.loop import IncompleteRoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from duostore_server.access.propagation import Propagation
    from duostore_server.domain.entities import OutboxRow
    from duostore_server.domain.ports import Authority, Outbox

_AURORA_SECONDS: Final = 2.0


class Each(Protocol):
    """Applies a function to rows and yields the results in their order: ``map``, for one."""

    def __call__(
        self, function: Callable[[OutboxRow], bool], rows: Iterable[OutboxRow], /
    ) -> Iterable[bool]:
        """Yield ``function(row)`` for each row, in order."""
        ...


class Projector:
    """Works off due outbox rows.

    A row is removed only after the current version of its key was put and the
    cache entry's removal acknowledged; until then it falls due again and again.
    Rows are claimed for a few seconds rather than locked, so any number of projectors
    may run side by side and one that dies holds nothing up for longer than that.
    """

    def __init__(
        self,
        *,
        outbox: Outbox,
        authority: Authority,
        propagation: Propagation,
        batch: int,
        budget: float,
        each: Each = map,
    ) -> None:
        """``budget`` is how long, in seconds, rows of a claim are begun; less than it lasts.

        ``each`` is ``map``, or one with threads.
        """
        self._outbox = outbox
        self._authority = authority
        self._propagation = propagation
        self._batch = batch
        self._budget = budget
        self._each = each

    def run_once(self) -> bool:
        """Work off one batch; return True if there may be more.

        Raises ``IncompleteRoundError`` if some rows could not be brought on; they fall
        due again when the claim runs out.
        """
        rows = self._outbox.claim(self._batch, Deadline.after(_AURORA_SECONDS))
        if not rows:
            return False
        deadline = Deadline.after(self._budget)
        done = [
            row
            for row, brought in zip(
                rows, self._each(lambda row: self._bring(row, deadline), rows), strict=True
            )
            if brought
        ]
        if done:
            # With time of its own: work that is done must not be done again.
            self._outbox.complete(done, Deadline.after(_AURORA_SECONDS))
        if len(done) < len(rows):
            raise IncompleteRoundError(
                f"{len(rows) - len(done)} of {len(rows)} changes could not be projected yet"
            )
        return len(rows) == self._batch

    def _bring(self, row: OutboxRow, deadline: Deadline) -> bool:
        """Bring the current version of one key; one at a time, since documents may be large."""
        if deadline.is_over():
            return False
        try:
            entity = self._authority.read((row.key,), deadline).get(row.key)
        except (StoreError, DeadlineExceededError):
            return False
        # Rows of `entity` are never removed, unless somebody did it by hand.
        return entity is None or self._propagation.propagate((entity,), deadline)
