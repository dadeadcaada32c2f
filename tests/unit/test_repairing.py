"""A repair brings what is right, whatever dies or is saved at any step of it."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server import codec
from duostore_server.access.repairing import Repairing
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.drift import Drift
from duostore_server.domain.entities import Cached, Entity, Form, Projection
from duostore_server.domain.errors import Store
from duostore_server.domain.keys import GenerationKey
from tests.support.reader_stack import Told
from tests.support.tier_stack import (
    KEY,
    NOON,
    WRITE,
    FakeItems,
    Tiers,
    down,
    key,
    soon,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duostore_server.domain.admin_ports import HeldItem
    from duostore_server.domain.keys import EntityKey

WRONG = codec.encode(Entity(KEY, 1, {"x": 1}, NOON, NOON))


def value(version: int, payload: bytes = WRONG) -> Projection:
    return Projection(version, Form.VALUE, payload)


def lose(stack: Tiers) -> None:
    """Commit a version that nobody brings, and lose its outbox row."""
    stack.save(done=False)
    stack.rows.forget((KEY,))


def older(stack: Tiers) -> None:
    stack.save()
    lose(stack)


def newer(stack: Tiers) -> None:
    stack.save()
    stack.stored.hold(KEY, value(9))


def newer_tombstone(stack: Tiers) -> None:
    stack.save()
    stack.stored.hold(KEY, Projection(2, Form.TOMBSTONE))


def content(stack: Tiers) -> None:
    stack.save()
    stack.stored.hold(KEY, value(1))


def unreadable(stack: Tiers) -> None:
    stack.save()
    stack.stored.hold(KEY, Projection(1, Form.STUB), "torn")


def unreadable_newer(stack: Tiers) -> None:
    stack.save()
    stack.stored.hold(KEY, Projection(9, Form.STUB), "torn")


def unreadable_without_version(stack: Tiers) -> None:
    stack.save()
    stack.stored.hold(KEY, Projection(0, Form.STUB), "torn")


def orphan(stack: Tiers) -> None:
    stack.stored.hold(KEY, value(3))


def version_missing(stack: Tiers) -> None:
    stack.save()
    stack.flags[WRITE] = "both"


def undeleted(stack: Tiers) -> None:
    stack.save()
    stack.save(deleted=True)
    stack.stored.hold(KEY, value(2))


def cache_older(stack: Tiers) -> None:
    entity = stack.save()
    stack.save()
    stack.fill(entity)


def cache_newer(stack: Tiers) -> None:
    stack.save()
    stack.entries.hold(KEY, Cached(9, WRONG, NOON))


def cache_content(stack: Tiers) -> None:
    stack.save()
    stack.entries.hold(KEY, Cached(1, WRONG, NOON))


def cache_unreadable(stack: Tiers) -> None:
    stack.save()
    stack.entries.damaged.add(KEY)


def cache_of_nothing(stack: Tiers) -> None:
    stack.entries.hold(KEY, Cached(3, WRONG, NOON))


def stub_of_what_fits(stack: Tiers) -> None:
    stack.save()
    stack.stored.hold(KEY, Projection(1, Form.STUB))


def everything(stack: Tiers) -> None:
    newer(stack)
    cache_content(stack)


PLANTED = [
    older,
    lose,
    newer,
    newer_tombstone,
    content,
    unreadable,
    unreadable_newer,
    unreadable_without_version,
    orphan,
    version_missing,
    undeleted,
    cache_older,
    cache_newer,
    cache_content,
    cache_unreadable,
    cache_of_nothing,
    stub_of_what_fits,
    everything,
]


def repair(stack: Tiers, *keys: EntityKey) -> dict[EntityKey, str]:
    return stack.repairing.repair(keys or (KEY,), soon())


def waiting(stack: Tiers) -> bool:
    return KEY in stack.rows.find((KEY,), soon())


@pytest.mark.parametrize("plant", PLANTED)
def test_each_drift_is_mended(plant: Callable[[Tiers], None]) -> None:
    stack = Tiers()
    plant(stack)
    assert stack.drifts() != []
    assert repair(stack) == {KEY: ""}
    assert stack.drifts() == []
    assert not waiting(stack)


@pytest.mark.parametrize("plant", [newer, content, unreadable, unreadable_newer])
def test_what_was_replaced_is_read_from_dynamodb_again(plant: Callable[[Tiers], None]) -> None:
    stack = Tiers()
    plant(stack)
    repair(stack)
    row = stack.rows.read((KEY,), soon())[KEY]
    assert stack.stored.held[KEY].projection == stack.shapes.project(row)


def test_a_stub_of_what_is_too_large_is_no_drift_and_stays() -> None:
    stack = Tiers()
    stack.stored.largest = 10
    stack.save()
    assert stack.stored.held[KEY].projection == Projection(1, Form.STUB)
    assert stack.drifts() == []
    assert repair(stack) == {KEY: ""}
    assert stack.stored.held[KEY].projection == Projection(1, Form.STUB)


def test_an_orphan_is_gone_and_so_are_results_that_had_it() -> None:
    stack = Tiers()
    orphan(stack)
    generation = GenerationKey(KEY.tenant, KEY.kind)
    stack.entries.lease((generation,))
    repair(stack)
    assert KEY not in stack.stored.held
    assert not stack.entries.read((generation,))


def test_many_are_mended_in_lots_of_a_few_calls() -> None:
    stack = Tiers()
    keys = [key(str(number)) for number in range(60)]
    for each in keys:
        stack.save(each, done=False)
    assert set(repair(stack, *keys).values()) == {""}
    assert stack.asked.count("projections.put_all") == 3
    assert stack.asked.count("outbox.oblige") == stack.asked.count("outbox.complete") == 3
    assert stack.drifts(*keys) == []


@pytest.mark.parametrize(
    ("told", "method", "store"),
    [
        ("outbox", "oblige", Store.AURORA),
        ("cache", "peek", Store.CACHE),
        ("items", "inspect", Store.DYNAMODB),
        ("authority", "read", Store.AURORA),
        ("items", "replace", Store.DYNAMODB),
        ("projections", "put_all", Store.DYNAMODB),
        ("cache", "invalidate", Store.CACHE),
        ("outbox", "complete", Store.AURORA),
    ],
)
def test_a_store_that_fails_is_told_and_the_row_stays(told: str, method: str, store: Store) -> None:
    stack = Tiers()
    newer(stack)
    getattr(stack, told).before[method] = down(store)
    (error,) = repair(stack).values()
    assert store.value in error
    assert waiting(stack) == (method in {"replace", "put_all", "invalidate", "complete"})


def test_nothing_is_touched_unless_the_projector_is_obliged() -> None:
    stack = Tiers()
    content(stack)
    stack.outbox.before["oblige"] = down(Store.AURORA)
    repair(stack)
    assert stack.asked == ["cache.peek", "items.inspect", "aurora.read", "outbox.oblige"]


def test_the_projector_is_obliged_to_come_soon_but_not_at_once() -> None:
    stack = Tiers()
    older(stack)
    stack.projections.before["put_all"] = lambda *_: kill()
    with pytest.raises(KilledError):
        repair(stack)
    stack.now += timedelta(seconds=2)
    assert stack.rows.claim(1, soon()) == []
    stack.now += timedelta(seconds=8)
    assert [row.key for row in stack.rows.claim(1, soon())] == [KEY]


def test_a_lot_that_fails_leaves_the_others() -> None:
    stack = Tiers()
    keys = [key(f"{number:02}") for number in range(50)]
    for each in keys:
        stack.save(each, done=False)

    def once(*_: object) -> None:
        stack.outbox.before.clear()
        down(Store.AURORA)()

    stack.outbox.before["oblige"] = once
    errors = repair(stack, *keys)
    assert [bool(errors[each]) for each in keys] == [True] * 25 + [False] * 25


def test_a_deadline_that_has_passed_is_told() -> None:
    stack = Tiers()
    content(stack)
    (error,) = stack.repairing.repair((KEY,), Deadline.after(0)).values()
    assert "deadline" in error


def test_what_is_wrong_again_is_not_called_repaired() -> None:
    stack = Tiers()
    content(stack)
    stack.outbox.after["complete"] = lambda: stack.stored.hold(KEY, value(9))
    (error,) = repair(stack).values()
    assert "projection_newer" in error


def test_what_is_saved_after_the_repair_and_on_its_way_is_no_failure() -> None:
    stack = Tiers()
    content(stack)
    stack.outbox.after["complete"] = lambda: stack.save(done=False)
    assert repair(stack) == {KEY: ""}


# What follows lets a repair die, or a saver come, at each of its steps.


class KilledError(BaseException):
    """The process died here."""


STEPS = [
    (told, method)
    for told, methods in {
        "outbox": ("oblige", "complete"),
        "cache": ("peek", "invalidate"),
        "items": ("inspect", "replace"),
        "authority": ("read",),
        "projections": ("put_all",),
    }.items()
    for method in methods
]


def interrupt(stack: Tiers, step: int, act: Callable[[], object]) -> None:
    """Act just before the call of a store with this number."""
    left = [step]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == -1:
            act()

    for told, method in STEPS:
        getattr(stack, told).before[method] = count


def kill() -> None:
    raise KilledError


def saver(stack: Tiers) -> Callable[[], object]:
    """Return what saves as a process does: it has done its part, and takes its row away."""
    return lambda: stack.save(data={"a": "newer"})


def calls_of_a_repair(plant: Callable[[Tiers], None]) -> int:
    stack = Tiers()
    plant(stack)
    repair(stack)
    return len(stack.asked)


def is_right(stack: Tiers) -> bool:
    """Return whether DynamoDB holds the newest version, form and payload, or rightly nothing."""
    row = stack.rows.read((KEY,), soon()).get(KEY)
    held = stack.stored.held.get(KEY)
    return (held and held.projection) == (row and stack.shapes.project(row))


def settle(stack: Tiers) -> list[str]:
    """Let the projector do what it has to; return what does not agree then."""
    for told, _ in STEPS:
        getattr(stack, told).before.clear()
    stack.project_due()
    return stack.drifts()


@pytest.mark.parametrize("plant", PLANTED)
def test_a_repair_that_dies_anywhere_makes_nothing_worse(plant: Callable[[Tiers], None]) -> None:
    calls = calls_of_a_repair(plant)
    assert calls >= 8
    for step in range(calls):
        stack = Tiers()
        plant(stack)
        before = set(stack.drifts())
        planted = stack.stored.held.get(KEY)
        interrupt(stack, step, kill)
        with pytest.raises(KilledError):
            repair(stack)
        is_touched = stack.stored.held.get(KEY) != planted
        assert set(settle(stack)) <= before, f"killed at step {step}"
        # By the projector, of which a stub stands in nobody's way.
        assert is_right(stack) or not is_touched, f"killed at step {step}"
        assert repair(stack) == {KEY: ""}
        assert stack.drifts() == []
        assert is_right(stack)


@pytest.mark.parametrize("plant", PLANTED)
def test_a_save_during_a_repair_wins(plant: Callable[[Tiers], None]) -> None:
    for step in range(calls_of_a_repair(plant)):
        stack = Tiers()
        plant(stack)
        interrupt(stack, step, saver(stack))
        repair(stack)
        assert settle(stack) == [], f"saved at step {step}"
        assert is_right(stack), f"saved at step {step}"
        assert stack.rows.read((KEY,), soon())[KEY].data == {"a": "newer"}


def misled(stack: Tiers) -> set[str]:
    return {drift for drift in settle(stack) if Drift(drift).misleads}


def misled_after_death(
    plant: Callable[[Tiers], None], repairing: type[Repairing] = Repairing
) -> list[str]:
    """Save at one step and die at a later one; return where readers are misled by the repair."""
    stack = Tiers()
    plant(stack)
    stack.drifts()
    saver(stack)()
    without = misled(stack)
    found = []
    calls = calls_of_a_repair(plant) + 1
    for save_at in range(calls):
        for die_at in range(save_at, calls):
            stack = Tiers(repairing=repairing)
            plant(stack)
            interrupt(stack, save_at, saver_then_kill(stack, die_at - save_at))
            with suppress(KilledError):
                repair(stack)
            if not misled(stack) <= without:
                found.append(f"saved at {save_at}, killed at {die_at}")
    return found


def saver_then_kill(stack: Tiers, steps: int) -> Callable[[], object]:
    """Return what saves, and lets the repair die so many steps later."""

    def act() -> None:
        saver(stack)()
        if steps == 0:
            kill()
        interrupt(stack, steps - 1, kill)

    return act


@pytest.mark.parametrize("plant", PLANTED)
def test_a_save_and_a_death_mislead_nobody_anew(plant: Callable[[Tiers], None]) -> None:
    assert misled_after_death(plant) == []


class Bold(Repairing):
    """Puts what was right in the place of what is newer, at once."""

    def _replace(self, look: Any, deadline: Deadline) -> None:
        if look.item is not None and look.entity is not None:
            self._items.replace(look.item, self._shapes.project(look.entity), deadline)


def test_what_turns_saves_away_gives_way_to_a_stub_first() -> None:
    assert misled_after_death(newer, Bold) != []


class Low(Repairing):
    """Leaves a stub of the version before in the place of what is newer."""

    def _replace(self, look: Any, deadline: Deadline) -> None:
        if look.item is not None and look.entity is not None:
            stub = Projection(look.entity.version - 1, Form.STUB)
            self._items.replace(look.item, stub, deadline)


def late_put(repairing: type[Repairing]) -> list[str]:
    """Die once what is newer was replaced; then a put arrives that was on its way for long."""
    stack = Tiers(repairing=repairing)
    first = stack.save()
    newer(stack)
    stack.items.after["replace"] = kill
    with pytest.raises(KilledError):
        repair(stack)
    stack.stored.put_all({KEY: stack.shapes.project(first)}, soon())
    held = stack.stored.held[KEY].projection
    return [] if held.form is Form.STUB else [f"version {held.version}"]


def test_a_put_that_is_late_does_not_take_the_place_of_a_stub() -> None:
    assert late_put(Repairing) == []
    assert late_put(Low) == ["version 1"]


class ObligedFirst(Repairing):
    """Gives the keys their outbox rows before it looks."""

    def _repair(self, keys: Sequence[EntityKey], deadline: Deadline) -> dict[EntityKey, str]:
        self._outbox.oblige(keys, timedelta(seconds=5), deadline)
        for look in self._look(keys, deadline).values():
            self._replace(look, deadline)
        return {}


def turned_away_before(repairing: type[Repairing]) -> bool:
    """Save once the repair has looked, turned away by what is newer; die after the replacement.

    Return whether that version is brought all the same.
    """
    stack = Tiers(repairing=repairing)
    newer(stack)

    def save() -> None:
        stack.authority.after.clear()
        stack.save()

    stack.authority.after["read"] = save
    stack.items.after["replace"] = kill
    with pytest.raises(KilledError):
        repair(stack)
    settle(stack)
    return is_right(stack)


def test_what_was_turned_away_before_the_projector_was_obliged_is_brought_by_it() -> None:
    assert turned_away_before(Repairing)
    assert not turned_away_before(ObligedFirst)


class Unconditional(FakeItems):
    """Replaces whatever is there by now."""

    def replace(self, found: HeldItem, by: Projection | None, deadline: Deadline) -> bool:
        return super().replace(self.held.get(found.key, found), by, deadline)


def taken_back(items: FakeItems) -> bool:
    """Save just before the item is replaced; return whether that version is ever not there."""
    stack = Tiers(items=items)
    content(stack)
    stack.items.before["replace"] = lambda *_: stack.save()
    versions: list[int] = []
    stack.items.after["replace"] = lambda: versions.append(items.held[KEY].projection.version)
    repair(stack)
    return versions != [2]


def test_what_was_saved_meanwhile_is_not_replaced() -> None:
    assert not taken_back(FakeItems())
    assert taken_back(Unconditional())


class ReadOnce(Repairing):
    """Propagates what it read before it replaced the item."""

    def _repair(self, keys: Sequence[EntityKey], deadline: Deadline) -> dict[EntityKey, str]:
        rows = self._outbox.oblige(keys, timedelta(seconds=5), deadline)
        looks = self._examining.look(keys, deadline)
        for look in looks.values():
            self._replace(look, deadline)
        entities = {look.key: look.entity for look in looks.values() if look.entity}
        self._bring(keys, entities, deadline)
        self._outbox.complete(rows, deadline)
        return dict.fromkeys(keys, "")


def turned_away(repairing: type[Repairing]) -> list[str]:
    """Save while something newer stands in the way, which has turned the put away."""
    stack = Tiers(repairing=repairing)
    newer(stack)

    def save(*_: object) -> None:
        stack.items.before.clear()
        stack.save()

    stack.items.before["replace"] = save
    repair(stack)
    return settle(stack)


def test_aurora_is_read_again_after_the_replacement() -> None:
    assert turned_away(Repairing) == []
    assert turned_away(ReadOnce) == ["projection_older"]


class _Unobliging(Told):
    def oblige(self, *_: object) -> list[Any]:
        return []


class Careless(Repairing):
    """Gives the keys no outbox rows."""

    def __init__(self, **options: Any) -> None:
        outbox = _Unobliging("outbox", options["outbox"], [])
        super().__init__(**{**options, "outbox": outbox})


def interrupted(repairing: type[Repairing]) -> list[str]:
    """Die before anything is brought."""
    stack = Tiers(repairing=repairing)
    older(stack)
    stack.projections.before["put_all"] = lambda *_: kill()
    with pytest.raises(KilledError):
        repair(stack)
    return settle(stack)


def test_the_projector_ends_a_repair_that_died() -> None:
    assert interrupted(Repairing) == []
    assert interrupted(Careless) == ["projection_older"]


class Hasty(Repairing):
    """Takes the row away though nothing was brought."""

    def _bring(self, *args: Any) -> bool:
        super()._bring(*args)
        return True


def out_of_reach(repairing: type[Repairing]) -> list[str]:
    stack = Tiers(repairing=repairing)
    cache_older(stack)
    stack.cache.before["invalidate"] = down(Store.CACHE)
    repair(stack)
    return settle(stack)


def test_the_row_stays_until_all_is_brought() -> None:
    assert out_of_reach(Repairing) == []
    assert out_of_reach(Hasty) == ["cache_older"]
