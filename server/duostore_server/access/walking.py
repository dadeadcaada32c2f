"""Which keys a check looks at: all there are, or some at random."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from duostore_server.access.examining import MOST_KEYS
from duostore_server.domain.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from duostore_server.access.examining import Examining
    from duostore_server.domain.admin_ports import Entities, ProjectionItems
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.keys import EntityKey

T = TypeVar("T")

# Keys that are drawn at a time; a small table gives all it has, in one draw.
_DRAW: Final = 10_000
# A check of an hour is not to fail for one answer that was lost.
_RETRY_PAUSES: Final = (0.2, 0.5, 1.0)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Lot:
    """Keys that are looked at together; what was ``seen`` of them in Aurora just before.

    ``of_items``: DynamoDB has them, and it is to be seen whether Aurora does. There may be no
    keys, and more to come.
    """

    keys: Sequence[EntityKey]
    seen: Mapping[EntityKey, Entity] = field(default_factory=dict)
    of_items: bool = False


class Walking:
    """Goes through the entities of Aurora and the items of DynamoDB, a hundred at a time."""

    def __init__(
        self,
        *,
        entities: Entities,
        items: ProjectionItems,
        examining: Examining,
        pause: Callable[[float], object],
    ) -> None:
        self._entities = entities
        self._items = items
        self._examining = examining
        self._pause = pause

    def estimate(self, kinds: Sequence[str], sample: int | None, deadline: Deadline) -> int:
        """Return about how many keys ``lots`` comes to: of each entity the row and the item."""
        if sample is not None:
            return 2 * sample
        return 2 * sum(
            self._patiently(partial(self._entities.estimate, kind, deadline)) for kind in kinds
        )

    def lots(self, kinds: Sequence[str], sample: int | None, deadline: Deadline) -> Iterator[Lot]:
        """Yield all entities of these kinds, then all items; so many of each with ``sample``.

        Those of a sample may come twice; items of other kinds count among the sample, since
        nobody can draw those of a kind.
        """
        if sample is None:
            for kind in kinds:
                yield from self._pages(kind, deadline)
            items = self._scan(deadline)
        else:
            yield from self._draw(kinds, sample, deadline)
            items = self._draw_items(sample, deadline)
        for keys in items:
            mine = [key for key in keys if key.kind in kinds]
            for lot in self._examining.lots(mine):
                yield Lot(lot, of_items=True)
            if not mine:
                yield Lot(())

    def _pages(self, kind: str, deadline: Deadline) -> Iterator[Lot]:
        after: EntityKey | None = None
        while True:
            ask = partial(self._entities.page, kind, after, None, MOST_KEYS, deadline)
            page = self._patiently(ask)
            seen = {entity.key: entity for entity in page.entities}
            yield Lot(list(seen), seen)
            if (after := page.last) is None:
                return

    def _draw(self, kinds: Sequence[str], sample: int, deadline: Deadline) -> Iterator[Lot]:
        kind = kinds[0] if len(kinds) == 1 else ""
        left = sample
        while left > 0:
            limit = min(left, _DRAW)
            left -= limit
            keys = self._patiently(partial(self._entities.sample, kind, limit, deadline))
            for lot in self._examining.lots([key for key in keys if key.kind in kinds]):
                yield Lot(lot)
            if len(keys) < limit / 2:
                # That is all there are, or nearly.
                return

    def _scan(self, deadline: Deadline) -> Iterator[list[EntityKey]]:
        start: str | None = None
        while True:
            page = self._patiently(partial(self._items.page, start, MOST_KEYS, deadline))
            yield [item.key for item in page.items]
            if (start := page.next) is None:
                return

    def _draw_items(self, sample: int, deadline: Deadline) -> Iterator[list[EntityKey]]:
        left = sample
        while left > 0:
            limit = min(left, MOST_KEYS)
            left -= limit
            found = self._patiently(partial(self._items.sample, limit, deadline))
            yield [item.key for item in found]
            if len(found) < limit:
                # That is all there are.
                return

    def _patiently(self, ask: Callable[[], T]) -> T:
        for pause in _RETRY_PAUSES:
            try:
                return ask()
            except StoreError as error:
                _log.warning("check goes on after a failure", error=str(error))
                self._pause(pause)
        return ask()
