"""The three simulated stores of a deployment: what happens to them, and what they hold."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, ReadTimeoutError

from duostore_server import codec
from duostore_server.domain.entities import Cached
from duostore_server.domain.errors import Store, StoreUnavailableError, WriteOutcomeUnknownError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.cache.entries import decode as decode_entry
from duostore_server.storage.cache.keys import Namespace
from duostore_server.storage.dynamodb.head_items import HEAD
from duostore_server.storage.dynamodb.items import decode as decode_item
from duostore_server.storage.dynamodb.tables import (
    create_tables,
    projection_table,
    snapshot_table,
)
from tests.interleaving.claims import Claims, ViolationError
from tests.support.simulated_dynamodb import Delivery, Fault, SimulatedDynamoDB
from tests.support.simulated_memcached import Item, SimulatedMemcached

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable

    from duostore_server.domain.transactions import Written
    from tests.interleaving.scheduler import World
    from tests.support.fake_authority import FakeAuthority

KEY = EntityKey("", "proposal", "1")
OTHER = EntityKey("", "proposal", "2")
ASYNC = EntityKey("", "note", "1")
ASYNC_OTHER = EntityKey("", "note", "2")
# Of a kind at home in DynamoDB.
STATE = EntityKey("", "state", "1")
PROJECTED = (KEY, OTHER, ASYNC, ASYNC_OTHER)
KEYS = (*PROJECTED, STATE)
# Items past this are refused: a document of that size leaves a stub.
ITEM_MAX = 400

_NAMESPACE = Namespace("duostore")
_CACHE_NAMES = {key: _NAMESPACE.key(key) for key in KEYS}
_LOST_SHARE = 0.15


class Stores:
    """Simulated stores whose operations are steps of a world. C3 and C5 are checked at once."""

    def __init__(
        self, world: World, authority: type[FakeAuthority], dynamodb: type[SimulatedDynamoDB]
    ) -> None:
        self.world = world
        self.claims = Claims()
        self.aurora_reachable = True
        self._checked: dict[EntityKey, tuple[Item | None, object]] = {}
        self._commit_answer_lost: Callable[[], bool] = lambda: False
        hours = itertools.count(1)
        self.node = SimulatedMemcached(
            step=lambda label: world.step(f"cache {label}"), observe=world.observe
        )
        self.dynamodb = dynamodb(
            step=lambda label: world.step(f"dynamodb {label}"), item_max=ITEM_MAX
        )
        self.authority = authority(
            # An hour passes between two looks at the clock: whatever may have fallen due,
            # or run out, has. Nobody is shown the time, but in payloads.
            clock=lambda: 3600.0 * next(hours),
            step=self._aurora_step,
            observe=world.observe,
            after_commit=self._after_commit,
        )
        create_tables(self.dynamodb.client, prefix="", pause=lambda _: None)
        world.seen_at = self._seen_at
        world.held = self.held
        world.after_step = self.check_tiers

    def evict(self, key: EntityKey = KEY) -> None:
        """Let the cache forget an entry."""
        self.node.evict(_CACHE_NAMES[key])

    def cut(self, store: SimulatedMemcached | SimulatedDynamoDB, *, off: bool) -> None:
        """Cut a store off from everybody, or mend that."""
        store.reachable = not off

    def cut_aurora(self, *, off: bool) -> None:
        """Cut Aurora off from everybody, or mend that. What needs it fails, to no effect."""
        self.aurora_reachable = not off

    def lose_answers(self, rng: random.Random) -> None:
        """Let some operations fail for their caller: done all the same, or not, or later.

        DynamoDB refuses some besides, for there being too many, and leaves some undone.
        """

        def chance() -> bool:
            return rng.random() < _LOST_SHARE

        def fault(_label: str) -> Fault | None:
            return Fault(TimeoutError(), rng.choice(list(Delivery))) if chance() else None

        def fault_of_boto(label: str) -> Fault | None:
            if not chance():
                return None
            if chance():
                return Fault(_throttled(label), Delivery.LOST)
            error = ReadTimeoutError(endpoint_url="simulated:")
            return Fault(error, rng.choice(list(Delivery)))

        self.claims.state_may_fail = True
        self.node.fault = fault
        self.dynamodb.fault = fault_of_boto
        self.dynamodb.unprocessed = lambda _label: chance()
        self._commit_answer_lost = chance

    def deliver(self) -> None:
        """Let what is late arrive."""
        self.node.deliver()
        self.dynamodb.deliver()

    def end_faults(self) -> None:
        """Mend everything, and let what is late arrive."""
        self.node.reachable = self.dynamodb.reachable = self.aurora_reachable = True
        self.node.fault = self.dynamodb.fault = lambda _label: None
        self.dynamodb.unprocessed = lambda _label: False
        self._commit_answer_lost = lambda: False
        self.deliver()

    def check_tiers(self) -> None:
        """Check after each step that no tier went back in version (C5).

        What has been written to the home of a kind in DynamoDB is seen here as well.
        """
        for key in KEYS:
            held = self.node.item(_CACHE_NAMES[key]), self.projected_item(key)
            before = self._checked.get(key, (None, None))
            if held == before:
                continue
            self._checked[key] = held
            cached, version = self.cached(key), self.projected(key)
            if key == STATE and held[1] != before[1]:
                self._see_what_was_committed()
            if cached is not None:
                self.claims.holds("the cache", key, cached.version)
            if version is not None:
                self.claims.holds("DynamoDB", key, version)

    def cached(self, key: EntityKey) -> Cached | None:
        """Return what the cache holds of a key, if that is not a lease."""
        item = self.node.item(_CACHE_NAMES[key])
        entry = decode_entry(item.value) if item else None
        return entry if isinstance(entry, Cached) else None

    def projected_item(self, key: EntityKey) -> Any:
        """Return the item that DynamoDB holds of a key, or None."""
        if key == STATE:
            return self.dynamodb.item(snapshot_table(""), str(key), HEAD)
        return self.dynamodb.item(projection_table(""), str(key))

    def projected(self, key: EntityKey) -> int | None:
        """Return the version that DynamoDB holds of a key, or None."""
        item = self.projected_item(key)
        if item is None:
            return None
        if key == STATE:
            return int(item["number"]["N"])
        held = decode_item(key, item, must_be_readable)
        for shape in held.shapes:
            found = codec.decode(held.in_shape(shape) or b"").version
            if found != held.version:
                raise ViolationError("C3", f"{key} at {held.version} has shape {shape} at {found}")
        return held.version

    def _see_what_was_committed(self) -> None:
        """Take note of the versions of a head: several at a time, when what is late arrives."""
        items = self.dynamodb.states(snapshot_table(""), str(STATE), HEAD)
        for item in items[self.claims.newest(STATE) + 1 :]:
            assert item is not None
            payload = item.get("payload")
            data = None if payload is None else codec.document_of(payload["B"])
            self.claims.committed(STATE, int(item["number"]["N"]), data)

    def held(self) -> Hashable:
        """Return all that the rest of an execution depends on, but for its actors."""
        return (
            self.node.state(),
            self.dynamodb.state(),
            self.aurora_reachable,
            self.authority.state(),
            self.claims.state(),
        )

    def _aurora_step(self, label: str) -> None:
        self.world.step(label)
        if not self.aurora_reachable:
            raise StoreUnavailableError(Store.AURORA)

    def _after_commit(self, written: Written) -> None:
        entity = written.entity
        self.claims.committed(entity.key, entity.version, entity.data)
        if self._commit_answer_lost():
            raise WriteOutcomeUnknownError(Store.AURORA)

    def _seen_at(self, label: str) -> Hashable:
        store, _, _ = label.partition(" ")
        match store:
            case "cache":
                return self.node.state()
            case "dynamodb":
                return self.dynamodb.state()
            case _ if store.startswith(("authority.", "outbox.")):
                return self.aurora_reachable, self.authority.state()
        return None


def must_be_readable(key: EntityKey, version: int, why: str) -> None:
    """Take an item that cannot be read for a violation."""
    raise ViolationError("C3", f"{key} at {version} cannot be read: {why}")


def _throttled(label: str) -> ClientError:
    operation, _, _ = label.partition(" ")
    return ClientError(
        {"Error": {"Code": "ProvisionedThroughputExceededException", "Message": ""}}, operation
    )
