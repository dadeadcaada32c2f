"""What the use cases need of the stores.

Each port is kept to by one conformance suite in ``tests/conformance``. All methods may
raise ``StoreUnavailableError`` (and its ``StoreTimeoutError``) and ``StoreOverloadedError``;
those that take a deadline raise ``DeadlineExceededError`` when it has passed before
anything was sent, and are bounded by the smaller of it and the store's own timeout.
Implementations are safe to call from many threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime, timedelta

    from duostore_server.domain.counters import (
        Counter,
        Grant,
        GrantStepped,
        Settlement,
        Step,
        Stepped,
    )
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import (
        Backlog,
        Cached,
        Entity,
        Lease,
        OutboxRow,
        Peeked,
        PendingChange,
        Projection,
    )
    from duostore_server.domain.errors import Store
    from duostore_server.domain.keys import CacheKey, EntityKey
    from duostore_server.domain.queries import Column, QueryCall, Row
    from duostore_server.domain.quotas import CounterKey
    from duostore_server.domain.read_models import (
        Expansion,
        FanOutBacklog,
        Recomputed,
        SourceChange,
        StaleDocument,
    )
    from duostore_server.domain.snapshots import (
        Appended,
        DirtyHead,
        Draft,
        DueHeads,
        Head,
        HeadChange,
        HeadWritten,
        NewSnapshot,
        SnapshotPage,
        StoredSnapshot,
    )
    from duostore_server.domain.transactions import (
        Committed,
        Idempotency,
        IdempotencyKey,
        Recorded,
        Transaction,
    )

T_contra = TypeVar("T_contra", contravariant=True)
K = TypeVar("K", bound="CacheKey")


class Authority(Protocol):
    """The store that is right: the writer of Aurora."""

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Entity]:
        """Return the newest committed version of each key, tombstones included.

        Linearizable: sees every write that was acknowledged before the call. A key
        that never existed is missing from the answer. Safe to repeat.
        """
        ...

    def write(self, transaction: Transaction, deadline: Deadline) -> Committed:
        """Apply all mutations in one transaction, or none.

        Each change leaves an outbox row for its key and an audit row. The version is the
        previous one + 1, or 1; ``update_time`` never decreases from one version to the
        next; ``create_time`` is kept, and set anew after a tombstone. Preconditions and
        checks hold at the commit.

        With ``idempotency``, its key is taken in the same transaction: it is applied
        once, however often and from however many callers it comes, and each repetition
        is answered with ``replayed``. Refused requests are not remembered.

        Raises ``VersionMismatchError``, ``EntityExistsError`` or ``EntityNotFoundError``
        for the first mutation that is refused, which they name if there are several;
        ``IdempotencyKeyReusedError``; ``DuplicateInProgressError``, only with
        ``idempotency``, if it waited in vain; ``WriteOutcomeUnknownError`` if the answer
        was lost. Safe to repeat with ``idempotency`` alone.
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

    def complete(self, rows: Collection[OutboxRow], deadline: Deadline) -> None:
        """Remove these rows. Those that are gone or were given a new id stay. Repeatable.

        A row that has a new id is as old, at most, as what was committed since ``as_of`` of the
        completed one, for all before was brought.
        """
        ...

    def backlog(self, deadline: Deadline) -> Backlog:
        """Return how many rows there are, due or not, and how old the oldest is.

        A row is as old as the oldest commit that it stands for, or may be told to be older.
        """
        ...

    def find(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, PendingChange]:
        """Return the rows of these keys; linearizable. Keys without one are left out."""
        ...

    def oblige(
        self, keys: Collection[EntityKey], due_after: timedelta, deadline: Deadline
    ) -> Sequence[OutboxRow]:
        """Give each key a row with a new id, as if it had been changed; return the rows.

        Due after ``due_after``, or when the row that was there is due if that is earlier. Keys
        that Aurora has no entity of are taken too. Repeatable.
        """
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
        """Store the projection unless what is held is newer, or as new and in all its shapes.

        A stub gives way to what its version has, a document or a tombstone, and to no stub.
        Returns what is held afterwards: ``projection`` itself (or the stub that its
        size made of it), or the one that stood in its way. Never goes back in
        version. Safe to repeat and to reorder.
        """
        ...

    def put_all(
        self, projections: Mapping[EntityKey, Projection], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        """Do ``put`` for each key, in as few calls as may be; some may be done if it raises."""
        ...


class Heads(Protocol):
    """The entities of kinds at home in DynamoDB, which is right about them."""

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Head]:
        """Return the newest version of each key, deleted and expired ones included.

        Strongly consistent. A key that was never written, or whose remains were swept
        long after its expiry, is missing. Safe to repeat.
        """
        ...

    def write(self, change: HeadChange, deadline: Deadline) -> HeadWritten:
        """Apply a change by one conditional write, which raises the version by one.

        ``update_time`` never decreases; ``create_time`` is kept, and set anew after a
        deletion or an expiry. Raises ``VersionMismatchError``, ``EntityExistsError`` or
        ``EntityNotFoundError`` as ``Authority.write`` does, and with ``idempotency`` applies
        the change once as that does, raising ``IdempotencyKeyReusedError`` or
        ``DuplicateInProgressError``. ``InvalidRequestError`` if the document is too large
        for an item; ``WriteOutcomeUnknownError`` if the answer was lost.
        """
        ...

    def recall(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        """Return what ``write`` has applied under a key, if that has not expired.

        Strongly consistent. Safe to repeat.
        """
        ...


class Snapshots(Protocol):
    """What was written of entities on the way to their next version: DynamoDB."""

    def append(self, snapshot: NewSnapshot, deadline: Deadline) -> Appended:
        """Make this the newest snapshot of its key, with a sequence larger than all before.

        Marks the key to be consolidated. Once it returns, the snapshot is the head until
        the next one, and in the history if ``in_history``. With ``idempotency`` it is
        appended once, and a repetition answered with ``replayed``; raises
        ``IdempotencyKeyReusedError`` and ``DuplicateInProgressError`` as ``Heads.write``.
        ``InvalidRequestError`` if it is too large for an item;
        ``WriteOutcomeUnknownError`` if it may have been appended.
        """
        ...

    def read(self, key: EntityKey, sequence: int, deadline: Deadline) -> StoredSnapshot | None:
        """Return a snapshot, or the newest if ``sequence`` is 0; strongly consistent.

        None if there is none, or if it has expired.
        """
        ...

    def page(
        self, key: EntityKey, before: int | None, limit: int, deadline: Deadline
    ) -> SnapshotPage:
        """Return up to ``limit`` snapshots, newest first, whose sequence is below ``before``.

        From the newest if ``before`` is None. Strongly consistent; expired ones are left
        out. May return fewer though there are more; none only if there are none.
        """
        ...


class DirtyHeads(Protocol):
    """The heads in DynamoDB that Aurora has not been brought yet: a work set."""

    def due(self, limit: int, deadline: Deadline) -> DueHeads:
        """Return up to ``limit`` heads that are due, as they are now; fewer if time is short.

        They stay due until they are settled; others may get the same ones, to no harm.
        A head that has just become due may be found a moment late.
        """
        ...

    def settle(
        self,
        head: DirtyHead,
        *,
        expire: int,
        keep: timedelta,
        clean: bool,
        next_due: datetime,
        deadline: Deadline,
    ) -> None:
        """Note that a head was consolidated, after Aurora has committed it.

        History up to sequence ``expire`` that has no expiry yet expires ``keep`` from now;
        if there is too much of it, the head is due again at once. It is clean if it may be
        (``clean``) and has not moved since, and due at ``next_due`` otherwise. Safe to
        repeat.
        """
        ...


class Drafts(Protocol):
    """What was consolidated of the heads: a table of Aurora."""

    def fold(self, drafts: Sequence[Draft], deadline: Deadline) -> Mapping[EntityKey, int]:
        """Store each draft unless the one held has the same or a newer sequence.

        One row for each key, all in one transaction; keys differ. Returns the sequence
        that each key had before, 0 if none. Safe to repeat and to reorder.
        """
        ...


class IdempotencyRecords(Protocol):
    """What was applied under which idempotency key, near at hand: DynamoDB.

    Of writes to the authority they spare the way there; the authority decides.
    """

    def read(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        """Return what is recorded and has not expired; strongly consistent."""
        ...

    def put(self, records: Sequence[tuple[Idempotency, Recorded]], deadline: Deadline) -> None:
        """Record answers, each to be kept for its ``keep`` from now. Safe to repeat."""
        ...


class IdempotencyRows(Protocol):
    """What the authority remembers of idempotent writes: a table of Aurora."""

    def recall(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        """Return what was applied under a key; linearizable.

        What has expired counts until it is purged, as it does for a write.
        """
        ...

    def purge(self, limit: int, deadline: Deadline) -> int:
        """Remove up to ``limit`` rows that were kept for long enough; return how many."""
        ...


class Counters(Protocol):
    """What was used of quotas: DynamoDB.

    A step whose answer was lost may have been done: it is repeated only by what says so.
    """

    def read(
        self, keys: Collection[CounterKey], deadline: Deadline
    ) -> Mapping[CounterKey, Counter]:
        """Return the counters; strongly consistent. Missing ones are left out. Repeatable."""
        ...

    def apply(self, key: CounterKey, step: Step, deadline: Deadline) -> Stepped:
        """Do a step, by one conditional write, if what it requires holds.

        The answer has the counter as it is after that, or as it stood in the way. A step
        that sets or ends a lease is applied once, though its answer be lost on the way; any
        other is at least once, or not. Raises ``WriteOutcomeUnknownError`` if it may have
        been done.
        """
        ...

    def record(
        self, grant: Grant, step: Step, now: int, deadline: Deadline, instead: Grant | None = None
    ) -> GrantStepped:
        """Do a step of the grant's counter, and put the grant; both or neither, and once.

        Not if a grant of that id is there that has not been forgotten by ``now``, unless it
        is ``instead``, just as it was found.
        """
        ...

    def find(self, tenant: str, id_: str, deadline: Deadline) -> Grant | None:
        """Return a grant, strongly consistent; it may have been to be forgotten by now."""
        ...

    def settle(
        self, grant: Grant, settlement: Settlement, step: Step | None, deadline: Deadline
    ) -> GrantStepped:
        """Settle a reservation that is not settled yet, and do the step; both or neither.

        With ``step`` None the grant alone is settled.
        """
        ...


class Limits(Protocol):
    """The limits of subjects that were set at run time: a table of Aurora."""

    def read(self, deadline: Deadline) -> Mapping[tuple[str, str], int]:
        """Return all of them, by quota and by ``tenant#subject`` or subject."""
        ...


class ResultSet(Protocol):
    """The rows of a query that is under way, as of one moment."""

    columns: tuple[Column, ...]
    # All that was committed before it was seen; aware and in UTC.
    as_of: datetime

    def portions(self) -> Iterator[Sequence[Row]]:
        """Yield the rows in portions of bounded size, in their order; none if there are none.

        Each is fetched when it is asked for. Raises as ``Queries.open``.
        """
        ...


class Queries(Protocol):
    """Reads by SQL of the configuration: Aurora, its reader where that is as good."""

    def open(self, call: QueryCall, deadline: Deadline) -> AbstractContextManager[ResultSet]:
        """Begin a query in a transaction that only reads, and end it with the block.

        Sees every write that was acknowledged before the call. Ends soon after the
        deadline has passed or the caller has gone, wherever it is. Raises
        ``QueryFailedError``, and ``QueryTimeoutError`` if a portion took longer than the query
        may. Safe to repeat.
        """
        ...


class SourceChanges(Protocol):
    """The changes of sources that are not expanded to their end: a work set, in Aurora."""

    def claim(
        self, limit: int, deadline: Deadline, *, fresh: bool = False
    ) -> Sequence[SourceChange]:
        """Take up to ``limit`` due changes of configured sources, oldest first, for a few seconds.

        Only those that are not begun if ``fresh``. A tenth, and what else there is room for,
        are changes that failed before; they come last. Those of a source are taken only
        while what was last installed for it is what is configured here. As ``Outbox.claim``:
        one that is not expanded to its end falls due again by itself.
        """
        ...

    def expand(self, change: SourceChange, limit: int, deadline: Deadline) -> Expansion:
        """Make the next ``limit`` documents that a change touches stale, in one transaction.

        Goes on where the last page ended, whoever did that one, and is due again at once,
        behind the others; after the last page the change is gone. A change of a source for
        which something else was installed meanwhile is left alone. Safe to repeat.
        """
        ...

    def expand_together(
        self, changes: Sequence[SourceChange], limit: int, deadline: Deadline
    ) -> Expansion | None:
        """Expand changes of one source of a kind to their end, in one transaction.

        None, and nothing is done, if they touch more than ``limit`` documents, each counted
        once for each change, or the SQL fails for one of them. Leaves those out that others
        expand or have begun. Otherwise as ``expand``.
        """
        ...

    def waiting(self, limit: int, deadline: Deadline) -> int:
        """Return how many documents wait to be recomputed here, ``limit`` if there are more.

        Of configured kinds, and without those that failed when they were last tried.
        """
        ...

    def backlog(self, deadline: Deadline) -> FanOutBacklog:
        """Return what is left to do, due or not, of stale documents and all kinds too."""
        ...


class StaleDocuments(Protocol):
    """The documents that have to be recomputed: a work set, at most one row a key, in Aurora."""

    def claim(self, limit: int, deadline: Deadline) -> Sequence[StaleDocument]:
        """Take up to ``limit`` due documents of configured kinds, oldest first, as ``Outbox``."""
        ...

    def recompute(self, stale: Sequence[StaleDocument], deadline: Deadline) -> Sequence[Recomputed]:
        """Bring each document to what its read model answers now; return what came of each.

        Reads after the document's lock is held, so that of two at once the later one sees
        all that the other saw. A version is written, with its outbox row, only if the document
        has changed; a document that the read model does not answer is deleted. In the same
        transaction the stale row is removed, unless the document was touched again. Documents
        that fail stay, and are due again after a while. Of some nothing may be returned: they
        are left as they are, for another holds them, or they are configured anew. Safe to repeat.
        """
        ...


class Cache(Protocol):
    """The store that is near: memcached. May forget anything at any time.

    Calls are bounded by the cache's own timeout alone, a small fraction of a
    second, since an invalidation has to be tried however late it is.
    """

    def read(self, keys: Collection[K]) -> Mapping[K, Cached | Lease]:
        """Return the entry or the lease found under each key; vacant keys are left out.

        An entry that cannot be read is removed and answered as vacant. Keys on a
        node that fails are vacant too if another node answered; raises if none did.
        """
        ...

    def lease(self, keys: Collection[K]) -> Mapping[K, Lease]:
        """Place a lease on each key that is vacant; return those that were placed.

        Atomic for each key: of many callers one wins. A lease ends by ``fill``, by
        ``invalidate``, or after 10 s.
        """
        ...

    def fill(self, key: CacheKey, lease: Lease, entry: Cached, ttl: float) -> bool:
        """Replace the lease by the entry, for ``ttl`` seconds, if it is still this lease.

        Atomic: returns False, with nothing changed, if the key was invalidated,
        filled, evicted or leased anew in between. Also False if the entry is too
        large to be cached. Safe to repeat.
        """
        ...

    def invalidate(self, keys: Collection[CacheKey]) -> None:
        """Make each key vacant, whatever it held. Safe to repeat.

        Returns only if the removal of every key was acknowledged; raises otherwise,
        with some of them possibly removed.
        """
        ...

    def peek(self, keys: Collection[K]) -> Mapping[K, Peeked]:
        """Return what is found under each key, unreadable entries too; vacant ones are left out.

        Changes nothing and counts nothing. Raises if any node concerned does not answer.
        """
        ...


class Probe(Protocol):
    """Tells whether a store answers."""

    store: Store

    def ping(self, deadline: Deadline) -> None:
        """Do a small read; return if the store answered it, raise a ``StoreError`` if not."""
        ...


class Notes(Protocol[T_contra]):
    """Takes note of what is to be done off the request path.

    Of outbox rows whose work is done, that they can go; of idempotent writes, what they
    were answered.
    """

    def add(self, notes: Iterable[T_contra]) -> None:
        """Note it. Never blocks and never fails; a note may be lost, which is safe."""
        ...
