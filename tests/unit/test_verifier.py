"""The verifier looks when it should, counts what a reader would find, and mends if told to."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server import codec
from duostore_server.domain.drift import Drift, SavedVersion, Verified
from duostore_server.domain.entities import Cached, Entity, Form, Projection
from duostore_server.domain.errors import Store, StoreUnavailableError
from duostore_server.domain.keys import key_digest
from duostore_server.workers.loop import IncompleteRoundError
from duostore_server.workers.verifier import Verifier
from tests.support.tier_stack import KEY, NOON, POLICIES, Tiers, down, key, soon

if TYPE_CHECKING:
    from duostore_server.domain.keys import EntityKey

SECOND = timedelta(seconds=1)


def verifier(stack: Tiers, **options: Any) -> Verifier:
    given = {"saves": 20, "rows": 0, "repair": False, **options}
    return Verifier(
        entities=stack.entities,
        verifications=stack.verifications,
        examining=stack.examining,
        repairing=stack.repairing,
        policies=POLICIES,
        metrics=stack.counted,
        **given,
    )


def saved(stack: Tiers, entity_key: EntityKey = KEY, *, done: bool = True) -> Entity:
    """Save, and let the verifier know of it."""
    entity = stack.save(entity_key, done=done)
    stack.table.saves.append(SavedVersion(entity_key, entity.version, stack.now))
    return entity


def run(stack: Tiers, worker: Verifier, seconds: float) -> None:
    """Do a round each second for so long."""
    for _ in range(round(seconds)):
        stack.now += SECOND
        worker.run_once()


def test_a_save_is_looked_at_after_a_second_a_minute_and_five() -> None:
    stack = Tiers()
    worker = verifier(stack)
    saved(stack)
    counts = []
    for seconds in (1, 1, 57, 2, 238, 2, 300):
        run(stack, worker, seconds)
        counts.append([age for age, _ in stack.counted.looks])
    one, minute, five = ["1s"], ["1s", "60s"], ["1s", "60s", "5m"]
    assert counts == [one, one, one, minute, minute, five, five]
    assert {outcome for _, outcome in stack.counted.looks} == {"consistent"}


def test_each_save_is_taken_once() -> None:
    stack = Tiers()
    worker = verifier(stack)
    for number in range(10):
        saved(stack, key(str(number)))
        run(stack, worker, 1)
    run(stack, worker, 5)
    assert [age for age, _ in stack.counted.looks] == ["1s"] * 10


def test_of_many_saves_some_are_taken() -> None:
    stack = Tiers()
    worker = verifier(stack, saves=3)
    limits: list[int] = []
    stack.entities.before["saved"] = lambda _since, _until, limit, _: limits.append(limit)
    run(stack, worker, 2)
    # Held up, and then long.
    stack.now += timedelta(seconds=3)
    run(stack, worker, 1)
    stack.now += timedelta(hours=1)
    run(stack, worker, 1)
    assert limits == [3, 3, 12, 30]


def test_what_waits_is_bounded() -> None:
    stack = Tiers()
    worker = verifier(stack, saves=1000, most_waiting=5)
    for number in range(20):
        saved(stack, key(str(number)))
    run(stack, worker, 10)
    saved(stack, key("later"))
    run(stack, worker, 10)
    assert len(stack.counted.looks) == 5
    # What had its last look makes room.
    run(stack, worker, 300)
    saved(stack, key("last"))
    run(stack, worker, 5)
    assert stack.counted.looks[-1][0] == "1s"


def test_nothing_is_asked_for_if_nothing_is_to_be_taken() -> None:
    stack = Tiers()
    run(stack, verifier(stack, saves=0, rows=0), 5)
    assert stack.asked == []


def test_random_rows_are_looked_at() -> None:
    stack = Tiers()
    for number in range(5):
        stack.save(key(str(number)))
    run(stack, verifier(stack, saves=0, rows=3), 2)
    assert stack.counted.looks == [("row", "consistent")] * 6


def test_kinds_that_are_not_configured_or_at_home_in_dynamodb_are_left_alone() -> None:
    stack = Tiers()
    for kind in ("retired", "editor_state"):
        saved(stack, key("1", kind), done=False)
    run(stack, verifier(stack, rows=10), 70)
    assert stack.counted.looks == []


def test_all_looks_of_a_round_take_a_few_calls() -> None:
    stack = Tiers()
    worker = verifier(stack, rows=10)
    for number in range(20):
        saved(stack, key(str(number)))
    run(stack, worker, 1)
    assert stack.asked == [
        "entities.time",
        "entities.saved",
        "entities.sample",
        "cache.peek",
        "items.inspect",
        "aurora.read",
        "verifications.record",
    ]
    assert len(stack.counted.looks) == 30


def test_what_misleads_readers_is_inconsistent_and_told() -> None:
    stack = Tiers()
    saved(stack)
    stack.stored.hold(KEY, Projection(9, Form.TOMBSTONE))
    run(stack, verifier(stack), 1)
    assert stack.counted.looks == [("1s", "inconsistent")]
    assert stack.counted.drifts == [("proposal", Drift.PROJECTION_NEWER)]
    look = stack.noted.looks[KEY]
    assert look == Verified(KEY, SECOND, 1, stack.now, (Drift.PROJECTION_NEWER,))


def test_what_readers_pass_over_is_drift_but_consistent() -> None:
    stack = Tiers()
    saved(stack)
    stack.entries.damaged.add(KEY)
    run(stack, verifier(stack), 1)
    assert stack.counted.looks == [("1s", "consistent")]
    assert stack.counted.drifts == [("proposal", Drift.CACHE_UNREADABLE)]


def test_a_save_that_is_still_on_its_way_is_inconsistent_at_that_age_and_no_drift() -> None:
    stack = Tiers()
    saved(stack)
    stack.table.saves.clear()
    saved(stack, done=False)
    run(stack, verifier(stack), 1)
    assert stack.counted.looks == [("1s", "inconsistent")]
    assert stack.counted.drifts == []
    assert stack.noted.looks == {}


def test_a_new_entity_that_dynamodb_does_not_have_yet_misleads_nobody() -> None:
    stack = Tiers()
    saved(stack, done=False)
    run(stack, verifier(stack), 1)
    assert stack.counted.looks == [("1s", "consistent")]


def test_a_save_that_readers_see_is_consistent_though_a_later_one_is_on_its_way() -> None:
    stack = Tiers()
    saved(stack)
    stack.save(done=False)
    run(stack, verifier(stack), 1)
    assert stack.counted.looks == [("1s", "consistent")]


def test_a_row_that_is_on_its_way_is_not_decided() -> None:
    stack = Tiers()
    stack.save()
    stack.save(done=False)
    run(stack, verifier(stack, saves=0, rows=1), 1)
    assert stack.counted.looks == [("row", "undecided")]


def test_a_store_that_is_down_decides_nothing() -> None:
    stack = Tiers()
    saved(stack)
    stack.items.before["inspect"] = down(Store.DYNAMODB)
    run(stack, verifier(stack), 1)
    assert stack.counted.looks == [("1s", "undecided")]
    assert stack.noted.looks == {}


def test_without_aurora_no_look_decides_anything_and_the_round_fails() -> None:
    stack = Tiers()
    saved(stack)
    worker = verifier(stack)
    stack.authority.before["read"] = down(Store.AURORA)
    with pytest.raises(IncompleteRoundError):
        run(stack, worker, 1)
    assert stack.counted.looks == [("1s", "undecided")]
    stack.authority.before.clear()
    run(stack, worker, 60)
    assert stack.counted.looks == [("1s", "undecided"), ("60s", "consistent")]


def test_looks_that_come_too_late_say_nothing_of_their_age() -> None:
    stack = Tiers()
    saved(stack)
    worker = verifier(stack)
    stack.now += timedelta(seconds=0.6)
    worker.run_once()
    stack.entities.before["saved"] = down(Store.AURORA)
    with pytest.raises(StoreUnavailableError):
        run(stack, worker, 1)
    stack.now += timedelta(seconds=30)
    stack.entities.before.clear()
    run(stack, worker, 1)
    assert stack.counted.looks == [("1s", "undecided")]
    run(stack, worker, 30)
    assert stack.counted.looks == [("1s", "undecided"), ("60s", "consistent")]


def test_several_looks_at_a_key_are_one_comparison_and_one_note() -> None:
    stack = Tiers()
    worker = verifier(stack, rows=1)
    saved(stack)
    run(stack, worker, 59)
    stack.counted.looks.clear()
    saved(stack)
    stack.asked.clear()
    run(stack, worker, 1)
    assert sorted(stack.counted.looks) == [
        ("1s", "consistent"),
        ("60s", "consistent"),
        ("row", "consistent"),
    ]
    assert stack.asked.count("aurora.read") == 1
    assert stack.noted.looks[KEY].age == timedelta(seconds=60)


def test_nothing_is_mended_unless_it_is_told_to() -> None:
    stack = Tiers()
    saved(stack)
    stack.stored.hold(KEY, Projection(9, Form.TOMBSTONE))
    run(stack, verifier(stack), 1)
    assert stack.counted.repairs == []
    assert "outbox.oblige" not in stack.asked


def test_what_is_found_is_mended_if_it_is_told_to() -> None:
    stack = Tiers()
    worker = verifier(stack, repair=True)
    saved(stack)
    stack.stored.hold(KEY, Projection(9, Form.TOMBSTONE))
    run(stack, worker, 61)
    assert stack.counted.looks == [("1s", "inconsistent"), ("60s", "consistent")]
    assert stack.counted.repairs == [("proposal", True)]
    assert stack.noted.looks[KEY].drifts == ()


def test_what_cannot_be_mended_is_counted() -> None:
    stack = Tiers()
    saved(stack)
    stack.stored.hold(KEY, Projection(9, Form.TOMBSTONE))
    stack.outbox.before["oblige"] = down(Store.AURORA)
    run(stack, verifier(stack, repair=True), 1)
    assert stack.counted.repairs == [("proposal", False)]


def test_a_drift_is_told_in_the_log_with_no_value_and_no_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stack = Tiers()
    secret = key("alice@example.com")
    entity = saved(stack, secret)
    changed = codec.encode(Entity(secret, 1, {"a": "private"}, NOON, NOON))
    stack.entries.hold(secret, Cached(entity.version, changed, NOON))
    with caplog.at_level(logging.INFO):
        run(stack, verifier(stack, repair=True), 1)
    told = caplog.text
    for name in ("cache_content", "'a: type'", "'b: missing'", "'proposal'", key_digest(secret)):
        assert name in told
    assert "alice" not in told
    assert "private" not in told
    assert "two" not in told


def test_looks_of_last_week_are_forgotten() -> None:
    stack = Tiers()
    worker = verifier(stack)
    old = [Verified(key(str(number)), SECOND, 1, NOON) for number in range(1500)]
    stack.noted.record(old, soon())
    stack.now += timedelta(days=6)
    assert not worker.purge()
    assert len(stack.noted.looks) == 1500
    stack.now += timedelta(days=2)
    assert worker.purge()
    assert not worker.purge()
    assert stack.noted.looks == {}
