"""The protocol with one guard left out at a time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from duostore_server.access.dynamodb_home import DynamoDBHome
from duostore_server.access.propagation import Propagation
from duostore_server.access.reading import Reader
from duostore_server.access.sources import ProjectedSource
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import AS_SAVED, Cached, Lease
from duostore_server.domain.errors import (
    Store,
    StoreError,
    StoreUnavailableError,
    VersionMismatchError,
)
from duostore_server.domain.transactions import Change, IfVersion
from duostore_server.storage.cache.memcached import MemcachedCache
from tests.interleaving import scenes
from tests.interleaving.deployment import Design
from tests.support.fake_authority import FakeAuthority
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from duostore_server.domain.entities import Entity, Projection, Reading
    from duostore_server.domain.keys import CacheKey, EntityKey
    from duostore_server.domain.ports import K
    from duostore_server.domain.transactions import (
        Committed,
        Outcome,
        Transaction,
        Written,
    )
    from tests.interleaving.scenes import Scene
    from tests.support.fake_authority import Row


class _FillByPlainSet(MemcachedCache):
    """Puts the value in, whoever holds the lease by now."""

    def fill(self, key: CacheKey, _lease: Lease, entry: Cached, ttl: float) -> bool:
        name = self._namespace.key(key)

        def put(connection: Any) -> bool:
            connection.set(name, self._encoded(entry), int(ttl))
            return True

        return self._node(name).call(put)


class _FillByNumber(MemcachedCache):
    """Looks for a lease and swaps it by its CAS number, whosever it is."""

    def fill(self, key: CacheKey, lease: Lease, entry: Cached, ttl: float) -> bool:
        found = self.read((key,)).get(key)
        return super().fill(key, found if isinstance(found, Lease) else lease, entry, ttl)


class _ForgetsTheShape(MemcachedCache):
    """Takes what it holds for what its reader wants, in whatever shape that is."""

    def read(self, keys: Collection[K]) -> Mapping[K, Cached | Lease]:
        return {
            key: replace(entry, shape=AS_SAVED) if isinstance(entry, Cached) else entry
            for key, entry in super().read(keys).items()
        }


class _VersionOfTheItem(SimulatedDynamoDB):
    """Takes every shape for one of the item's version."""

    def batch_get_item(self, **request: Any) -> dict[str, Any]:
        answer = super().batch_get_item(**request)
        for found in answer.get("Responses", {}).values():
            for item in found:
                if "version_2" in item:
                    item["version_2"] = item["version"]
        return answer


class _NoReplyDelete(MemcachedCache):
    """Takes every invalidation for done, as ``noreply`` does."""

    def invalidate(self, keys: Collection[CacheKey]) -> None:
        with suppress(StoreError):
            super().invalidate(keys)


class _CacheBeforeDynamoDB(Propagation):
    """Makes the entry vacant while DynamoDB still holds the old version."""

    def propagate(self, entities: Sequence[Entity], deadline: Deadline) -> bool:
        return self._invalidate(entities) and self._put(entities, deadline)


class _FailedPutIsDone(Propagation):
    """Acknowledges a version as projected whether it was put or not."""

    def propagate(self, entities: Sequence[Entity], deadline: Deadline) -> bool:
        self._put(entities, deadline)
        return self._invalidate(entities)


class _UnconditionalPut(SimulatedDynamoDB):
    """Is sent puts without their condition."""

    def put_item(self, **request: Any) -> dict[str, Any]:
        request.pop("ConditionExpression", None)
        return super().put_item(**request)

    def batch_execute_statement(self, **request: Any) -> dict[str, Any]:
        # Refused statements are put alone, which is where the condition was left out.
        refused = {"Error": {"Code": "ConditionalCheckFailed"}}
        return {"Responses": [refused] * len(request["Statements"])}


class _EventuallyConsistentFill(SimulatedDynamoDB):
    """Is sent reads that may be stale, and answers them as stale as it can."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, staleness=lambda _, states: max(0, states - 2))

    def batch_get_item(self, **request: Any) -> dict[str, Any]:
        for reads in request["RequestItems"].values():
            reads["ConsistentRead"] = False
        return super().batch_get_item(**request)


class _OutboxById(FakeAuthority):
    """Reads the outbox by ``id > last``, as if ids were committed in their order."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._last = 0

    def claim(self, limit: int, deadline: Deadline) -> Any:
        rows = super().claim(limit, deadline)
        self._last = max([self._last, *(row.id for row in rows)])
        return rows

    def _may_claim(self, row: Row) -> bool:
        return row.id > self._last


class _CachesWhatIsNotProjected(Reader):
    """Fills what Aurora answered though DynamoDB does not hold it."""

    def _read_source(self, *args: Any) -> dict[EntityKey, tuple[Reading, bool]]:
        return {key: (reading, True) for key, (reading, _) in super()._read_source(*args).items()}


class _ReadsBeforeTheLease(Reader):
    """Reads the source first and takes the lease when there is something to fill."""

    def _lease(self, look: Any) -> tuple[Mapping[EntityKey, Lease], list[EntityKey]]:
        if look.vacant:
            self._early = self._read_source(look.vacant, 0, Deadline.after(3600))
        return super()._lease(look)

    def _read_source(self, *args: Any) -> dict[EntityKey, tuple[Reading, bool]]:
        early: dict[EntityKey, tuple[Reading, bool]] = getattr(self, "_early", {})
        if early and set(early) == set(args[0]):
            return early
        return super()._read_source(*args)


class _KeepsTheRowsId(FakeAuthority):
    """Leaves the outbox row of an earlier change as it is, so that its completion takes it away."""

    def _commit(self, change: Change, outbox_id: int) -> Written:
        waiting = self._outbox.get(change.key)
        written = super()._commit(change, outbox_id)
        if waiting is None:
            return written
        self._outbox[change.key] = waiting
        return replace(written, row=replace(written.row, id=waiting.id))


class _CacheIgnoresMinVersion(Reader):
    """Answers what the cache holds, however old it is."""

    def _look(self, keys: Collection[EntityKey], _min_version: int) -> Any:
        return super()._look(keys, 0)


class _DynamoDBIgnoresMinVersion(Reader):
    """Answers what DynamoDB holds, however old it is."""

    def _read_source(self, keys: Any, _min_version: int, *args: Any) -> Any:
        return super()._read_source(keys, 0, *args)


class _NewestVersionOldPayload(ProjectedSource):
    """Takes the version that DynamoDB turned out to hold, and the payload that it put itself."""

    def _put_missing(self, mine: Any, *args: Any) -> Mapping[EntityKey, Projection]:
        return {
            key: replace(now, payload=mine[key].payload) if key in mine and now.payload else now
            for key, now in super()._put_missing(mine, *args).items()
        }


class _GivesUpOnLeases(Reader):
    """Refuses a caller who finds that another fetches the key."""

    def _await(self, *_: Any) -> Any:
        raise StoreUnavailableError(Store.CACHE)


class _StrongFromDynamoDB(Reader):
    """Reads DynamoDB, strongly consistent, where the authority was asked for."""

    def _read_home(self, key: EntityKey, deadline: Deadline) -> Reading:
        reading, _ = self._read_source([key], 0, deadline)[key]
        return reading


class _DeletesBeforeItWrites(DynamoDBHome):
    """Makes the entry vacant while DynamoDB still holds the old version."""

    def write(self, change: Change, *args: Any) -> Outcome:
        busted = self._bust(change.key)
        self._bust = lambda key: busted  # type: ignore[method-assign]  # noqa: ARG005
        return super().write(change, *args)


class _ForgetsTheKey(FakeAuthority):
    """Applies whatever comes, whether it came before or not."""

    def write(self, transaction: Transaction, deadline: Deadline) -> Committed:
        return super().write(replace(transaction, idempotency=None), deadline)


class _RefusesBeforeItRecalls(FakeAuthority):
    """Looks at the precondition first, and at what was applied earlier only if it holds."""

    def write(self, transaction: Transaction, deadline: Deadline) -> Committed:
        held = self.read([mutation.key for mutation in transaction.mutations], deadline)
        for mutation in transaction.mutations:
            expected = mutation.precondition if isinstance(mutation, Change) else None
            found = held.get(mutation.key)
            version = found.version if found else 0
            if isinstance(expected, IfVersion) and expected.version != version:
                raise VersionMismatchError(expected.version, version)
        return super().write(transaction, deadline)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A design with a fault, the claim that it breaks first in ``scene``, whatever the order."""

    claim: str
    scene: Scene
    design: Design
    # Whether random orders of everything come upon it too, within a few thousand.
    at_random: bool = True


MUTANTS: Mapping[str, Mutant] = {
    "fill by plain set": Mutant("C6", scenes.save_and_read, Design(cache=_FillByPlainSet)),
    "fill by CAS number, whosever lease": Mutant(
        "C6", scenes.two_readers, Design(cache=_FillByNumber), at_random=False
    ),
    "a shape of the cache is any": Mutant(
        "C3", scenes.shapes_begin_to_differ, Design(cache=_ForgetsTheShape), at_random=False
    ),
    "a shape of an item is of its version": Mutant(
        "C3",
        scenes.second_shape_is_left_behind,
        Design(dynamodb=_VersionOfTheItem),
        at_random=False,
    ),
    "noreply delete": Mutant("C6", scenes.cache_is_cut_off, Design(cache=_NoReplyDelete)),
    "cache deleted before DynamoDB": Mutant(
        "C6", scenes.save_and_read, Design(propagation=_CacheBeforeDynamoDB)
    ),
    "failed put taken for done": Mutant(
        "C6", scenes.dynamodb_is_cut_off, Design(propagation=_FailedPutIsDone)
    ),
    "unconditional put": Mutant("C5", scenes.save_and_save, Design(dynamodb=_UnconditionalPut)),
    "eventually consistent fill": Mutant(
        "C6", scenes.save_and_read, Design(dynamodb=_EventuallyConsistentFill)
    ),
    "outbox read by id > last": Mutant("C8", scenes.async_saves, Design(authority=_OutboxById)),
    "outbox row keeps its id": Mutant(
        "C8", scenes.completion_is_late, Design(authority=_KeepsTheRowsId)
    ),
    "fill of what DynamoDB does not hold": Mutant(
        "C5", scenes.dynamodb_lags, Design(reader=_CachesWhatIsNotProjected), at_random=False
    ),
    "source read before the lease": Mutant(
        "C6", scenes.save_and_read, Design(reader=_ReadsBeforeTheLease)
    ),
    "payload of another version": Mutant(
        "C3", scenes.first_saves, Design(source=_NewestVersionOldPayload)
    ),
    "min_version not asked of the cache": Mutant(
        "C4", scenes.own_write_is_read, Design(reader=_CacheIgnoresMinVersion)
    ),
    "min_version not asked of DynamoDB": Mutant(
        "C4", scenes.own_write_is_read, Design(reader=_DynamoDBIgnoresMinVersion)
    ),
    "deletes before it writes, at home in DynamoDB": Mutant(
        "C6", scenes.state_is_saved_and_read, Design(dynamodb_home=_DeletesBeforeItWrites)
    ),
    "idempotency key not taken with the write": Mutant(
        "C2", scenes.two_repeat, Design(authority=_ForgetsTheKey)
    ),
    "a repetition refused for what it did itself": Mutant(
        "C2",
        scenes.two_repeat_what_had_to_be,
        Design(authority=_RefusesBeforeItRecalls),
        # There nobody repeats a Save that requires a version.
        at_random=False,
    ),
    "strong read from DynamoDB": Mutant(
        "C6", scenes.strong_read, Design(reader=_StrongFromDynamoDB)
    ),
    "lease of another refuses the caller": Mutant(
        "C10", scenes.two_readers, Design(reader=_GivesUpOnLeases)
    ),
}
