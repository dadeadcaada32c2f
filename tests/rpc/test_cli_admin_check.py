"""`duostore check`: what it asks, prints and ends with."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format

from tests.support.client_commands import OnTerminal, duostore
from tests.support.scripted_admin import ScriptedAdmin, checked, serving
from tests.support.scripted_service import UNAVAILABLE, hold, status
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = {
    "key": {"tenant": "acme", "kind": "note", "id": "n 1"},
    "kind": "DRIFT_KIND_PROJECTION_CONTENT",
    "expectedVersion": 3,
    "foundVersion": 3,
    "differences": [
        {"path": "author.name", "difference": "missing"},
        {"path": "tags[2]", "difference": "type"},
    ],
}
ORPHAN = {
    "key": {"kind": "note", "id": "n2"},
    "kind": "DRIFT_KIND_PROJECTION_ORPHAN",
    "foundVersion": 9,
}
CLEAN = checked(checked=1000, estimatedTotal=1000, done=True)

# A stream that stays open.
HELD: Any = hold


@pytest.fixture
def admin() -> ScriptedAdmin:
    return ScriptedAdmin()


@pytest.fixture
def target(admin: ScriptedAdmin) -> Iterator[str]:
    with serving(admin) as address:
        yield address


def drifted(
    *drifts: dict[str, Any], repaired: int = 0, undecided: int = 0, done: bool = True
) -> Any:
    return checked(
        checked=500,
        estimatedTotal=500,
        drifts=drifts,
        driftCount=len(drifts),
        repairedCount=repaired,
        undecidedCount=undecided,
        done=done,
    )


@pytest.mark.parametrize(
    ("options", "request_"),
    [
        ([], {"sample": "1000"}),
        (["--kind", "note", "--sample", "7"], {"kind": "note", "sample": "7"}),
        (["--all", "--repair"], {"all": True, "repair": True}),
    ],
)
def test_what_is_compared_is_what_was_asked_for(
    admin: ScriptedAdmin, target: str, options: list[str], request_: dict[str, Any]
) -> None:
    admin.script("CheckConsistency", [CLEAN])
    ran = duostore("check", *options, "--target", target)
    assert ran.exit_code == 0
    [asked] = admin.asked
    assert json_format.MessageToDict(asked.request) == request_
    assert asked.remaining > 3600, "a check takes as long as it takes"


@pytest.mark.parametrize(
    "options", [["--all", "--sample", "5"], ["--sample", "0"], ["--sample", "1000001"]]
)
def test_a_bad_command_line_is_refused(options: list[str]) -> None:
    assert duostore("check", *options).exit_code == 2


def test_no_drift_ends_with_0(admin: ScriptedAdmin, target: str) -> None:
    admin.script("CheckConsistency", [checked(checked=10, estimatedTotal=1000), CLEAN])
    ran = duostore("check", "--kind", "note", "--target", target)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout == "1,000 entities and items of note compared: no drift\n"


def test_each_drift_is_a_line_and_ends_with_1(admin: ScriptedAdmin, target: str) -> None:
    last = drifted(ORPHAN, ORPHAN)
    last.drift_count = 3
    admin.script("CheckConsistency", [drifted(CONTENT, done=False), last])
    ran = duostore("check", "--target", target)
    assert ran.exit_code == 1
    orphan = "projection_orphan: version 9 where nothing is right: note n2"
    assert ran.stdout.splitlines() == [
        (
            "projection_content, of version 3: note 'n 1' --tenant acme"
            " (author.name: missing; tags[2]: type)"
        ),
        orphan,
        orphan,
        "500 entities and items compared: 3 drifts",
        "  projection_content 1",
        "  projection_orphan 2",
    ]
    assert ran.stderr == "--repair mends them; `duostore explain KIND ID` looks at one.\n"


def test_json_has_a_line_for_each_drift_and_one_for_all(admin: ScriptedAdmin, target: str) -> None:
    failed = ORPHAN | {"repairError": "dynamodb cannot be reached"}
    answers = [
        drifted(CONTENT | {"repaired": True}, repaired=1, done=False),
        drifted(failed, repaired=1, undecided=2),
    ]
    answers[1].drift_count = 2
    admin.script("CheckConsistency", answers)
    ran = duostore("check", "--repair", "--json", "--target", target)
    assert (ran.exit_code, ran.stderr) == (1, "")
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [
        {
            "key": {"tenant": "acme", "kind": "note", "id": "n 1"},
            "drift": "projection_content",
            "expected_version": 3,
            "found_version": 3,
            "differences": [
                {"path": "author.name", "difference": "missing"},
                {"path": "tags[2]", "difference": "type"},
            ],
            "repaired": True,
            "repair_error": None,
        },
        {
            "key": {"tenant": "", "kind": "note", "id": "n2"},
            "drift": "projection_orphan",
            "expected_version": 0,
            "found_version": 9,
            "differences": [],
            "repaired": False,
            "repair_error": "dynamodb cannot be reached",
        },
        {
            "summary": {
                "checked": 500,
                "estimated_total": 500,
                "drifts": 2,
                "repaired": 1,
                "undecided": 2,
                "by_drift": {"projection_content": 1, "projection_orphan": 1},
                "done": True,
            }
        },
    ]


def test_what_was_all_repaired_ends_with_0_and_says_so(admin: ScriptedAdmin, target: str) -> None:
    admin.script("CheckConsistency", [drifted(ORPHAN | {"repaired": True}, repaired=1)])
    ran = duostore("check", "--repair", "--target", target)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[:2] == [
        "projection_orphan: version 9 where nothing is right: note n2: repaired",
        "500 entities and items compared: 1 drift, all repaired",
    ]


def test_what_could_not_be_repaired_ends_with_1_and_says_why(
    admin: ScriptedAdmin, target: str
) -> None:
    failed = ORPHAN | {"repairError": "dynamodb cannot\x1b[2J be reached"}
    admin.script("CheckConsistency", [drifted(failed, CONTENT | {"repaired": True}, repaired=1)])
    ran = duostore("check", "--repair", "--target", target)
    assert ran.exit_code == 1
    assert "not repaired, dynamodb cannot\N{REPLACEMENT CHARACTER}[2J be reached" in ran.stdout
    assert "2 drifts, 1 repaired and 1 not" in ran.stdout


def test_what_could_not_be_compared_is_no_drift_and_not_clean(
    admin: ScriptedAdmin, target: str
) -> None:
    admin.script("CheckConsistency", [drifted(undecided=4)])
    ran = duostore("check", "--target", target)
    assert ran.exit_code == 3
    assert ran.stdout.splitlines()[0].endswith("no drift")
    assert "4 could not be compared" in ran.stdout


def test_a_check_that_breaks_off_keeps_what_it_found(admin: ScriptedAdmin, target: str) -> None:
    replies = [drifted(ORPHAN, done=False), UNAVAILABLE]
    admin.script("CheckConsistency", replies, replies)
    ran = duostore("check", "--target", target)
    assert ran.exit_code == 3
    assert "projection_orphan" in ran.stdout
    assert "STORE_UNAVAILABLE" in ran.stderr
    assert "did not come to its end" in ran.stderr
    ran = duostore("check", "--json", "--target", target)
    assert ran.exit_code == 3
    assert json.loads(ran.stdout.splitlines()[-1])["summary"]["done"] is False


def test_a_stream_that_ends_without_a_summary_is_not_clean(
    admin: ScriptedAdmin, target: str
) -> None:
    admin.script("CheckConsistency", [drifted(done=False)])
    ran = duostore("check", "--target", target)
    assert ran.exit_code == 3
    assert "did not come to its end" in ran.stderr


def test_what_is_refused_prints_nothing(admin: ScriptedAdmin, target: str) -> None:
    refused = status(grpc.StatusCode.INVALID_ARGUMENT, "no such kind")
    admin.script("CheckConsistency", refused)
    ran = duostore("check", "--kind", "x", "--json", "--target", target)
    assert (ran.exit_code, ran.stdout) == (2, "")


def test_on_a_terminal_there_are_a_bar_and_a_table(admin: ScriptedAdmin, target: str) -> None:
    many = [{"path": f"f{number}", "difference": "value"} for number in range(9)]
    failed = CONTENT | {"differences": many, "repairError": "it changed"}
    admin.script(
        "CheckConsistency",
        [
            checked(checked=200, estimatedTotal=500),
            drifted(failed, ORPHAN | {"repaired": True}, repaired=1),
        ],
    )
    seen = OnTerminal("check", "--kind", "note", "--repair", "--target", target).ended()
    assert seen.exit_code == 1
    text = [" ".join(line.split()) for line in seen.screen.splitlines()]
    assert any("check note ━" in line and "500 of about 500" in line for line in text)
    assert any("2 drifts, 1 repaired" in line for line in text)
    assert "drift entity is should be where repaired" in text
    assert any(
        line.startswith("projection_content note 'n 1' --tenant 3 3 f0: value") for line in text
    )
    assert any("and 3 more" in line for line in text)
    assert any(line.startswith("projection_orphan note n2 9 - repaired") for line in text)


def test_a_table_has_an_end(admin: ScriptedAdmin, target: str) -> None:
    admin.script("CheckConsistency", [drifted(*[ORPHAN] * 130)])
    seen = OnTerminal("check", "--target", target).ended()
    assert seen.screen.count("projection_orphan  ") == 100
    assert "and 30 more: --json tells of all" in seen.screen
    assert "projection_orphan 130" in seen.screen


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_bar_is_not_in_the_way_of_what_is_piped(
    admin: ScriptedAdmin, target: str, options: list[str]
) -> None:
    admin.script("CheckConsistency", [drifted(ORPHAN)])
    seen = OnTerminal("check", *options, "--target", target, piped=True).ended()
    assert seen.exit_code == 1
    assert "projection_orphan" in seen.piped.splitlines()[0]
    assert "projection_orphan" not in seen.screen
    assert "check ━" in " ".join(seen.screen.split())


def test_nor_of_json_on_a_terminal(admin: ScriptedAdmin, target: str) -> None:
    admin.script("CheckConsistency", [drifted(ORPHAN)])
    seen = OnTerminal("check", "--json", "--target", target, columns=400).ended()
    first, last = seen.screen.splitlines()
    assert json.loads(first)["drift"] == "projection_orphan"
    assert json.loads(last)["summary"]["done"] is True


def test_ctrl_c_ends_the_check_and_tells_what_it_found(admin: ScriptedAdmin, target: str) -> None:
    admin.script("CheckConsistency", [drifted(ORPHAN, done=False), HELD])
    running = OnTerminal("check", "--target", target, piped=True)
    try:
        eventually(lambda: "1 drift" in running.screen, within=20, what="the drift")
    finally:
        running.process.send_signal(signal.SIGINT)
        seen = running.ended()
    assert seen.exit_code == 130
    assert "500 entities and items compared: 1 drift" in seen.piped
    assert "did not come to its end" in seen.screen
