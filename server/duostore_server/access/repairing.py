"""Mends what does not agree: Aurora is right, and everything else is made of it anew."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from duostore_server.access.examining import is_behind, is_transient
from duostore_server.access.generations import generations_of
from duostore_server.domain.drift import Drift
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.errors import DeadlineExceededError, StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from duostore_server.access.examining import Examining, Look
    from duostore_server.access.propagation import Propagation
    from duostore_server.access.shapes import Shapes
    from duostore_server.domain.admin_ports import ProjectionItems
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Authority, Cache, Outbox

# Long enough for the repair to get there first, short if it dies.
DUE_AFTER: Final = timedelta(seconds=5)
# As many as are put in one call.
_LOT: Final = 25

# What a put would not replace.
_IN_THE_WAY: Final = frozenset(
    {
        Drift.PROJECTION_NEWER,
        Drift.PROJECTION_CONTENT,
        Drift.PROJECTION_UNREADABLE,
        Drift.PROJECTION_ORPHAN,
    }
)
_NOT_BROUGHT: Final = (
    "could not be brought to dynamodb and the cache; the projector goes on with it"
)


class Repairing:
    """Projects entities anew, beside live traffic.

    Each key is given an outbox row before anything is touched: whatever dies from then on, the
    projector brings the current version. An item that a put would not replace is replaced on
    the condition that it is exactly what was found, so that whatever a Save has put meanwhile
    stays. After that Aurora is read once more, for a Save may have been turned away by what was
    there.

    One hole is left, a few milliseconds wide: a Save that is committed between the row and the
    replacement, is turned away by what is newer and takes the row away; then the repair dies.
    Readers ask Aurora and bring that version, unless a put of the one before, which was under
    way all along, comes first: that one is older until a check finds it.
    """

    def __init__(
        self,
        *,
        examining: Examining,
        authority: Authority,
        outbox: Outbox,
        items: ProjectionItems,
        cache: Cache,
        propagation: Propagation,
        shapes: Shapes,
    ) -> None:
        self._examining = examining
        self._authority = authority
        self._outbox = outbox
        self._items = items
        self._cache = cache
        self._propagation = propagation
        self._shapes = shapes

    def repair(self, keys: Collection[EntityKey], deadline: Deadline) -> dict[EntityKey, str]:
        """Return for each key why it could not be repaired, empty if it was.

        It was if a look after the repair found that all agree. Never raises: what was begun
        is left to the projector if a store fails or the deadline passes.
        """
        outcomes: dict[EntityKey, str] = {}
        for lot in self._examining.lots(keys, _LOT):
            try:
                outcomes |= self._repair(lot, deadline)
            except (StoreError, DeadlineExceededError) as error:
                outcomes |= dict.fromkeys(lot, str(error))
        return outcomes

    def _repair(self, keys: Sequence[EntityKey], deadline: Deadline) -> dict[EntityKey, str]:
        looks = self._look(keys, deadline)
        # After the look: what was saved before it is brought by this row, should it have been
        # turned away by what is there.
        rows = self._outbox.oblige(keys, DUE_AFTER, deadline)
        for look in looks.values():
            self._replace(look, deadline)
        entities = self._authority.read(keys, deadline)
        if not self._bring(keys, entities, deadline):
            return dict.fromkeys(keys, _NOT_BROUGHT)
        self._outbox.complete(rows, deadline)
        return {
            key: _left(look, entities.get(key)) for key, look in self._look(keys, deadline).items()
        }

    def _look(self, keys: Sequence[EntityKey], deadline: Deadline) -> Mapping[EntityKey, Look]:
        looks = self._examining.look(keys, deadline)
        for look in looks.values():
            for store in look.unknown:
                raise StoreUnavailableError(store)
        return looks

    def _replace(self, look: Look, deadline: Deadline) -> None:
        """Take away what is in the way of a put."""
        drifts = {finding.drift for finding in look.findings}
        if look.item is None or not drifts & _IN_THE_WAY:
            return
        if look.entity is None:
            self._items.replace(look.item, None, deadline)
        elif look.item.projection.version <= look.entity.version:
            self._items.replace(look.item, self._shapes.project(look.entity), deadline)
        else:
            # It may have turned away a version that was committed since, whose outbox row, which
            # took the place of ours, is then gone. With a stub readers ask Aurora. It gives way
            # to the document of its own version and to what is newer, and to no put that is late.
            self._items.replace(look.item, Projection(look.entity.version, Form.STUB), deadline)

    def _bring(
        self,
        keys: Sequence[EntityKey],
        entities: Mapping[EntityKey, Entity],
        deadline: Deadline,
    ) -> bool:
        gone = [key for key in keys if key not in entities]
        if gone:
            self._cache.invalidate([*gone, *generations_of(gone)])
        return not entities or self._propagation.propagate(list(entities.values()), deadline)


def _left(look: Look, entity: Entity | None) -> str:
    """Return what still does not agree after a repair, empty if all does.

    What was saved meanwhile may still be on its way.
    """
    version = entity.version if entity else 0
    for finding in look.findings:
        if not is_transient(finding) or is_behind(finding, version):
            return f"{finding.drift.value} again after the repair; does something else write there?"
    return ""
