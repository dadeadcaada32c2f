"""Writes of kinds at home in DynamoDB: one conditional write, then the cache entry goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.access.idempotency import earlier_outcome
from duostore_server.domain.errors import RefusalError, StoreError
from duostore_server.domain.snapshots import HeadChange
from duostore_server.domain.transactions import Applied, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import Policies
    from duostore_server.domain.ports import Cache, Heads
    from duostore_server.domain.transactions import Change, Idempotency


class DynamoDBHome:
    """Applies changes of kinds at home in DynamoDB. Aurora is never called.

    The write comes before the invalidation: whoever leases the entry afterwards reads a
    DynamoDB that already holds the new version. There is no outbox: a process that dies
    between the two leaves the old entry for what is left of its TTL.
    """

    def __init__(
        self,
        *,
        heads: Heads,
        cache: Cache,
        policies: Policies,
        encode: Callable[[EntityKey, JsonObject], bytes],
        now: Callable[[], datetime],
    ) -> None:
        """``encode`` makes the payload of a head."""
        self._heads = heads
        self._cache = cache
        self._policies = policies
        self._encode = encode
        self._now = now

    def write(self, change: Change, idempotency: Idempotency | None, deadline: Deadline) -> Outcome:
        """Apply a change; raises as ``Heads.write`` does."""
        policy = self._policies.of(change.key)
        wanted = HeadChange(
            key=change.key,
            payload=None if change.data is None else self._encode(change.key, change.data),
            precondition=change.precondition,
            now=self._now(),
            ttl=policy.ttl,
            consolidate_after=policy.consolidate_every,
            idempotency=idempotency,
        )
        try:
            written = self._heads.write(wanted, deadline)
        except RefusalError:
            raise
        except Exception:
            # It may have been applied all the same.
            self._bust(change.key)
            raise
        answer = (Applied(written.version, written.update_time),)
        return Outcome(answer, self._bust(change.key), written.replayed)

    def recall(self, idempotency: Idempotency | None, deadline: Deadline) -> Outcome | None:
        """Return what the same request was answered before; None if it was not applied.

        For a request that cannot be applied now. Raises ``IdempotencyKeyReusedError``, and
        ``StoreError`` if DynamoDB cannot be asked.
        """
        return earlier_outcome(idempotency, self._heads.recall, deadline)

    def _bust(self, key: EntityKey) -> bool:
        try:
            self._cache.invalidate((key,))
        except StoreError:
            # Counted by the cache's own metrics; the entry is bounded by its TTL.
            return False
        return True
