"""Save, Delete and Transact: committed where the kind is at home, then seen by every reader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.access.idempotency import idempotency_of
from duostore_server.domain.errors import DuostoreError, RefusalError
from duostore_server.domain.policies import Home
from duostore_server.domain.transactions import (
    Change,
    Check,
    Delete,
    FromSnapshot,
    Save,
    Transaction,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import timedelta

    from duostore_server.access.checks import Checks
    from duostore_server.access.committing import Committer
    from duostore_server.access.drafting import Drafting
    from duostore_server.access.dynamodb_home import DynamoDBHome
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import Policies
    from duostore_server.domain.transactions import (
        IfVersion,
        Mutation,
        Origin,
        Outcome,
        Precondition,
        Request,
    )

_NOWHERE: Final = ""
_TRANSACT: Final = "Transact"


class Writer:
    """Applies what callers ask for, once it is found acceptable.

    A call with an idempotency key is applied once, however often it comes.
    """

    def __init__(
        self,
        *,
        committer: Committer,
        dynamodb_home: DynamoDBHome,
        drafting: Drafting,
        policies: Policies,
        checks: Checks,
        keep: timedelta,
        check_writable: Callable[[Iterable[str]], None],
    ) -> None:
        """``keep`` is how long an idempotency key is remembered at least.

        ``check_writable`` raises ``ReadOnlyError`` if one of the kinds is read-only for now.
        """
        self._committer = committer
        self._dynamodb_home = dynamodb_home
        self._drafting = drafting
        self._policies = policies
        self._checks = checks
        self._keep = keep
        self._check_writable = check_writable

    def save(
        self,
        key: EntityKey,
        content: JsonObject | FromSnapshot | None,
        precondition: Precondition,
        deadline: Deadline,
        *,
        origin: Origin,
        idempotency_key: str = "",
    ) -> Outcome:
        """Create the entity or replace its data.

        Raises as ``Authority.write`` or, by the kind's home, ``Heads.write`` does, and
        ``SnapshotNotFoundError`` for content that is no snapshot.
        """
        save = Save(key, content, precondition)
        return self._one("Save", save, deadline, origin, idempotency_key)

    def delete(
        self,
        key: EntityKey,
        precondition: IfVersion | None,
        deadline: Deadline,
        *,
        origin: Origin,
        idempotency_key: str = "",
    ) -> Outcome:
        """Leave a tombstone, a version like any other; raises as ``save`` does."""
        delete = Delete(key, precondition)
        return self._one("Delete", delete, deadline, origin, idempotency_key)

    def transact(
        self,
        requests: Sequence[Request],
        deadline: Deadline,
        *,
        origin: Origin,
        idempotency_key: str = "",
    ) -> Outcome:
        """Apply all requests or none; a refusal names the one that it is of."""
        accepted = self._checks.transaction(requests, idempotency_key)

        def mutations() -> Iterator[Mutation]:
            for index, request in enumerate(accepted):
                yield self._mutation(index, request, deadline)

        try:
            return self._commit(
                _TRANSACT,
                accepted,
                mutations,
                deadline,
                origin=origin,
                idempotency_key=idempotency_key,
            )
        except RefusalError as refusal:
            # Of a transaction of one the authority does not say which.
            refusal.at(0)
            raise

    def _one(
        self,
        operation: str,
        request: Save | Delete,
        deadline: Deadline,
        origin: Origin,
        idempotency_key: str,
    ) -> Outcome:
        accepted = self._checks.write(request, idempotency_key)
        if self._policies.of(request.key).home is Home.DYNAMODB:
            idempotency = idempotency_of(idempotency_key, operation, [accepted], self._keep)
            try:
                self._check_writable((request.key.kind,))
            except DuostoreError:
                if (earlier := self._dynamodb_home.recall(idempotency, deadline)) is not None:
                    return earlier
                raise
            change = self._change(accepted, _NOWHERE, deadline)
            return self._dynamodb_home.write(change, idempotency, deadline)

        def mutations() -> Iterator[Mutation]:
            yield self._change(accepted, _NOWHERE, deadline)

        return self._commit(
            operation,
            [accepted],
            mutations,
            deadline,
            origin=origin,
            idempotency_key=idempotency_key,
        )

    def _commit(
        self,
        operation: str,
        requests: Sequence[Request],
        mutations: Callable[[], Iterable[Mutation]],
        deadline: Deadline,
        *,
        origin: Origin,
        idempotency_key: str,
    ) -> Outcome:
        """Commit what ``mutations`` makes of the requests, unless that was done earlier."""
        idempotency = idempotency_of(idempotency_key, operation, requests, self._keep)
        if (earlier := self._committer.recall(idempotency, deadline)) is not None:
            return earlier
        try:
            self._check_writable(
                request.key.kind for request in requests if not isinstance(request, Check)
            )
            transaction = Transaction(tuple(mutations()), origin, idempotency)
        except DuostoreError:
            # The snapshot of an earlier call may be gone by now, or its kind be read-only.
            if (earlier := self._committer.recall_surely(idempotency, deadline)) is not None:
                return earlier
            raise
        return self._committer.commit(transaction, deadline)

    def _mutation(self, index: int, request: Request, deadline: Deadline) -> Mutation:
        if isinstance(request, Check):
            return request
        try:
            return self._change(request, f"mutations[{index}].save.", deadline)
        except RefusalError as refusal:
            refusal.at(index)
            raise

    def _change(self, request: Save | Delete, at: str, deadline: Deadline) -> Change:
        data = self._data(request, at, deadline) if isinstance(request, Save) else None
        due_after = self._policies.of(request.key).due_after
        return Change(request.key, data, request.precondition, due_after)

    def _data(self, save: Save, at: str, deadline: Deadline) -> JsonObject | None:
        """Return the document to be saved; a snapshot has to be as acceptable as any."""
        if not isinstance(save.content, FromSnapshot):
            return save.content
        data = self._drafting.data(save.key, save.content.sequence, deadline)
        return self._checks.document(save.key, data, at=at)
