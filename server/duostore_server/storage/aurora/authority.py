"""The newest version of every entity, on the writer of Aurora."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import psycopg

from duostore_server.domain.errors import (
    ConstraintViolatedError,
    DuostoreError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    Store,
    StoreOverloadedError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.transactions import Applied, Change, Committed
from duostore_server.storage.aurora.idempotency import (
    AuroraIdempotency,
    KeyTakenError,
    contending_for_key,
    remembering,
)
from duostore_server.storage.aurora.mutations import (
    entity_of,
    refusal_of,
    statement_of,
    written_of,
)
from duostore_server.storage.aurora.relational import RowWrites, violation_of
from duostore_server.storage.aurora.statements import READ_MANY, READ_ONE
from duostore_server.storage.aurora.trips import StatementFailedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from psycopg.rows import TupleRow

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.errors import RefusalError
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.read_models import ReadModel
    from duostore_server.domain.transactions import (
        Idempotency,
        Mutation,
        Transaction,
        Written,
    )
    from duostore_server.storage.aurora.pool import AuroraPool
    from duostore_server.storage.aurora.trips import Course, Rows

# How often a write is tried whose precondition did not hold when it ran and does when
# its refusal is looked into.
_ATTEMPTS: Final = 3


_NONE: Final[Mapping[str, ReadModel]] = MappingProxyType({})


class _RefusedError(Exception):
    """Rolls a transaction back that has a mutation which cannot be applied."""


class AuroraAuthority:
    """``ports.Authority`` on PostgreSQL.

    A write of one change is one statement; several mutations, and one of a relational kind,
    are a transaction of two round trips. They take their locks in the order of their keys, as
    every transaction does, so that none waits for another in a circle.

    ``read_models`` are by kind; those of derived kinds are of no concern here.
    """

    def __init__(self, pool: AuroraPool, read_models: Mapping[str, ReadModel] = _NONE) -> None:
        self._pool = pool
        self._read_models = read_models
        self._keys = AuroraIdempotency(pool)

    def read(self, keys: Collection[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Entity]:
        ordered = list(keys)
        if not ordered:
            return {}
        found: dict[EntityKey, Entity] = {}
        for _, n, version, data, create_time, update_time in self._rows(ordered, deadline):
            if version is not None:
                key = ordered[n - 1]
                found[key] = entity_of(key, version, data, create_time, update_time)
        return found

    def write(self, transaction: Transaction, deadline: Deadline) -> Committed:
        """Keep the promise of the port.

        With an idempotency key, a write whose answer was lost is tried once more before
        that is said. If the first try was applied after all, the answer is ``replayed``.
        If the second is refused, that is no answer: the first may still be under way, and
        be applied when it is its turn.
        """
        try:
            return self._write(transaction, deadline)
        except WriteOutcomeUnknownError:
            if transaction.idempotency is None:
                raise
        try:
            return self._write(transaction, deadline)
        except IdempotencyKeyReusedError:
            raise
        except DuostoreError as error:
            raise WriteOutcomeUnknownError(Store.AURORA) from error

    def _write(self, transaction: Transaction, deadline: Deadline) -> Committed:
        for _ in range(_ATTEMPTS):
            refusal: DuostoreError | None
            try:
                return self._apply(transaction, deadline)
            except KeyTakenError:
                refusal = None
            except (ConstraintViolatedError, InvalidRequestError) as error:
                refusal = error
            except _RefusedError:
                # Why is seen a moment later, when a concurrent change may have made it
                # applicable: a refusal would contradict itself then (not version 5 but 5),
                # so the write is due another attempt.
                refusal = self._refusal(transaction.mutations, deadline)
            # Looked up after the refusal: else what this very request did, by another call,
            # between the two could be the reason to refuse it.
            if replay := self._replay(transaction.idempotency, deadline):
                return replay
            if refusal:
                raise refusal
        raise StoreOverloadedError(Store.AURORA)

    def _apply(self, transaction: Transaction, deadline: Deadline) -> Committed:
        """Apply it; raises ``_RefusedError`` or ``KeyTakenError`` with nothing written."""
        with contending_for_key() if transaction.idempotency else nullcontext():
            match transaction.mutations:
                case (Change() as change,) if not self._is_relational(change.key):
                    return self._apply_one(change, transaction, deadline)
                case _:
                    return self._apply_several(transaction, deadline)

    def _apply_one(self, change: Change, transaction: Transaction, deadline: Deadline) -> Committed:
        statement = statement_of(change, transaction.origin, transaction.idempotency)
        rows = self._pool.execute(statement.query, statement.params, deadline, repeatable=False)
        if not rows:
            raise _RefusedError
        return _committed(rows, (change,))

    def _apply_several(self, transaction: Transaction, deadline: Deadline) -> Committed:
        mutations = transaction.mutations
        order = sorted(range(len(mutations)), key=lambda n: _lock_order(mutations[n].key))
        committed = Committed((), ())

        def course() -> Course:
            nonlocal committed
            entities = [statement_of(mutations[n], transaction.origin) for n in order]
            writes = RowWrites(self._read_models, mutations)
            try:
                rows = yield [*entities, *writes.statements]
            except StatementFailedError as failure:
                # A row of the user's may be in the way of what is refused for another reason.
                if not all(failure.rows[: len(order)]):
                    raise _RefusedError from failure
                if meaning := writes.meaning(failure, before=len(order)):
                    raise meaning from failure
                raise
            if not all(rows[: len(order)]):
                raise _RefusedError
            by_place = {place: row for place, (row,) in zip(order, rows[: len(order)], strict=True)}
            completed = writes.completed(rows[len(order) :])
            committed = _committed([by_place[n] for n in range(len(mutations))], completed)
            last = writes.completing(completed)
            if transaction.idempotency is not None:
                last.append(remembering(transaction.idempotency, committed.answer))
            return last

        try:
            self._pool.transact(course, deadline)
        except psycopg.Error as error:
            # Of a constraint that is checked when the transaction ends.
            if violation := violation_of(error):
                raise violation from error
            raise
        return committed

    def _is_relational(self, key: EntityKey) -> bool:
        model = self._read_models.get(key.kind)
        return model is not None and not model.is_derived

    def _refusal(self, mutations: Sequence[Mutation], deadline: Deadline) -> RefusalError | None:
        """Return why the first mutation that is refused by what is there now is, if any is."""
        current = self.read([mutation.key for mutation in mutations], deadline)
        for place, mutation in enumerate(mutations):
            if refusal := refusal_of(mutation, current.get(mutation.key)):
                return refusal.at(place) if len(mutations) > 1 else refusal
        return None

    def _replay(self, idempotency: Idempotency | None, deadline: Deadline) -> Committed | None:
        """Return what was applied under this key before, if anything was."""
        if idempotency is None:
            return None
        recorded = self._keys.recall(idempotency.key, deadline)
        if recorded is None:
            return None
        return Committed(idempotency.answer_of(recorded).answer, (), replayed=True)

    def _rows(self, keys: Sequence[EntityKey], deadline: Deadline) -> Rows:
        if len(keys) == 1:
            (key,) = keys
            return self._pool.ask_writer(READ_ONE, (key.tenant, key.kind, key.id), deadline)
        columns = (
            [key.tenant for key in keys],
            [key.kind for key in keys],
            [key.id for key in keys],
        )
        return self._pool.ask_writer(READ_MANY, columns, deadline)


def _lock_order(key: EntityKey) -> tuple[str, str, str]:
    return key.tenant, key.kind, key.id


def _committed(rows: Sequence[TupleRow], mutations: Sequence[Mutation]) -> Committed:
    """Return what mutations came to, of a row that each has answered."""
    answer: list[Applied] = []
    changes: list[Written] = []
    for mutation, row in zip(mutations, rows, strict=True):
        if isinstance(mutation, Change):
            written = written_of(mutation, row)
            changes.append(written)
            answer.append(Applied(written.entity.version, written.entity.update_time))
        else:
            version, update_time = row
            answer.append(Applied(version, update_time.astimezone(UTC)))
    return Committed(tuple(answer), tuple(changes))
