"""The answering of queries with one guard left out at a time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from duostore_server.access.committing import Committer
from duostore_server.access.generations import Generations, generations_of
from duostore_server.access.propagation import Propagation
from duostore_server.access.querying import Querying, _Found, _key
from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import StoreError
from duostore_server.domain.keys import GenerationKey
from duostore_server.storage.cache.entries import decode
from duostore_server.storage.cache.leases import LEASE_SECONDS
from duostore_server.storage.cache.memcached import MemcachedCache
from tests.interleaving import query_scenes as scenes
from tests.interleaving.query_stage import QueryDesign
from tests.interleaving.query_stores import Snapshots
from tests.support.reader_stack import NOON
from tests.support.simulated_memcached import Delivery

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.keys import CacheKey
    from duostore_server.domain.queries import QueryCall, Row
    from duostore_server.domain.transactions import Outcome, Transaction
    from tests.interleaving.query_scenes import Scene


class _Counter(MemcachedCache):
    """Counts generations: the first is 1 wherever there is none, and each change makes it more."""

    def lease(self, keys: Collection[Any]) -> Mapping[Any, Lease]:
        counted = [key for key in keys if isinstance(key, GenerationKey)]
        return {key: Lease(b"1") for key in counted} or super().lease(keys)

    def fill(self, key: CacheKey, lease: Lease, entry: Cached, ttl: float) -> bool:
        if not isinstance(key, GenerationKey):
            return super().fill(key, lease, entry, ttl)
        name = self._namespace.key(key)
        values = {name: self._encoded(entry)}
        return name in self._node(name).call(
            lambda connection: connection.add_many(values, LEASE_SECONDS)
        )

    def invalidate(self, keys: Collection[CacheKey]) -> None:
        counted = [key for key in keys if isinstance(key, GenerationKey)]
        super().invalidate([key for key in keys if key not in counted])
        for key in counted:
            name = self._namespace.key(key)
            self._node(name).call(partial(self._count, name))

    def _count(self, name: bytes, connection: Any) -> None:
        """Add 1, as ``incr`` does: nothing if there is no number."""
        found = connection.gets(name)
        entry = decode(found[0]) if found else None
        if isinstance(entry, Cached) and entry.payload:
            more = Cached(1, b"%d" % (int(entry.payload) + 1), NOON)
            connection.set(name, self._encoded(more), LEASE_SECONDS)


class _ReadsTheGenerationLast(Querying):
    """Computes, and caches it under the generations that are there by then."""

    def _result(self, call: QueryCall, deadline: Deadline) -> _Found:
        nonces = self._generations.read(call.tenant, call.query.depends_on)
        entry = self._look(_key(call, nonces)) if nonces else None
        if isinstance(entry, _Found):
            return entry
        found = self._compute(call, deadline)
        nonces = self._generations.read(call.tenant, call.query.depends_on)
        if nonces is not None:
            self._fill(_key(call, nonces), None, call, found)
        return found


class _CachesUnderNoGeneration(Generations):
    """Goes on without the generations that it cannot read."""

    def read(self, tenant: str, kinds: Iterable[str]) -> tuple[bytes, ...] | None:
        return super().read(tenant, kinds) or (b"",)


class _OfTheFirstKindAlone(Generations):
    """Reads the generation of the first kind alone."""

    def read(self, tenant: str, kinds: Iterable[str]) -> tuple[bytes, ...] | None:
        return super().read(tenant, list(kinds)[:1])


class _LastsWhateverHappened(MemcachedCache):
    """Makes a generation last though it may have ended by now."""

    def fill(self, key: CacheKey, lease: Lease, entry: Cached, ttl: float) -> bool:
        if not isinstance(key, GenerationKey):
            return super().fill(key, lease, entry, ttl)
        name = self._namespace.key(key)

        def put(connection: Any) -> bool:
            connection.set(name, self._encoded(entry), int(ttl))
            return True

        return self._node(name).call(put)


class _LeavesTheGeneration(Propagation):
    """Busts the entries of the entities alone."""

    def _invalidate(self, entities: Sequence[Entity]) -> bool:
        try:
            self._cache.invalidate([entity.key for entity in entities])
        except StoreError:
            return False
        return True


class _EndsItBeforeTheCommit(Committer):
    """Ends the generation when a change is about to be committed."""

    def commit(self, transaction: Transaction, deadline: Deadline) -> Outcome:
        keys = [mutation.key for mutation in transaction.mutations]
        with suppress(StoreError):
            self._propagation._cache.invalidate([*generations_of(keys)])
        return super().commit(transaction, deadline)


class _EndsItUnheard(MemcachedCache):
    """Takes the end of a generation for done, as ``noreply`` does."""

    def invalidate(self, keys: Collection[CacheKey]) -> None:
        ended = [key for key in keys if isinstance(key, GenerationKey)]
        super().invalidate([key for key in keys if key not in ended])
        with suppress(StoreError):
            super().invalidate(ended)


class _ALaggingReader(Snapshots):
    """Sees what was there one commit ago."""

    def moment(self) -> int:
        return max(0, super().moment() - 1)


class _SeesTwoMoments(Snapshots):
    """Sees each row as it is when it is fetched."""

    def rows(self, call: QueryCall) -> list[Row]:
        first = super().rows(call)[:1]
        self.stage.world.step("authority.begin")
        return [*first, *super().rows(call)[1:]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A design with a fault, the claim that it breaks first in ``scene``, whatever the order."""

    claim: str
    scene: Scene
    design: QueryDesign


MUTANTS: Mapping[str, Mutant] = {
    "a counter in place of a nonce": Mutant(
        "Q1", scenes.generation_is_evicted, QueryDesign(cache=_Counter)
    ),
    "the generation is read when the SQL has begun": Mutant(
        "Q1", scenes.result_is_evicted, QueryDesign(querying=_ReadsTheGenerationLast)
    ),
    "cached though the generation could not be read": Mutant(
        "Q1", scenes.generation_cannot_be_read, QueryDesign(generations=_CachesUnderNoGeneration)
    ),
    "of two kinds the first counts": Mutant(
        "Q1", scenes.of_two_kinds, QueryDesign(generations=_OfTheFirstKindAlone)
    ),
    "a generation lasts that has ended": Mutant(
        "Q1", scenes.generation_is_placed, QueryDesign(cache=_LastsWhateverHappened)
    ),
    "the generation is left when a kind changes": Mutant(
        "Q1", scenes.save_and_query, QueryDesign(propagation=_LeavesTheGeneration)
    ),
    "the generation ends before the commit": Mutant(
        "Q1",
        scenes.save_and_query,
        QueryDesign(committer=_EndsItBeforeTheCommit, propagation=_LeavesTheGeneration),
    ),
    "the end of a generation is not heard": Mutant(
        "Q1", scenes.lost("delete", Delivery.LOST), QueryDesign(cache=_EndsItUnheard)
    ),
    "the reader lags": Mutant("Q1", scenes.first_query, QueryDesign(queries=_ALaggingReader)),
    "rows of two moments": Mutant("Q2", scenes.two_savers, QueryDesign(queries=_SeesTwoMoments)),
}
