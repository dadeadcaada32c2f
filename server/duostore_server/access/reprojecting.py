"""Brings what DynamoDB lacks of entities that were read from Aurora, in bulk."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from duostore_server.domain.errors import ProjectionFailedError, StoreError
from duostore_server.domain.keys import key_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from duostore_server.access.shapes import Shapes
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity, Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Cache, Outbox, Projections

# What one call of DynamoDB takes: the projector, which readers wait for, comes in between.
_READ_TOGETHER: Final = 100
_PUT_TOGETHER: Final = 25
# Of entities that cannot be projected, so many at a time are told of in the log.
_MOST_TOLD: Final = 3

_log = structlog.get_logger(__name__)


class Reprojecting:
    """Projects versions of entities in the shapes to write, where DynamoDB is behind.

    A concurrent Save always wins: what is newer is left alone.
    """

    def __init__(
        self, *, shapes: Shapes, projections: Projections, cache: Cache, outbox: Outbox
    ) -> None:
        self._shapes = shapes
        self._projections = projections
        self._cache = cache
        self._outbox = outbox

    def bring(self, entities: Sequence[Entity], deadline: Deadline) -> tuple[int, int]:
        """Put what DynamoDB lacks; return how many that was, and how many cannot be projected.

        Raises as ``Projections`` does, with some of it put. Safe to repeat and to reorder.
        """
        projected = failed = 0
        for first in range(0, len(entities), _READ_TOGETHER):
            lot = entities[first : first + _READ_TOGETHER]
            held = self._projections.read([entity.key for entity in lot], deadline)
            lacking, failures = self._lacking(lot, held)
            _tell(failures)
            broken = {entity.key for entity, _ in failures}
            failed += len(failures)
            for puts in _split(lacking, _PUT_TOGETHER):
                changed = self._put(puts, held, deadline)
                projected += sum(key not in broken for key in changed)
        return projected, failed

    def _lacking(
        self, entities: Sequence[Entity], held: Mapping[EntityKey, Projection]
    ) -> tuple[dict[EntityKey, Projection], list[tuple[Entity, ProjectionFailedError]]]:
        """Return what is to be put, and the entities that cannot be projected as they should."""
        puts: dict[EntityKey, Projection] = {}
        failures: list[tuple[Entity, ProjectionFailedError]] = []
        for entity in entities:
            found = held.get(entity.key)
            wanted = frozenset(self._shapes.to_write(entity.key))
            if not _lacks(found, entity, wanted):
                continue
            made = self._shapes.project(entity)
            if (failure := self._failure(entity, wanted - made.shapes)) is not None:
                failures.append((entity, failure))
            if _lacks(found, entity, made.shapes):
                puts[entity.key] = made
        return puts, failures

    def _put(
        self,
        puts: Mapping[EntityKey, Projection],
        held: Mapping[EntityKey, Projection],
        deadline: Deadline,
    ) -> list[EntityKey]:
        """Put projections; return the keys of those of which DynamoDB has now what it had not."""
        now_held = self._projections.put_all(puts, deadline)
        self._invalidate(puts, held, deadline)
        return [
            key
            for key, put in puts.items()
            # What stood in the way is newer.
            if now_held[key].version == put.version and now_held[key] != held.get(key)
        ]

    def _failure(self, entity: Entity, shapes: Iterable[int]) -> ProjectionFailedError | None:
        if entity.data is not None:
            for shape in sorted(shapes):
                try:
                    self._shapes.payload(entity, shape)
                except ProjectionFailedError as error:
                    return error
        return None

    def _invalidate(
        self,
        puts: Mapping[EntityKey, Projection],
        held: Mapping[EntityKey, Projection],
        deadline: Deadline,
    ) -> None:
        """Remove the entries of what was put.

        A cache that does not answer holds up nothing: the projector removes what may be older.
        Of the rest what may be cached is right, or that there is nothing, for a short time.
        """
        try:
            self._cache.invalidate(list(puts))
        except StoreError:
            older = [key for key, put in puts.items() if key in held]
            older = [key for key in older if held[key].version < puts[key].version]
            if older:
                self._outbox.oblige(older, timedelta(), deadline)


def _lacks(held: Projection | None, entity: Entity, shapes: frozenset[int]) -> bool:
    """Return whether DynamoDB has an older version than this, or not in these shapes.

    That it has the version with another content is no lack: a check finds and repairs it.
    """
    if held is None or held.version != entity.version:
        return held is None or held.version < entity.version
    return not shapes <= held.shapes


def _tell(failures: Sequence[tuple[Entity, ProjectionFailedError]]) -> None:
    for entity, failure in failures[:_MOST_TOLD]:
        key = entity.key
        _log.error(
            "entity cannot be projected",
            kind=key.kind,
            key_digest=key_digest(key),
            version=entity.version,
            error=str(failure),
        )
    if len(failures) > _MOST_TOLD:
        left = len(failures) - _MOST_TOLD
        _log.error("more entities cannot be projected", kind=failures[0][0].key.kind, count=left)


def _split(
    puts: Mapping[EntityKey, Projection], size: int
) -> Iterator[Mapping[EntityKey, Projection]]:
    left = iter(puts.items())
    while lot := dict(islice(left, size)):
        yield lot
