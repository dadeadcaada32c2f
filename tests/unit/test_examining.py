"""What is drift, what is on its way and what cannot be told: by order and number of looks."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server import codec
from duostore_server.access.examining import Examining, Look
from duostore_server.access.judging import Judge
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached, Form, Projection
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreUnavailableError,
)
from duostore_server.domain.policies import Policies
from tests.support.tier_stack import KEY, NOON, WRITE, Tiers, down, key, kind, soon

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from duostore_server.domain.drift import Difference
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.keys import EntityKey


def late(stack: Tiers, seconds: float = 60) -> None:
    """Commit a version that nobody brings, and let its change have been made a while ago."""
    stack.now -= timedelta(seconds=seconds)
    stack.save(done=False)
    stack.now = NOON


def forgotten(stack: Tiers, entity_key: EntityKey = KEY) -> None:
    """Commit a version that nobody brings, and lose its outbox row."""
    stack.save(entity_key, done=False)
    stack.rows.forget((entity_key,))


def test_what_agrees_is_decided_by_one_look() -> None:
    stack = Tiers()
    entity = stack.save()
    stack.fill(entity)
    (examined,) = stack.examining.examine((KEY,), soon()).values()
    assert (examined.version, examined.findings, examined.is_decided) == (1, (), True)
    assert stack.asked == ["cache.peek", "items.inspect", "aurora.read"]
    assert stack.paused == []


def test_nothing_anywhere_is_decided_too() -> None:
    stack = Tiers()
    (examined,) = stack.examining.examine((KEY,), soon()).values()
    assert (examined.version, examined.findings, examined.is_decided) == (0, (), True)


def test_a_hundred_keys_take_one_call_of_each_store() -> None:
    stack = Tiers()
    keys = [key(str(number)) for number in range(250)]
    for each in keys:
        stack.save(each)
    assert len(stack.examining.examine(keys, soon())) == 250
    assert stack.asked == ["cache.peek", "items.inspect", "aurora.read"] * 3


def test_large_documents_are_looked_at_a_few_at_a_time() -> None:
    stack = Tiers()
    stack.examining._policies = Policies({"large": kind(max_bytes=15 * 1024 * 1024)})
    large = [key(str(number), "large") for number in range(5)]
    assert [len(lot) for lot in stack.examining.lots(large)] == [2, 2, 1]
    assert [len(lot) for lot in stack.examining.lots(large, 1)] == [1] * 5


@pytest.mark.parametrize(
    ("plant", "drift"),
    [
        (lambda stack: stack.stored.hold(KEY, Projection(9, Form.TOMBSTONE)), "projection_newer"),
        (
            lambda stack: stack.stored.hold(KEY, Projection(1, Form.VALUE, b"\xff")),
            "projection_content",
        ),
        (
            lambda stack: stack.stored.hold(KEY, Projection(1, Form.STUB), "torn"),
            "projection_unreadable",
        ),
        (lambda stack: stack.entries.hold(KEY, Cached(9, None, NOON)), "cache_newer"),
        (lambda stack: stack.entries.hold(KEY, Cached(1, b"\xff", NOON)), "cache_content"),
        (lambda stack: stack.entries.damaged.add(KEY), "cache_unreadable"),
    ],
)
def test_what_cannot_be_on_its_way_is_drift_at_the_first_look(
    plant: Callable[[Tiers], object], drift: str
) -> None:
    stack = Tiers()
    stack.save()
    # A change is under way, and may be for long.
    stack.rows.oblige((KEY,), timedelta(), soon())
    plant(stack)
    assert stack.drifts() == [drift]
    assert stack.paused == []
    assert "outbox.find" not in stack.asked


def test_an_orphan_is_drift_at_the_first_look() -> None:
    stack = Tiers()
    stack.stored.hold(KEY, Projection(3, Form.TOMBSTONE))
    assert stack.drifts() == ["projection_orphan"]
    assert stack.paused == []


def plant_older(stack: Tiers) -> None:
    stack.save()
    forgotten(stack)


def plant_missing(stack: Tiers) -> None:
    forgotten(stack)


def plant_stub(stack: Tiers) -> None:
    stack.save()
    stack.stored.hold(KEY, Projection(1, Form.STUB))


def plant_version_missing(stack: Tiers) -> None:
    stack.save()
    stack.flags[WRITE] = "both"


def plant_cache_older(stack: Tiers) -> None:
    entity = stack.save()
    stack.save()
    stack.fill(entity)


LATE = [
    ("projection_older", plant_older),
    ("projection_missing", plant_missing),
    ("projection_missing", plant_stub),
    ("projection_version_missing", plant_version_missing),
    ("cache_older", plant_cache_older),
]


@pytest.mark.parametrize(("drift", "plant"), LATE)
def test_what_is_behind_with_nothing_under_way_is_drift_at_the_second_look(
    drift: str, plant: Callable[[Tiers], None]
) -> None:
    stack = Tiers()
    plant(stack)
    assert stack.drifts() == [drift]
    assert stack.paused == [0.1]


@pytest.mark.parametrize(("drift", "plant"), LATE)
def test_what_is_behind_while_a_change_is_under_way_is_pending(
    drift: str, plant: Callable[[Tiers], None]
) -> None:
    stack = Tiers()
    plant(stack)
    stack.rows.oblige((KEY,), timedelta(), soon())
    (examined,) = stack.examining.examine((KEY,), soon()).values()
    assert examined.findings == ()
    assert [each.drift.value for each in examined.pending] == [drift]
    assert not examined.is_decided
    assert stack.paused == [0.1, 0.4]


@pytest.mark.parametrize(("drift", "plant"), LATE)
def test_what_is_behind_a_change_of_long_ago_is_drift(
    drift: str, plant: Callable[[Tiers], None]
) -> None:
    stack = Tiers()
    plant(stack)
    stack.rows.oblige((KEY,), timedelta(), soon())
    stack.now += timedelta(seconds=11)
    assert stack.drifts() == [drift]


@pytest.mark.parametrize(("drift", "plant"), LATE)
def test_what_is_brought_between_two_looks_is_no_drift(
    drift: str, plant: Callable[[Tiers], None]
) -> None:
    stack = Tiers()
    plant(stack)
    (look,) = stack.examining.look((KEY,), soon()).values()
    assert [each.drift.value for each in look.findings] == [drift]
    row = stack.rows.read((KEY,), soon())[KEY]
    stack.during_pause = lambda: stack.bring(row)
    (examined,) = stack.examining.examine((KEY,), soon()).values()
    assert (examined.findings, examined.is_decided) == ((), True)


def test_a_change_that_was_just_brought_when_its_row_was_looked_for_is_no_drift() -> None:
    stack = Tiers()
    stack.save()
    entity = stack.save(done=False)

    def bring() -> None:
        stack.bring(entity)
        stack.rows.forget((KEY,))
        stack.authority.after.clear()

    stack.authority.after["read"] = bring
    assert stack.drifts() == []
    assert stack.paused == [0.1]


def test_what_changes_from_look_to_look_is_not_decided() -> None:
    stack = Tiers()
    stack.save()
    late(stack)

    def busy() -> None:
        # The older one is brought, and a newer one committed, whose row keeps its age.
        stack.bring(stack.rows.read((KEY,), soon())[KEY])
        stack.save(done=False)

    stack.during_pause = busy
    (examined,) = stack.examining.examine((KEY,), soon()).values()
    assert examined.findings == ()
    assert [each.drift.value for each in examined.pending] == ["projection_older"]
    assert not examined.is_decided


def hot(stack: Tiers) -> None:
    """Plant a key that is saved faster than its changes are brought, whose row is old by now."""
    stack.save()
    late(stack)
    stack.during_pause = lambda: stack.save(done=False)


def test_a_key_that_is_saved_faster_than_it_is_brought_is_no_drift() -> None:
    stack = Tiers(pauses=(0.1, 0.4, 1.0, 2.0))
    hot(stack)
    (examined,) = stack.examining.examine((KEY,), soon()).values()
    assert examined.findings == ()
    assert [each.drift.value for each in examined.pending] == ["projection_older"]
    assert stack.paused == [0.1, 0.4, 1.0, 2.0]


def test_a_hot_key_that_is_saved_no_more_and_never_brought_is_drift() -> None:
    stack = Tiers(pauses=(0.1, 0.4, 1.0))
    hot(stack)

    def once() -> None:
        stack.save(done=False)
        stack.during_pause = lambda: None

    stack.during_pause = once
    assert stack.drifts() == ["projection_older"]
    assert stack.paused == [0.1, 0.4]


def test_an_old_row_that_is_completed_between_a_look_and_its_search_is_no_drift() -> None:
    stack = Tiers()
    stack.save()
    late(stack)

    def bring() -> None:
        stack.items.after.clear()
        stack.bring(stack.rows.read((KEY,), soon())[KEY])
        stack.rows.forget((KEY,))

    def second() -> None:
        stack.items.after["inspect"] = bring
        stack.during_pause = lambda: None

    stack.during_pause = second
    (examined,) = stack.examining.examine((KEY,), soon()).values()
    assert (examined.findings, examined.is_decided) == ((), True)


def test_drift_of_two_tiers_is_told_together() -> None:
    stack = Tiers()
    stack.save()
    forgotten(stack)
    stack.entries.hold(KEY, Cached(9, None, NOON))
    assert stack.drifts() == ["cache_newer", "projection_older"]


def test_only_what_is_not_decided_is_looked_at_again() -> None:
    stack = Tiers()
    stack.save(key("1"))
    forgotten(stack, key("2"))
    asked: list[Any] = []
    stack.items.before["inspect"] = lambda keys, _: asked.append(sorted(each.id for each in keys))
    stack.examining.examine((key("1"), key("2")), soon())
    assert asked == [["1", "2"], ["2"]]


@pytest.mark.parametrize(
    ("store", "told", "method"),
    [(Store.CACHE, "cache", "peek"), (Store.DYNAMODB, "items", "inspect")],
)
def test_a_store_that_cannot_be_asked_leaves_the_other_to_be_compared(
    store: Store, told: str, method: str
) -> None:
    stack = Tiers()
    stack.stored.hold(KEY, Projection(9, Form.TOMBSTONE))
    stack.entries.hold(KEY, Cached(9, None, NOON))
    getattr(stack, told).before[method] = down(store)
    (examined,) = stack.examining.examine((KEY,), soon()).values()
    assert len(examined.findings) == 1
    assert examined.findings[0].drift.store is not store
    assert examined.unknown == {store}
    assert not examined.is_decided


def test_nothing_is_missing_of_a_store_that_cannot_be_asked() -> None:
    stack = Tiers()
    stack.save()
    stack.items.before["inspect"] = down(Store.DYNAMODB)
    (examined,) = stack.examining.examine((KEY,), soon()).values()
    assert (examined.findings, examined.pending) == ((), ())


def test_nothing_can_be_told_without_aurora() -> None:
    stack = Tiers()
    stack.authority.before["read"] = down(Store.AURORA)
    with pytest.raises(StoreUnavailableError):
        stack.examining.examine((KEY,), soon())


def test_a_deadline_ends_it() -> None:
    stack = Tiers()
    with pytest.raises(DeadlineExceededError):
        stack.examining.examine((KEY,), Deadline.after(0))


def test_aurora_is_not_read_again_for_what_was_seen_and_agrees() -> None:
    stack = Tiers()
    entities = {each: stack.save(each) for each in (key("1"), key("2"))}
    examined = stack.examining.examine(list(entities), soon(), seen=entities)
    assert all(
        one.is_decided and not one.findings and one.version == 1 for one in examined.values()
    )
    assert stack.asked == ["cache.peek", "items.inspect"]


def test_what_was_seen_and_does_not_agree_says_nothing_yet() -> None:
    stack = Tiers()
    seen = {KEY: stack.save()}
    stack.save()
    assert stack.examining.examine((KEY,), soon(), seen=seen)[KEY].findings == ()
    assert stack.asked[2:] == ["cache.peek", "items.inspect", "aurora.read"]


def test_a_look_without_the_cache_proves_nothing_of_what_was_seen() -> None:
    stack = Tiers()
    seen = {KEY: stack.save()}
    stack.cache.before["peek"] = down(Store.CACHE)
    (examined,) = stack.examining.examine((KEY,), soon(), seen=seen).values()
    assert examined.unknown == {Store.CACHE}


class AuroraFirst(Examining):
    """Reads Aurora before DynamoDB and the cache."""

    def look(
        self,
        keys: Collection[EntityKey],
        deadline: Deadline,
        *,
        seen: Mapping[EntityKey, Entity] | None = None,
    ) -> dict[EntityKey, Look]:
        read = self._authority.read(keys, deadline) if seen is None else seen
        return super().look(keys, deadline, seen=read)


class OneLook(Examining):
    """Takes what is behind for drift at the first look."""

    def _look_again(self, *args: Any) -> None:
        super()._look_again(*args)
        (_, cases, _) = args
        for case in cases.values():
            case.found |= case.suspected


class NoOutbox(Examining):
    """Does not ask whether a change is under way."""

    def _is_pending(self, _: object) -> bool:
        return False


class VersionsOnly(Judge):
    """Compares no content."""

    def _differences(self, *_: object) -> tuple[Difference, ...]:
        return ()


def saved_during_a_look(examining: type[Examining]) -> list[str]:
    """Save after the first store was asked, and bring it before the next one is."""
    stack = Tiers(examining=examining)
    stack.save()

    def save() -> None:
        for told in (stack.cache, stack.items, stack.authority):
            told.after.clear()
        stack.save()

    stack.cache.after["peek"] = save
    stack.authority.after["read"] = save
    return stack.drifts()


def just_brought(examining: type[Examining]) -> list[str]:
    stack = Tiers(examining=examining)
    stack.save()

    def save() -> None:
        stack.items.after.clear()
        stack.save()

    stack.items.after["inspect"] = save
    return stack.drifts()


def on_its_way(examining: type[Examining]) -> list[str]:
    stack = Tiers(examining=examining)
    stack.save()
    stack.save(done=False)
    return stack.drifts()


@pytest.mark.parametrize(
    ("scene", "mutant"),
    [(saved_during_a_look, AuroraFirst), (just_brought, OneLook), (on_its_way, NoOutbox)],
)
def test_each_rule_keeps_a_save_from_being_taken_for_drift(
    scene: Callable[[type[Examining]], list[str]], mutant: type[Examining]
) -> None:
    assert scene(Examining) == []
    assert scene(mutant) != []


def test_a_comparison_of_versions_finds_no_content() -> None:
    def found(judge: type[Judge]) -> list[str]:
        stack = Tiers(judge=judge)
        entity = stack.save()
        changed = codec.encode(type(entity)(KEY, 1, {"x": 1}, NOON, NOON))
        stack.stored.hold(KEY, Projection(1, Form.VALUE, changed))
        stack.entries.hold(KEY, Cached(1, changed, NOON))
        return stack.drifts()

    assert found(Judge) == ["projection_content", "cache_content"]
    assert found(VersionsOnly) == []
