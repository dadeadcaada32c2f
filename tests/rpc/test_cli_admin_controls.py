"""`duostore readonly` and `duostore flag`: what they send, print and end with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format

from duostore.v1 import admin_pb2 as pb
from tests.support.client_commands import OnTerminal, duostore
from tests.support.scripted_admin import ScriptedAdmin, serving, status_answer
from tests.support.scripted_service import reason, status

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = {"reason": "moving", "caller": "ann", "updateTime": "2026-01-02T03:04:05Z"}
NOTES = ALL | {"kind": "note", "reason": "a\x1b[1m bug", "caller": ""}
LOST = status(grpc.StatusCode.DEADLINE_EXCEEDED, "too late", reason("DEADLINE_EXCEEDED"))


@pytest.fixture
def admin() -> ScriptedAdmin:
    return ScriptedAdmin()


@pytest.fixture
def target(admin: ScriptedAdmin) -> Iterator[str]:
    with serving(admin) as address:
        yield address


def now_read_only(*found: dict[str, Any]) -> pb.SetReadOnlyResponse:
    return json_format.ParseDict({"readOnly": found}, pb.SetReadOnlyResponse())


# readonly


def test_writes_are_refused_for_a_reason(admin: ScriptedAdmin, target: str) -> None:
    admin.script("SetReadOnly", now_read_only(ALL), now_read_only(ALL, NOTES))
    ran = duostore("readonly", "on", "--reason", "moving", "--target", target)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout == "the whole service: read-only, in force within two seconds\n"
    ran = duostore("readonly", "on", "--reason", "a bug", "--kind", "note", "--target", target)
    assert ran.stdout.splitlines()[:2] == [
        "note: read-only, in force within two seconds",
        "Also read-only:",
    ]
    assert ran.stdout.splitlines()[2].startswith("  the whole service: moving (ann, ")
    assert [json_format.MessageToDict(asked.request) for asked in admin.asked] == [
        {"readOnly": True, "reason": "moving"},
        {"kind": "note", "readOnly": True, "reason": "a bug"},
    ]


def test_a_reason_is_needed_and_bounded() -> None:
    for options in ([], ["--reason", " "], ["--reason", "x" * 201], ["--reason", "ë" * 101]):
        assert duostore("readonly", "on", *options).exit_code == 2, options


@pytest.mark.parametrize("command", [["on", "--reason", "r"], ["off"]])
def test_a_kind_that_is_empty_is_not_taken_for_all_of_them(command: list[str]) -> None:
    ran = duostore("readonly", *command, "--kind", "")
    assert ran.exit_code == 2
    assert "leave it out" in ran.stderr


def test_writes_are_taken_again_but_for_what_is_still_refused(
    admin: ScriptedAdmin, target: str
) -> None:
    admin.script("SetReadOnly", now_read_only(), now_read_only(NOTES))
    command = ("readonly", "off", "--target", target)
    ran = duostore(*command)
    assert ran.stdout == "the whole service: no longer read-only, in force within two seconds\n"
    lines = duostore(*command).stdout.splitlines()
    assert lines[1] == "Still read-only:"
    assert lines[2].startswith("  note: a\N{REPLACEMENT CHARACTER}[1m bug (")
    assert json_format.MessageToDict(admin.asked[0].request) == {}


def test_what_is_read_only_is_shown(admin: ScriptedAdmin, target: str) -> None:
    admin.script(
        "GetStatus",
        status_answer(readOnly=[ALL, NOTES]),
        status_answer(readOnly=[ALL]),
        status_answer(),
    )
    ran = duostore("readonly", "show", "--target", target)
    assert ran.exit_code == 0
    whole, notes = ran.stdout.splitlines()
    assert whole.startswith("the whole service: moving (ann, ")
    assert notes.startswith("note: ")
    ran = duostore("readonly", "show", "--json", "--target", target)
    assert json.loads(ran.stdout) == {
        "read_only": [
            {
                "kind": None,
                "reason": "moving",
                "caller": "ann",
                "update_time": "2026-01-02T03:04:05Z",
            }
        ]
    }
    ran = duostore("readonly", "show", "--target", target)
    assert ran.stdout == "nothing is read-only\n"


@pytest.mark.parametrize(
    ("method", "command"),
    [
        ("SetReadOnly", ["readonly", "on", "--reason", "x"]),
        ("SetReadOnly", ["readonly", "off"]),
        ("SetFlag", ["flag", "set", "f", "1"]),
        ("SetFlag", ["flag", "unset", "f"]),
    ],
)
def test_a_lost_answer_leaves_a_doubt_that_a_repetition_ends(
    admin: ScriptedAdmin, target: str, method: str, command: list[str]
) -> None:
    admin.script(method, LOST)
    ran = duostore(*command, "--target", target)
    assert (ran.exit_code, ran.stdout) == (3, "")
    assert "may or may not have been applied: repeat the command" in ran.stderr


# flag


READ = {
    "name": "projection_read.note.2",
    "value": 25,
    "defaultValue": 0,
    "set": True,
    "used": True,
    "caller": "ann",
    "updateTime": "2026-01-02T03:04:05Z",
    "description": "Of how many keys.",
}
WRITE = {
    "name": "projection_write.note.2",
    "value": "old",
    "defaultValue": "old",
    "used": True,
    "description": "Which are written.",
}
UNUSED = {"name": "projection_read.gone.2", "set": True, "updateTime": "2026-01-02T03:04:05Z"}


def listed(*flags: dict[str, Any], provider: str = "duostore") -> pb.ListFlagsResponse:
    return json_format.ParseDict({"flags": flags, "provider": provider}, pb.ListFlagsResponse())


def flag(**fields: Any) -> pb.SetFlagResponse:
    return json_format.ParseDict({"flag": fields}, pb.SetFlagResponse())


def test_flags_are_listed(admin: ScriptedAdmin, target: str) -> None:
    admin.script("ListFlags", listed(READ, WRITE, UNUSED))
    ran = duostore("flag", "list", "--target", target, COLUMNS="160")
    assert (ran.exit_code, ran.stderr) == (0, "")
    told = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert "flag value default set what it does" in told
    assert any(line.startswith("projection_read.note.2 25 0 ann, ") for line in told)
    assert "projection_write.note.2 old old - Which are written." in told
    assert any(line.startswith("projection_read.gone.2 unreadable - ") for line in told)
    assert "nobody asks for it" in " ".join(told)


def test_flags_are_listed_as_json(admin: ScriptedAdmin, target: str) -> None:
    admin.script("ListFlags", listed(READ, UNUSED))
    ran = duostore("flag", "list", "--json", "--target", target)
    assert json.loads(ran.stdout) == {
        "provider": "duostore",
        "flags": [
            {
                "name": "projection_read.note.2",
                "value": 25,
                "default": 0,
                "set": True,
                "used": True,
                "caller": "ann",
                "update_time": "2026-01-02T03:04:05Z",
                "description": "Of how many keys.",
            },
            {
                "name": "projection_read.gone.2",
                "value": None,
                "default": None,
                "set": True,
                "used": False,
                "caller": None,
                "update_time": "2026-01-02T03:04:05Z",
                "description": "",
            },
        ],
    }


def test_there_may_be_no_flags_and_another_provider(admin: ScriptedAdmin, target: str) -> None:
    admin.script("ListFlags", listed(), listed(READ, provider="acme\x1b"))
    ran = duostore("flag", "list", "--target", target)
    assert ran.stdout == "no kind of the configuration has flags, and none are set\n"
    ran = duostore("flag", "list", "--target", target)
    assert "says acme\N{REPLACEMENT CHARACTER}: set them there" in ran.stderr


def test_a_list_of_flags_loses_nothing_on_a_narrow_terminal(
    admin: ScriptedAdmin, target: str
) -> None:
    admin.script("ListFlags", listed(READ))
    seen = OnTerminal("flag", "list", "--target", target, columns=60).ended()
    assert seen.exit_code == 0
    assert all(len(line) <= 60 for line in seen.screen.splitlines())
    assert "…" not in seen.screen


@pytest.mark.parametrize(
    ("value", "sent"), [("both", "both"), ("25", 25.0), ("025", 25.0), ("-5", "-5"), ("1.5", "1.5")]
)
def test_a_flag_is_set_to_a_word_or_a_whole_number(
    admin: ScriptedAdmin, target: str, value: str, sent: object
) -> None:
    admin.script("SetFlag", flag(**READ))
    ran = duostore("flag", "set", "--target", target, "--", "projection_read.note.2", value)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert (
        ran.stdout == "projection_read.note.2: 25, its default is 0, in force within two seconds\n"
    )
    [asked] = admin.asked
    assert json_format.MessageToDict(asked.request) == {
        "name": "projection_read.note.2",
        "value": sent,
    }


def test_a_number_that_a_double_would_change_is_refused() -> None:
    assert duostore("flag", "set", "f", "9007199254740992").exit_code == 2


def test_a_flag_is_unset(admin: ScriptedAdmin, target: str) -> None:
    admin.script("SetFlag", flag(**WRITE), flag(name="projection_read.gone.2"))
    ran = duostore("flag", "unset", "projection_write.note.2", "--target", target)
    assert ran.stdout == "projection_write.note.2: old, its default, in force within two seconds\n"
    assert json_format.MessageToDict(admin.asked[0].request) == {"name": "projection_write.note.2"}
    ran = duostore("flag", "unset", "projection_read.gone.2", "--target", target)
    assert ran.stdout == "projection_read.gone.2: no longer set, and nobody asks for it\n"


def test_flags_that_are_set_elsewhere_are_a_refusal(admin: ScriptedAdmin, target: str) -> None:
    elsewhere = status(
        grpc.StatusCode.FAILED_PRECONDITION,
        "flags are provided by 'acme': set them there",
        reason("FLAGS_ELSEWHERE", provider="acme"),
    )
    admin.script("SetFlag", elsewhere)
    ran = duostore("flag", "set", "f", "1", "--target", target)
    assert ran.exit_code == 1
    assert "provided by 'acme': set them there" in ran.stderr
