"""Snapshots as callers see them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from duostore.v1.entity_pb2 import EntitySnapshot
from duostore_server.codec import plain
from duostore_server.domain.errors import InvalidRequestError, SnapshotNotFoundError
from tests.support.writer_stack import NOON, NOTE, PROPOSAL, STATE, WriterStack, soon

if TYPE_CHECKING:
    from duostore_server.domain.keys import EntityKey

UNKEPT = replace(PROPOSAL, kind="unkept")


def listed(stack: WriterStack, size: int = 0, token: str = "") -> tuple[list[int], str]:
    page = stack.drafting.list(PROPOSAL, size, token, soon())
    sequences = [EntitySnapshot.FromString(payload).sequence for payload in page.payloads]
    return sequences, page.next_page_token


def test_a_snapshot_is_appended_as_its_kind_wants_it() -> None:
    stack = WriterStack()
    appended = stack.snapshot({"title": "A new roof"})
    assert (appended.sequence, appended.time) == (1, NOON)
    (kept,) = stack.snapshots_kept.appended
    assert kept.in_history
    assert kept.consolidate_after == timedelta(seconds=30)
    stack.snapshot({}, UNKEPT)
    assert not stack.snapshots_kept.appended[1].in_history
    assert stack.asked == ["snapshots.append"] * 2


def test_a_snapshot_comes_back_whole() -> None:
    stack = WriterStack()
    stack.snapshot({"title": "A new roof", "costs": [1, 2.5]})
    stack.snapshot({"title": "A newer roof"})
    found = EntitySnapshot.FromString(stack.drafting.get(PROPOSAL, 1, soon()))
    assert (found.key.tenant, found.key.kind, found.key.id) == ("acme", "proposal", "1")
    assert found.sequence == 1
    assert plain(found.data) == {"title": "A new roof", "costs": [1, 2.5]}
    assert found.snapshot_time.ToDatetime() == NOON.replace(tzinfo=None)
    newest = EntitySnapshot.FromString(stack.drafting.get(PROPOSAL, 0, soon()))
    assert (newest.sequence, plain(newest.data)) == (2, {"title": "A newer roof"})


@pytest.mark.parametrize("sequence", [0, 3])
def test_what_there_is_not_is_not_found(sequence: int) -> None:
    with pytest.raises(SnapshotNotFoundError) as error:
        WriterStack().drafting.get(PROPOSAL, sequence, soon())
    assert error.value.metadata == {"sequence": str(sequence)}


def test_pages_go_on_where_the_last_ended_whatever_is_added() -> None:
    stack = WriterStack()
    for number in range(5):
        stack.snapshot({"n": number})
    first, token = listed(stack, 2)
    stack.snapshot({"n": 5})
    second, token = listed(stack, 2, token)
    last, end = listed(stack, 2, token)
    assert (first, second, last, end) == ([5, 4], [3, 2], [1], "")


def test_a_page_is_cut_to_what_an_answer_may_hold() -> None:
    stack = WriterStack(max_answer_bytes=700)
    for _ in range(3):
        stack.snapshot({"text": "x" * 250})
    sequences, token = listed(stack)
    assert sequences == [3, 2]
    assert listed(stack, 0, token) == ([1], "")


def test_one_snapshot_is_always_answered() -> None:
    stack = WriterStack(max_answer_bytes=10)
    stack.snapshot({"text": "x" * 250})
    stack.snapshot({"text": "x" * 250})
    assert listed(stack)[0] == [2]


@pytest.mark.parametrize("token", ["x", "AAAA", "ä", "QUFBQUFBQUFBQUFBQUFBQQ==", "=" * 24])
def test_a_token_that_was_never_given_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequestError, match="page_token"):
        listed(WriterStack(), 2, token)


def test_a_token_of_another_key_is_refused() -> None:
    stack = WriterStack()
    stack.snapshot({})
    stack.snapshot({})
    _, token = listed(stack, 1)
    with pytest.raises(InvalidRequestError, match="page_token"):
        stack.drafting.list(UNKEPT, 1, token, soon())


@pytest.mark.parametrize("size", [-1, 101])
def test_a_page_has_1_to_100_snapshots(size: int) -> None:
    with pytest.raises(InvalidRequestError, match="page_size"):
        listed(WriterStack(), size)


@pytest.mark.parametrize("key", [NOTE, STATE])
def test_a_kind_that_keeps_no_snapshots_has_none(key: EntityKey) -> None:
    stack = WriterStack()
    for call in (
        lambda: stack.snapshot({}, key),
        lambda: stack.drafting.get(key, 0, soon()),
        lambda: stack.drafting.list(key, 0, "", soon()),
    ):
        with pytest.raises(InvalidRequestError, match=r"key\.kind.*no snapshots"):
            call()
    assert stack.asked == []


def test_a_snapshot_is_held_to_what_a_save_is() -> None:
    stack = WriterStack()
    for data, field in (
        ({"text": "x" * 1000}, "data"),
        ({"a": 2.0**60}, r"data\.a"),
        (None, "data"),
    ):
        with pytest.raises(InvalidRequestError, match=field):
            stack.snapshot(data)
    with pytest.raises(InvalidRequestError, match="idempotency_key"):
        stack.snapshot({}, idempotency_key="\n")
    assert stack.asked == []
