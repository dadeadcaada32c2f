"""Bringing a committed version to where it is read: DynamoDB first, then the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.errors import DuostoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.ports import Cache, Projections

_log = structlog.get_logger(__name__)


def projection_of(entity: Entity, encode: Callable[[Entity], bytes]) -> Projection:
    """Return what DynamoDB shall hold of a version."""
    if entity.data is None:
        return Projection(entity.version, Form.TOMBSTONE)
    return Projection(entity.version, Form.VALUE, encode(entity))


class Propagation:
    """Projects a committed version and busts its cache entry. Safe to repeat and reorder."""

    def __init__(
        self, projections: Projections, cache: Cache, encode: Callable[[Entity], bytes]
    ) -> None:
        self._projections = projections
        self._cache = cache
        self._encode = encode

    def propagate(self, entity: Entity, deadline: Deadline) -> bool:
        """Return True if every read that starts from now on sees this version or a newer one.

        Never raises: the change is committed, and its outbox row stays until this succeeds.
        The put comes before the invalidation: whoever leases the entry afterwards
        reads a DynamoDB that already holds the version. If the put fails the entry is
        removed all the same, so that readers come to the stores themselves.
        """
        projected = self._put(entity, deadline)
        return self._invalidate(entity) and projected

    def _put(self, entity: Entity, deadline: Deadline) -> bool:
        projection = projection_of(entity, self._encode)
        return _done(lambda: self._projections.put(entity.key, projection, deadline))

    def _invalidate(self, entity: Entity) -> bool:
        return _done(lambda: self._cache.invalidate((entity.key,)))


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
