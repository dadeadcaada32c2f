"""Get and BatchGet: the cache, then the stores behind it, filling it on the way back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from duostore_server.access.abandoned import AbandonedLeases
from duostore_server.access.sources import SHARE
from duostore_server.domain.entities import Cached, Lease, Reading
from duostore_server.domain.errors import (
    DeadlineExceededError,
    EntityNotFoundError,
    FieldViolation,
    MinVersionNotReachedError,
    Store,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from duostore_server.access.checks import Checks
    from duostore_server.access.flights import Flights
    from duostore_server.access.sources import Source
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import Home, Policies
    from duostore_server.domain.ports import Cache

# How long to wait between two looks for the value that another caller fetches.
_FIRST_PAUSES: Final = (0.005, 0.010, 0.020)
_LATER_PAUSE: Final = 0.050
# The cache counts whole seconds, and takes 0 for ever.
LEAST_TTL: Final = 1.0


def lease_pauses(patience: float) -> tuple[float, ...]:
    """Return the pauses, in seconds, that together wait about ``patience`` for a lease."""
    if patience <= 0:
        return ()
    later = round((patience - sum(_FIRST_PAUSES)) / _LATER_PAUSE)
    return (*_FIRST_PAUSES, *[_LATER_PAUSE] * later)


@dataclass(slots=True)
class _Look:
    """What the cache says of the keys that were asked for."""

    readings: dict[EntityKey, Reading] = field(default_factory=dict)
    vacant: list[EntityKey] = field(default_factory=list)
    # Somebody else fetches these.
    leased: dict[EntityKey, Lease] = field(default_factory=dict)
    # Leased to somebody who was waited for in vain before.
    orphaned: list[EntityKey] = field(default_factory=list)
    # The cache cannot serve these: it is out of reach, or behind min_version.
    passed: list[EntityKey] = field(default_factory=list)
    outdated: dict[EntityKey, int] = field(default_factory=dict)
    # What it has is in another shape than readers get.
    misshapen: list[EntityKey] = field(default_factory=list)


class Reader:
    """Reads entities by the protocol that keeps the three stores in step.

    Three guards make a filled entry safe: it is filled under a lease that every
    invalidation takes away; the source is read after the lease was won, strongly
    consistent; and only a version that DynamoDB already holds is filled.
    """

    def __init__(
        self,
        *,
        sources: Mapping[Home, Source],
        cache: Cache,
        policies: Policies,
        checks: Checks,
        shapes_of: Callable[[EntityKey], tuple[int, ...]],
        flights: Flights,
        pauses: Sequence[float],
        pause: Callable[[float], None],
        jitter: Callable[[], float],
        now: Callable[[], datetime],
        served: Callable[[str, Store], None],
    ) -> None:
        """``shapes_of`` returns the shapes in which readers may get a key.

        ``jitter`` returns the part of a TTL to use, at most 1; ``served`` counts answers.
        """
        self._sources = sources
        self._cache = cache
        self._policies = policies
        self._checks = checks
        self._shapes_of = shapes_of
        self._flights = flights
        self._pauses = tuple(pauses)
        self._patience = sum(pauses)
        self._abandoned: AbandonedLeases[EntityKey] = AbandonedLeases()
        self._pause = pause
        self._jitter = jitter
        self._now = now
        self._served = served

    def get(
        self, key: EntityKey, deadline: Deadline, *, min_version: int = 0, strong: bool = False
    ) -> Reading:
        """Return the entity with its payload.

        Raises ``EntityNotFoundError``; ``MinVersionNotReachedError`` if not even the
        authority has ``min_version``; ``StoreUnavailableError`` if no store that may
        answer can be reached.
        """
        self._checks.key(key, *_min_version_violations(min_version))
        if strong:
            reading = self._read_home(key, deadline)
        else:
            reading = self._get(key, min_version, deadline)
        self._served(key.kind, reading.served_from)
        if reading.version < min_version:
            raise MinVersionNotReachedError(min_version, reading.version)
        if reading.payload is None:
            raise EntityNotFoundError(reading.version)
        return reading

    def batch_get(
        self, keys: Sequence[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, Reading]:
        """Return a reading of every key; absent entities have no payload."""
        self._checks.batch(keys)
        readings = self._finish(self._look(keys, 0), 0, deadline)
        for key, reading in readings.items():
            self._served(key.kind, reading.served_from)
        return readings

    def _get(self, key: EntityKey, min_version: int, deadline: Deadline) -> Reading:
        look = self._look((key,), min_version)
        if look.readings:
            return look.readings[key]
        if look.passed:
            return self._finish(look, min_version, deadline)[key]
        patience = min(self._patience, deadline.part(SHARE).remaining())
        with self._flights.join(key, patience) as first:
            if first:
                return self._finish(look, min_version, deadline)[key]
        # Only what this process has not waited for already is waited for below.
        look = self._look((key,), min_version)
        return self._finish(look, min_version, deadline, patient=False)[key]

    def _look(self, keys: Collection[EntityKey], min_version: int) -> _Look:
        look = _Look()
        try:
            entries = self._cache.read(keys)
        except StoreError:
            look.passed.extend(keys)
            return look
        for key in keys:
            entry = entries.get(key)
            if entry is None:
                look.vacant.append(key)
            elif isinstance(entry, Lease):
                if self._abandoned.holds(key, entry):
                    look.orphaned.append(key)
                else:
                    look.leased[key] = entry
            elif entry.payload is not None and entry.shape not in self._shapes_of(key):
                look.passed.append(key)
                look.misshapen.append(key)
            elif entry.version >= min_version:
                look.readings[key] = self._reading(entry)
            else:
                look.passed.append(key)
                look.outdated[key] = entry.version
        return look

    def _reading(self, entry: Cached) -> Reading:
        expired = entry.expire_time is not None and entry.expire_time <= self._now()
        payload = None if expired else entry.payload
        return Reading(entry.version, payload, Store.CACHE, entry.cached_time, shape=entry.shape)

    def _finish(
        self, look: _Look, min_version: int, deadline: Deadline, *, patient: bool = True
    ) -> dict[EntityKey, Reading]:
        """Answer every key of a look: fetch what is vacant, wait for what others fetch.

        Without patience keys that were found leased are fetched at once.
        """
        if not (look.vacant or look.leased or look.orphaned or look.passed):
            return look.readings
        leases, refused = self._lease(look)
        readings = look.readings
        unled = (*look.orphaned, *look.passed)
        readings |= self._fetch([*leases, *unled], leases, min_version, deadline)
        if waiting := [*refused, *(look.leased if patient else ())]:
            readings |= self._await(waiting, min_version, deadline)
        rest = [key for key in (*refused, *look.leased) if key not in readings]
        readings |= self._fetch(rest, {}, min_version, deadline)
        self._drop_outdated(look.outdated, readings)
        self._invalidate(look.misshapen)
        return readings

    def _lease(self, look: _Look) -> tuple[Mapping[EntityKey, Lease], list[EntityKey]]:
        if not look.vacant:
            return {}, []
        try:
            leases = self._cache.lease(look.vacant)
        except StoreError:
            look.passed.extend(look.vacant)
            return {}, []
        return leases, [key for key in look.vacant if key not in leases]

    def _await(
        self, keys: list[EntityKey], min_version: int, deadline: Deadline
    ) -> dict[EntityKey, Reading]:
        """Wait for others to fill; return what they filled. Takes no lease over."""
        readings: dict[EntityKey, Reading] = {}
        patience = deadline.part(SHARE)
        leased: dict[EntityKey, Lease] = {}
        for pause in self._pauses:
            try:
                self._pause(patience.bound(pause))
            except DeadlineExceededError:
                return readings
            look = self._look(keys, min_version)
            readings |= look.readings
            leased = look.leased
            keys = list(leased)
            if not keys:
                return readings
        self._abandoned.add(leased)
        return readings

    def _fetch(
        self,
        keys: list[EntityKey],
        leases: Mapping[EntityKey, Lease],
        min_version: int,
        deadline: Deadline,
    ) -> dict[EntityKey, Reading]:
        """Read keys at their source and fill those that are leased."""
        if not keys:
            return {}
        held_back = set(leases)
        readings = {}
        try:
            fetched = self._read_source(keys, min_version, deadline)
            filling = deadline.part(SHARE)
            for key, (reading, cacheable) in fetched.items():
                readings[key] = reading
                if not cacheable or key not in leases or filling.is_over():
                    continue
                if self._fill(key, leases[key], reading):
                    held_back.discard(key)
        finally:
            # Nobody shall wait for a value that will not come.
            self._invalidate(held_back)
        return readings

    def _read_source(
        self, keys: list[EntityKey], min_version: int, deadline: Deadline
    ) -> dict[EntityKey, tuple[Reading, bool]]:
        """Return each key's reading, and whether it may be cached."""
        by_home: dict[Home, list[EntityKey]] = {}
        for key in keys:
            by_home.setdefault(self._policies.of(key).home, []).append(key)
        answers: dict[EntityKey, tuple[Reading, bool]] = {}
        for home, mine in by_home.items():
            answers |= self._sources[home].read(mine, min_version, deadline)
        return answers

    def _read_home(self, key: EntityKey, deadline: Deadline) -> Reading:
        return self._sources[self._policies.of(key).home].read_home(key, deadline)

    def _fill(self, key: EntityKey, lease: Lease, reading: Reading) -> bool:
        """Fill the entry; return False if the cache could not be asked to.

        An entry never outlives its entity: it carries when that expires, since the cache
        counts whole seconds.
        """
        policy = self._policies.of(key)
        now = self._now()
        ttl = policy.absent_ttl if reading.payload is None else policy.cache_ttl
        ttl *= self._jitter()
        if reading.expire_time is not None:
            left = (reading.expire_time - now).total_seconds()
            if left < LEAST_TTL:
                return False
            ttl = min(ttl, left)
        entry = Cached(reading.version, reading.payload, now, reading.expire_time, reading.shape)
        try:
            self._cache.fill(key, lease, entry, max(ttl, LEAST_TTL))
        except StoreError:
            return False
        return True

    def _drop_outdated(
        self, outdated: Mapping[EntityKey, int], readings: Mapping[EntityKey, Reading]
    ) -> None:
        self._invalidate(
            {key for key, version in outdated.items() if readings[key].version > version}
        )

    def _invalidate(self, keys: Collection[EntityKey]) -> None:
        if not keys:
            return
        try:
            self._cache.invalidate(keys)
        except StoreError:
            # The entries are bounded by their TTL, and the failure is counted by
            # the cache's own metrics.
            return


def _min_version_violations(min_version: int) -> tuple[FieldViolation, ...]:
    if min_version < 0:
        return (FieldViolation("min_version", f"is {min_version}; it must be at least 0"),)
    return ()
