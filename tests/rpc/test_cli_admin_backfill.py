"""`duostore backfill`: what it asks, shows and ends with, also when the service goes away."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format

from duostore.v1 import admin_pb2 as pb
from tests.support.client_commands import OnTerminal, duostore
from tests.support.ports import free_port
from tests.support.scripted_admin import ScriptedAdmin, backfilled, serving
from tests.support.scripted_service import hold, reason, status
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = ("backfill", "--kind", "note")
BROKEN = status(grpc.StatusCode.UNAVAILABLE, "the connection broke")
DENIED = status(grpc.StatusCode.PERMISSION_DENIED, "not you", reason("PERMISSION_DENIED"))
HALF = backfilled(doneCount=500, projectedCount=20, remaining="90s")
LAST = "2026-01-02T04:00:00.5Z"
DONE = backfilled("DONE", doneCount=1003, projectedCount=40, partsDone=4)

# A stream that stays open.
HELD: Any = hold


@pytest.fixture
def admin() -> ScriptedAdmin:
    return ScriptedAdmin()


@pytest.fixture
def target(admin: ScriptedAdmin) -> Iterator[str]:
    with serving(admin) as address:
        yield address


def actions(admin: ScriptedAdmin) -> list[str]:
    names = pb.BackfillRequest.Action
    return [names.Name(asked.request.action).removeprefix("ACTION_") for asked in admin.asked]


@pytest.mark.parametrize(
    ("options", "request_"),
    [
        ([], {"action": "ACTION_RUN"}),
        (
            ["--rate", "2000", "--parallel", "8"],
            {"action": "ACTION_RUN", "rate": 2000, "parallel": 8},
        ),
        (["--start", "--rate", "5"], {"action": "ACTION_START", "rate": 5}),
        (["--show"], {"action": "ACTION_SHOW"}),
        (["--pause"], {"action": "ACTION_PAUSE"}),
        (["--cancel"], {"action": "ACTION_CANCEL"}),
    ],
)
def test_what_is_done_is_what_was_asked_for(
    admin: ScriptedAdmin, target: str, options: list[str], request_: dict[str, Any]
) -> None:
    admin.script("Backfill", [DONE])
    assert duostore(*COMMAND, *options, "--target", target).exit_code == 0
    [asked] = admin.asked
    assert json_format.MessageToDict(asked.request) == {"kind": "note", **request_}
    assert (asked.remaining > 3600) is (request_["action"] == "ACTION_RUN")


@pytest.mark.parametrize(
    "options",
    [
        ["--start", "--show"],
        ["--pause", "--cancel"],
        ["--pause", "--rate", "5"],
        ["--show", "--parallel", "5"],
        ["--rate", "0"],
        ["--parallel", "65"],
    ],
)
def test_a_bad_command_line_is_refused(options: list[str]) -> None:
    assert duostore(*COMMAND, *options).exit_code == 2


def test_a_backfill_is_watched_to_its_end(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Backfill", [HALF, DONE])
    ran = duostore(*COMMAND, "--target", target)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "backfill note: done at 2026-01-02 03:04:06 UTC, 1,003 entities in 1 s",
        "  40 projected, 963 unchanged; 4 of 4 parts done; as many as go",
    ]


def test_one_that_was_stopped_is_shown(admin: ScriptedAdmin, target: str) -> None:
    for state in ("PAUSED", "CANCELLED"):
        admin.script("Backfill", [backfilled(state, doneCount=500, updateTime=LAST)])
        ran = duostore(*COMMAND, "--show", "--target", target)
        assert ran.stdout.splitlines()[0] == (
            f"backfill note: {state.lower()}, 500 of about 1,000 entities; "
            "it last went on at 2026-01-02 04:00:00 UTC"
        )


def test_one_that_runs_is_shown(admin: ScriptedAdmin, target: str) -> None:
    running = backfilled(
        doneCount=500, projectedCount=20, failedCount=2, remaining="90s", rate=2000, partsDone=1
    )
    admin.script("Backfill", [running], [running])
    ran = duostore(*COMMAND, "--show", "--target", target)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "backfill note: running, 500 of about 1,000 entities, about 1 min 30 s left",
        (
            "  20 projected, 478 unchanged, 2 failed (the log says why);"
            " 1 of 4 parts done; at most 2,000/s"
        ),
    ]
    ran = duostore(*COMMAND, "--show", "--json", "--target", target)
    assert json.loads(ran.stdout) == {
        "kind": "note",
        "state": "running",
        "done": 500,
        "estimated_total": 1000,
        "projected": 20,
        "failed": 2,
        "parts": 4,
        "parts_done": 1,
        "rate": 2000,
        "start_time": "2026-01-02T03:04:05Z",
        "update_time": "2026-01-02T03:04:06Z",
        "remaining_seconds": 90.0,
    }


@pytest.mark.parametrize(
    "last",
    [
        backfilled("PAUSED", doneCount=5),
        backfilled("CANCELLED", doneCount=5),
        backfilled("DONE", doneCount=1000, failedCount=1),
    ],
)
def test_what_does_not_end_well_ends_with_1(
    admin: ScriptedAdmin, target: str, last: pb.BackfillResponse
) -> None:
    admin.script("Backfill", [HALF, last])
    ran = duostore(*COMMAND, "--json", "--target", target)
    assert (ran.exit_code, ran.stderr) == (1, "")
    state = pb.BackfillResponse.State.Name(last.state).removeprefix("STATE_").lower()
    assert json.loads(ran.stdout)["state"] == state


def test_there_may_be_none(admin: ScriptedAdmin, target: str) -> None:
    none = status(grpc.StatusCode.NOT_FOUND, "there is none", reason("BACKFILL_NOT_FOUND"))
    admin.script("Backfill", none)
    ran = duostore(*COMMAND, "--pause", "--target", target)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "`duostore backfill --kind note` starts one." in ran.stderr


# The service goes away.


def test_a_lost_connection_is_looked_for_and_never_starts_another(
    admin: ScriptedAdmin, target: str
) -> None:
    admin.script("Backfill", [HALF, BROKEN], BROKEN, [HALF], [DONE])
    ran = duostore(*COMMAND, "--target", target)
    assert ran.exit_code == 0
    assert actions(admin) == ["RUN", "SHOW", "SHOW", "SHOW"]
    assert ran.stdout.startswith("backfill note: done at ")
    told = ran.stderr.splitlines()
    assert told[0].startswith("The connection was lost (the connection broke")
    assert told[0].endswith("The backfill goes on; trying again.")
    assert told[1:] == ["The service answers again."]


def test_a_service_that_is_restarted_is_waited_for(admin: ScriptedAdmin) -> None:
    port = free_port()
    with serving(admin, port) as target:
        admin.script("Backfill", [HALF, HELD])
        running = OnTerminal(*COMMAND, "--target", target)
        try:
            eventually(lambda: "500 of about 1,000" in running.screen, within=20, what="progress")
        except BaseException:
            running.process.kill()
            running.ended()
            raise
    # As a server that is stopped does, this one has cut off its streams.
    admin.script("Backfill", [DONE])
    with serving(admin, port):
        seen = running.ended()
    assert seen.exit_code == 0
    assert "The backfill goes on; trying again." in seen.screen
    assert "backfill note: done at" in seen.screen
    assert "1,003 entities in 1 s" in seen.screen
    assert actions(admin) == ["RUN", "SHOW"]


def test_a_stream_that_ends_before_the_backfill_does_is_a_lost_connection(
    admin: ScriptedAdmin, target: str
) -> None:
    admin.script("Backfill", [HALF], [DONE])
    ran = duostore(*COMMAND, "--target", target)
    assert ran.exit_code == 0
    assert actions(admin) == ["RUN", "SHOW"]


def test_another_one_that_has_begun_meanwhile_is_told(admin: ScriptedAdmin, target: str) -> None:
    other = backfilled("DONE", doneCount=9, startTime="2026-01-02T05:00:00Z")
    admin.script("Backfill", [HALF, BROKEN], [other])
    ran = duostore(*COMMAND, "--target", target)
    assert ran.exit_code == 0
    assert "Another backfill of the kind has begun since" in ran.stderr


def test_nobody_is_waited_for_for_ever(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Backfill", [HALF, BROKEN], BROKEN)
    ran = duostore(*COMMAND, "--retry-for", "0", "--target", target)
    assert ran.exit_code == 3
    assert ran.stdout.startswith("backfill note: running, 500 of about 1,000")
    assert "it may or may not have been applied" not in ran.stderr.lower()
    assert "Detached: the backfill goes on" in ran.stderr


def test_what_does_not_pass_is_not_tried_again(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Backfill", [HALF, BROKEN], DENIED)
    ran = duostore(*COMMAND, "--target", target)
    assert ran.exit_code == 1
    assert "not you" in ran.stderr
    assert actions(admin) == ["RUN", "SHOW"]


def test_an_answer_lost_at_the_start_leaves_a_doubt(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Backfill", BROKEN)
    ran = duostore(*COMMAND, "--target", target)
    assert (ran.exit_code, ran.stdout) == (3, "")
    assert (
        "It may or may not have been applied: `duostore backfill --kind note --show`" in ran.stderr
    )


def test_no_answer_at_all_is_no_success(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Backfill", [], [])
    for options in ([], ["--start"]):
        ran = duostore(*COMMAND, *options, "--target", target)
        assert ran.exit_code == 1, options
        assert "said nothing" in ran.stderr


# On a terminal.


def test_ctrl_c_detaches_and_says_that_it_goes_on(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Backfill", [HALF, HELD])
    running = OnTerminal(*COMMAND, "--target", target)
    try:
        eventually(lambda: "about 1 min 30 s left" in running.screen, within=20, what="the bar")
    finally:
        running.process.send_signal(signal.SIGINT)
        seen = running.ended()
    assert seen.exit_code == 130
    assert "Detached: the backfill goes on in the background processes." in seen.screen
    told = [" ".join(line.split()) for line in seen.screen.splitlines()]
    assert "duostore backfill --kind note --pause stops it" in told
    assert "duostore backfill --kind note --cancel ends it" in told
    assert actions(admin) == ["RUN"]


def test_the_bar_fits_a_narrow_terminal(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Backfill", [HALF, DONE])
    seen = OnTerminal(*COMMAND, "--target", target, columns=50).ended()
    assert seen.exit_code == 0
    bars = [line for line in seen.screen.splitlines() if "━" in line]
    assert bars
    assert all(len(line) <= 50 for line in bars)
