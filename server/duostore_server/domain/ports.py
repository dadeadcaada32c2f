"""What the use cases need of the stores.

Each port is kept to by one conformance suite in ``tests/conformance``. All methods may
raise ``StoreUnavailableError`` (and its ``StoreTimeoutError``) and ``StoreOverloadedError``;
those that take a deadline raise ``DeadlineExceededError`` when it has passed before
anything was sent, and are bounded by the smaller of it and the store's own timeout.
Implementations are safe to call from many threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import (
        Backlog,
        Cached,
        Change,
        Entity,
        Lease,
        OutboxRow,
        Projection,
        Written,
    )
    from duostore_server.domain.errors import Store
    from duostore_server.domain.keys import EntityKey


class Authority(Protocol):
    """The store that is right: the writer of Aurora."""

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Entity]:
        """Return the newest committed version of each key, tombstones included.

        Linearizable: sees every write that was acknowledged before the call. A key
        that never existed is missing from the answer. Safe to repeat.
        """
        ...

    def write(self, change: Change, deadline: Deadline) -> Written:
        """Apply a change in one transaction and leave an outbox row for its key.

        The version is the previous one + 1, or 1; ``update_time`` never decreases
        from one version to the next; ``create_time`` is kept, and set anew after a
        tombstone. Raises ``VersionMismatchError`` or ``EntityExistsError`` if the
        precondition does not hold, ``EntityNotFoundError`` for a Delete of an absent
        entity, ``WriteOutcomeUnknownError`` if the answer was lost. Not safe to
        repeat blindly: each success is one more version.
        """
        ...


class Outbox(Protocol):
    """The keys that still have to be projected: a work set, at most one row a key."""

    def claim(self, limit: int, deadline: Deadline) -> Sequence[OutboxRow]:
        """Take up to ``limit`` due rows, oldest first, for a few seconds.

        A claimed row is given to nobody else until the claim runs out; it falls due
        again by itself if it is not completed. No lock outlives the call. Finds every
        committed row that is due, in whatever order the rows were committed.
        """
        ...

    def complete(self, ids: Collection[int], deadline: Deadline) -> None:
        """Remove these rows. Ids that are gone or were replaced are ignored. Repeatable."""
        ...

    def backlog(self, deadline: Deadline) -> Backlog:
        """Return how many rows there are, due or not, and how old the oldest is."""
        ...


class Projections(Protocol):
    """The store that is fast: DynamoDB."""

    def read(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        """Return what is held of each key; strongly consistent. Missing keys are left out.

        An item that cannot be read is answered as ``Form.STUB`` with the version it
        shows, or 0. Safe to repeat.
        """
        ...

    def put(self, key: EntityKey, projection: Projection, deadline: Deadline) -> Projection:
        """Store the projection unless the version held is the same or newer.

        Returns what is held afterwards: ``projection`` itself (or the stub that its
        size made of it), or the newer one that stood in its way. Never goes back in
        version. Safe to repeat and to reorder.
        """
        ...


class Cache(Protocol):
    """The store that is near: memcached. May forget anything at any time.

    Calls are bounded by the cache's own timeout alone, a small fraction of a
    second, since an invalidation has to be tried however late it is.
    """

    def read(self, keys: Collection[EntityKey]) -> Mapping[EntityKey, Cached | Lease]:
        """Return the entry or the lease found under each key; vacant keys are left out.

        An entry that cannot be read is removed and answered as vacant. Keys on a
        node that fails are vacant too if another node answered; raises if none did.
        """
        ...

    def lease(self, keys: Collection[EntityKey]) -> Mapping[EntityKey, Lease]:
        """Place a lease on each key that is vacant; return those that were placed.

        Atomic for each key: of many callers one wins. A lease ends by ``fill``, by
        ``invalidate``, or after 10 s.
        """
        ...

    def fill(self, key: EntityKey, lease: Lease, entry: Cached, ttl: float) -> bool:
        """Replace the lease by the entry, for ``ttl`` seconds, if it is still this lease.

        Atomic: returns False, with nothing changed, if the key was invalidated,
        filled, evicted or leased anew in between. Also False if the entry is too
        large to be cached. Safe to repeat.
        """
        ...

    def invalidate(self, keys: Collection[EntityKey]) -> None:
        """Make each key vacant, whatever it held. Safe to repeat.

        Returns only if the removal of every key was acknowledged; raises otherwise,
        with some of them possibly removed.
        """
        ...


class Probe(Protocol):
    """Tells whether a store answers."""

    store: Store

    def ping(self, deadline: Deadline) -> None:
        """Do a small read; return if the store answered it, raise a ``StoreError`` if not."""
        ...


class Completions(Protocol):
    """Takes note of outbox rows whose work is done, to be removed off the request path."""

    def add(self, outbox_ids: Iterable[int]) -> None:
        """Note the rows. Never blocks and never fails; a note may be lost, which is safe."""
        ...
