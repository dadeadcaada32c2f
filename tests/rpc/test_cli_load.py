from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from duostore.v1 import entity_pb2
from tests.support.client_commands import duostore, start
from tests.support.ports import free_port
from tests.support.recording_service import (
    RecordingService,
    Served,
    invalid,
    serving,
    status,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from google.rpc import status_pb2
    from typer.testing import Result

DOWN = status(grpc.StatusCode.UNAVAILABLE, "aurora is down", "STORE_UNAVAILABLE")
LOST = status(grpc.StatusCode.UNKNOWN, "answer lost", "WRITE_OUTCOME_UNKNOWN")
LATE = status(grpc.StatusCode.DEADLINE_EXCEEDED, "too late", "DEADLINE_EXCEEDED")
CUT = status(grpc.StatusCode.UNKNOWN, "Stream removed")
LIMITED = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
DUPLICATE = status(grpc.StatusCode.ABORTED, "under way", "DUPLICATE_IN_PROGRESS")
BUSY = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much work", "OVERLOADED")


@pytest.fixture
def service() -> RecordingService:
    return RecordingService()


@pytest.fixture
def served(service: RecordingService) -> Iterator[Served]:
    with serving(service) as served:
        yield served


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "a.jsonl"


def _write(source: Path, ids: Iterable[object]) -> None:
    with source.open("w", encoding="utf-8") as file:
        for number, id_ in enumerate(ids, start=1):
            file.write(json.dumps({"id": id_, "n": number, "name": f"Zoë {id_}"}) + "\n")


def _arguments(source: Path, served: Served | str, *more: str) -> list[str]:
    address = served if isinstance(served, str) else served.address
    return ["load", str(source), "--kind", "k", "--id", "id", "--target", address, *more]


def _load(source: Path, served: Served | str, *more: str) -> Result:
    return duostore(*_arguments(source, served, *more))


def _rejected(source: Path) -> list[dict[str, Any]]:
    path = source.with_name(source.name + ".rejected")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _files(source: Path) -> set[str]:
    return {path.name.removeprefix(source.name) for path in source.parent.iterdir()}


def test_every_line_is_saved(service: RecordingService, served: Served, source: Path) -> None:
    _write(source, range(500))
    ran = _load(source, served, "--tenant", "t")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout == ("complete: 500 lines done: 500 saved, 0 existed, 0 rejected, 0 blank\n")
    assert service.saved == {
        str(n): [{"id": n, "n": n + 1, "name": f"Zoë {n}"}] for n in range(500)
    }
    assert {(a.request.key.tenant, a.request.key.kind) for a in service.asked} == {("t", "k")}
    assert _files(source) == {""}


def test_who_calls_goes_with_every_line(
    service: RecordingService, served: Served, source: Path
) -> None:
    _write(source, "abcde")
    assert _load(source, served, "--caller", "jobs/import").exit_code == 0
    assert [asked.metadata["x-caller"] for asked in service.asked] == ["jobs/import"] * 5


def test_the_summary_can_be_json(service: RecordingService, served: Served, source: Path) -> None:
    service.projection = entity_pb2.PROJECTION_PENDING
    service.saved["b"] = [{}]
    source.write_text('{"id": "a"}\n\n{"id": "b"}\n{"id": true}\n')
    ran = _load(source, served, "--if-absent", "--json")
    assert ran.exit_code == 1
    summary = json.loads(ran.stdout)
    assert summary.pop("seconds") >= 0
    assert summary == {
        "ending": "complete",
        "why": None,
        "lines": 4,
        "saved": 1,
        "projection_pending": 1,
        "existed": 1,
        "rejected": 1,
        "blank": 1,
        "next_line": None,
        "rejected_file": f"{source}.rejected",
    }


def test_rejected_lines_are_named_with_every_reason(
    service: RecordingService, served: Served, source: Path
) -> None:
    def failing(request: Any) -> status_pb2.Status | None:
        bad = invalid(data__price="must be a number", data__title="is required")
        return bad if request.key.id == "bad" else None

    service.failing = failing
    source.write_bytes(b'{"id": "good"}\n{"id": "bad"}\nno JSON\n{"id": "caf\xe9"}\n{"x": 1}\n')
    ran = _load(source, served)
    assert ran.exit_code == 1
    assert ran.stdout.splitlines() == [
        "complete: 5 lines done: 1 saved, 0 existed, 4 rejected, 0 blank",
        f"rejected lines, with their numbers and reasons: {source}.rejected",
    ]
    rejected = {entry["line"]: entry for entry in _rejected(source)}
    assert sorted(rejected) == [2, 3, 4, 5]
    assert rejected[2] == {
        "line": 2,
        "reason": "data.price: must be a number; data.title: is required",
        "text": '{"id": "bad"}',
    }
    assert rejected[4]["text"] == '{"id": "caf\\xe9"}'
    assert _files(source) == {"", ".rejected"}


def test_a_line_larger_than_any_message_is_rejected(
    service: RecordingService, source: Path
) -> None:
    source.write_text(json.dumps({"id": "a", "text": "x" * 2000}) + '\n{"id": "b"}\n')
    with serving(service, max_message_bytes=1000) as served:
        assert _load(source, served).exit_code == 1
    [rejected] = _rejected(source)
    assert rejected["line"] == 1
    assert "larger than max" in rejected["reason"]
    assert list(service.saved) == ["b"]


def test_the_last_line_of_an_id_wins(
    service: RecordingService, served: Served, source: Path
) -> None:
    chance = random.Random(7)
    answers: list[status_pb2.Status | None] = [DOWN, BUSY, *[None] * 8]
    service.failing = lambda _: chance.choice(answers)
    ids = chance.choices("abcdef", k=150)
    _write(source, ids)
    assert _load(source, served, "--in-flight", "8").exit_code == 0
    for id_ in "abcdef":
        expected = [number for number, other in enumerate(ids, start=1) if other == id_]
        assert [saved["n"] for saved in service.saved[id_]] == expected


@pytest.mark.parametrize("answer", [DOWN, BUSY, LATE, LOST, CUT, LIMITED, DUPLICATE])
def test_what_may_pass_is_tried_again(
    service: RecordingService, served: Served, source: Path, answer: status_pb2.Status
) -> None:
    failed: set[str] = set()

    def failing(request: Any) -> status_pb2.Status | None:
        is_first = request.key.id not in failed
        failed.add(request.key.id)
        return answer if is_first else None

    service.failing = failing
    _write(source, "abcd")
    ran = _load(source, served)
    assert ran.exit_code == 0
    assert "trying again for up to 60 s" in ran.stderr
    assert {id_: len(saved) for id_, saved in service.saved.items()} == dict.fromkeys("abcd", 1)


def test_a_line_whose_answer_was_lost_is_saved_once(
    service: RecordingService, served: Served, source: Path
) -> None:
    lost: set[str] = set()

    def losing(request: Any) -> status_pb2.Status | None:
        is_first = request.key.id not in lost
        lost.add(request.key.id)
        return LOST if is_first else None

    service.lost = losing
    _write(source, "ab")
    assert _load(source, served, "--json").exit_code == 0
    assert {id_: len(saved) for id_, saved in service.saved.items()} == {"a": 1, "b": 1}
    assert len(service.asked) == 4


def test_each_line_of_each_load_has_a_key_of_its_own(
    service: RecordingService, served: Served, source: Path
) -> None:
    _write(source, "abc")
    for load in (1, 2):
        assert _load(source, served).exit_code == 0
        assert len({asked.request.idempotency_key for asked in service.asked}) == 3 * load
    assert {len(saved) for saved in service.saved.values()} == {2}, "the second saves all anew"


def test_a_load_that_was_killed_before_it_noted_anything_repeats_its_keys(
    service: RecordingService, served: Served, source: Path
) -> None:
    _write(source, "a")
    released = threading.Event()

    def losing(_: Any) -> None:
        released.wait(60)

    service.lost = losing
    with start_load(source, served.address) as load:
        eventually(lambda: service.saved, within=30, what="the line is saved")
        load.kill()
        load.communicate(timeout=30)
    released.set()
    assert _load(source, served).exit_code == 0
    first, second = (asked.request.idempotency_key for asked in service.asked)
    assert re.fullmatch("load-[0-9a-f]{32}-1", first)
    assert first == second
    assert len(service.saved["a"]) == 1


def test_a_line_that_changed_under_an_interrupted_load_stops_it(
    service: RecordingService, served: Served, source: Path
) -> None:
    reused = status(grpc.StatusCode.INVALID_ARGUMENT, "used", "IDEMPOTENCY_KEY_REUSED")
    service.failing = lambda _: reused
    _write(source, "a")
    ran = _load(source, served)
    assert ran.exit_code == 2
    assert ran.stdout.startswith("line 1: it has changed since an earlier run of this load saved")
    assert not source.with_name(source.name + ".rejected").exists()


def test_a_service_that_stays_away_stops_the_load_and_a_repeat_goes_on(
    service: RecordingService, served: Served, source: Path
) -> None:
    service.failing = lambda request: DOWN if request.key.id in "ce" else None
    _write(source, "abcdef")
    ran = _load(source, served, "--retry-for", "0.3")
    assert ran.exit_code == 3
    assert ran.stdout.splitlines()[-1] == (
        "nothing is lost: repeat the command to go on from line 3"
    )
    assert "aurora is down (STORE_UNAVAILABLE, request id r-1); tried for 0.3 s" in ran.stdout
    service.failing = lambda _: None
    ran = _load(source, served, "--json")
    assert ran.exit_code == 0
    assert json.loads(ran.stdout)["saved"] == 6
    assert {id_: len(saved) for id_, saved in service.saved.items()} == dict.fromkeys("abcdef", 1)


def test_a_service_that_is_not_there_stops_the_load(source: Path) -> None:
    _write(source, "abc")
    address = f"127.0.0.1:{free_port()}"
    ran = _load(source, address, "--retry-for", "0.1", "--json")
    assert ran.exit_code == 3
    summary = json.loads(ran.stdout)
    assert (summary["ending"], summary["lines"], summary["next_line"]) == ("unavailable", 0, 1)
    assert "failed to connect" in summary["why"]
    assert _files(source) == {"", ".load-progress"}


def test_a_load_goes_on_when_the_service_comes_back(
    service: RecordingService, source: Path
) -> None:
    _write(source, range(3000))
    port = free_port()
    address = f"127.0.0.1:{port}"
    with start_load(source, address) as load:
        with serving(service, port=port):
            eventually(lambda: len(service.saved) > 100, within=30, what="lines are saved")
        assert len(service.saved) < 3000
        with serving(service, port=port):
            out, err = load.communicate(timeout=60)
    assert load.returncode == 0, err
    assert json.loads(out)["saved"] == 3000
    assert len(service.saved) == 3000


def start_load(source: Path, address: str) -> Any:
    return start(*_arguments(source, address, "--json"))


@pytest.mark.parametrize(
    ("answer", "code", "why"),
    [
        (invalid(key__kind="'k' is not a configured kind"), 2, "key.kind: 'k' is not a"),
        (invalid(key__tenant="must not hold '#'"), 2, "key.tenant: must not"),
        (status(grpc.StatusCode.PERMISSION_DENIED, "you may not"), 1, "you may not"),
        (status(grpc.StatusCode.INTERNAL, "a fault", "INTERNAL"), 1, "a fault (INTERNAL, request"),
        (status(grpc.StatusCode.FAILED_PRECONDITION, "read only"), 1, "read only"),
        (status(grpc.StatusCode.UNIMPLEMENTED, "no such method"), 1, "no such method"),
    ],
)
def test_what_no_other_line_would_get_past_stops_the_load(  # noqa: PLR0917 - its fixtures
    service: RecordingService,
    served: Served,
    source: Path,
    answer: status_pb2.Status,
    code: int,
    why: str,
) -> None:
    service.failing = lambda _: answer
    _write(source, range(200))
    ran = _load(source, served, "--in-flight", "4")
    assert ran.exit_code == code
    assert re.match(f"line [1-4]: {re.escape(why)}", ran.stdout)
    assert "nothing is lost" not in ran.stdout, "nothing was done"
    assert len(service.asked) <= 4
    may_have_been_saved = b"INTERNAL" in answer.SerializeToString()
    assert _files(source) == ({"", ".load-progress"} if may_have_been_saved else {""})
    service.failing = lambda _: None
    ran = duostore("load", str(source), "--kind", "j", "--id", "id", "--target", served.address)
    assert ran.exit_code == 0, "nothing was done, so that it may be said otherwise"
    assert _files(source) == {""}


def test_a_changed_file_is_not_resumed(
    service: RecordingService, served: Served, source: Path
) -> None:
    service.failing = lambda request: DOWN if request.key.id == "b" else None
    _write(source, "abc")
    assert _load(source, served, "--retry-for", "0").exit_code == 3
    service.failing = lambda _: None
    _write(source, "xyz")
    ran = _load(source, served)
    assert ran.exit_code == 2
    assert "was changed since its load was interrupted at line 2" in ran.stderr
    assert "x" not in service.saved
    assert _load(source, served, "--restart").exit_code == 0
    assert {"x", "y", "z"} <= service.saved.keys()
    assert _files(source) == {""}


def test_a_file_that_changes_while_it_is_loaded_is_not_called_complete(
    service: RecordingService, served: Served, source: Path
) -> None:
    def failing(request: Any) -> None:
        if request.key.id == "b":
            with source.open("a") as file:
                file.write('{"id": "later"}\n')

    service.failing = failing
    _write(source, "abc")
    ran = _load(source, served)
    assert ran.exit_code == 1
    assert "was changed while it was loaded" in ran.stdout
    assert "repeat the command" not in ran.stdout


def test_a_file_is_loaded_by_one_process_at_a_time(served: Served, source: Path) -> None:
    _write(source, "abc")
    with source.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        ran = _load(source, served)
        assert ran.exit_code == 2
        assert ran.stderr == f"{source} is being loaded by another process\n"
    assert _load(source, served).exit_code == 0


def test_a_disk_that_fails_stops_the_load(served: Served, source: Path) -> None:
    source.write_text('{"id": "a"}\nno JSON\n')
    rejected = source.with_name(source.name + ".rejected")
    rejected.mkdir()
    ran = _load(source, served)
    assert ran.exit_code == 1
    assert ran.stderr.startswith(f"{rejected}: Is a directory; the load is stopped.")
    rejected.rmdir()
    assert _load(source, served, "--json").exit_code == 1
    assert [entry["line"] for entry in _rejected(source)] == [2]


def test_a_file_that_is_not_there_is_refused(served: Served, source: Path) -> None:
    ran = _load(source, served)
    assert (ran.exit_code, ran.stderr) == (
        2,
        f"{source} cannot be read: No such file or directory\n",
    )


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_could_not_be_resumed_is_refused(
    served: Served, source: Path, make: Callable[[Path], None]
) -> None:
    make(source)
    ran = _load(source, served)
    assert ran.exit_code == 2
    assert ran.stderr.startswith(f"{source} is no regular file")


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b"])
def test_what_is_no_dotted_path_is_refused(served: Served, source: Path, path: str) -> None:
    _write(source, "a")
    ran = duostore("load", str(source), "--kind", "k", "--id", path, "--target", served.address)
    assert ran.exit_code == 2
    assert "is no dotted path" in ran.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_load_finishes_what_is_under_way_and_can_be_resumed(
    service: RecordingService, served: Served, source: Path, signum: signal.Signals
) -> None:
    _write(source, range(200))
    held = threading.Event()

    def failing(request: Any) -> None:
        if int(request.key.id) >= 100:
            held.wait(60)

    service.failing = failing
    try:
        with start_load(source, served.address) as load:
            eventually(lambda: len(service.asked) == 116, within=30, what="16 lines are held")
            load.send_signal(signum)
            assert load.stderr is not None
            assert load.stderr.readline() == "stopping; lines still under way: 16\n"
            held.set()
            out, err = load.communicate(timeout=30)
    finally:
        held.set()
    assert load.returncode == 130, err
    summary = json.loads(out)
    assert (summary["ending"], summary["saved"], summary["next_line"]) == ("interrupted", 116, 117)

    ran = _load(source, served, "--json")
    assert ran.exit_code == 0
    assert json.loads(ran.stdout)["saved"] == 200
    assert {len(saved) for saved in service.saved.values()} == {1}, "nothing is saved twice"


def test_a_second_interrupt_ends_at_once(
    service: RecordingService, served: Served, source: Path
) -> None:
    _write(source, range(50))
    held = threading.Event()

    def failing(_: Any) -> None:
        held.wait(60)

    service.failing = failing
    try:
        with start_load(source, served.address) as load:
            eventually(lambda: len(service.asked) == 16, within=30, what="lines are held")
            load.send_signal(signal.SIGINT)
            assert load.stderr is not None
            load.stderr.readline()
            load.send_signal(signal.SIGINT)
            load.communicate(timeout=30)
            assert load.returncode == 130
    finally:
        held.set()
    assert _load(source, served).exit_code == 0
    assert len(service.saved) == 50


def test_a_load_killed_again_and_again_loses_nothing_and_repeats_nothing(
    service: RecordingService, served: Served, source: Path
) -> None:
    chance = random.Random(11)
    ids = [chance.randrange(2000) for _ in range(4000)]
    bad = set(chance.sample(range(1, 4001), 400))
    with source.open("w") as file:
        for number, id_ in enumerate(ids, start=1):
            document = {"n": number} if number in bad else {"id": id_, "n": number}
            file.write(json.dumps(document) + "\n")
    gate = threading.Semaphore(0)
    progress = source.with_name(source.name + ".load-progress")

    def failing(_: Any) -> None:
        gate.acquire(timeout=60)

    def kept() -> int:
        return json.loads(progress.read_bytes())["line"] if progress.exists() else 0

    service.failing = failing
    for kill in range(1, 5):
        with start_load(source, served.address) as load:
            gate.release(600)
            eventually(lambda: kept() > kill * 400, within=30, what="progress is kept")  # noqa: B023 - asked at once
            load.kill()
            load.communicate(timeout=30)
    gate.release(1_000_000)
    ran = _load(source, served, "--json")
    assert ran.exit_code == 1
    summary = json.loads(ran.stdout)
    assert summary["lines"] == 4000
    assert (summary["saved"], summary["rejected"]) == (3600, 400)
    assert sorted(entry["line"] for entry in _rejected(source)) == sorted(bad)
    last = {str(id_): n for n, id_ in enumerate(ids, start=1) if n not in bad}
    assert {id_: saved[-1]["n"] for id_, saved in service.saved.items()} == last
    assert sum(len(saved) for saved in service.saved.values()) == 3600, "no line is saved twice"
    assert _files(source) == {"", ".rejected"}
