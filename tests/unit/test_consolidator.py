"""What the consolidator brings, and when it lets go."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server import codec
from duostore_server.domain.errors import Store, StoreUnavailableError
from duostore_server.domain.snapshots import DirtyHead, Draft, DueHeads
from duostore_server.workers.consolidator import Consolidator
from duostore_server.workers.loop import IncompleteRoundError
from tests.support.writer_stack import NOON, POLICIES, PROPOSAL, STATE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey

LONG_AGO = NOON - timedelta(minutes=1)
JUST_NOW = NOON - timedelta(seconds=1)
AGAIN = NOON + timedelta(seconds=30)


@dataclass
class Settled:
    expire: int
    keep: timedelta
    clean: bool
    next_due: datetime


@dataclass
class Heads:
    """``ports.DirtyHeads`` that are what a test says."""

    dirty: list[DirtyHead]
    settled: dict[EntityKey, Settled] = field(default_factory=dict)
    refuses: set[str] = field(default_factory=set)

    def due(self, limit: int, _: Deadline) -> DueHeads:
        return DueHeads(self.dirty[:limit], more=len(self.dirty) > limit)

    def settle(self, head: DirtyHead, *, deadline: Deadline, **what: Any) -> None:
        assert deadline.remaining() > 0
        if head.key.id in self.refuses:
            raise StoreUnavailableError(Store.DYNAMODB)
        self.settled[head.key] = Settled(**what)


class Drafts:
    """``ports.Drafts`` in memory, and how it was asked."""

    def __init__(self) -> None:
        self.rows: dict[EntityKey, Draft] = {}
        self.lots: list[int] = []

    def fold(self, drafts: Sequence[Draft], _: Deadline) -> Mapping[EntityKey, int]:
        self.lots.append(len(drafts))
        before = {}
        for draft in drafts:
            held = self.rows.get(draft.key)
            before[draft.key] = held.sequence if held else 0
            if before[draft.key] < draft.sequence:
                self.rows[draft.key] = draft
        return before


def head(number: int = 100, time: datetime = LONG_AGO, key: EntityKey = PROPOSAL) -> DirtyHead:
    payload = codec.encode_snapshot(key, {"n": number}, time)
    return DirtyHead(key, number, payload, time, history=number)


def consolidate(heads: Heads, drafts: Drafts, batch: int = 10) -> bool:
    return Consolidator(
        heads=heads,
        drafts=drafts,
        data_of=codec.document_of,
        policies=POLICIES,
        now=lambda: NOON,
        batch=batch,
        settled=timedelta(seconds=5),
        consolidated=lambda _: None,
    ).run_once()


def test_a_head_at_rest_is_brought_and_let_go() -> None:
    heads, drafts = Heads([head()]), Drafts()
    assert consolidate(heads, drafts) is False
    assert drafts.rows == {PROPOSAL: Draft(PROPOSAL, 100, {"n": 100}, LONG_AGO)}
    # All but the newest may expire.
    assert heads.settled == {PROPOSAL: Settled(99, timedelta(days=7), clean=True, next_due=AGAIN)}


def test_of_a_head_that_moves_only_what_an_earlier_round_brought_may_expire() -> None:
    drafts = Drafts()
    for number, expire in ((100, 0), (130, 100)):
        heads = Heads([head(number, JUST_NOW)])
        consolidate(heads, drafts)
        assert heads.settled == {
            PROPOSAL: Settled(expire, timedelta(days=7), clean=False, next_due=AGAIN)
        }
    assert drafts.rows[PROPOSAL].sequence == 130


def test_what_another_process_has_just_brought_does_not_expire_yet() -> None:
    drafts = Drafts()
    drafts.rows[PROPOSAL] = Draft(PROPOSAL, 100, {}, JUST_NOW)
    heads = Heads([replace(head(100, JUST_NOW), expiring=40)])
    consolidate(heads, drafts)
    assert heads.settled[PROPOSAL].expire == 40


def test_a_kind_without_history_has_none_that_could_expire() -> None:
    unkept = replace(PROPOSAL, kind="unkept")
    for time in (LONG_AGO, JUST_NOW):
        heads = Heads([replace(head(100, time, unkept), history=0)])
        consolidate(heads, Drafts())
        assert heads.settled == {unkept: Settled(0, timedelta(), clean=True, next_due=AGAIN)}


def test_what_a_kind_has_left_of_a_history_expires_when_it_keeps_none_any_more() -> None:
    unkept = replace(PROPOSAL, kind="unkept")
    heads = Heads([replace(head(100, LONG_AGO, unkept), history=40, expiring=10)])
    consolidate(heads, Drafts())
    assert heads.settled == {unkept: Settled(40, timedelta(), clean=True, next_due=AGAIN)}


def test_an_entity_at_home_in_dynamodb_is_brought_and_so_is_its_deletion() -> None:
    heads, drafts = Heads([head(5, JUST_NOW, STATE)]), Drafts()
    consolidate(heads, drafts)
    assert drafts.rows[STATE].expire_time is None
    heads.dirty = [replace(head(5, JUST_NOW, STATE), number=6, expire_time=AGAIN)]
    consolidate(heads, drafts)
    assert drafts.rows[STATE].expire_time == AGAIN
    heads.dirty = [DirtyHead(STATE, 7, None, JUST_NOW, 0)]
    consolidate(heads, drafts)
    assert drafts.rows[STATE].data is None
    assert heads.settled[STATE].clean


def test_a_payload_that_cannot_be_read_is_left_for_later_and_holds_nothing_up() -> None:
    other = replace(PROPOSAL, id="2")
    heads, drafts = Heads([replace(head(), payload=b"\xff"), head(key=other)]), Drafts()
    consolidate(heads, drafts)
    assert list(drafts.rows) == [other]
    assert heads.settled[PROPOSAL] == Settled(
        0, timedelta(), clean=False, next_due=NOON + timedelta(hours=1)
    )


def test_what_cannot_be_settled_fails_the_round_and_holds_nothing_up() -> None:
    other = replace(PROPOSAL, id="2")
    heads, drafts = Heads([head(), head(key=other)], refuses={"1"}), Drafts()
    with pytest.raises(IncompleteRoundError, match="1 of 2"):
        consolidate(heads, drafts)
    assert list(heads.settled) == [other]


def test_nothing_is_let_go_that_aurora_did_not_take() -> None:
    class Down(Drafts):
        def fold(self, *_: object) -> Mapping[EntityKey, int]:
            raise StoreUnavailableError(Store.AURORA)

    heads = Heads([head()])
    with pytest.raises(StoreUnavailableError):
        consolidate(heads, Down())
    assert heads.settled == {}


def test_batches_are_bounded_in_number_and_in_bytes() -> None:
    large = [
        DirtyHead(
            replace(PROPOSAL, id=str(number)),
            1,
            codec.encode_snapshot(PROPOSAL, {"text": "x" * 400_000}, LONG_AGO),
            LONG_AGO,
            0,
        )
        for number in range(7)
    ]
    heads, drafts = Heads(large), Drafts()
    assert consolidate(heads, drafts, batch=5) is True
    assert drafts.lots == [2, 2, 1]
