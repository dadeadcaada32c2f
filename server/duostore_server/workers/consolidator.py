"""The consolidator: brings the newest content of dirty heads from DynamoDB to Aurora."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreError
from duostore_server.domain.snapshots import Draft
from duostore_server.workers.loop import IncompleteRoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.policies import KindPolicy, Policies
    from duostore_server.domain.ports import DirtyHeads, Drafts
    from duostore_server.domain.snapshots import DirtyHead

_STORE_SECONDS: Final = 2.0
_SETTLE_SECONDS: Final = 10.0
# What is sent to Aurora in one statement; a head that is larger travels alone.
_MOST_BYTES: Final = 1024 * 1024
# A payload that cannot be read today may be by the next release.
_UNREADABLE_AGAIN: Final = timedelta(hours=1)

_UNCONFIGURED_EVERY: Final = timedelta(minutes=1)

_log = structlog.get_logger(__name__)


class Each(Protocol):
    """Applies a function to heads and yields the results in their order: ``map``, for one."""

    def __call__(
        self, function: Callable[[DirtyHead], bool], heads: Iterable[DirtyHead], /
    ) -> Iterable[bool]:
        """Yield ``function(head)`` for each head, in order."""
        ...


class Consolidator:
    """Works off dirty heads: one row of Aurora for each, however often it was written.

    A head stays due until Aurora has committed its row and it is settled after that, so
    one that dies half-way repeats its work; newer sequences win, so several may run side
    by side. A snapshot's history may expire once a later round than the one that brought
    it, or a head that has come to rest, says that nothing of it is still on its way; the
    newest snapshot does not expire.
    """

    def __init__(
        self,
        *,
        heads: DirtyHeads,
        drafts: Drafts,
        data_of: Callable[[bytes], JsonObject],
        policies: Policies,
        now: Callable[[], datetime],
        batch: int,
        settled: timedelta,
        consolidated: Callable[[int], None],
        each: Each = map,
    ) -> None:
        """``data_of`` raises ``ValueError`` for what is no payload; ``consolidated`` counts.

        A head that did not move for ``settled`` has all of its history, or never will.
        """
        self._heads = heads
        self._drafts = drafts
        self._data_of = data_of
        self._policies = policies
        self._now = now
        self._batch = batch
        self._settled = settled
        self._consolidated = consolidated
        self._each = each

    def run_once(self) -> bool:
        """Bring one batch of heads; return True if there may be more.

        Raises ``IncompleteRoundError`` if some could not be settled; they are due again.
        """
        due = self._heads.due(self._batch, Deadline.after(_STORE_SECONDS))
        incomplete = 0
        for part in _parts(due.heads):
            incomplete += self._bring(part)
        if incomplete:
            raise IncompleteRoundError(
                f"{incomplete} of {len(due.heads)} heads could not be settled yet"
            )
        return due.more

    def _bring(self, heads: Sequence[DirtyHead]) -> int:
        """Fold heads into Aurora and settle them; return how many could not be settled."""
        drafts = [draft for head in heads if (draft := self._draft(head)) is not None]
        before = self._drafts.fold(drafts, Deadline.after(_STORE_SECONDS)) if drafts else {}
        self._consolidated(len(drafts))
        deadline = Deadline.after(_SETTLE_SECONDS)

        def settle(head: DirtyHead) -> bool:
            return self._settle(head, before.get(head.key), deadline)

        return sum(not settled for settled in self._each(settle, heads))

    def _draft(self, head: DirtyHead) -> Draft | None:
        try:
            data = None if head.payload is None else self._data_of(head.payload)
        except ValueError:
            _log.exception("head cannot be read", kind=head.key.kind, number=head.number)
            return None
        return Draft(head.key, head.number, data, head.time, head.expire_time)

    def _settle(self, head: DirtyHead, before: int | None, deadline: Deadline) -> bool:
        """Let go of a head; ``before`` is what Aurora had of it, None if it could not be read."""
        policy = self._policies.find(head.key)
        snapshots = policy.snapshots if policy is not None else None
        every = _every(policy)
        keep, clean = timedelta(), before is not None
        expire = head.expiring
        if before is not None and snapshots is not None and head.history > head.expiring:
            keep = snapshots.keep
            clean = self._now() - head.time >= self._settled
            # What others have only just brought may still be on its way to the history.
            earlier = before if before < head.number else 0
            brought = head.number - 1 if clean else earlier
            expire = max(head.expiring, min(brought, head.history))
        next_due = self._now() + (_UNREADABLE_AGAIN if before is None else every)
        try:
            self._heads.settle(
                head, expire=expire, keep=keep, clean=clean, next_due=next_due, deadline=deadline
            )
        except (StoreError, DeadlineExceededError):
            return False
        return True


def _every(policy: KindPolicy | None) -> timedelta:
    """Return how often heads of a kind are consolidated; a kind may be configured no more."""
    if policy is not None and policy.snapshots is not None:
        return policy.snapshots.consolidate_every
    return (policy.consolidate_every if policy is not None else None) or _UNCONFIGURED_EVERY


def _parts(heads: Sequence[DirtyHead]) -> Iterator[list[DirtyHead]]:
    """Yield the heads in lots of bounded size."""
    part: list[DirtyHead] = []
    size = 0
    for head in heads:
        bytes_ = len(head.payload or b"")
        if part and size + bytes_ > _MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(head)
        size += bytes_
    if part:
        yield part
