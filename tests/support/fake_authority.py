"""The authority and its outbox in this process, of which a test decides when things happen.

Held to the same conformance suite as the one on PostgreSQL. What it does not have of that:
locks to wait for, timeouts, and connections to lose; what a caller sees of those a test
raises from ``step`` (before the commit) or from ``after_commit`` (the answer is lost).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from duostore_server.domain.entities import Backlog, Entity, OutboxRow, PendingChange
from duostore_server.domain.errors import (
    EntityExistsError,
    EntityNotFoundError,
    RefusalError,
    VersionMismatchError,
)
from duostore_server.domain.transactions import (
    Applied,
    Change,
    Check,
    Committed,
    IfAbsent,
    IfVersion,
    Recorded,
    Written,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.snapshots import Draft
    from duostore_server.domain.transactions import (
        IdempotencyKey,
        Mutation,
        Origin,
        Transaction,
    )

_OWN_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class Row:
    """An outbox row as the table holds it. Times are seconds of the clock."""

    id: int
    due_time: float
    create_time: float


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who wrote which version, as the table holds it."""

    key: EntityKey
    version: int
    operation: str
    origin: Origin
    time: datetime


def _no_step(_label: str) -> None:
    pass


def _nothing(_: object) -> None:
    pass


def _place(change: Change) -> tuple[str, str, str]:
    return change.key.tenant, change.key.kind, change.key.id


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _by_key(item: tuple[EntityKey, Entity]) -> str:
    return str(item[0])


class FakeAuthority:
    """The ports of Aurora in memory; safe to call from many threads.

    Those are ``Authority``, ``Outbox``, ``Drafts`` and ``IdempotencyRows``. ``step`` is
    called just before an operation takes effect, with ``authority.read``,
    ``authority.commit``, ``outbox.claim``, ``outbox.complete``, ``outbox.backlog``,
    ``outbox.find``, ``outbox.oblige``, ``drafts.fold`` or ``idempotency.purge``; no lock is held
    then. A transaction has taken its outbox ids by that time, so that, as in PostgreSQL, ids
    of different keys are committed in any order. Its versions are computed at the commit,
    which is what waiting for row locks comes to. ``observe`` is told the ids: what a caller
    gets to see in between its steps. ``after_commit`` is called with each change that was
    committed before ``write`` returns. ``clock`` gives seconds since 1970, a claim holds for
    ``claim`` of them.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        step: Callable[[str], None] = _no_step,
        observe: Callable[[Hashable], None] = _nothing,
        after_commit: Callable[[Written], None] = _nothing,
        claim: float = 3.0,
    ) -> None:
        self._clock = clock
        self._step = step
        self._observe = observe
        self._after_commit = after_commit
        self._claim = claim
        self._lock = threading.Lock()
        self._last_id = 0
        self._newest_id: dict[EntityKey, int] = {}
        self._entities: dict[EntityKey, Entity] = {}
        self._outbox: dict[EntityKey, Row] = {}
        self._remembered: dict[IdempotencyKey, tuple[Recorded, float]] = {}
        self._drafts: dict[EntityKey, Draft] = {}
        self.audit: list[AuditRow] = []

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Entity]:
        deadline.bound(_OWN_TIMEOUT)
        self._step("authority.read")
        with self._lock:
            return {key: self._entities[key] for key in keys if key in self._entities}

    def write(self, transaction: Transaction, deadline: Deadline) -> Committed:
        deadline.bound(_OWN_TIMEOUT)
        changes = [each for each in transaction.mutations if isinstance(each, Change)]
        with self._lock:
            ids = {change.key: self._next_id() for change in sorted(changes, key=_place)}
        for outbox_id in ids.values():
            self._observe(outbox_id)
        self._step("authority.commit")
        with self._lock:
            committed = self._apply(transaction, ids)
        for written in committed.written:
            self._after_commit(written)
        return committed

    def claim(self, limit: int, deadline: Deadline) -> Sequence[OutboxRow]:
        deadline.bound(_OWN_TIMEOUT)
        self._step("outbox.claim")
        with self._lock:
            now = self._clock()
            due = sorted(
                (row.due_time, row.id, key)
                for key, row in self._outbox.items()
                if row.due_time <= now and self._may_claim(row)
            )[:limit]
            for _, _, key in due:
                self._outbox[key] = replace(self._outbox[key], due_time=now + self._claim)
            return [OutboxRow(id_, key, _at(now)) for _, id_, key in due]

    def complete(self, rows: Collection[OutboxRow], deadline: Deadline) -> None:
        deadline.bound(_OWN_TIMEOUT)
        self._step("outbox.complete")
        with self._lock:
            for done in rows:
                self._complete(done)

    def forget(self, keys: Collection[EntityKey]) -> None:
        """Lose the outbox rows of keys, behind everybody's back."""
        with self._lock:
            for key in keys:
                self._outbox.pop(key, None)

    def _complete(self, done: OutboxRow) -> None:
        row = self._outbox.get(done.key)
        if row is None or row.id < done.id:
            return
        if row.id == done.id:
            del self._outbox[done.key]
        elif _at(row.create_time) < done.as_of <= _at(self._clock()):
            self._outbox[done.key] = replace(row, create_time=done.as_of.timestamp())

    def backlog(self, deadline: Deadline) -> Backlog:
        deadline.bound(_OWN_TIMEOUT)
        self._step("outbox.backlog")
        with self._lock:
            now = self._clock()
            oldest = min((row.create_time for row in self._outbox.values()), default=now)
            return Backlog(len(self._outbox), max(0.0, now - oldest))

    def find(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, PendingChange]:
        deadline.bound(_OWN_TIMEOUT)
        self._step("outbox.find")
        with self._lock:
            return {
                key: PendingChange(
                    row.id,
                    _at(row.create_time),
                    _at(row.due_time),
                    timedelta(seconds=max(0.0, self._clock() - row.create_time)),
                )
                for key in keys
                if (row := self._outbox.get(key))
            }

    def oblige(
        self, keys: Collection[EntityKey], due_after: timedelta, deadline: Deadline
    ) -> Sequence[OutboxRow]:
        deadline.bound(_OWN_TIMEOUT)
        self._step("outbox.oblige")
        with self._lock:
            now = self._clock()
            ordered = sorted(set(keys), key=str)
            rows = [OutboxRow(self._next_id(), key, _at(now)) for key in ordered]
            for row in rows:
                self._queue(row.key, row.id, now, due_after)
        for row in rows:
            self._observe(row.id)
        return rows

    def fold(self, drafts: Sequence[Draft], deadline: Deadline) -> Mapping[EntityKey, int]:
        deadline.bound(_OWN_TIMEOUT)
        self._step("drafts.fold")
        before = {}
        with self._lock:
            for draft in drafts:
                held = self._drafts.get(draft.key)
                before[draft.key] = held.sequence if held else 0
                if held is None or held.sequence < draft.sequence:
                    self._drafts[draft.key] = draft
        return before

    def recall(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        deadline.bound(_OWN_TIMEOUT)
        self._step("idempotency.recall")
        with self._lock:
            recorded, _ = self._remembered.get(key, (None, 0.0))
            return recorded

    def purge(self, limit: int, deadline: Deadline) -> int:
        deadline.bound(_OWN_TIMEOUT)
        self._step("idempotency.purge")
        with self._lock:
            now = self._clock()
            expired = sorted(
                (expire_time, str(key), key)
                for key, (_, expire_time) in self._remembered.items()
                if expire_time <= now
            )[:limit]
            for _, _, key in expired:
                del self._remembered[key]
            return len(expired)

    def drafts(self) -> Mapping[EntityKey, Draft]:
        """Return what was consolidated."""
        with self._lock:
            return dict(self._drafts)

    def state(self) -> Hashable:
        """Return all that the answers to come depend on, but for the times themselves."""
        with self._lock:
            due = sorted(self._outbox.items(), key=lambda item: (item[1].due_time, item[1].id))
            return (
                tuple(
                    (str(key), entity.version, repr(entity.data))
                    for key, entity in sorted(self._entities.items(), key=_by_key)
                ),
                tuple((str(key), row.id) for key, row in due),
                self._last_id,
                tuple(sorted((str(key), id_) for key, id_ in self._newest_id.items())),
                tuple(
                    sorted(
                        (
                            str(key),
                            recorded.request_hash,
                            tuple(applied.version for applied in recorded.answer),
                        )
                        for key, (recorded, _) in self._remembered.items()
                    )
                ),
                tuple(
                    sorted(
                        (str(key), draft.sequence, repr(draft.data))
                        for key, draft in self._drafts.items()
                    )
                ),
            )

    def _may_claim(self, _row: Row) -> bool:
        """Leave out what a mutant does not see."""
        return True

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _apply(self, transaction: Transaction, ids: Mapping[EntityKey, int]) -> Committed:
        idempotency = transaction.idempotency
        if idempotency and (found := self._remembered.get(idempotency.key)):
            recorded, _ = found
            return Committed(idempotency.answer_of(recorded).answer, (), replayed=True)
        self._require_all(transaction.mutations)
        changes: list[Written] = []
        answer: list[Applied] = []
        for mutation in transaction.mutations:
            if isinstance(mutation, Change):
                changes.append(self._commit(mutation, ids[mutation.key]))
                self._write_audit(mutation, changes[-1].entity, transaction.origin)
            entity = self._entities[mutation.key]
            answer.append(Applied(entity.version, entity.update_time))
        if idempotency:
            self._remembered[idempotency.key] = (
                Recorded(idempotency.request_hash, tuple(answer)),
                self._clock() + idempotency.keep / timedelta(seconds=1),
            )
        return Committed(tuple(answer), tuple(changes))

    def _require_all(self, mutations: Sequence[Mutation]) -> None:
        """Refuse a transaction by the first of its mutations that cannot be applied."""
        for place, mutation in enumerate(mutations):
            try:
                self._require(mutation)
            except RefusalError as refusal:
                if len(mutations) > 1:
                    refusal.at(place)
                raise

    def _require(self, mutation: Mutation) -> None:
        current = self._entities.get(mutation.key)
        version = current.version if current else 0
        live = version if current and current.data is not None else 0
        is_delete = isinstance(mutation, Change) and mutation.data is None
        precondition = (
            IfVersion(mutation.version) if isinstance(mutation, Check) else mutation.precondition
        )
        match precondition:
            case IfVersion(expected) if live != expected:
                raise VersionMismatchError(expected, live)
            case IfAbsent() if is_delete:
                raise ValueError("a Delete cannot require that the entity is absent")
            case IfAbsent() if live:
                raise EntityExistsError(live)
            case None if is_delete and not live:
                raise EntityNotFoundError(version)

    def _write_audit(self, change: Change, entity: Entity, origin: Origin) -> None:
        operation = "delete" if change.data is None else "save"
        self.audit.append(
            AuditRow(change.key, entity.version, operation, origin, entity.update_time)
        )

    def _commit(self, change: Change, outbox_id: int) -> Written:
        """Apply a change that may be applied."""
        now = self._clock()
        entity = self._next(change, datetime.fromtimestamp(now, UTC))
        # A writer that waited for the row's lock takes its id after that.
        if outbox_id < self._newest_id.get(change.key, 0):
            outbox_id = self._next_id()
        self._entities[change.key] = entity
        self._queue(change.key, outbox_id, now, change.due_after)
        return Written(entity, OutboxRow(outbox_id, change.key, _at(now)))

    def _queue(self, key: EntityKey, outbox_id: int, now: float, due_after: timedelta) -> None:
        row = Row(outbox_id, now + due_after / timedelta(seconds=1), now)
        if waiting := self._outbox.get(key):
            due_time = min(waiting.due_time, row.due_time)
            row = Row(outbox_id, due_time, waiting.create_time)
        self._outbox[key] = row
        self._newest_id[key] = outbox_id

    def _next(self, change: Change, now: datetime) -> Entity:
        """Return the version that the change makes of what is there."""
        current = self._entities.get(change.key)
        version = current.version if current else 0
        live = current is not None and current.data is not None
        update_time = max(now, current.update_time) if current else now
        create_time = current.create_time if current and live else update_time
        return Entity(change.key, version + 1, change.data, create_time, update_time)
