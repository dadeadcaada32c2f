"""DynamoDB, left alone for a moment when it keeps failing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import (
    DeadlineExceededError,
    DuplicateInProgressError,
    IdempotencyKeyReusedError,
    RefusalError,
    Store,
    StoreOverloadedError,
    StoreUnavailableError,
    WriteOutcomeUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Projections
    from duostore_server.storage.backoff import Backoff

# A caller in a hurry, or a hot key, says nothing of the store.
_NO_OUTAGE: Final = (DeadlineExceededError, StoreOverloadedError)


class Guard:
    """Fails calls at once while DynamoDB is out of reach.

    A DynamoDB that does not answer would otherwise hold every thread of the process for
    its timeout, those of cache hits too. One guard watches over all ports of a process:
    what one of them found out holds for the others.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Run a call of DynamoDB; raise ``StoreUnavailableError`` if it is not to be made."""
        if not self._backoff.admits():
            raise StoreUnavailableError(Store.DYNAMODB)
        try:
            yield
        except StoreUnavailableError:
            self._backoff.failed()
            raise
        except WriteOutcomeUnknownError as error:
            if not isinstance(error.__cause__, _NO_OUTAGE):
                self._backoff.failed()
            raise
        except (RefusalError, IdempotencyKeyReusedError, DuplicateInProgressError):
            # DynamoDB was asked, and has answered.
            self._backoff.succeeded()
            raise
        self._backoff.succeeded()


class GuardedProjections:
    """Projections that are left alone while DynamoDB is out of reach.

    To be turned away is always correct: reads go to the authority, and what is not put
    stays in the outbox.
    """

    def __init__(self, delegate: Projections, guard: Guard) -> None:
        self._delegate = delegate
        self._guard = guard

    def read(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        with self._guard.watched():
            return self._delegate.read(keys, deadline)

    def put(self, key: EntityKey, projection: Projection, deadline: Deadline) -> Projection:
        with self._guard.watched():
            return self._delegate.put(key, projection, deadline)

    def put_all(
        self, projections: Mapping[EntityKey, Projection], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        with self._guard.watched():
            return self._delegate.put_all(projections, deadline)
