"""Which snapshots of a reader see all that one of the writer does."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import chain, combinations
from typing import TYPE_CHECKING

import pytest

from duostore_server.storage.aurora.visibility import Sight

if TYPE_CHECKING:
    from collections.abc import Iterator

XIDS = range(1, 6)


def sight(snapshot: str, *, in_recovery: bool = False) -> Sight:
    return Sight.of(("on" if in_recovery else "off", in_recovery, snapshot, 0))


def snapshots() -> Iterator[tuple[int, frozenset[int]]]:
    """Yield all there can be of a few transactions: the end, and those in progress before it."""
    for xmax in (*XIDS, XIDS.stop):
        before = range(XIDS.start, xmax)
        for some in chain.from_iterable(combinations(before, n) for n in range(len(before) + 1)):
            yield xmax, frozenset(some)


def taken(xmax: int, in_progress: frozenset[int], *, in_recovery: bool) -> Sight:
    shown = "" if in_recovery else ",".join(map(str, sorted(in_progress)))
    return sight(f"{min(in_progress, default=xmax)}:{xmax}:{shown}", in_recovery=in_recovery)


@pytest.mark.parametrize("in_recovery", [False, True])
def test_whoever_is_said_to_see_it_all_sees_it_all(*, in_recovery: bool) -> None:
    said = 0
    for writer_end, writer_busy in snapshots():
        writer = taken(writer_end, writer_busy, in_recovery=False)
        seen = set(range(XIDS.start, writer_end)) - writer_busy
        for end, busy in snapshots():
            reader = taken(end, busy, in_recovery=in_recovery)
            sees_all = seen <= set(range(XIDS.start, end)) - busy
            if reader.contains(writer):
                assert sees_all, (reader, writer)
                said += 1
            elif not in_recovery and end >= writer_end:
                assert not sees_all, (reader, writer)
    assert said > len(list(snapshots()))


def test_what_a_reader_does_not_show_to_be_in_progress_is_doubted() -> None:
    """As it was seen of PostgreSQL: 755 was replayed, 754 was committed by the writer alone."""
    writer, reader = sight("756:756:"), sight("754:756:", in_recovery=True)
    assert not reader.in_progress
    assert not reader.contains(writer)
    assert reader.may_come_to_contain(writer)


def test_to_wait_for_what_the_writer_waits_for_too_is_in_vain() -> None:
    writer, reader = sight("754:757:754"), sight("754:757:", in_recovery=True)
    assert not reader.contains(writer)
    assert not reader.may_come_to_contain(writer)


def test_only_a_server_that_can_be_written_to_is_the_writer() -> None:
    assert Sight.of(("off", False, "1:1:", 0)).is_writer
    assert not Sight.of(("on", False, "1:1:", 0)).is_writer
    assert not Sight.of(("on", True, "1:1:", 0)).is_writer


def test_times_are_told_to_the_microsecond_and_in_utc() -> None:
    found = Sight.of(("off", False, "1:1:", 1_795_435_200_123_457)).time
    assert found == datetime(2026, 11, 23, 12, 0, 0, 123457, tzinfo=UTC)
    assert found.tzinfo is UTC
