"""Bringing a committed version to where it is read: DynamoDB first, then the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from duostore_server.access.generations import generations_of
from duostore_server.domain.errors import DuostoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity, Projection
    from duostore_server.domain.ports import Cache, Projections

_log = structlog.get_logger(__name__)


class Propagation:
    """Projects committed versions of different keys and busts their cache entries.

    And with them the cached results of the queries that depend on their kinds: of whatever
    kinds, for a server of another release may have queries that this one does not know.
    Safe to repeat and to reorder.
    """

    def __init__(
        self, projections: Projections, cache: Cache, project: Callable[[Entity], Projection]
    ) -> None:
        """``project`` returns what DynamoDB shall hold of a version."""
        self._projections = projections
        self._cache = cache
        self._project = project

    def propagate(self, entities: Sequence[Entity], deadline: Deadline) -> bool:
        """Return True if every read that starts from now on sees these versions or newer ones.

        Never raises: the changes are committed, and their outbox rows stay until this
        succeeds. The puts come before the invalidation: whoever leases an entry afterwards
        reads a DynamoDB that already holds the version. If they fail the entries are
        removed all the same, so that readers come to the stores themselves.
        """
        projected = self._put(entities, deadline)
        return self._invalidate(entities) and projected

    def _put(self, entities: Sequence[Entity], deadline: Deadline) -> bool:
        def put() -> None:
            self._projections.put_all(
                {entity.key: self._project(entity) for entity in entities}, deadline
            )

        return _done(put)

    def _invalidate(self, entities: Sequence[Entity]) -> bool:
        keys = [entity.key for entity in entities]
        ended = generations_of(keys)
        return _done(lambda: self._cache.invalidate([*keys, *ended]))


def _done(step: Callable[[], object]) -> bool:
    """Return whether a step was done. What was committed is not undone by any failure of it."""
    try:
        step()
    except DuostoreError:
        # The stores' own metrics count it, and the outbox row stays.
        return False
    except Exception:  # noqa: BLE001 - a fault of ours; the row is tried again
        _log.exception("change cannot be propagated")
        return False
    return True
