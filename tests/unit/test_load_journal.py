from __future__ import annotations

import json
import random
import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.cli.load_checkpoint import Checkpoint, Fingerprint, Job
from duostore_server.cli.load_journal import Journal, LoadRefusedError, open_journal
from duostore_server.cli.load_lines import Line
from duostore_server.cli.load_outcome import Ending, Outcome, Refused, Saved
from tests.support.scripted_load import Call, Time, finish, run_of
from tests.support.simulated_disk import CrashError, SimulatedDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = Path("/data/a.jsonl")
PROGRESS = Path("/data/a.jsonl.load-progress")
REJECTED = Path("/data/a.jsonl.rejected")
JOB = Job(Fingerprint(1000, "ab"), "127.0.0.1:50051", "", "proposal", "id")
ID = "1f"


def _line(number: int, text: bytes = b"{}") -> Line:
    return Line(number, number * 10, len(text), text)


def _rejected(disk: SimulatedDisk) -> list[dict[str, Any]]:
    return [json.loads(line) for line in disk.files().get(REJECTED, b"").splitlines()]


def test_the_finished_lines_before_the_first_unfinished_one_are_counted() -> None:
    journal = open_journal(SimulatedDisk(), SOURCE, JOB, restart=False, new_id=ID)
    journal.saved(_line(2), pending=False)
    journal.existed(_line(3))
    assert (journal.line, journal.offset, journal.counts.lines) == (0, 0, 2)
    journal.passed(_line(1))
    assert (journal.line, journal.offset, journal.counts.lines) == (3, 30, 3)


def test_a_resumed_load_knows_what_was_finished() -> None:
    disk = SimulatedDisk()
    journal = open_journal(disk, SOURCE, JOB, restart=False, new_id=ID)
    for number in (1, 2, 4, 7):
        journal.saved(_line(number), pending=number == 2)
    journal.reject(_line(5), "bad")
    journal.keep()
    resumed = open_journal(disk, SOURCE, JOB, restart=False, new_id=ID)
    assert (resumed.line, resumed.offset) == (2, 20)
    assert resumed.counts == journal.counts
    unfinished = [number for number in range(3, 9) if not resumed.is_finished(_line(number))]
    assert unfinished == [3, 6, 8]
    resumed.saved(_line(3), pending=False)
    assert (resumed.line, resumed.offset) == (5, 50)


def test_a_rejected_line_stands_in_the_file_with_number_and_reason() -> None:
    disk = SimulatedDisk()
    journal = open_journal(disk, SOURCE, JOB, restart=False, new_id=ID)
    journal.reject(_line(3, '{"name": "Zoë'.encode()), "is not JSON")
    journal.reject(_line(1, b"caf\xe9"), "is not UTF-8")
    assert _rejected(disk) == [
        {"line": 3, "reason": "is not JSON", "text": '{"name": "Zoë'},
        {"line": 1, "reason": "is not UTF-8", "text": r"caf\xe9"},
    ]


def test_a_complete_load_leaves_only_the_rejected_lines() -> None:
    disk = SimulatedDisk()
    journal = open_journal(disk, SOURCE, JOB, restart=False, new_id=ID)
    journal.saved(_line(1), pending=False)
    journal.reject(_line(2), "bad")
    journal.keep()
    assert set(disk.files()) == {PROGRESS, REJECTED}
    journal.complete()
    assert set(disk.files()) == {REJECTED}
    assert list(disk.survivors()) == [disk.files()]


def test_a_load_that_rejects_nothing_removes_what_an_earlier_one_rejected() -> None:
    disk = SimulatedDisk({REJECTED: b"old\n"})
    journal = open_journal(disk, SOURCE, JOB, restart=False, new_id=ID)
    journal.keep()
    assert disk.files() == {REJECTED: b"old\n"}, "nothing was done yet"
    journal.saved(_line(1), pending=False)
    journal.complete()
    assert disk.files() == {}


def test_a_load_replaces_what_an_earlier_one_rejected() -> None:
    disk = SimulatedDisk({REJECTED: b"old\n" * 100})
    journal = open_journal(disk, SOURCE, JOB, restart=False, new_id=ID)
    journal.reject(_line(1), "bad")
    assert [entry["line"] for entry in _rejected(disk)] == [1]


def test_a_load_that_has_begun_is_known_again_though_nothing_was_done() -> None:
    disk = SimulatedDisk({REJECTED: b"of an earlier load\n"})
    open_journal(disk, SOURCE, JOB, restart=False, new_id="first").begin()
    for files in disk.survivors():
        assert files[REJECTED] == b"of an earlier load\n"
        again = open_journal(SimulatedDisk(files), SOURCE, JOB, restart=False, new_id="second")
        assert (again.load_id, again.line) == ("first", 0)


def test_a_load_keeps_its_id_until_it_is_complete_or_begun_anew() -> None:
    disk = SimulatedDisk()
    journal = open_journal(disk, SOURCE, JOB, restart=False, new_id="first")
    journal.begin()
    journal.saved(_line(1), pending=False)
    journal.keep()
    resumed = open_journal(disk, SOURCE, JOB, restart=False, new_id="second")
    resumed.begin()
    assert resumed.load_id == "first"
    anew = open_journal(SimulatedDisk(disk.files()), SOURCE, JOB, restart=True, new_id="third")
    assert anew.load_id == "third"
    resumed.complete()
    assert open_journal(disk, SOURCE, JOB, restart=False, new_id="fourth").load_id == "fourth"


@pytest.mark.parametrize(
    "job",
    [
        replace(JOB, kind="draft"),
        replace(JOB, input=Fingerprint(1000, "cd")),
        replace(JOB, if_absent=True),
    ],
)
def test_a_load_that_came_to_nothing_is_in_nobody_s_way(job: Job) -> None:
    disk = SimulatedDisk()
    open_journal(disk, SOURCE, JOB, restart=False, new_id="first").begin()
    journal = open_journal(disk, SOURCE, job, restart=False, new_id="second")
    assert journal.load_id == "second"
    journal.begin()
    assert Checkpoint.decode(disk.files()[PROGRESS]).job == job


def _interrupted(*, rejected: bool = True) -> SimulatedDisk:
    disk = SimulatedDisk()
    journal = open_journal(disk, SOURCE, JOB, restart=False, new_id=ID)
    journal.saved(_line(1), pending=False)
    if rejected:
        journal.reject(_line(2), "bad")
    journal.keep()
    return disk


def test_a_restart_forgets_what_was_done() -> None:
    disk = _interrupted()
    journal = open_journal(disk, SOURCE, JOB, restart=True, new_id=ID)
    assert (journal.line, journal.counts.lines) == (0, 0)
    assert next(iter(disk.survivors())).keys() == {REJECTED}
    journal.reject(_line(7), "bad")
    assert [entry["line"] for entry in _rejected(disk)] == [7]


def test_a_changed_file_is_refused() -> None:
    changed = replace(JOB, input=Fingerprint(1000, "cd"))
    with pytest.raises(LoadRefusedError, match=r"was changed since .* line 3; .*--restart"):
        open_journal(_interrupted(), SOURCE, changed, restart=False, new_id=ID)
    open_journal(_interrupted(), SOURCE, changed, restart=True, new_id=ID)


@pytest.mark.parametrize(
    ("job", "option"),
    [
        (replace(JOB, kind="draft"), "--kind was 'proposal' and is 'draft' now"),
        (replace(JOB, tenant="t"), "--tenant was '' and is 't' now"),
        (replace(JOB, id="key"), "--id was 'id' and is 'key' now"),
        (replace(JOB, if_absent=True), "--if-absent was False and is True now"),
        (replace(JOB, target="b:1"), "--target was '127.0.0.1:50051' and is 'b:1' now"),
    ],
)
def test_another_load_of_the_file_does_not_resume_this_one(job: Job, option: str) -> None:
    with pytest.raises(LoadRefusedError, match=option):
        open_journal(_interrupted(), SOURCE, job, restart=False, new_id=ID)


def test_progress_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(LoadRefusedError, match=r"load-progress cannot be read: .*--restart"):
        open_journal(SimulatedDisk({PROGRESS: b"{"}), SOURCE, JOB, restart=False, new_id=ID)


@pytest.mark.parametrize("left", [None, b"", b"x"])
def test_rejected_lines_that_somebody_took_away_are_missed(left: bytes | None) -> None:
    files = _interrupted().files()
    del files[REJECTED]
    if left is not None:
        files[REJECTED] = left
    with pytest.raises(LoadRefusedError, match="rejected has lost lines"):
        open_journal(SimulatedDisk(files), SOURCE, JOB, restart=False, new_id=ID)


def test_nobody_misses_rejected_lines_if_there_were_none() -> None:
    assert (
        open_journal(_interrupted(rejected=False), SOURCE, JOB, restart=False, new_id=ID).line == 1
    )


# What a load of these lines has to come to, wherever it is killed. `n` tells apart what is
# saved under one id.
CONTENT = b"""\
{"id": "a", "n": 1}
{"id": "b", "n": 2}
no JSON

{"id": "a", "n": 5}
{"id": "refused", "n": 6}
{"n": 7}
{"id": "c", "n": 8}
{"id": "a", "n": 9}
{"id": "refused", "n": 10}
{"id": "d", "n": 11}
"""
BAD_LINES = [3, 6, 7, 10]
SAVED = {"a": [1, 5, 9], "b": [2], "c": [8], "d": [11]}
GOOD_LINES = 6


class Store:
    """What the service holds: it outlives the crashes of the load."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.entities: dict[str, list[int]] = {}
        self.keys: set[tuple[str, int]] = set()

    def answer(self, time: Time, journal: Journal) -> Callable[[Call], Outcome | None]:
        def answer(call: Call) -> Outcome | None:
            if self._random.random() < 0.3:
                return None
            # The journal is kept every second: about every second answer.
            time.now += 0.5
            if call.id == "refused":
                return Refused("the service will not have it")
            if (key := (journal.load_id, call.line)) not in self.keys:
                self.keys.add(key)
                self.entities.setdefault(call.id, []).append(call.document["n"])
            return Saved(pending=False)

        return answer

    def copy(self, seed: int) -> Store:
        other = Store(seed)
        other.entities = {id_: list(numbers) for id_, numbers in self.entities.items()}
        other.keys = set(self.keys)
        return other


def _load(disk: SimulatedDisk, store: Store, journal_type: type[Journal] = Journal) -> Journal:
    journal = open_journal(disk, SOURCE, JOB, restart=False, new_id=secrets.token_hex(8))
    journal.__class__ = journal_type
    time = Time()
    run = run_of(CONTENT, journal, store.answer(time, journal), in_flight=3, time=time)
    end = finish(run, journal)
    assert end.ending is Ending.COMPLETE
    return journal


def _saved(times: int) -> dict[str, list[int]]:
    """Return what the service holds after so many loads: each line once a load, in order."""
    return {id_: numbers * times for id_, numbers in SAVED.items()}


def _is_over(files: dict[Path, bytes], store: Store, times: int = 1) -> bool:
    """Tell whether the load was complete when it was killed, so that the next one is another."""
    return PROGRESS not in files and store.entities == _saved(times)


def _check(disk: SimulatedDisk, store: Store, journal: Journal, times: int = 1) -> None:
    assert sorted(entry["line"] for entry in _rejected(disk)) == BAD_LINES
    assert store.entities == _saved(times)
    assert set(disk.files()) == {REJECTED}
    counts = journal.counts
    assert (counts.saved, counts.rejected, counts.blank) == (GOOD_LINES, len(BAD_LINES), 1)
    assert (journal.line, journal.offset) == (11, len(CONTENT))


def _survivors(
    disk_type: type[SimulatedDisk], journal_type: type[Journal], seed: int
) -> Iterator[tuple[int, dict[Path, bytes], Store]]:
    """Yield what may be left after a crash before each operation of a load."""
    step = 0
    while True:
        disk, store = disk_type(crash_at=step), Store(seed)
        try:
            _load(disk, store, journal_type)
        except CrashError:
            for files in disk.survivors():
                yield step, files, store.copy(seed + step)
            step += 1
        else:
            return


def _check_all_crashes(
    disk_type: type[SimulatedDisk] = SimulatedDisk,
    journal_type: type[Journal] = Journal,
    seeds: int = 30,
) -> int:
    count = 0
    for seed in range(seeds):
        for step, files, store in _survivors(disk_type, journal_type, seed):
            count += 1
            disk = disk_type(files)
            times = 2 if _is_over(files, store) else 1
            try:
                _check(disk, store, _load(disk, store, journal_type), times)
            except (AssertionError, LoadRefusedError, OSError, ValueError) as error:
                raise AssertionError(f"seed {seed}, crash before step {step}: {error}") from error
    return count


def test_a_crash_between_any_two_file_operations_loses_nothing_and_repeats_nothing() -> None:
    assert _check_all_crashes() > 1000


def test_nor_do_many_crashes_one_after_the_other() -> None:
    crashes = 0
    for seed in range(500):
        chance = random.Random(seed)
        store = Store(seed)
        files: dict[Path, bytes] = {}
        times = 1
        while True:
            disk = SimulatedDisk(files, crash_at=chance.randrange(60))
            try:
                journal = _load(disk, store)
            except CrashError:
                files = chance.choice(list(disk.survivors()))
                times += _is_over(files, store, times)
                crashes += 1
            else:
                break
        _check(disk, store, journal, times)
    assert crashes > 300


class _RejectedNotSynced(SimulatedDisk):
    def sync(self, path: Path) -> None:
        if path != REJECTED:
            super().sync(path)


class _ProgressNotSynced(SimulatedDisk):
    def sync(self, path: Path) -> None:
        if path == REJECTED:
            super().sync(path)


class _NamesNotSynced(SimulatedDisk):
    def sync_names(self, folder: Path) -> None:
        pass


class _ProgressInPlace(SimulatedDisk):
    def rename(self, path: Path, new: Path) -> None:
        self.write(new, self._names[path].now, at=0)
        self.sync(new)
        self.remove(path)


class _RejectedAppended(Journal):
    """Puts a rejected line behind whatever stands in the file."""

    def reject(self, line: Line, reason: str) -> None:
        self._rejected_bytes = self._disk.size(self._rejected) or 0
        super().reject(line, reason)


class _RejectedKeptAfterwards(Journal):
    """Keeps the progress first."""

    def _keep_rejected(self) -> None:
        pass

    def keep(self) -> None:
        super().keep()
        super()._keep_rejected()

    def complete(self) -> None:
        super()._keep_rejected()
        super().complete()


class _BegunUnnoted(Journal):
    """Sends lines before it is safe what load this is."""

    def begin(self) -> None:
        pass


class _NothingBeyond(Journal):
    """Forgets which lines are finished beyond the first that is not."""

    def keep(self) -> None:
        beyond, self._beyond = self._beyond, {}
        super().keep()
        self._beyond = beyond


@pytest.mark.parametrize(
    "mutant", [_RejectedNotSynced, _ProgressNotSynced, _NamesNotSynced, _ProgressInPlace]
)
def test_a_disk_operation_that_is_left_out_is_found_out(mutant: type[SimulatedDisk]) -> None:
    with pytest.raises(AssertionError, match="crash before step"):
        _check_all_crashes(disk_type=mutant)


@pytest.mark.parametrize(
    "mutant", [_RejectedAppended, _RejectedKeptAfterwards, _NothingBeyond, _BegunUnnoted]
)
def test_a_journal_that_is_careless_is_found_out(mutant: type[Journal]) -> None:
    with pytest.raises(AssertionError, match="crash before step"):
        _check_all_crashes(journal_type=mutant)


def test_a_checkpoint_names_the_bytes_of_the_rejected_lines_that_belong_to_it() -> None:
    disk = _interrupted()
    checkpoint = Checkpoint.decode(disk.files()[PROGRESS])
    assert checkpoint.rejected_bytes == len(disk.files()[REJECTED])
    assert (checkpoint.line, checkpoint.offset) == (2, 20)
