"""A check walks what it is told to, tells what it finds, and mends it if that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.access.checking import MAX_SAMPLE
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.drift import Drift
from duostore_server.domain.entities import Cached, Form, Projection
from duostore_server.domain.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    Store,
    StoreUnavailableError,
)
from tests.support.tier_stack import KEY, NOON, Tiers, down, key, soon

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duostore_server.domain.drift import CheckProgress


def check(
    stack: Tiers, kind: str = "", sample: int | None = None, *, repair: bool = False
) -> list[CheckProgress]:
    return list(stack.checking.check(kind, sample, soon(), repair=repair))


def told(progress: Sequence[CheckProgress]) -> list[tuple[str, str]]:
    return [
        (each.finding.key.id, each.finding.drift.value) for one in progress for each in one.drifts
    ]


def filled(*kinds: str, each: int = 3) -> Tiers:
    """Return stores that agree on some entities."""
    stack = Tiers()
    for kind in kinds or ("proposal",):
        for number in range(each):
            stack.save(key(f"{number:03}", kind))
    return stack


def test_stores_that_agree_are_found_clean() -> None:
    progress = check(filled())
    first, last = progress[0], progress[-1]
    assert (first.checked, first.estimated_total, first.done) == (0, 6, False)
    assert (last.checked, last.estimated_total, last.done) == (6, 6, True)
    assert last.drift_count == last.undecided_count == 0


def test_an_empty_store_is_clean_too() -> None:
    assert [one.done for one in check(Tiers())] == [False, True]


def test_drift_is_told_and_counted() -> None:
    stack = filled()
    stack.stored.hold(key("001"), Projection(9, Form.TOMBSTONE))
    stack.entries.hold(key("002"), Cached(1, b"\xff", NOON))
    progress = check(stack)
    assert told(progress) == [("001", "projection_newer"), ("002", "cache_content")]
    last = progress[-1]
    assert (last.drift_count, last.repaired_count, last.done) == (2, 0, True)
    assert stack.counted.drifts == [
        ("proposal", Drift.PROJECTION_NEWER),
        ("proposal", Drift.CACHE_CONTENT),
    ]
    assert stack.counted.repairs == []
    assert not any(each.repaired or each.repair_error for one in progress for each in one.drifts)


def test_nothing_is_written_unless_that_is_asked_for() -> None:
    stack = filled()
    stack.stored.hold(key("001"), Projection(9, Form.TOMBSTONE))
    check(stack)
    written = {"outbox.oblige", "items.replace", "projections.put_all", "cache.invalidate"}
    assert not written & set(stack.asked)


def test_what_is_found_is_mended_if_that_is_asked_for() -> None:
    stack = filled()
    stack.stored.hold(key("001"), Projection(9, Form.TOMBSTONE))
    progress = check(stack, repair=True)
    (drift,) = [each for one in progress for each in one.drifts]
    assert (drift.repaired, drift.repair_error) == (True, "")
    assert progress[-1].repaired_count == 1
    assert stack.counted.repairs == [("proposal", True)]
    assert check(stack)[-1].drift_count == 0


def test_what_cannot_be_mended_is_told_with_the_reason() -> None:
    stack = filled()
    stack.stored.hold(key("001"), Projection(9, Form.TOMBSTONE))
    stack.outbox.before["oblige"] = down(Store.AURORA)
    progress = check(stack, repair=True)
    (drift,) = [each for one in progress for each in one.drifts]
    assert (drift.repaired, "aurora" in drift.repair_error) == (False, True)
    assert progress[-1].repaired_count == 0
    assert stack.counted.repairs == [("proposal", False)]


def test_an_orphan_is_found_by_the_items() -> None:
    stack = filled()
    stack.stored.hold(key("lost"), Projection(3, Form.TOMBSTONE))
    assert told(check(stack)) == [("lost", "projection_orphan")]
    assert told(check(stack, sample=10)) == [("lost", "projection_orphan")]
    assert check(stack, repair=True)[-1].repaired_count == 1
    assert key("lost") not in stack.stored.held


def test_a_drift_is_told_once_though_the_item_is_walked_too() -> None:
    stack = filled()
    stack.stored.hold(key("001"), Projection(1, Form.VALUE, b"\xff"))
    assert told(check(stack)) == [("001", "projection_content")]


def test_of_one_kind_no_other_is_looked_at() -> None:
    stack = filled("proposal", "note")
    for kind in ("proposal", "note"):
        stack.stored.hold(key("001", kind), Projection(9, Form.TOMBSTONE))
        stack.stored.hold(key("lost", kind), Projection(9, Form.TOMBSTONE))
    assert told(check(stack, "note")) == [
        ("001", "projection_newer"),
        ("lost", "projection_orphan"),
    ]
    assert {kind for kind, _ in stack.counted.drifts} == {"note"}
    assert check(stack, "note")[-1].checked == 7
    assert len(told(check(stack))) == len(told(check(stack, sample=10))) == 4


def test_items_of_kinds_that_are_not_configured_or_at_home_are_left_alone() -> None:
    stack = filled()
    for kind in ("retired", "editor_state"):
        stack.stored.hold(key("1", kind), Projection(3, Form.TOMBSTONE))
        stack.save(key("2", kind), done=False)
        stack.rows.forget((key("2", kind),))
    for sample in (None, 100):
        assert told(check(stack, sample=sample, repair=True)) == []
    assert key("1", "retired") in stack.stored.held


@pytest.mark.parametrize(
    ("kind", "sample", "field", "why"),
    [
        ("editor_state", None, "kind", "at home in DynamoDB"),
        ("propsal", None, "kind", "not a configured kind (at home in Aurora: note, proposal)"),
        ("", 0, "sample", "1 to 1,000,000"),
        ("", MAX_SAMPLE + 1, "sample", "1 to 1,000,000"),
    ],
)
def test_what_cannot_be_checked_is_refused_at_once(
    kind: str, sample: int | None, field: str, why: str
) -> None:
    stack = Tiers()
    with pytest.raises(InvalidRequestError) as refused:
        stack.checking.check(kind, sample, soon(), repair=False)
    (violation,) = refused.value.violations
    assert violation.field == field
    assert why in violation.description
    assert stack.asked == []


def test_all_pages_are_walked_by_few_calls() -> None:
    stack = filled(each=250)
    stack.stored.hold(key("249"), Projection(9, Form.TOMBSTONE))
    assert told(check(stack, "proposal")) == [("249", "projection_newer")]
    calls = {call: stack.asked.count(call) for call in set(stack.asked)}
    assert calls == {
        "entities.estimate": 1,
        "entities.page": 3,
        "items.page": 3,
        # What was seen in a page is not read again unless it does not agree.
        "cache.peek": 4,
        "items.inspect": 4,
        "aurora.read": 4,
    }


def test_a_sample_is_as_large_as_it_is_said() -> None:
    stack = filled(each=250)
    progress = check(stack, "proposal", 150)
    assert progress[0].estimated_total == 300
    assert progress[-1].checked == 300


def test_a_sample_larger_than_the_table_looks_at_all_once() -> None:
    stack = filled(each=50)
    assert check(stack, "proposal", 100_000)[-1].checked == 100
    assert stack.asked.count("entities.sample") == 1
    assert stack.asked.count("items.sample") == 1


def test_what_is_on_its_way_is_not_decided() -> None:
    stack = filled()
    stack.save(key("001"), done=False)
    last = check(stack)[-1]
    assert (last.drift_count, last.undecided_count) == (0, 1)


def test_what_cannot_be_compared_is_not_decided_and_the_check_goes_on() -> None:
    stack = filled(each=250)
    stack.items.before["inspect"] = once(down(Store.DYNAMODB), stack.items.before, "inspect")
    stack.stored.hold(key("249"), Projection(9, Form.TOMBSTONE))
    progress = check(stack)
    assert told(progress) == [("249", "projection_newer")]
    assert progress[-1].undecided_count == 0
    for told_of in (stack.items, stack.cache):
        told_of.before["inspect"] = told_of.before["peek"] = down(Store.CACHE)
    assert check(stack)[-1].undecided_count == 250


def once(fail: Callable[..., None], before: Any, method: str) -> Callable[..., None]:
    def act(*args: object) -> None:
        del before[method]
        fail(*args)

    return act


def test_a_page_that_fails_is_asked_for_again() -> None:
    stack = filled()
    stack.entities.before["page"] = once(down(Store.AURORA), stack.entities.before, "page")
    stack.items.before["page"] = once(down(Store.DYNAMODB), stack.items.before, "page")
    assert check(stack)[-1].checked == 6
    assert stack.paused == [0.2, 0.2]


def test_a_check_ends_when_the_stores_cannot_be_walked() -> None:
    stack = filled()
    stack.entities.before["page"] = down(Store.AURORA)
    with pytest.raises(StoreUnavailableError):
        check(stack)
    assert stack.paused == [0.2, 0.5, 1.0]


def test_aurora_that_fails_in_between_leaves_a_lot_undecided() -> None:
    stack = filled()
    stack.authority.before["read"] = down(Store.AURORA)
    stack.stored.hold(key("001"), Projection(9, Form.TOMBSTONE))
    last = check(stack)[-1]
    assert (last.done, last.checked, last.undecided_count) == (True, 6, 6)


def test_a_caller_who_has_gone_ends_it() -> None:
    stack = filled(each=250)
    gone: list[bool] = []
    deadline = Deadline.after(30, cancelled=lambda: bool(gone))
    running = stack.checking.check("", None, deadline, repair=False)
    next(running)
    gone.append(True)
    with pytest.raises(DeadlineExceededError):
        next(running)


def test_what_was_told_as_mended_is_when_the_caller_goes() -> None:
    stack = filled(each=250)
    stack.stored.hold(key("001"), Projection(9, Form.TOMBSTONE))
    stack.stored.hold(key("249"), Projection(9, Form.TOMBSTONE))
    running = stack.checking.check("", None, soon(), repair=True)
    for progress in running:
        if progress.drifts:
            break
    running.close()
    assert [each.repaired for each in progress.drifts] == [True]
    assert stack.drifts(key("001"), key("249")) == ["projection_newer"]


def test_progress_is_told_twice_a_second() -> None:
    stack = filled(each=250)

    def takes(*_: object) -> None:
        stack.seconds += 0.3

    stack.entities.before["page"] = takes
    assert [one.checked for one in check(stack, "proposal")] == [0, 200, 500]


def test_much_drift_is_told_in_portions() -> None:
    stack = filled(each=60)
    for number in range(60):
        stack.stored.hold(key(f"{number:03}"), Projection(9, Form.TOMBSTONE))
    progress = check(stack)
    assert [len(one.drifts) for one in progress] == [0, 25, 25, 10, 0]
    assert progress[-1].drift_count == 60


def test_progress_is_never_past_its_total() -> None:
    stack = filled(each=3)
    stack.entities.after["estimate"] = lambda: stack.save(KEY)
    for one in check(stack, "proposal"):
        assert one.checked <= one.estimated_total
