"""What DynamoDB and the cache hold of an entity, held against what is right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from duostore_server.access.comparing import DOCUMENT, entity_differences
from duostore_server.domain.drift import MAX_DIFFERENCES, Departure, Difference, Drift, Finding
from duostore_server.domain.entities import AS_SAVED, Cached, Form, Lease
from duostore_server.domain.errors import ProjectionFailedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from duostore_server.access.shapes import Shapes
    from duostore_server.domain.admin_ports import HeldItem
    from duostore_server.domain.entities import Entity, Peeked, Projection
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.snapshots import Head


@dataclass(frozen=True, slots=True)
class _Right:
    """What is right: ``version`` is 0 if the entity never existed.

    ``payload`` makes that of a shape, None if it cannot be made; ``shape`` is what readers get.
    ``projection`` makes what DynamoDB shall hold, None if that is nothing.
    """

    key: EntityKey
    version: int
    has_document: bool
    shape: int
    payload: Callable[[int], bytes | None]
    projection: Callable[[], Projection | None]

    def finding(
        self, drift: Drift, found_version: int, differences: tuple[Difference, ...] = ()
    ) -> Finding:
        return Finding(self.key, drift, self.version, found_version, differences)


class Judge:
    """Says what does not agree with the store that is right.

    Pure: what was found in which order, and what may still be on its way, is for others to
    say. Content is compared byte by byte, since the same entity always has the same bytes;
    where those differ the documents decide, for another release may write others.
    """

    def __init__(
        self,
        shapes: Shapes,
        decode: Callable[[bytes], Entity],
        compose: Callable[[bytes, Head], bytes],
        fits: Callable[[EntityKey, Projection], bool],
    ) -> None:
        """``decode`` returns the entity of a payload, or raises ``ValueError``.

        ``compose`` makes the payload of a head's payload and the head; ``fits`` returns whether
        DynamoDB holds a projection as it is, rather than its stub.
        """
        self._shapes = shapes
        self._decode = decode
        self._compose = compose
        self._fits = fits

    def findings(
        self,
        key: EntityKey,
        entity: Entity | None,
        *,
        item: HeldItem | None,
        entry: Peeked | None,
    ) -> tuple[Finding, ...]:
        """Return what of a key at home in Aurora does not agree, one for each store at most."""
        right = self._of_entity(key, entity)
        found = (self._of_item(right, item), self._of_entry(right, entry))
        return tuple(finding for finding in found if finding is not None)

    def head_finding(
        self, key: EntityKey, head: Head | None, entry: Peeked | None, now: datetime
    ) -> Finding | None:
        """Return how the cache does not agree with a head, of a kind at home in DynamoDB."""
        live = head is not None and head.is_live(now)

        def payload(shape: int) -> bytes | None:
            if head is None or head.payload is None or shape != AS_SAVED:
                return None
            return self._compose(head.payload, head)

        version = head.version if head else 0
        right = _Right(key, version, live, AS_SAVED, payload, lambda: None)
        if entry is not None and isinstance(cached := entry.entry, Cached):
            if cached.expire_time is not None and cached.expire_time <= now:
                cached = replace(cached, payload=None)
            if not right.version and cached.payload is None:
                # What expired long ago is swept, and was absent before.
                return None
            entry = replace(entry, entry=cached)
        return self._of_entry(right, entry)

    def _of_entity(self, key: EntityKey, entity: Entity | None) -> _Right:
        made: dict[int, bytes | None] = {}

        def payload(shape: int) -> bytes | None:
            if entity is None:
                return None
            if shape not in made:
                try:
                    made[shape] = self._shapes.payload(entity, shape)
                except ProjectionFailedError:
                    made[shape] = None
            return made[shape]

        has_document = entity is not None and entity.data is not None
        version = entity.version if entity else 0
        shape = self._shapes.to_read(key)
        return _Right(
            key,
            version,
            has_document,
            shape,
            payload,
            lambda: None if entity is None else self._shapes.project(entity),
        )

    def _of_item(self, right: _Right, item: HeldItem | None) -> Finding | None:
        if item is None:
            return right.finding(Drift.PROJECTION_MISSING, 0) if right.version else None
        held = item.projection
        if item.fault:
            return self._of_unreadable(right, held)
        if not right.version:
            return right.finding(Drift.PROJECTION_ORPHAN, held.version)
        if held.version > right.version:
            return right.finding(Drift.PROJECTION_NEWER, held.version)
        if held.version < right.version:
            # To readers a stub is as good as nothing, however old it is.
            is_stub = held.form is Form.STUB
            drift = Drift.PROJECTION_MISSING if is_stub else Drift.PROJECTION_OLDER
            return right.finding(drift, held.version)
        return self._of_content(right, held)

    def _of_unreadable(self, right: _Right, held: Projection) -> Finding:
        """Judge an item that readers are not answered from; it may say what it departs in."""
        if held.form is not Form.STUB and held.version == right.version:
            differences = self._item_differences(right, held)
            if differences and all(one.path != DOCUMENT for one in differences):
                return right.finding(Drift.PROJECTION_CONTENT, held.version, differences)
        return right.finding(Drift.PROJECTION_UNREADABLE, held.version)

    def _of_content(self, right: _Right, held: Projection) -> Finding | None:
        """Judge an item of the right version.

        A stub of it sends readers to Aurora, which is right unless DynamoDB would hold more by
        now: what was too large in two shapes, or could not be made before its transform was
        mended.
        """
        if held.form is Form.STUB:
            if not self._is_held_whole(right):
                return None
            return right.finding(Drift.PROJECTION_MISSING, held.version)
        if differences := self._item_differences(right, held):
            return right.finding(Drift.PROJECTION_CONTENT, held.version, differences)
        if right.has_document and self._lacks(right, held) and self._is_held_whole(right):
            return right.finding(Drift.PROJECTION_VERSION_MISSING, held.version)
        return None

    def _is_held_whole(self, right: _Right) -> bool:
        """Whether DynamoDB would hold what there is to project, and not a stub of it."""
        projection = right.projection()
        if projection is None or projection.form is Form.STUB:
            return False
        return self._fits(right.key, projection)

    def _item_differences(self, right: _Right, held: Projection) -> tuple[Difference, ...]:
        if held.form is Form.TOMBSTONE:
            return self._differences(right, None, right.shape)
        found: dict[Difference, None] = {}
        for shape in sorted(held.shapes):
            found |= dict.fromkeys(self._differences(right, held.in_shape(shape), shape))
        return tuple(found)[:MAX_DIFFERENCES]

    def _lacks(self, right: _Right, held: Projection) -> bool:
        """Whether a shape is missing that is to be written and can be made."""
        wanted = self._shapes.to_write(right.key)
        return any(
            shape not in held.shapes and right.payload(shape) is not None for shape in wanted
        )

    def _of_entry(self, right: _Right, peeked: Peeked | None) -> Finding | None:
        if peeked is None or isinstance(peeked.entry, Lease):
            return None
        entry = peeked.entry
        if entry is None:
            return right.finding(Drift.CACHE_UNREADABLE, 0)
        if entry.version != right.version:
            newer = entry.version > right.version
            drift = Drift.CACHE_NEWER if newer else Drift.CACHE_OLDER
            return right.finding(drift, entry.version)
        if differences := self._differences(right, entry.payload, entry.shape):
            return right.finding(Drift.CACHE_CONTENT, entry.version, differences)
        return None

    def _differences(
        self, right: _Right, payload: bytes | None, shape: int
    ) -> tuple[Difference, ...]:
        """Return where a payload of the right version is not what it should be in its shape."""
        if payload is None or not right.has_document:
            if payload is None and not right.has_document:
                return ()
            departure = Departure.MISSING if payload is None else Departure.EXTRA
            return (Difference(DOCUMENT, departure),)
        expected = right.payload(shape)
        if expected == payload:
            return ()
        if expected is None:
            # Readers who get another shape never see it.
            return (Difference(DOCUMENT, Departure.EXTRA),) if shape == right.shape else ()
        try:
            found = self._decode(payload)
        except (ValueError, OverflowError):
            return (Difference(DOCUMENT, Departure.TYPE),)
        return entity_differences(self._decode(expected), found)
