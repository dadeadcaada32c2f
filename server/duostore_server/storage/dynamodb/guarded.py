"""The projections, left alone for a moment when they keep failing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Projections
    from duostore_server.storage.backoff import Backoff


class GuardedProjections:
    """Fails calls at once while DynamoDB is out of reach.

    A DynamoDB that does not answer would otherwise hold every thread of the process for
    its timeout, those of cache hits too. To be turned away is always correct: reads go
    to the authority, and what is not put stays in the outbox.
    """

    def __init__(self, delegate: Projections, backoff: Backoff) -> None:
        self._delegate = delegate
        self._backoff = backoff

    def read(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, Projection]:
        with self._watched():
            return self._delegate.read(keys, deadline)

    def put(self, key: EntityKey, projection: Projection, deadline: Deadline) -> Projection:
        with self._watched():
            return self._delegate.put(key, projection, deadline)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        if not self._backoff.admits():
            raise StoreUnavailableError(Store.DYNAMODB)
        try:
            yield
        except StoreUnavailableError:
            self._backoff.failed()
            raise
        self._backoff.succeeded()
