"""What the commands that operate a service have in common, and `duostore explain`."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format

from tests.support.client_commands import OnTerminal, duostore
from tests.support.scripted_admin import ScriptedAdmin, explained, serving, status_answer
from tests.support.scripted_service import UNAVAILABLE, reason, status
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "a-secret-of-the-operators"
AGREES = explained(verdict="All stores agree.")
COMMANDS = [
    ("Explain", ["explain", "note", "n1"]),
    ("CheckConsistency", ["check"]),
    ("Backfill", ["backfill", "--kind", "note"]),
    ("SetReadOnly", ["readonly", "on", "--reason", "x"]),
    ("SetReadOnly", ["readonly", "off"]),
    ("GetStatus", ["readonly", "show"]),
    ("ListFlags", ["flag", "list"]),
    ("SetFlag", ["flag", "set", "f", "1"]),
    ("SetFlag", ["flag", "unset", "f"]),
    ("GetStatus", ["status"]),
    ("GetStatus", ["status", "--watch"]),
]


def plain(text: str) -> str:
    """Return a text without the frame and the line breaks of help and usage errors."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


@pytest.fixture
def admin() -> ScriptedAdmin:
    return ScriptedAdmin()


@pytest.fixture
def target(admin: ScriptedAdmin) -> Iterator[str]:
    with serving(admin) as address:
        yield address


# Who calls.


@pytest.mark.parametrize(("method", "command"), COMMANDS, ids=str)
def test_every_command_sends_the_token_and_says_what_to_do_without_it(
    admin: ScriptedAdmin, target: str, method: str, command: list[str], tmp_path: Path
) -> None:
    refused = status(
        grpc.StatusCode.UNAUTHENTICATED, "this call needs credentials", reason("UNAUTHENTICATED")
    )
    admin.script(method, refused, refused, refused)
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    called = (*command, "--target", target)

    ran = duostore(*called)
    assert ran.exit_code == 1
    assert "UNAUTHENTICATED" in ran.stderr
    for told in ("DUOSTORE_TOKEN", "--token-file", "admin.token", "DUOSTORE__ADMIN__TOKEN"):
        assert told in ran.stderr
    duostore(*called, DUOSTORE_TOKEN=TOKEN)
    duostore(*called, "--token-file", str(file), DUOSTORE_TOKEN="another")

    bearer = f"Bearer {TOKEN}"
    assert [asked.metadata.get("authorization") for asked in admin.asked] == [None, bearer, bearer]
    assert {asked.method for asked in admin.asked} == {method}
    for asked in admin.asked:
        assert re.fullmatch("[0-9a-f]{32}", str(asked.metadata["x-request-id"]))


@pytest.mark.parametrize(
    ("environment", "advice"),
    [
        ({"DUOSTORE_TOKEN": TOKEN}, "is not the admin.token"),
        ({}, "is not in admin.callers"),
    ],
)
def test_who_may_not_is_told_which_of_the_credentials_is_wrong(
    admin: ScriptedAdmin, target: str, environment: dict[str, str], advice: str
) -> None:
    denied = status(grpc.StatusCode.PERMISSION_DENIED, "not those", reason("PERMISSION_DENIED"))
    admin.script("GetStatus", denied)
    ran = duostore("status", "--target", target, **environment)
    assert ran.exit_code == 1
    assert advice in ran.stderr
    assert TOKEN not in ran.output


def test_the_commands_that_need_no_token_send_none() -> None:
    assert "--token-file" not in duostore("get", "--help").stdout
    # Set for others, it is neither sent nor a reason to refuse.
    ran = duostore(
        *("get", "note", "n1", "--target", "192.0.2.1:1", "--timeout", "0.05"),
        DUOSTORE_TOKEN=TOKEN,
    )
    assert ran.exit_code == 3


@pytest.mark.parametrize("word", ["two words", "Zoë", "tab\there"])
def test_what_can_be_no_token_is_refused_and_not_shown(word: str) -> None:
    ran = duostore("status", DUOSTORE_TOKEN=word)
    assert ran.exit_code == 2
    assert "printable ASCII" in plain(ran.stderr)
    assert word not in ran.output


def test_a_token_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    ran = duostore("status", "--token-file", str(tmp_path / "none"))
    assert ran.exit_code == 2
    assert "cannot be read: No such file" in plain(ran.stderr)
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    ran = duostore("status", "--token-file", str(tmp_path / "empty"))
    assert ran.exit_code == 2
    assert "is empty" in plain(ran.stderr)


def test_a_token_goes_to_another_machine_by_tls_alone() -> None:
    far = ("status", "--target", "192.0.2.1:1", "--timeout", "0.05")
    ran = duostore(*far, DUOSTORE_TOKEN=TOKEN)
    assert ran.exit_code == 2
    assert "in plain text: use --tls" in plain(ran.stderr)
    assert duostore(*far, "--tls", DUOSTORE_TOKEN=TOKEN).exit_code == 3
    assert duostore(*far, "--plaintext-token", DUOSTORE_TOKEN=TOKEN).exit_code == 3
    assert duostore(*far).exit_code == 3, "nothing to be read on the way"


def test_the_caller_is_by_default_who_runs_the_command(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Explain", AGREES, AGREES)
    command = ("explain", "note", "n1", "--target", target)
    duostore(*command, LOGNAME="ann")
    duostore(*command, "--caller", "ops", LOGNAME="ann")
    assert [asked.metadata.get("x-caller") for asked in admin.asked] == ["ann", "ops"]


def test_a_login_that_the_service_would_refuse_is_not_sent(
    admin: ScriptedAdmin, target: str
) -> None:
    admin.script("Explain", AGREES)
    ran = duostore("explain", "note", "n1", "--target", target, LOGNAME="Zoë Doe")
    assert ran.exit_code == 0
    assert "x-caller" not in admin.asked[0].metadata


@pytest.mark.parametrize("command", [command for _, command in COMMANDS])
def test_what_is_not_there_is_told(command: list[str]) -> None:
    ran = duostore(*command, "--target", "127.0.0.1:1")
    assert (ran.exit_code, ran.stdout) == (3, "")
    assert "Does the service run there?" in ran.stderr


def test_a_store_that_is_down_is_worth_another_try(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Explain", UNAVAILABLE)
    ran = duostore("explain", "note", "n1", "--target", target)
    assert ran.exit_code == 3
    assert "STORE_UNAVAILABLE" in ran.stderr
    assert "Try again" in ran.stderr


# explain


FULL: dict[str, Any] = {
    "key": {"tenant": "acme", "kind": "note", "id": "n 1"},
    "aurora": {
        "holding": "HOLDING_VALUE",
        "version": 3,
        "storedBytes": 412,
        "time": "2026-01-02T03:04:05Z",
    },
    "dynamodb": {
        "holding": "HOLDING_VALUE",
        "version": 3,
        "storedBytes": 1398,
        "time": "2026-01-02T03:04:05.5Z",
        "projectionVersions": [1, 2],
    },
    "cache": {"holding": "HOLDING_UNREADABLE", "storedBytes": 9, "fault": "no\x1b[31m magic"},
    "outbox": {"createTime": "2026-01-02T03:04:05Z", "dueTime": "2026-01-02T03:04:06Z"},
    "snapshot": {"sequence": 17, "snapshotTime": "2026-01-02T03:04:05Z"},
    "verification": {
        "verifyTime": "2026-01-02T03:05:05Z",
        "version": 2,
        "drifts": ["DRIFT_KIND_CACHE_OLDER"],
    },
    "drifts": [
        {
            "key": {"tenant": "acme", "kind": "note", "id": "n 1"},
            "kind": "DRIFT_KIND_PROJECTION_CONTENT",
            "expectedVersion": 3,
            "foundVersion": 3,
            "differences": [{"path": "author.name", "difference": "missing"}],
        }
    ],
    "verdict": "DynamoDB has another content than Aurora.",
}


def test_explain_tells_all_that_there_is_to_tell(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Explain", explained(**FULL))
    ran = duostore("explain", "note", "n 1", "--tenant", "acme", "--target", target)
    assert (ran.exit_code, ran.stderr) == (0, "")
    [asked] = admin.asked
    assert json_format.MessageToDict(asked.request) == {"key": FULL["key"]}
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert lines[0] == "note 'n 1' --tenant acme"
    assert "store holds version size written projections why" in lines
    assert any(re.match(r"aurora the document 3 412 bytes \d+ d.* ago - -", x) for x in lines)
    assert any(re.match(r"dynamodb the document 3 1\.4 kB .* ago 1, 2 -", x) for x in lines)
    assert "cache unreadable - 9 bytes - - no\N{REPLACEMENT CHARACTER}[31m magic" in lines
    assert any(
        re.match("outbox its newest version waits to be projected, .*; due", x) for x in lines
    )
    assert any(re.match("snapshot number 17 is the newest, .* ago", x) for x in lines)
    assert any(re.match("verified .* ago, at version 2: cache_older", x) for x in lines)
    at = lines.index("drift projection_content, of version 3")
    assert lines[at + 1] == "author.name: missing"
    assert lines[-1] == "DynamoDB has another content than Aurora."


def test_explain_as_json_tells_the_same(admin: ScriptedAdmin, target: str) -> None:
    admin.script("Explain", explained(**FULL))
    ran = duostore("explain", "note", "n 1", "--json", "--target", target)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == {
        "key": FULL["key"],
        "aurora": {
            "holding": "value",
            "version": 3,
            "stored_bytes": 412,
            "time": "2026-01-02T03:04:05Z",
            "expire_time": None,
            "projection_versions": [],
            "fault": None,
        },
        "dynamodb": {
            "holding": "value",
            "version": 3,
            "stored_bytes": 1398,
            "time": "2026-01-02T03:04:05.500Z",
            "expire_time": None,
            "projection_versions": [1, 2],
            "fault": None,
        },
        "cache": {
            "holding": "unreadable",
            "version": 0,
            "stored_bytes": 9,
            "time": None,
            "expire_time": None,
            "projection_versions": [],
            "fault": "no\x1b[31m magic",
        },
        "outbox": {"create_time": "2026-01-02T03:04:05Z", "due_time": "2026-01-02T03:04:06Z"},
        "snapshot": {"sequence": 17, "snapshot_time": "2026-01-02T03:04:05Z"},
        "verification": {
            "verify_time": "2026-01-02T03:05:05Z",
            "version": 2,
            "drifts": ["cache_older"],
        },
        "drifts": [
            {
                "key": FULL["key"],
                "drift": "projection_content",
                "expected_version": 3,
                "found_version": 3,
                "differences": [{"path": "author.name", "difference": "missing"}],
            }
        ],
        "verdict": "DynamoDB has another content than Aurora.",
    }


def test_explain_of_what_no_store_has(admin: ScriptedAdmin, target: str) -> None:
    nothing = {"holding": "HOLDING_NOTHING"}
    answer = {
        "key": {"kind": "note", "id": "n1"},
        **dict.fromkeys(("aurora", "dynamodb", "cache"), nothing),
        "verdict": "It never existed.",
    }
    admin.script("Explain", explained(**answer))
    lines = duostore("explain", "note", "n1", "--target", target).stdout.splitlines()
    told = [" ".join(line.split()) for line in lines]
    assert [line for line in told if line.startswith(("aurora", "dynamodb", "cache"))] == [
        "aurora nothing",
        "dynamodb nothing",
        "cache nothing",
    ]
    assert "outbox nothing waits" in told
    assert "verified not in the last week" in told


def test_explain_says_what_could_not_be_asked(admin: ScriptedAdmin, target: str) -> None:
    answer = {
        "aurora": {"holding": "HOLDING_UNKNOWN", "fault": "aurora cannot be reached"},
        "dynamodb": {"holding": "HOLDING_STUB", "version": 2},
        "cache": {"holding": "HOLDING_ABSENT", "version": 1},
        "verdict": "Aurora cannot be asked.",
    }
    admin.script("Explain", explained(**answer))
    told = " ".join(duostore("explain", "note", "n1", "--target", target).stdout.split())
    assert "aurora unknown - aurora cannot be reached" in told
    assert "dynamodb too large: read Aurora 2" in told
    assert "cache that it does not exist 1" in told
    assert "outbox unknown verified unknown" in told


def test_explain_of_a_kind_at_home_in_dynamodb(admin: ScriptedAdmin, target: str) -> None:
    answer = {
        "dynamodb": {"holding": "HOLDING_ABSENT", "version": 2},
        "cache": {"holding": "HOLDING_LEASE"},
        "verdict": "It is deleted.",
    }
    admin.script("Explain", explained(**answer), explained(**answer))
    lines = duostore("explain", "note", "n1", "--target", target).stdout.splitlines()
    told = [" ".join(line.split()) for line in lines]
    assert "dynamodb a tombstone 2" in told
    assert "cache a reader's lease -" in told
    assert not [line for line in told if line.startswith(("aurora", "outbox", "verified"))]
    ran = duostore("explain", "note", "n1", "--json", "--target", target)
    assert json.loads(ran.stdout)["aurora"] is None


@pytest.mark.parametrize("columns", [40, 120])
def test_explain_loses_nothing_on_a_narrow_terminal(
    admin: ScriptedAdmin, target: str, columns: int
) -> None:
    admin.script("Explain", explained(**FULL))
    seen = OnTerminal("explain", "note", "n 1", "--target", target, columns=columns).ended()
    assert seen.exit_code == 0
    assert all(len(line) <= columns for line in seen.screen.splitlines())
    for word in ("author.name: missing", "projection_content", "412", "than Aurora."):
        assert word in " ".join(seen.screen.split()), word
    assert "…" not in seen.screen


# status


def test_status_tells_how_the_service_is(admin: ScriptedAdmin, target: str) -> None:
    admin.script("GetStatus", status_answer())
    ran = duostore("status", "--target", target)
    assert (ran.exit_code, ran.stderr) == (0, "")
    told = [" ".join(re.sub("[│╭╮╰╯─]", " ", line).split()) for line in ran.stdout.splitlines()]
    assert re.fullmatch(rf"Duostore 1\.2\.3 at {target}, up \d+ d.*: all is well", told[0])
    assert "aurora up 12,345 0 % 3.1 ms" in told
    assert "dynamodb up 40 2.5 % 1 s" in told
    assert "cache up 0 - -" in told
    assert "outbox nothing waits to be projected" in told
    assert "read-only nothing" in told
    assert "backfills none" in told
    # 99.996 is not 100.
    promise = "99.9 % of calls do not fail"
    assert f"availability {promise} 99.9 % 99.996 % 100 % 0.04 holds" in told
    assert "1 min after a save 36,000 2 99.994 % 4.2" in told


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ({"stores": [{"store": "STORE_DYNAMODB"}]}, "dynamodb is down"),
        (
            {"slos": [{"name": "availability", "target": 0.999, "ratio": 0.5, "burnRate": 500}]},
            "availability does not hold",
        ),
    ],
)
def test_status_ends_with_1_and_begins_with_what_is_wrong(
    admin: ScriptedAdmin, target: str, trouble: dict[str, Any], told: str
) -> None:
    admin.script("GetStatus", status_answer(**trouble), status_answer(**trouble))
    ran = duostore("status", "--target", target)
    assert ran.exit_code == 1
    assert ran.stdout.splitlines()[0].endswith(f": {told}")
    ran = duostore("status", "--json", "--target", target)
    assert ran.exit_code == 1
    assert json.loads(ran.stdout)["ok"] is False


def test_status_tells_what_is_under_way(admin: ScriptedAdmin, target: str) -> None:
    work = {
        "outboxDepth": 3,
        "projectionLag": "0.4s",
        "readOnly": [
            {"kind": "note", "reason": "a bug", "updateTime": "2026-01-02T03:04:05Z"},
        ],
        "backfills": [
            {
                "kind": "note",
                "state": "STATE_RUNNING",
                "doneCount": 459,
                "estimatedTotal": 1000,
                "remaining": "90s",
            }
        ],
        "slos": [{"name": "consistency", "objective": "all", "target": 0.9, "holds": True}],
        "consistency": [{"verified": 5}, {"age": "1s", "verified": 4000}, {"age": "300s"}],
    }
    admin.script("GetStatus", status_answer(**work))
    ran = duostore("status", "--target", target)
    assert ran.exit_code == 0, "to be read-only is nothing that is wrong"
    told = [" ".join(re.sub("[│╭╮╰╯─]", " ", line).split()) for line in ran.stdout.splitlines()]
    assert told[0].endswith("all is well; read-only: note")
    assert "outbox 3 keys wait to be projected, the oldest for 400 ms" in told
    assert any(re.fullmatch(r"read-only note: a bug \(.* ago\)", line) for line in told)
    assert "backfills note: running, 45 % of about 1,000 done, about 1 min 30 s left" in told
    assert "consistency all 90 % - - 0.00 nothing counted" in told
    assert "rows at random 5 0 100 % -" in told
    assert "1 s after a save 4,000 0 100 % ≥ 3.6" in told
    assert "5 min after a save 0 0 - -" in told


def test_status_does_not_take_what_is_unknown_for_nothing(
    admin: ScriptedAdmin, target: str
) -> None:
    unknown = status_answer()
    unknown.ClearField("projection_lag")
    admin.script("GetStatus", unknown, unknown)
    assert "outbox     unknown" in duostore("status", "--target", target).stdout
    shown = json.loads(duostore("status", "--json", "--target", target).stdout)
    assert (shown["outbox_depth"], shown["projection_lag_seconds"]) == (None, None)


def test_status_fits_a_narrow_terminal(admin: ScriptedAdmin, target: str) -> None:
    admin.script("GetStatus", status_answer())
    seen = OnTerminal("status", "--target", target, columns=64).ended()
    assert seen.exit_code == 0
    assert all(len(line) <= 64 for line in seen.screen.splitlines())
    for word in ("availability", "99.996 %", "holds", "36,000"):
        assert word in seen.screen, word
    assert "…" not in seen.screen


def test_status_as_json(admin: ScriptedAdmin, target: str) -> None:
    admin.script(
        "GetStatus",
        status_answer(
            outboxDepth=3,
            projectionLag="0.4s",
            readOnly=[{"reason": "moving", "updateTime": "2026-01-02T03:04:05Z"}],
            backfills=[{"kind": "note", "state": "STATE_PAUSED", "remaining": "1.5s"}],
        ),
    )
    shown = json.loads(duostore("status", "--json", "--target", target).stdout)
    assert shown["ok"] is True
    assert shown["stores"][0] == {
        "store": "aurora",
        "up": True,
        "calls": 12345,
        "error_ratio": 0.0,
        "p95_seconds": 0.0031,
    }
    assert shown["stores"][2]["p95_seconds"] is None
    assert (shown["outbox_depth"], shown["projection_lag_seconds"]) == (3, 0.4)
    assert shown["read_only"] == [
        {"kind": None, "reason": "moving", "caller": None, "update_time": "2026-01-02T03:04:05Z"}
    ]
    assert shown["slos"][0]["ratio_hour"] == 1.0
    assert shown["consistency"] == [{"age_seconds": 60.0, "verified": 36000, "inconsistent": 2}]
    assert shown["backfills"][0]["state"] == "paused"
    assert shown["backfills"][0]["remaining_seconds"] == 1.5


def test_status_draws_a_picture_of_what_it_prints(
    admin: ScriptedAdmin, target: str, tmp_path: Path
) -> None:
    admin.script("GetStatus", status_answer(), status_answer())
    file = tmp_path / "status.svg"
    ran = duostore("status", "--svg", str(file), "--target", target)
    assert ran.exit_code == 0
    picture = file.read_text(encoding="utf-8")
    assert "all&#160;is&#160;well" in picture
    ran = duostore("status", "--svg", str(tmp_path / "none" / "x.svg"), "--target", target)
    assert ran.exit_code == 2
    assert "x.svg cannot be written: No such file or directory" in ran.stderr
    for other in ("--json", "--watch"):
        assert duostore("status", "--svg", "x.svg", other).exit_code == 2


def test_status_is_watched_until_ctrl_c_while_the_service_goes_and_comes(
    admin: ScriptedAdmin, target: str
) -> None:
    broken = status(grpc.StatusCode.UNAVAILABLE, "too bad")
    admin.script("GetStatus", status_answer(), broken, status_answer(release="1.2.4"))
    watching = OnTerminal("status", "--watch", "--target", target)
    try:
        for sign in ("1.2.3", "No answer, this is how it was", "1.2.4"):
            eventually(lambda sign=sign: sign in watching.screen, within=20, what=sign)  # type: ignore[misc]
    finally:
        watching.process.send_signal(signal.SIGINT)
        seen = watching.ended()
    assert seen.exit_code == 0


def test_status_is_watched_in_lines_elsewhere(admin: ScriptedAdmin, target: str) -> None:
    denied = status(grpc.StatusCode.PERMISSION_DENIED, "no more", reason("PERMISSION_DENIED"))
    admin.script("GetStatus", status_answer(), denied)
    ran = duostore("status", "--watch", "--json", "--target", target)
    assert ran.exit_code == 1, "what does not pass ends it"
    assert [json.loads(line)["release"] for line in ran.stdout.splitlines()] == ["1.2.3"]
    assert "no more" in ran.stderr
