"""Explain: what each store holds of one entity, and what it comes to."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from duostore_server.access.examining import GRACE
from duostore_server.access.verdicts import verdict_of
from duostore_server.domain.documents import compact_size
from duostore_server.domain.entities import Form, Lease
from duostore_server.domain.errors import DeadlineExceededError, Store, StoreError
from duostore_server.domain.explained import Explained, Holding, NewestSnapshot, TierState
from duostore_server.domain.policies import Home

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from duostore_server.access.checks import Checks
    from duostore_server.access.judging import Judge
    from duostore_server.access.shapes import Shapes
    from duostore_server.domain.admin_ports import HeldItem, ProjectionItems, Verifications
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.drift import Finding
    from duostore_server.domain.entities import Entity, Peeked, PendingChange
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import KindPolicy, Policies
    from duostore_server.domain.ports import Authority, Cache, Heads, Outbox, Snapshots
    from duostore_server.domain.snapshots import Head

T = TypeVar("T")

_FORMS: Final = {
    Form.VALUE: Holding.VALUE,
    Form.TOMBSTONE: Holding.ABSENT,
    Form.STUB: Holding.STUB,
}
# Cache, DynamoDB, Aurora, outbox, snapshot and verification.
_QUESTIONS: Final = 6


class _Asking:
    """Asks one store after the other, each for its share of the time that is left."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._left = _QUESTIONS

    def ask(self, question: Callable[[Deadline], T]) -> tuple[T | None, str]:
        """Return the answer, or why there is none, in words for the caller."""
        deadline = self._deadline.part(1 / self._left)
        self._left = max(1, self._left - 1)
        try:
            return question(deadline), ""
        except (StoreError, DeadlineExceededError) as error:
            return None, str(error)


class Explaining:
    """Looks at one key in all stores, and changes nothing.

    A store that cannot be asked is told as unknown: this is for those who wonder why.
    """

    def __init__(
        self,
        *,
        authority: Authority,
        items: ProjectionItems,
        heads: Heads,
        cache: Cache,
        outbox: Outbox,
        snapshots: Snapshots,
        verifications: Verifications,
        judge: Judge,
        shapes: Shapes,
        policies: Policies,
        checks: Checks,
        decode: Callable[[bytes], Entity],
        now: Callable[[], datetime],
        grace: timedelta = GRACE,
    ) -> None:
        """``decode`` returns the entity of a payload, or raises ``ValueError``."""
        self._authority = authority
        self._items = items
        self._heads = heads
        self._cache = cache
        self._outbox = outbox
        self._snapshots = snapshots
        self._verifications = verifications
        self._judge = judge
        self._shapes = shapes
        self._policies = policies
        self._checks = checks
        self._decode = decode
        self._now = now
        self._grace = grace

    def explain(self, key: EntityKey, deadline: Deadline) -> Explained:
        """Return what there is of a key; raises ``InvalidRequestError`` if it can be no key."""
        self._checks.key(key)
        asking = _Asking(deadline)
        # As for every comparison, the store that is right is asked after the others.
        entry, fault = asking.ask(lambda _: self._cache.peek((key,)).get(key))
        policy = self._policies.of(key)
        cache = _unknown(fault) if fault else self._cached(entry, policy)
        explain = self._head if policy.home is Home.DYNAMODB else self._entity
        explained = explain(key, entry, cache, asking)
        pending = self._is_pending(explained.outbox)
        verdict = verdict_of(explained, shape=self._shapes.to_read(key), pending=pending)
        return replace(explained, verdict=verdict)

    def _entity(
        self, key: EntityKey, entry: Peeked | None, cache: TierState, asking: _Asking
    ) -> Explained:
        item, fault = asking.ask(lambda left: self._items.inspect((key,), left).get(key))
        dynamodb = _unknown(fault) if fault else self._item(item)
        entity, fault = asking.ask(lambda left: self._authority.read((key,), left).get(key))
        aurora = _unknown(fault) if fault else _row(entity)
        drifts: tuple[Finding, ...] = ()
        if not fault:
            unknown = {
                store
                for store, state in ((Store.CACHE, cache), (Store.DYNAMODB, dynamodb))
                if state.holding is Holding.UNKNOWN
            }
            found = self._judge.findings(key, entity, item=item, entry=entry)
            drifts = tuple(each for each in found if each.drift.store not in unknown)
        change, _ = asking.ask(lambda left: self._outbox.find((key,), left).get(key))
        snapshot = self._snapshot(key, asking)
        verified, _ = asking.ask(lambda left: self._verifications.last(key, left))
        return Explained(
            key=key,
            aurora=aurora,
            dynamodb=dynamodb,
            cache=cache,
            outbox=change,
            snapshot=snapshot,
            verification=verified,
            drifts=drifts,
            verdict="",
        )

    def _head(
        self, key: EntityKey, entry: Peeked | None, cache: TierState, asking: _Asking
    ) -> Explained:
        head, fault = asking.ask(lambda left: self._heads.read((key,), left).get(key))
        now = self._now()
        dynamodb = _unknown(fault) if fault else _of_head(head, now)
        drift = None if fault else self._judge.head_finding(key, head, entry, now)
        return Explained(
            key=key,
            aurora=None,
            dynamodb=dynamodb,
            cache=cache,
            outbox=None,
            snapshot=None,
            verification=None,
            drifts=() if drift is None else (drift,),
            verdict="",
        )

    def _snapshot(self, key: EntityKey, asking: _Asking) -> NewestSnapshot | None:
        if self._policies.of(key).snapshots is None:
            return None
        found, _ = asking.ask(lambda left: self._snapshots.read(key, 0, left))
        return None if found is None else NewestSnapshot(found.sequence, found.time)

    def _cached(self, peeked: Peeked | None, policy: KindPolicy) -> TierState:
        if peeked is None:
            return TierState(Holding.NOTHING)
        entry, size = peeked.entry, peeked.stored_bytes
        if entry is None:
            fault = "is no entry that this release can read"
            return TierState(Holding.UNREADABLE, stored_bytes=size, fault=fault)
        if isinstance(entry, Lease):
            return TierState(Holding.LEASE, stored_bytes=size)
        is_absent = entry.payload is None
        expire_time = entry.cached_time + timedelta(
            seconds=policy.absent_ttl if is_absent else policy.cache_ttl
        )
        if entry.expire_time is not None:
            expire_time = min(expire_time, entry.expire_time)
        return TierState(
            Holding.ABSENT if is_absent else Holding.VALUE,
            version=entry.version,
            stored_bytes=size,
            time=entry.cached_time,
            expire_time=expire_time,
            shapes=() if is_absent else (entry.shape,),
        )

    def _item(self, item: HeldItem | None) -> TierState:
        if item is None:
            return TierState(Holding.NOTHING)
        held = item.projection
        return TierState(
            Holding.UNREADABLE if item.fault else _FORMS[held.form],
            version=held.version,
            stored_bytes=item.stored_bytes,
            time=self._written([held.in_shape(shape) for shape in held.shapes]),
            shapes=tuple(sorted(held.shapes)),
            fault=item.fault,
        )

    def _written(self, payloads: list[bytes | None]) -> datetime | None:
        """Return when the version was written that a projection is of; only documents say."""
        for payload in payloads:
            try:
                return None if payload is None else self._decode(payload).update_time
            except (ValueError, OverflowError):
                continue
        return None

    def _is_pending(self, change: PendingChange | None) -> bool:
        return change is not None and change.age < self._grace


def _unknown(fault: str) -> TierState:
    return TierState(Holding.UNKNOWN, fault=fault)


def _row(entity: Entity | None) -> TierState:
    if entity is None:
        return TierState(Holding.NOTHING)
    return TierState(
        Holding.ABSENT if entity.data is None else Holding.VALUE,
        version=entity.version,
        stored_bytes=0 if entity.data is None else compact_size(entity.data),
        time=entity.update_time,
    )


def _of_head(head: Head | None, now: datetime) -> TierState:
    if head is None:
        return TierState(Holding.NOTHING)
    return TierState(
        Holding.VALUE if head.is_live(now) else Holding.ABSENT,
        version=head.version,
        stored_bytes=len(head.payload or b""),
        time=head.update_time,
        expire_time=head.expire_time,
    )
