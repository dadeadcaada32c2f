"""Commits to the authority, brings what was committed to the other stores, and remembers it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.access.idempotency import earlier_outcome
from duostore_server.access.sources import SHARE
from duostore_server.domain.errors import DeadlineExceededError, StoreError
from duostore_server.domain.policies import ProjectionMode
from duostore_server.domain.transactions import Change, Outcome, Recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duostore_server.access.propagation import Propagation
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import OutboxRow
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import Policies
    from duostore_server.domain.ports import (
        Authority,
        IdempotencyRecords,
        IdempotencyRows,
        Notes,
    )
    from duostore_server.domain.transactions import Idempotency, Transaction, Written


class Committer:
    """Applies transactions of kinds at home in Aurora.

    Once the authority has committed, nothing that happens to the other stores fails
    the call: what could not be propagated stays in the outbox for the projector.
    """

    def __init__(
        self,
        *,
        authority: Authority,
        rows: IdempotencyRows,
        records: IdempotencyRecords,
        propagation: Propagation,
        completions: Notes[OutboxRow],
        answers: Notes[tuple[Idempotency, Recorded]],
        policies: Policies,
    ) -> None:
        """``completions`` takes outbox rows that are done, ``answers`` what is to be recorded."""
        self._authority = authority
        self._rows = rows
        self._records = records
        self._propagation = propagation
        self._completions = completions
        self._answers = answers
        self._policies = policies

    def recall(self, idempotency: Idempotency | None, deadline: Deadline) -> Outcome | None:
        """Return what the same request was answered before, if DynamoDB remembers it.

        If not, or if it cannot be asked, the authority decides. Raises
        ``IdempotencyKeyReusedError``.
        """
        if idempotency is None:
            return None
        try:
            recorded = self._records.read(idempotency.key, deadline.part(SHARE))
        except (StoreError, DeadlineExceededError):
            return None
        if recorded is None:
            return None
        recorded = idempotency.answer_of(recorded)
        return Outcome(recorded.answer, recorded.projected, replayed=True)

    def recall_surely(self, idempotency: Idempotency | None, deadline: Deadline) -> Outcome | None:
        """Return what the same request was answered before, if the authority remembers it.

        For a request that cannot be applied now and may have been then. Raises
        ``IdempotencyKeyReusedError``, and ``StoreError`` if the authority cannot be asked.
        """
        return earlier_outcome(idempotency, self._rows.recall, deadline)

    def commit(self, transaction: Transaction, deadline: Deadline) -> Outcome:
        """Apply a transaction; raises as ``Authority.write`` does."""
        committed = self._authority.write(transaction, deadline)
        if committed.replayed:
            projected = self._bring_again(transaction, deadline)
        else:
            projected = self._bring(committed.written, deadline)
        if (idempotency := transaction.idempotency) is not None:
            recorded = Recorded(idempotency.request_hash, committed.answer, projected)
            self._answers.add(((idempotency, recorded),))
        return Outcome(committed.answer, projected, committed.replayed)

    def _bring(self, written: Sequence[Written], deadline: Deadline) -> bool:
        inline = [one for one in written if self._is_inline(one.entity.key)]
        if inline:
            if not self._propagation.propagate([one.entity for one in inline], deadline):
                return False
            self._completions.add(one.row for one in inline)
        return len(inline) == len(written)

    def _bring_again(self, transaction: Transaction, deadline: Deadline) -> bool:
        """Do what the call that was interrupted may not have done; return whether it is done."""
        keys = [one.key for one in transaction.mutations if isinstance(one, Change)]
        if not all(map(self._is_inline, keys)):
            return False
        try:
            rows = self._authority.read(keys, deadline)
        except (StoreError, DeadlineExceededError):
            return False
        return self._propagation.propagate(list(rows.values()), deadline)

    def _is_inline(self, key: EntityKey) -> bool:
        return self._policies.of(key).projection is ProjectionMode.INLINE
