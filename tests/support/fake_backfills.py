"""``Backfills`` and ``Entities`` in memory, of which a test decides when things happen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from duostore_server.domain.admin_ports import EntityPage
from duostore_server.domain.backfills import (
    CLAIM_SECONDS,
    Advanced,
    Backfill,
    BackfillPart,
    BackfillState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from duostore_server.domain.backfills import Batch
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.drift import SavedVersion
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.keys import EntityKey

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@dataclass(slots=True)
class Part:
    """A part as the table holds it."""

    at: BackfillPart
    claimed_until: float = 0.0
    ended: bool = False


class FakeBackfills:
    """``admin_ports.Backfills`` in memory: one backfill for each kind, in parts that are told.

    ``cuts`` are the keys after which the second part begins, the third and so on. ``step`` is
    called with ``claim``, ``hold``, ``advance`` or ``find`` before that takes effect.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        cuts: Sequence[EntityKey] = (),
        total: int = 0,
        step: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._cuts = cuts
        self._total = total
        self.step = step
        self.backfills: dict[str, Backfill] = {}
        self.parts: list[Part] = []
        self.batches: list[tuple[BackfillPart, Batch]] = []

    def start(
        self, kind: str, *, rate: int, parts: int, caller: str, deadline: Deadline
    ) -> Backfill:
        deadline.bound(1.0)
        found = self.backfills.get(kind)
        if found is not None and found.state in (BackfillState.RUNNING, BackfillState.PAUSED):
            self._set(kind, state=BackfillState.RUNNING, rate=rate or found.rate, caller=caller)
            return self.backfills[kind]
        cuts = self._cuts[: parts - 1]
        id_ = 1 + max((each.id for each in self.backfills.values()), default=0)
        self.backfills[kind] = Backfill(
            id=id_,
            kind=kind,
            state=BackfillState.RUNNING,
            done=0,
            projected=0,
            failed=0,
            estimated_total=self._total,
            parts=len(cuts) + 1,
            parts_done=0,
            rate=rate,
            caller=caller,
            start_time=self._now(),
            update_time=self._now(),
        )
        ends = zip((None, *cuts), (*cuts, None), strict=True)
        self.parts += [
            Part(BackfillPart(id_, kind, number, 0, after, until, 0.0))
            for number, (after, until) in enumerate(ends, 1)
        ]
        return self.backfills[kind]

    def move(
        self, kind: str, state: BackfillState, caller: str, deadline: Deadline
    ) -> Backfill | None:
        deadline.bound(1.0)
        found = self.backfills.get(kind)
        if found is None or found.state not in (BackfillState.RUNNING, BackfillState.PAUSED):
            return None
        self._set(kind, state=state, caller=caller)
        return self.backfills[kind]

    def find(self, kind: str, deadline: Deadline) -> Backfill | None:
        deadline.bound(1.0)
        self.step("find")
        return self.backfills.get(kind)

    def unfinished(self, deadline: Deadline) -> Sequence[Backfill]:
        deadline.bound(1.0)
        open_ = (BackfillState.RUNNING, BackfillState.PAUSED)
        return [each for each in self.backfills.values() if each.state in open_]

    def claim(
        self, kinds: Collection[str], limit: int, deadline: Deadline
    ) -> Sequence[BackfillPart]:
        deadline.bound(1.0)
        self.step("claim")
        now = self._clock()
        free = [
            part
            for part in self.parts
            if part.at.kind in kinds
            and self._runs(part)
            and not part.ended
            and part.claimed_until <= now
        ]
        for part in free[:limit]:
            part.claimed_until = now + CLAIM_SECONDS
            part.at = replace(part.at, claim=part.at.claim + 1)
        for part in free[:limit]:
            part.at = replace(part.at, rate=self._rate(part))
        return [part.at for part in free[:limit]]

    def hold(self, part: BackfillPart, deadline: Deadline) -> BackfillPart | None:
        deadline.bound(1.0)
        self.step("hold")
        held = self._held(part)
        return None if held is None else self._hold(held)

    def advance(self, part: BackfillPart, batch: Batch, deadline: Deadline) -> Advanced:
        deadline.bound(1.0)
        self.step("advance")
        held = self._held(part)
        if held is None:
            return Advanced(is_counted=False, part=None)
        self.batches.append((part, batch))
        kind = self.backfills[part.kind]
        self._set(
            part.kind,
            done=kind.done + batch.done,
            projected=kind.projected + batch.projected,
            failed=kind.failed + batch.failed,
            update_time=self._now(),
        )
        if batch.last is None:
            held.ended = True
            parts = [each for each in self.parts if each.at.backfill == part.backfill]
            done = sum(each.ended for each in parts)
            ended = done == len(parts)
            state = BackfillState.DONE if ended else kind.state
            self._set(part.kind, parts_done=done, state=state)
            return Advanced(is_counted=True, part=None)
        held.at = replace(part, after=batch.last)
        return Advanced(is_counted=True, part=self._hold(held))

    def change(self, kind: str, **fields: object) -> None:
        """Set fields of a backfill, as others would come to do by what they do."""
        self._set(kind, **fields)

    def _held(self, part: BackfillPart) -> Part | None:
        """Return a part as the table holds it, if it is still that and can be advanced."""
        (held,) = (
            each
            for each in self.parts
            if (each.at.backfill, each.at.number) == (part.backfill, part.number)
        )
        ours = (held.at.claim, held.at.after) == (part.claim, part.after)
        return held if ours and not held.ended and self._runs(held) else None

    def _hold(self, held: Part) -> BackfillPart:
        held.claimed_until = self._clock() + CLAIM_SECONDS
        held.at = replace(held.at, rate=self._rate(held))
        return held.at

    def _runs(self, part: Part) -> bool:
        newest = self.backfills[part.at.kind]
        return part.at.backfill == newest.id and newest.state is BackfillState.RUNNING

    def _rate(self, held: Part) -> float:
        now = self._clock()
        claimed = sum(
            part is held or (not part.ended and part.claimed_until > now)
            for part in self.parts
            if part.at.backfill == held.at.backfill
        )
        return self.backfills[held.at.kind].rate / claimed

    def _set(self, kind: str, **fields: object) -> None:
        self.backfills[kind] = replace(self.backfills[kind], **fields)  # type: ignore[arg-type]  # by name

    def _now(self) -> datetime:
        return NOON + timedelta(seconds=self._clock())


class FakeEntities:
    """The ``page`` of ``admin_ports.Entities``, of a table in memory.

    ``step`` is called with what is asked for before it is read.
    """

    def __init__(
        self,
        rows: Callable[[], Mapping[EntityKey, Entity]],
        step: Callable[[EntityKey | None, int], object] = lambda _after, _limit: None,
    ) -> None:
        self._rows = rows
        self.step = step

    def page(
        self,
        kind: str,
        after: EntityKey | None,
        until: EntityKey | None,
        limit: int,
        deadline: Deadline,
    ) -> EntityPage:
        deadline.bound(1.0)
        self.step(after, limit)
        found = [
            entity
            for key, entity in sorted(self._rows().items(), key=lambda row: _place(row[0]))
            if key.kind == kind
            and (after is None or _place(key) > _place(after))
            and (until is None or _place(key) <= _place(until))
        ]
        page = found[:limit]
        return EntityPage(page, page[-1].key if len(page) == limit else None)

    def sample(self, kind: str, limit: int, deadline: Deadline) -> Sequence[EntityKey]:
        raise NotImplementedError

    def estimate(self, kind: str, deadline: Deadline) -> int:
        raise NotImplementedError

    def time(self, deadline: Deadline) -> datetime:
        raise NotImplementedError

    def saved(
        self, since: datetime, until: datetime, limit: int, deadline: Deadline
    ) -> Sequence[SavedVersion]:
        raise NotImplementedError


def _place(key: EntityKey) -> tuple[str, str]:
    return key.tenant, key.id
