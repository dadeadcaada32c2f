"""Explain tells what each store holds, and what it comes to, and changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from duostore_server import codec
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.drift import Drift, Verified
from duostore_server.domain.entities import Cached, Form, Projection
from duostore_server.domain.errors import InvalidRequestError, Store
from duostore_server.domain.explained import Explained, Holding, NewestSnapshot, TierState
from duostore_server.domain.snapshots import Head, NewSnapshot
from tests.support.tier_stack import KEY, NOON, READ, WRITE, Tiers, down, key, soon

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.domain.keys import EntityKey

STATE = key(kind="editor_state")
MENDS = "`duostore check --kind proposal --all --repair` mends it."


def explain(stack: Tiers, entity_key: EntityKey = KEY) -> Explained:
    return stack.explaining.explain(entity_key, soon())


def test_each_tier_is_told() -> None:
    stack = Tiers()
    entity = stack.save(data={"a": 1})
    stack.fill(entity)
    explained = explain(stack)
    assert explained.key == KEY
    assert explained.aurora == TierState(Holding.VALUE, 1, stored_bytes=7, time=NOON)
    assert explained.dynamodb == TierState(
        Holding.VALUE, 1, stored_bytes=100, time=NOON, shapes=(1,)
    )
    assert explained.cache == TierState(
        Holding.VALUE,
        1,
        stored_bytes=explained.cache.stored_bytes,
        time=NOON,
        expire_time=NOON + timedelta(seconds=60),
        shapes=(1,),
    )
    assert explained.cache.stored_bytes > 0
    assert (explained.outbox, explained.snapshot, explained.verification) == (None, None, None)
    assert explained.drifts == ()


def test_nothing_is_changed() -> None:
    stack = Tiers()
    stack.entries.damaged.add(KEY)
    stack.stored.hold(KEY, Projection(9, Form.TOMBSTONE))
    stack.save(done=False)
    held = dict(stack.stored.held)
    explain(stack)
    assert stack.stored.held == held
    assert KEY in stack.entries.damaged
    assert stack.asked == [
        "cache.peek",
        "items.inspect",
        "aurora.read",
        "outbox.find",
        "snapshots.read",
        "verifications.last",
    ]


def test_aurora_is_asked_after_the_others() -> None:
    stack = Tiers()
    stack.save()

    def save() -> None:
        stack.items.after.clear()
        stack.save()

    stack.items.after["inspect"] = save
    # The other way round it would be newer than Aurora.
    assert [each.drift for each in explain(stack).drifts] == [Drift.PROJECTION_OLDER]


def test_what_else_is_known_is_told() -> None:
    stack = Tiers()
    stack.save(done=False)
    stack.kept.append(
        NewSnapshot(KEY, b"", NOON, in_history=False, consolidate_after=timedelta()), soon()
    )
    look = Verified(KEY, timedelta(seconds=1), 1, NOON)
    stack.noted.record([look], soon())
    explained = explain(stack)
    assert explained.outbox is not None
    assert explained.outbox.create_time == NOON
    assert explained.snapshot == NewestSnapshot(1, NOON)
    assert explained.verification == look


def test_of_a_kind_without_snapshots_none_is_asked_for() -> None:
    stack = Tiers()
    stack.save(key(kind="note"))
    assert explain(stack, key(kind="note")).snapshot is None
    assert "snapshots.read" not in stack.asked


def test_a_lease_a_tombstone_a_stub_and_damage_are_told_as_such() -> None:
    stack = Tiers()
    stack.save()
    stack.entries.lease((KEY,))
    assert explain(stack).cache.holding is Holding.LEASE
    stack.entries.damaged.add(KEY)
    cache = explain(stack).cache
    assert (cache.holding, cache.fault) == (
        Holding.UNREADABLE,
        "is no entry that this release can read",
    )
    stack.stored.hold(KEY, Projection(1, Form.STUB))
    assert explain(stack).dynamodb.holding is Holding.STUB
    stack.stored.hold(KEY, Projection(1, Form.STUB), "torn")
    dynamodb = explain(stack).dynamodb
    assert (dynamodb.holding, dynamodb.version, dynamodb.fault) == (Holding.UNREADABLE, 1, "torn")
    gone = stack.save(deleted=True)
    stack.fill(gone)
    explained = explain(stack)
    assert explained.aurora is not None
    for state in (explained.aurora, explained.dynamodb, explained.cache):
        assert (state.holding, state.version) == (Holding.ABSENT, 2)
    assert explained.aurora.stored_bytes == 0
    assert explained.cache.expire_time == NOON + timedelta(seconds=10)


def test_an_item_that_is_no_document_has_no_time() -> None:
    stack = Tiers()
    stack.stored.hold(KEY, Projection(1, Form.VALUE, b"\xff"))
    assert explain(stack).dynamodb.time is None


def cached(version: int, payload: bytes | None = b"\xff") -> Callable[[Tiers], object]:
    return lambda stack: stack.entries.hold(KEY, Cached(version, payload, NOON))


def item(version: int, form: Form, fault: str = "") -> Callable[[Tiers], object]:
    payload = b"\xff" if form is Form.VALUE else None
    return lambda stack: stack.stored.hold(KEY, Projection(version, form, payload), fault)


def too_large(stack: Tiers) -> None:
    stack.stored.largest = 0
    item(2, Form.STUB)(stack)


def lose_item(stack: Tiers) -> None:
    del stack.stored.held[KEY]


def write_both(stack: Tiers) -> None:
    stack.flags[WRITE] = "both"


@pytest.mark.parametrize(
    ("plant", "verdict"),
    [
        (lambda _: None, "All stores agree on version 2, and readers get it from DynamoDB."),
        (
            lambda stack: stack.entries.lease((KEY,)),
            (
                "All stores agree on version 2, and readers get it from DynamoDB; one is just "
                "bringing it to the cache."
            ),
        ),
        (
            too_large,
            "All stores agree on version 2, which is too large for DynamoDB.",
        ),
        (
            cached(1),
            "The cache has version 1, and readers may get that though the newest is version 2: "
            + MENDS,
        ),
        (
            cached(0, None),
            (
                "The cache has that there is none, and readers may get that though the newest is "
                f"version 2: {MENDS}"
            ),
        ),
        (
            cached(9),
            "The cache has version 9, which Aurora does not have, and readers may get that: "
            + MENDS,
        ),
        (
            cached(2),
            "The cache has version 2 with another content than Aurora, and readers may get that: "
            + MENDS,
        ),
        (
            lambda stack: stack.entries.damaged.add(KEY),
            "What the cache has cannot be read, and readers pass over it: the next one drops it.",
        ),
        (
            item(9, Form.VALUE),
            "DynamoDB has version 9, which Aurora does not have, and readers may get that: "
            + MENDS,
        ),
        (
            item(2, Form.VALUE),
            "DynamoDB has version 2 with another content than Aurora, and readers may get that: "
            + MENDS,
        ),
        (
            item(2, Form.STUB, "torn"),
            f"What DynamoDB has cannot be read, and readers pass over it: {MENDS}",
        ),
        (
            lose_item,
            f"DynamoDB has nothing, and readers get version 2 from Aurora: {MENDS}",
        ),
        (
            write_both,
            (
                "DynamoDB lacks a projection version that is to be written, whose readers get "
                "version 2 from Aurora: `duostore backfill --kind proposal` brings it."
            ),
        ),
    ],
)
def test_the_verdict_says_what_readers_get(plant: Callable[[Tiers], object], verdict: str) -> None:
    stack = Tiers()
    stack.save()
    stack.save()
    plant(stack)
    assert explain(stack).verdict == verdict


def test_the_verdict_names_the_store_that_answers() -> None:
    stack = Tiers()
    entity = stack.save()
    stack.fill(entity)
    assert explain(stack).verdict.endswith("readers get it from the cache.")
    # Those who want another shape pass over the entry, and the item.
    stack.flags[READ] = 100
    assert explain(stack).verdict.endswith("readers get it from Aurora.")


def test_the_verdict_on_an_entity_that_is_not_there() -> None:
    stack = Tiers()
    assert explain(stack).verdict == "The entity does not exist, and no store says that it does."
    item(3, Form.TOMBSTONE)(stack)
    assert explain(stack).verdict == (
        f"DynamoDB has version 3 of an entity that Aurora never had: {MENDS}"
    )
    stack = Tiers()
    stack.save()
    stack.save(deleted=True)
    assert explain(stack).verdict == (
        "The entity is deleted, with version 2, and no store says otherwise."
    )


def test_the_verdict_on_what_is_on_its_way() -> None:
    stack = Tiers()
    stack.save()
    stack.save(done=False)
    late = "DynamoDB has version 1, and readers may get that though the newest is version 2: "
    assert explain(stack).verdict == f"{late}it is on its way."
    stack.now += timedelta(seconds=11)
    assert explain(stack).verdict == late + MENDS


def test_what_misleads_readers_is_told_before_what_does_not() -> None:
    stack = Tiers()
    stack.save()
    stack.entries.damaged.add(KEY)
    item(9, Form.VALUE)(stack)
    explained = explain(stack)
    assert len(explained.drifts) == 2
    assert explained.verdict.startswith("DynamoDB has version 9")


@pytest.mark.parametrize(
    ("told", "method", "store", "verdict"),
    [
        ("cache", "peek", Store.CACHE, "; but the cache cannot be asked."),
        ("items", "inspect", Store.DYNAMODB, "; but DynamoDB cannot be asked."),
    ],
)
def test_a_store_that_cannot_be_asked_is_told_as_unknown(
    told: str, method: str, store: Store, verdict: str
) -> None:
    stack = Tiers()
    stack.save()
    getattr(stack, told).before[method] = down(store)
    explained = explain(stack)
    state = explained.cache if store is Store.CACHE else explained.dynamodb
    assert state.holding is Holding.UNKNOWN
    assert state.fault == f"{store.value} cannot be reached; try again"
    assert explained.drifts == ()
    assert explained.verdict.endswith(verdict)


def test_without_aurora_nothing_is_said_of_the_others() -> None:
    stack = Tiers()
    stack.save()
    item(9, Form.VALUE)(stack)
    for told_of in (stack.authority, stack.outbox, stack.verifications):
        told_of.before |= dict.fromkeys(("read", "find", "last"), down(Store.AURORA))
    explained = explain(stack)
    assert explained.aurora is not None
    assert explained.aurora.holding is Holding.UNKNOWN
    assert explained.dynamodb.version == 9
    assert explained.drifts == ()
    assert explained.verdict == (
        "Aurora cannot be asked, so that it cannot be told whether the others are right."
    )


def test_a_store_that_hangs_leaves_time_for_the_others() -> None:
    stack = Tiers()
    stack.save()
    seconds = [0.0]
    deadline = Deadline.after(6, clock=lambda: seconds[0])

    def hang(_keys: object, left: Deadline) -> None:
        seconds[0] += left.bound(5.0)
        down(Store.DYNAMODB)()

    stack.items.before["inspect"] = hang
    explained = stack.explaining.explain(KEY, deadline)
    assert explained.aurora is not None
    assert explained.aurora.version == 1
    assert seconds[0] < 2


def test_a_key_that_can_be_none_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        explain(Tiers(), key(kind="propsal"))


HEAD = Head(4, codec.encode_head(STATE, {"a": 1}), NOON, NOON, NOON + timedelta(hours=1))


def at_home_in_dynamodb(head: Head | None, entry: Cached | None = None) -> Tiers:
    stack = Tiers()
    if head is not None:
        stack.stored_heads.held[STATE] = head
    if entry is not None:
        stack.entries.hold(STATE, entry)
    return stack


def test_a_kind_at_home_in_dynamodb_is_held_against_its_head() -> None:
    stack = at_home_in_dynamodb(HEAD, Cached(4, codec.head_entity(HEAD.payload or b"", HEAD), NOON))
    explained = explain(stack, STATE)
    assert explained.aurora is None
    assert explained.dynamodb == TierState(
        Holding.VALUE,
        4,
        stored_bytes=len(HEAD.payload or b""),
        time=NOON,
        expire_time=HEAD.expire_time,
    )
    assert explained.drifts == ()
    assert explained.verdict == (
        "All stores agree on version 4, and readers get it from the cache."
    )
    assert stack.asked == ["cache.peek", "heads.read"]


def test_an_entry_that_is_older_than_its_head_goes_by_itself() -> None:
    explained = explain(at_home_in_dynamodb(HEAD, Cached(3, b"", NOON)), STATE)
    assert [each.drift for each in explained.drifts] == [Drift.CACHE_OLDER]
    assert explained.verdict == (
        "The cache has version 3, and readers may get that though the newest is version 4: it goes "
        "when the entry's time is over, or with the next write."
    )


def test_a_head_that_has_expired_is_absent() -> None:
    stack = at_home_in_dynamodb(HEAD)
    stack.now += timedelta(hours=2)
    explained = explain(stack, STATE)
    assert explained.dynamodb.holding is Holding.ABSENT
    assert explained.verdict == (
        "The entity is deleted or has expired, with version 4, and no store says otherwise."
    )


def test_a_head_that_is_not_there_or_cannot_be_asked() -> None:
    stack = at_home_in_dynamodb(None)
    assert explain(stack, STATE).dynamodb.holding is Holding.NOTHING
    stack.heads.before["read"] = down(Store.DYNAMODB)
    explained = explain(stack, STATE)
    assert explained.dynamodb.holding is Holding.UNKNOWN
    assert explained.verdict.startswith("DynamoDB cannot be asked")


def test_an_entry_that_ends_with_its_entity_says_so() -> None:
    stack = at_home_in_dynamodb(HEAD, Cached(4, b"", NOON, NOON + timedelta(seconds=3)))
    assert explain(stack, STATE).cache.expire_time == NOON + timedelta(seconds=3)
