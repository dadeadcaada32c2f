from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.cli.load_checkpoint import Checkpoint, Fingerprint, Job
from duostore_server.cli.load_items import Lanes
from duostore_server.cli.load_journal import Journal, open_journal
from duostore_server.cli.load_loop import Loader
from duostore_server.cli.load_outcome import (
    Delayed,
    End,
    Ending,
    Existed,
    Failed,
    Outcome,
    Refused,
    Saved,
)
from tests.support.scripted_load import Call, Run, Time, always_saved, run_of
from tests.support.simulated_disk import SimulatedDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from duostore_server.cli.load_items import Item

SOURCE = Path("/data/a.jsonl")
REJECTED = Path("/data/a.jsonl.rejected")
PROGRESS = Path("/data/a.jsonl.load-progress")
JOB = Job(Fingerprint(1000, "ab"), "127.0.0.1:50051", "", "proposal", "id")
ID = "1f"

DOWN = Delayed("aurora cannot be reached", after=0.0)
LOST = Delayed("the answer was lost", after=0.0)
SAVED = Saved(pending=False)


def _content(ids: Iterable[str]) -> bytes:
    return b"".join(
        json.dumps({"id": id_, "n": number}).encode() + b"\n"
        for number, id_ in enumerate(ids, start=1)
    )


class Loading:
    """A load of some content on a disk of its own."""

    def __init__(
        self,
        content: bytes,
        answer: Callable[[Call], Outcome | None] = always_saved,
        **options: Any,
    ) -> None:
        self.disk = options.pop("disk", None) or SimulatedDisk()
        self.journal: Journal = open_journal(self.disk, SOURCE, JOB, restart=False, new_id=ID)
        self.steps: Run = run_of(content, self.journal, answer, **options)

    def run(self) -> End:
        return self.steps.loader.run()

    @property
    def sent(self) -> list[int]:
        return [document["n"] for document in self.steps.service.log]

    @property
    def rejected(self) -> list[tuple[int, str]]:
        lines = self.disk.files().get(REJECTED, b"").splitlines()
        return [(entry["line"], entry["reason"]) for entry in map(json.loads, lines)]


def _by_line(outcomes: dict[int, list[Outcome]]) -> Callable[[Call], Outcome]:
    """Answer each try of a line with the next of its outcomes, other lines with success."""
    left = {number: list(reversed(several)) for number, several in outcomes.items()}

    def answer(call: Call) -> Outcome:
        several = left.get(call.document["n"])
        return several.pop() if several else SAVED

    return answer


def test_every_line_is_saved_under_its_id() -> None:
    loading = Loading(b'{"id": "a", "n": 1}\r\n\n{"id": 7, "n": 3}\n   \n{"id": "c", "n": 5}')
    assert loading.run() == End(Ending.COMPLETE)
    assert loading.sent == [1, 3, 5]
    assert loading.steps.service.log[1] == {"id": 7, "n": 3}
    counts = loading.journal.counts
    assert (counts.saved, counts.blank, counts.rejected) == (3, 2, 0)


def test_an_empty_file_is_complete_at_once() -> None:
    loading = Loading(b"")
    began = loading.steps.time.now
    assert loading.run() == End(Ending.COMPLETE)
    assert loading.steps.time.now == began


def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it() -> None:
    loading = Loading(b'\xef\xbb\xbf{"id": "a", "n": 1}\n\xef\xbb\xbf{"id": "b", "n": 2}\n')
    assert loading.run().ending is Ending.COMPLETE
    assert loading.sent == [1]
    assert [line for line, _ in loading.rejected] == [2]


def test_lines_that_cannot_be_saved_are_rejected_with_the_reason() -> None:
    lines = [
        b'{"id": "a", "n": 1}',
        b'{"id": "b", "n": ',
        b'{"id": "c\xff"}',
        b'{"n": 4}',
        b'{"id": ""}',
        b'{"id": "f", "x": 9007199254740993}',
        b'{"id": "' + b"g" * 8 * 1024 * 1024 + b'"}',
        b"[]",
    ]
    loading = Loading(b"\n".join(lines))
    assert loading.run() == End(Ending.COMPLETE)
    reasons = dict(loading.rejected)
    assert list(reasons) == [2, 3, 4, 5, 6, 7, 8]
    assert reasons[2].startswith("data: is not JSON: Expecting value")
    assert reasons[3] == "data: is not UTF-8: byte 0xff at position 9"
    assert reasons[4] == "data.id: is missing; it holds the id"
    assert reasons[5] == "data.id: is empty; it holds the id"
    assert "data.x: is 9007199254740993, a number of 2^53 or beyond" in reasons[6]
    assert "8388618 bytes; at most 8388608 are allowed" in reasons[7]
    assert len(loading.disk.files()[REJECTED]) < 5000
    assert reasons[8] == "data: is not a JSON object but a list"
    assert loading.sent == [1]


def test_each_outcome_is_counted() -> None:
    answers: dict[int, list[Outcome]] = {
        1: [Saved(pending=True)],
        2: [Existed()],
        3: [Refused("data.a: is bad")],
        4: [DOWN, LOST, Saved(pending=True)],
    }
    loading = Loading(_content("abcdef"), _by_line(answers))
    assert loading.run() == End(Ending.COMPLETE)
    counts = loading.journal.counts
    assert (counts.saved, counts.pending, counts.existed, counts.rejected) == (4, 2, 1, 1)
    assert loading.rejected == [(3, "data.a: is bad")]


def test_no_more_lines_are_under_way_than_allowed() -> None:
    most = 0

    def answer(_: Call) -> Outcome | None:
        nonlocal most
        service = loading.steps.service
        most = max(most, len(service.open))
        # Answers come once all slots are taken, or nothing is left to send.
        return SAVED if len(service.open) == 5 or len(service.log) == 100 else None

    loading = Loading(_content(map(str, range(100))), answer, in_flight=5)
    assert loading.run() == End(Ending.COMPLETE)
    assert most == 5


def test_little_is_held_of_long_lines_however_many_may_be_under_way() -> None:
    most = 0

    def answer(_: Call) -> Outcome | None:
        nonlocal most
        most = max(most, len(loading.steps.service.open))
        return SAVED

    line = b'{"id": %d, "n": 1, "text": "' + b"x" * 7 * 1024 * 1024 + b'"}\n'
    content = b"".join(line % number for number in range(14))
    loading = Loading(content, answer, in_flight=100)
    assert loading.run() == End(Ending.COMPLETE)
    assert most == 10, "64 MiB and a line"


def test_finished_lines_do_not_run_ahead_without_bounds() -> None:
    def answer(call: Call) -> Outcome | None:
        if call.document["n"] == 1:
            ahead.append(len(loading.steps.service.log))
            return SAVED if len(ahead) > 20_000 else None
        return SAVED

    ahead: list[int] = []
    loading = Loading(_content(map(str, range(5000))), answer, timeout=1e6)
    assert loading.run() == End(Ending.COMPLETE)
    assert max(ahead) == 2048
    assert loading.journal.counts.saved == 5000


def test_a_load_that_was_interrupted_far_ahead_goes_on() -> None:
    content = _content(map(str, range(5000)))

    def answer(call: Call) -> Outcome | None:
        return LOST if call.document["n"] == 1 else SAVED

    first = Loading(content, answer, retry_for=5.0)
    assert first.run().ending is Ending.UNAVAILABLE
    assert first.journal.counts.saved == 2047
    second = Loading(content, disk=first.disk)
    assert second.run() == End(Ending.COMPLETE)
    assert sorted(second.sent) == [1, *range(2049, 5001)]


def test_a_line_that_may_pass_later_is_tried_again_until_it_does() -> None:
    times = []

    def answer(call: Call) -> Outcome:
        times.append(call.sent)
        return SAVED if len(times) == 8 else DOWN

    loading = Loading(_content("a"), answer)
    assert loading.run() == End(Ending.COMPLETE)
    waits = [round(later - sooner, 3) for sooner, later in pairwise(times)]
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_service_that_asks_to_be_left_alone_is() -> None:
    times = []

    def answer(call: Call) -> Outcome:
        times.append(call.sent)
        return SAVED if len(times) == 3 else Delayed("too much", after=2.0)

    loading = Loading(_content("a"), answer)
    loading.run()
    assert [times[1] - times[0], times[2] - times[1]] == [2.0, 2.0]


def test_other_lines_go_on_while_one_is_tried_again() -> None:
    loading = Loading(_content("abcdefgh"), _by_line({2: [DOWN] * 3}))
    assert loading.run() == End(Ending.COMPLETE)
    assert loading.sent == [1, 2, 3, 4, 5, 6, 7, 8, 2, 2, 2]


def test_a_service_that_stays_away_stops_the_load_where_it_can_be_resumed() -> None:
    is_up = True

    def answer(call: Call) -> Outcome:
        return SAVED if is_up or call.document["n"] in {1, 2, 4} else DOWN

    content = _content("abcdefgh")
    is_up = False
    loading = Loading(content, answer, retry_for=30.0)
    began = loading.steps.time.now
    end = loading.run()
    assert end.ending is Ending.UNAVAILABLE
    assert end.why == "line 3: aurora cannot be reached; tried for 30 s"
    assert 30 <= loading.steps.time.now - began < 31
    assert loading.steps.display.texts[0] == (
        "line 3: aurora cannot be reached; trying again for up to 30 s"
    )
    assert len(loading.steps.display.texts) <= 5, "told now and then, not at every try"

    is_up = True
    resumed = Loading(content, answer, disk=loading.disk)
    assert resumed.run() == End(Ending.COMPLETE)
    assert resumed.sent == [3, 5, 6, 7, 8]
    assert resumed.journal.counts.saved == 8


def test_without_retries_the_first_failure_stops_the_load() -> None:
    loading = Loading(_content("ab"), lambda _: DOWN, retry_for=0.0)
    assert loading.run().ending is Ending.UNAVAILABLE
    assert loading.sent == [1, 2]


def test_what_concerns_every_line_stops_the_load_at_once() -> None:
    failed = Failed("you may not", exit_code=1, maybe_applied=False)
    loading = Loading(_content("abcdefgh"), _by_line({3: [failed]}), in_flight=2)
    assert loading.run() == End(Ending.FAILED, "line 3: you may not", 1)
    assert loading.rejected == []
    assert 3 <= max(loading.sent) <= 4
    checkpoint = Checkpoint.decode(loading.disk.files()[PROGRESS])
    assert checkpoint.line == 2


def test_a_load_that_fails_at_its_first_line_keeps_what_an_earlier_one_rejected() -> None:
    disk = SimulatedDisk({REJECTED: b"of an earlier load\n"})
    failed = Failed("no such kind", 2, maybe_applied=False)
    loading = Loading(_content("abc"), lambda _: failed, disk=disk)
    assert loading.run().exit_code == 2
    assert disk.files() == {REJECTED: b"of an earlier load\n"}, "nothing else is left"


@pytest.mark.parametrize(
    "outcomes",
    [
        [Failed("a fault", 1, maybe_applied=True)],
        [DOWN, Failed("no such kind", 2, maybe_applied=False)],
    ],
)
def test_a_load_that_may_have_saved_a_line_keeps_its_name(outcomes: list[Outcome]) -> None:
    loading = Loading(_content("a"), _by_line({1: outcomes}))
    assert loading.run().ending is Ending.FAILED
    assert Checkpoint.decode(loading.disk.files()[PROGRESS]).load_id == ID


def test_a_load_that_another_run_began_is_not_forgotten() -> None:
    disk = SimulatedDisk()
    assert Loading(_content("a"), lambda _: DOWN, disk=disk, retry_for=0.0).run().why
    begun = disk.files()
    failed = Failed("no such kind", 2, maybe_applied=False)
    assert Loading(_content("a"), lambda _: failed, disk=disk).run().exit_code == 2
    assert disk.files() == begun


def test_nothing_is_sent_before_it_is_safe_what_load_it_is() -> None:
    def answer(_: Call) -> Outcome:
        (files,) = loading.disk.survivors()
        known.append(Checkpoint.decode(files[PROGRESS]).load_id)
        return SAVED

    known: list[str] = []
    loading = Loading(_content("a"), answer)
    assert loading.run() == End(Ending.COMPLETE)
    assert known == [ID]


def test_an_interrupted_load_lets_what_is_under_way_finish() -> None:
    def answer(call: Call) -> Outcome | None:
        if call.document["n"] == 3:
            loading.steps.loader.interrupt()
        # Answers arrive only after the interrupt was noticed.
        return SAVED if loading.steps.display.texts or call.document["n"] < 3 else None

    content = _content("abcdefgh")
    loading = Loading(content, answer, in_flight=3)
    assert loading.run() == End(Ending.INTERRUPTED)
    [said] = loading.steps.display.texts
    assert said == "stopping; lines still under way: 1"
    assert loading.journal.counts.saved == len(loading.sent)
    resumed = Loading(content, disk=loading.disk)
    assert resumed.run() == End(Ending.COMPLETE)
    assert sorted(loading.sent + resumed.sent) == list(range(1, 9)), "nothing is saved twice"


def test_an_interrupted_load_does_not_wait_for_lines_that_are_tried_again() -> None:
    def answer(_: Call) -> Outcome:
        loading.steps.loader.interrupt()
        return DOWN

    loading = Loading(_content("aab"), answer)
    began = loading.steps.time.now
    assert loading.run() == End(Ending.INTERRUPTED)
    assert loading.steps.time.now - began < 1
    assert loading.journal.counts.lines == 0


def test_an_interrupt_after_the_last_answer_does_not_undo_completion() -> None:
    def answer(call: Call) -> Outcome:
        if call.document["n"] == 2:
            loading.steps.loader.interrupt()
        return SAVED

    loading = Loading(_content("ab"), answer)
    assert loading.run() == End(Ending.COMPLETE)


def test_progress_is_kept_every_second_also_while_nothing_comes_back() -> None:
    def answer(call: Call) -> Outcome | None:
        if call.document["n"] == 2:
            kept.append(Checkpoint.decode(loading.disk.files()[PROGRESS]).line)
            return SAVED if call.sent + 3 <= loading.steps.time.now else None
        return SAVED

    kept: list[int] = []
    loading = Loading(_content("abc"), answer)
    assert loading.run() == End(Ending.COMPLETE)
    assert (kept[0], kept[-1]) == (0, 1)


class SlowService:
    """A service that loses answers, and may still apply a write whose answer was lost.

    A write lands, if at all, any time after it was sent, unless ``forgets``, once for each
    line; answers arrive in any order.
    """

    def __init__(self, seed: int, time: Time, *, forgets: bool) -> None:
        self._random = random.Random(seed)
        self._time = time
        self._forgets = forgets
        self._landing: list[tuple[float, str, int]] = []
        self._lines: set[int] = set()
        self.entities: defaultdict[str, list[int]] = defaultdict(list)

    def answer(self, call: Call) -> Outcome | None:
        self.land(until=self._time.now)
        dice = self._random.random()
        if dice < 0.5:
            self._time.now += self._random.random() / 10
            return None
        if dice < 0.8:
            self._apply(call.id, call.line)
            return SAVED
        if dice < 0.9:
            return DOWN
        if self._random.random() < 0.7:
            at = self._time.now + self._random.uniform(0, 5)
            self._landing.append((at, call.id, call.line))
        return LOST

    def land(self, until: float) -> None:
        for write in sorted(write for write in self._landing if write[0] <= until):
            self._landing.remove(write)
            self._apply(write[1], write[2])

    def _apply(self, id_: str, line: int) -> None:
        if self._forgets or line not in self._lines:
            self._lines.add(line)
            self.entities[id_].append(line)


def _each_line_is_saved_once(loader: type[Loader], seed: int, *, forgets: bool = False) -> bool:
    time = Time()
    service = SlowService(seed, time, forgets=forgets)
    ids = random.Random(seed).choices("abc", k=12)
    loading = Loading(
        _content(ids),
        service.answer,
        in_flight=5,
        retry_for=1e6,
        time=time,
        loader=loader,
    )
    assert loading.run() == End(Ending.COMPLETE)
    service.land(until=float("inf"))
    assert loading.journal.counts.saved == len(ids)
    expected: defaultdict[str, list[int]] = defaultdict(list)
    for line, id_ in enumerate(ids, start=1):
        expected[id_].append(line)
    return service.entities == expected


class _NoLanes(Lanes):
    def enter(self, item: Item) -> bool:
        super().enter(item)
        return True

    def leave(self, item: Item) -> Item | None:
        super().leave(item)
        return None


class _AllAtOnce(Loader):
    """Sends lines of one id side by side."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._lanes = _NoLanes()


@pytest.mark.parametrize("seed", range(40))
def test_each_line_is_saved_once_and_in_order_whatever_answers_are_lost(seed: int) -> None:
    for part in range(10):
        assert _each_line_is_saved_once(Loader, seed * 10 + part)


def test_a_loader_that_does_not_keep_the_order_is_found_out() -> None:
    assert not all(_each_line_is_saved_once(_AllAtOnce, seed) for seed in range(400))


def test_a_service_that_forgets_what_it_applied_is_found_out() -> None:
    assert not all(_each_line_is_saved_once(Loader, seed, forgets=True) for seed in range(400))


def test_lines_of_one_id_are_sent_one_after_the_other() -> None:
    under_way: Counter[str] = Counter()

    def answer(call: Call) -> Outcome | None:
        under_way.update({call.id: 0})
        most = Counter(other.id for other in loading.steps.service.open)
        under_way.update({id_: max(0, n - under_way[id_]) for id_, n in most.items()})
        return SAVED if random_.random() < 0.5 else None

    random_ = random.Random(1)
    ids = random_.choices("abcd", k=100)
    loading = Loading(_content(ids), answer, in_flight=10)
    assert loading.run() == End(Ending.COMPLETE)
    assert set(under_way.values()) == {1}
    for id_ in "abcd":
        mine = [document["n"] for document in loading.steps.service.log if document["id"] == id_]
        assert mine == sorted(mine)


def test_a_rejected_line_does_not_hold_up_the_next_of_its_id() -> None:
    loading = Loading(_content("aaa"), _by_line({1: [Refused("bad")], 2: [DOWN, Refused("bad")]}))
    assert loading.run() == End(Ending.COMPLETE)
    assert loading.sent == [1, 2, 2, 3]
    assert [line for line, _ in loading.rejected] == [1, 2]
