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

from duostore_server.domain.entities import (
    Backlog,
    Entity,
    IfAbsent,
    IfVersion,
    OutboxRow,
    Written,
)
from duostore_server.domain.errors import (
    EntityExistsError,
    EntityNotFoundError,
    VersionMismatchError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Change
    from duostore_server.domain.keys import EntityKey

_OWN_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class Row:
    """An outbox row as the table holds it. Times are seconds of the clock."""

    id: int
    due_time: float
    create_time: float


def _no_step(_label: str) -> None:
    pass


def _nothing(_: object) -> None:
    pass


def _by_key(item: tuple[EntityKey, Entity]) -> str:
    return str(item[0])


class FakeAuthority:
    """``ports.Authority`` and ``ports.Outbox`` in memory; safe to call from many threads.

    ``step`` is called just before an operation takes effect, with ``authority.read``,
    ``authority.commit``, ``outbox.claim``, ``outbox.complete`` or ``outbox.backlog``; no lock
    is held then. A write has taken its outbox id by that time, so that, as in PostgreSQL,
    ids of different keys are committed in any order. Its version is computed at the commit,
    which is what waiting for a row lock comes to. ``observe`` is told the id: what a caller
    gets to see in between its steps. ``after_commit`` is called with what was committed
    before ``write`` returns it. ``clock`` gives seconds since 1970, a claim holds for
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

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Entity]:
        deadline.bound(_OWN_TIMEOUT)
        self._step("authority.read")
        with self._lock:
            return {key: self._entities[key] for key in keys if key in self._entities}

    def write(self, change: Change, deadline: Deadline) -> Written:
        deadline.bound(_OWN_TIMEOUT)
        with self._lock:
            outbox_id = self._next_id()
        self._observe(outbox_id)
        self._step("authority.commit")
        with self._lock:
            written = self._commit(change, outbox_id)
        self._after_commit(written)
        return written

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
            return [OutboxRow(id_, key) for _, id_, key in due]

    def complete(self, ids: Collection[int], deadline: Deadline) -> None:
        deadline.bound(_OWN_TIMEOUT)
        self._step("outbox.complete")
        with self._lock:
            for key in [key for key, row in self._outbox.items() if row.id in ids]:
                del self._outbox[key]

    def backlog(self, deadline: Deadline) -> Backlog:
        deadline.bound(_OWN_TIMEOUT)
        self._step("outbox.backlog")
        with self._lock:
            now = self._clock()
            oldest = min((row.create_time for row in self._outbox.values()), default=now)
            return Backlog(len(self._outbox), max(0.0, now - oldest))

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
            )

    def _may_claim(self, _row: Row) -> bool:
        """Leave out what a mutant does not see."""
        return True

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _commit(self, change: Change, outbox_id: int) -> Written:
        now = self._clock()
        entity = self._next(change, datetime.fromtimestamp(now, UTC))
        # A writer that waited for the row's lock takes its id after that.
        if outbox_id < self._newest_id.get(change.key, 0):
            outbox_id = self._next_id()
        row = Row(outbox_id, now + change.due_after / timedelta(seconds=1), now)
        if waiting := self._outbox.get(change.key):
            due_time = min(waiting.due_time, row.due_time)
            row = Row(outbox_id, due_time, waiting.create_time)
        self._entities[change.key] = entity
        self._outbox[change.key] = row
        self._newest_id[change.key] = outbox_id
        return Written(entity, outbox_id)

    def _next(self, change: Change, now: datetime) -> Entity:
        """Return the version that the change makes of what is there, if it may be applied."""
        current = self._entities.get(change.key)
        version = current.version if current else 0
        live = version if current and current.data is not None else 0
        match change.precondition:
            case IfVersion(expected) if live != expected:
                raise VersionMismatchError(expected, live)
            case IfAbsent() if change.data is None:
                raise ValueError("a Delete cannot require that the entity is absent")
            case IfAbsent() if live:
                raise EntityExistsError(live)
            case None if change.data is None and not live:
                raise EntityNotFoundError(version)
        update_time = max(now, current.update_time) if current else now
        create_time = current.create_time if current and live else update_time
        return Entity(change.key, version + 1, change.data, create_time, update_time)
