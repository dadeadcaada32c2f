from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import json_format

from duostore.v1 import entity_pb2
from tests.support.client_commands import duostore
from tests.support.recording_service import (
    RecordingService,
    Served,
    invalid,
    serving,
    status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = {"tenant": "t", "kind": "proposal", "id": "p1"}


@pytest.fixture
def service() -> RecordingService:
    return RecordingService()


@pytest.fixture
def served(service: RecordingService) -> Iterator[Served]:
    with serving(service) as served:
        yield served


def _snapshot(sequence: int, title: str = "A roof") -> entity_pb2.EntitySnapshot:
    found = entity_pb2.EntitySnapshot(key=entity_pb2.EntityKey(**KEY), sequence=sequence)
    found.data.update({"title": title, "n": sequence})
    found.snapshot_time.FromJsonString("2026-01-02T03:04:05.678901Z")
    return found


def test_snapshot_prints_its_sequence(service: RecordingService, served: Served) -> None:
    text = '{"title": "Zoë", "price": 19.99}'
    arguments = ("snapshot", "proposal", "p1", "--data", text, "--tenant", "t")
    ran = duostore(*arguments, "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == {
        "key": KEY,
        "sequence": 7,
        "snapshot_time": "2026-01-02T03:04:05Z",
        "replayed": False,
    }
    duostore(*arguments, "--idempotency-key", "k", "--target", served.address)
    first, second = (asked.request for asked in service.asked)
    assert json_format.MessageToDict(first) == {"key": KEY, "data": json.loads(text)}
    assert second.idempotency_key == "k"


def test_a_snapshot_may_be_empty(service: RecordingService, served: Served) -> None:
    ran = duostore("snapshot", "k", "i", "-", "--target", served.address, stdin="{}")
    assert ran.exit_code == 0
    assert service.asked[0].request.HasField("data")


def test_a_snapshot_that_would_be_changed_is_not_sent(
    service: RecordingService, served: Served
) -> None:
    ran = duostore("snapshot", "k", "i", "--data", '{"n": NaN}', "--target", served.address)
    assert ran.exit_code == 2
    assert ran.stderr.splitlines() == [
        "the document cannot be saved as it is; nothing was sent",
        "  data.n: is NaN; JSON has no such value",
    ]
    assert service.asked == []


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ([], "repeat the command; to be stored twice does no harm."),
        (
            ["--idempotency-key", "k"],
            "repeat the command with --idempotency-key k, and it is applied once.",
        ),
    ],
)
def test_a_snapshot_that_may_have_been_stored_is_repeated(
    service: RecordingService, served: Served, options: list[str], advice: str
) -> None:
    lost = status(grpc.StatusCode.UNKNOWN, "answer lost", "WRITE_OUTCOME_UNKNOWN")
    service.failing = lambda _: lost
    ran = duostore("snapshot", "k", "i", "--data", "{}", *options, "--target", served.address)
    assert ran.exit_code == 3
    assert ran.stderr.splitlines()[1] == f"It may or may not have been applied: {advice}"


@pytest.mark.parametrize(("options", "sequence"), [([], 0), (["--sequence", "7"], 7)])
def test_get_snapshot_prints_it_as_json(
    service: RecordingService, served: Served, options: list[str], sequence: int
) -> None:
    service.snapshots = [_snapshot(7)]
    ran = duostore(
        "get-snapshot", "proposal", "p1", "--tenant", "t", *options, "--target", served.address
    )
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == {
        "key": KEY,
        "sequence": 7,
        "data": {"n": 7, "title": "A roof"},
        "snapshot_time": "2026-01-02T03:04:05.678901Z",
    }
    assert service.asked[0].request.sequence == sequence


def test_snapshots_are_listed_in_a_table(service: RecordingService, served: Served) -> None:
    titles = {10: "Zoë → €", 9: "a bell \x07 and \x9b31m", 8: "x" * 200}
    service.snapshots = [_snapshot(sequence, title) for sequence, title in titles.items()]
    ran = duostore("snapshots", "proposal", "p1", COLUMNS="80", DUOSTORE_TARGET=served.address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    time = "2026-01-02T03:04:05.678Z"
    lines = ran.stdout_bytes.decode().splitlines()
    assert lines[:3] == [
        "SEQUENCE  TIME                      DATA",
        f'      10  {time}  {{"n":10,"title":"Zoë → €"}}',
        f'       9  {time}  {{"n":9,"title":"a bell \\u0007 and �31m"}}',
    ]
    assert (len(lines[3]), lines[3][-2:]) == (80, "x…")


def test_snapshots_can_be_json_lines(service: RecordingService, served: Served) -> None:
    service.snapshots = [_snapshot(3, "x" * 500), _snapshot(2)]
    ran = duostore("snapshots", "proposal", "p1", "--json", "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    first, second = map(json.loads, ran.stdout.splitlines())
    assert first["data"] == {"n": 3, "title": "x" * 500}
    assert second == {
        "key": KEY,
        "sequence": 2,
        "data": {"n": 2, "title": "A roof"},
        "snapshot_time": "2026-01-02T03:04:05.678901Z",
    }


@pytest.mark.parametrize(
    ("limit", "pages"), [(1, 1), (99, 1), (100, 2), (250, 3), (300, 3), (301, 3)]
)
def test_no_more_snapshots_are_listed_than_asked_for(
    service: RecordingService, served: Served, limit: int, pages: int
) -> None:
    service.snapshots = [_snapshot(sequence) for sequence in range(300, 0, -1)]
    arguments = ("snapshots", "proposal", "p1", "--json", "--limit", str(limit))
    ran = duostore(*arguments, "--target", served.address)
    assert ran.exit_code == 0
    printed = [json.loads(line)["sequence"] for line in ran.stdout.splitlines()]
    assert printed == list(range(300, 0, -1))[:limit]
    more = f"There are older ones: --limit {limit * 10} shows more.\n"
    assert ran.stderr == (more if limit < 300 else "")
    assert len(service.asked) == pages
    assert all(asked.request.page_size == min(limit + 1, 100) for asked in service.asked)


def test_no_snapshots_are_said_to_be_none(served: Served) -> None:
    ran = duostore("snapshots", "proposal", "p1", "--target", served.address)
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert ran.stderr == "There are no snapshots of it, or they have expired.\n"
    ran = duostore("snapshots", "proposal", "p1", "--json", "--target", served.address)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, "", "")


def test_publish_saves_a_snapshot(service: RecordingService, served: Served) -> None:
    arguments = ("publish", "proposal", "p1", "--tenant", "t", "--target", served.address)
    ran = duostore(*arguments)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["version"] == 1
    duostore(*arguments, "--sequence", "7", "--if-version", "3", "--idempotency-key", "k")
    duostore(*arguments, "--if-absent")
    sent = [json_format.MessageToDict(asked.request) for asked in service.asked]
    made, given, other = (request.pop("idempotencyKey") for request in sent)
    assert given == "k"
    assert made != other
    assert sent == [
        {"key": KEY, "fromSnapshot": "0"},
        {"key": KEY, "fromSnapshot": "7", "ifVersion": "3"},
        {"key": KEY, "fromSnapshot": "0", "ifAbsent": True},
    ]


MUTATIONS = [
    {"save": {"key": {"kind": "account", "id": "a"}, "data": {"n": 1.5}, "if_version": 4}},
    {"save": {"key": {"tenant": "u", "kind": "p", "id": "b"}, "fromSnapshot": "7"}},
    {"delete": {"key": {"kind": "account", "id": "c"}, "ifVersion": "5"}},
    {"check": {"key": {"kind": "account", "id": "d"}, "ifVersion": "9007199254740993"}},
]
SENT = [
    {
        "save": {
            "key": {"tenant": "t", "kind": "account", "id": "a"},
            "data": {"n": 1.5},
            "ifVersion": "4",
        }
    },
    {"save": {"key": {"tenant": "u", "kind": "p", "id": "b"}, "fromSnapshot": "7"}},
    {"delete": {"key": {"tenant": "t", "kind": "account", "id": "c"}, "ifVersion": "5"}},
    {
        "check": {
            "key": {"tenant": "t", "kind": "account", "id": "d"},
            "ifVersion": "9007199254740993",
        }
    },
]
LINES = "\ufeff" + "\r\n \n".join(json.dumps(mutation) for mutation in MUTATIONS)


@pytest.mark.parametrize("text", [json.dumps(MUTATIONS, indent=1), LINES])
def test_transact_sends_mutations_and_prints_what_became_of_each(
    service: RecordingService, served: Served, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "mutations"
    path.write_text(text, encoding="utf-8")
    arguments = ("--tenant", "t", "--idempotency-key", "k", "--target", served.address)
    ran = duostore("transact", str(path), *arguments)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert duostore("transact", "-", *arguments, stdin=text).exit_code == 0
    for asked in service.asked:
        assert json_format.MessageToDict(asked.request) == {
            "mutations": SENT,
            "idempotencyKey": "k",
        }
    printed = json.loads(ran.stdout)
    assert [result["version"] for result in printed["results"]] == [1, 2, 3, 4]
    assert printed["results"][1] == {
        "key": {"tenant": "u", "kind": "p", "id": "b"},
        "version": 2,
        "update_time": "2026-01-02T03:04:05Z",
    }
    assert (printed["projection"], printed["replayed"]) == ("done", False)


def test_the_mutation_that_is_refused_is_named_with_its_line(
    service: RecordingService, served: Served
) -> None:
    mismatch = status(
        grpc.StatusCode.ABORTED, "mutations[2]: expected 5, but it has 6", "VERSION_MISMATCH"
    )
    service.failing = lambda _: mismatch
    ran = duostore("transact", "-", "--target", served.address, stdin=LINES)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [
        "mutations[2] (line 5): expected 5, but it has 6 (VERSION_MISMATCH, request id r-1)",
        'Read it again, decide anew, and name the version that you read by "if_version".',
    ]
    exists = status(grpc.StatusCode.ALREADY_EXISTS, "mutations[0]: it exists", "ENTITY_EXISTS")
    service.failing = lambda _: exists
    ran = duostore("transact", "-", "--target", served.address, stdin=LINES)
    assert ran.stderr.splitlines()[1] == (
        'To replace it leave the mutation\'s "if_absent" out, or name its version by "if_version".'
    )
    bad = invalid(**{"mutations[0]__save__data__n": "is bad", "mutations[9]": "is one too many"})
    service.failing = lambda _: bad
    ran = duostore("transact", "-", "--target", served.address, stdin=LINES)
    assert ran.stderr.splitlines()[1:] == [
        "  mutations[0] (line 1).save.data.n: is bad",
        "  mutations[9]: is one too many",
    ]
    ran = duostore("transact", "-", "--target", served.address, stdin=json.dumps(MUTATIONS))
    assert ran.stderr.splitlines()[1] == "  mutations[0].save.data.n: is bad"


def test_all_that_is_wrong_with_a_transaction_is_said_at_once(
    service: RecordingService, served: Served
) -> None:
    deep = json.dumps({"save": {"data": json.loads('{"a":' * 21 + "1" + "}" * 21)}})
    lines = [
        '{"save": {"key": {"kind": "k", "id": "i"}, "data": {"n": 12345678901234567890}}}',
        "{",
        '{"save": {"data": {"a": 1, "a": 2}}}',
        "[1]",
        '{"sav": {}}',
        '{"save": {}, "delete": {}}',
        '{"check": {"if_version": 9007199254740993}}',
        deep,
        '{"save": {"data": {"t": "\\u0000"}}}',
        '{"save": 3}',
        '{"delete": []}',
        '{"check": {"key": "k/i", "if_version": 1.5}}',
        '{"save": {"key": {"kind": 3, "id": null}, "data": [1], "if_absent": 1}}',
        '{"check": {"key": {"kind": "k"}, "if_version": [1e400]}}',
        '{"check": {"if_version": "99999999999999999999"}}',
        '{"\\ud800": 1}',
        '{"delete": {"key": {"kind": "k", "id": "i"}}}',
    ]
    ran = duostore("transact", "-", "--target", served.address, stdin="\n".join(lines))
    assert (ran.exit_code, ran.stdout) == (2, "")
    said = ran.stderr.splitlines()
    assert said[0] == "the transaction cannot be saved as it is; nothing was sent"
    expected = [
        r"mutations\[0\] \(line 1\)\.save\.data\.n: is 12345678901234567890, a number of 2\^53",
        r"mutations\[1\] \(line 2\): is not JSON: Expecting property name .*: column 2$",
        r"mutations\[2\] \(line 3\)\.save\.data: has the name 'a' twice",
        r"mutations\[3\] \(line 4\): is not a JSON object, of save, delete, check, but a list$",
        r"mutations\[4\] \(line 5\): has no field 'sav', but save, delete, check$",
        r"mutations\[5\] \(line 6\): is no mutation: .*oneof",
        r"mutations\[6\] \(line 7\)\.check\.if_version: is 9007199254740993, .* as a string",
        r"mutations\[7\] \(line 8\)\.save\.data(\.a)+: nests deeper than 20 levels",
        r"mutations\[8\] \(line 9\)\.save\.data\.t: holds the character U\+0000",
        r"mutations\[9\] \(line 10\)\.save: is not a JSON object, of key, data, .*, but a number$",
        r"mutations\[10\] \(line 11\)\.delete: is not a JSON object, of key, if_version, but a",
        r"mutations\[11\] \(line 12\)\.check\.key: is not .*, of tenant, kind, id, but a string$",
        r"mutations\[11\] \(line 12\)\.check\.if_version: is not a whole number",
        r"mutations\[12\] \(line 13\)\.save\.key\.kind: is not a string but a number$",
        r"mutations\[12\] \(line 13\)\.save\.data: is not a JSON object, but a list$",
        r"mutations\[12\] \(line 13\)\.save\.if_absent: is not true or false but a number$",
        r"mutations\[13\] \(line 14\)\.check\.if_version\[0\]: is 1e400, a number",
        r"mutations\[13\] \(line 14\)\.check\.if_version: is not a whole number",
        r"mutations\[14\] \(line 15\): is no mutation: .*99999999999999999999",
        r"mutations\[15\] \(line 16\): has a name with one half of a surrogate pair",
        r"mutations\[15\] \(line 16\): has no field '\\+ud800', but save, delete, check$",
    ]
    for line, pattern in zip(said[1:], expected, strict=True):
        assert re.match(f"  {pattern}", line), line
    assert service.asked == []


def test_a_document_may_nest_as_deep_in_a_transaction_as_elsewhere(
    service: RecordingService, served: Served
) -> None:
    data = '{"a":' * 19 + '{"n": %s}' + "}" * 19
    text = f'{{"save": {{"key": {{"kind": "k", "id": "i"}}, "data": {data}}}}}'
    ran = duostore("transact", "-", "--target", served.address, stdin=text % "1")
    assert ran.exit_code == 0
    ran = duostore("transact", "-", "--target", served.address, stdin=text % "0.12345678901234567")
    assert ran.exit_code == 2
    assert "which a double would turn into" in ran.stderr, "losses are seen as deep"
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["snapshot", "k", "i"], "give the document once"),
        (["snapshots", "k", "i", "--limit", "0"], "--limit"),
        (["get-snapshot", "k", "i", "--sequence", "-1"], "--sequence"),
        (["publish", "k", "i", "--if-version", "1", "--if-absent"], "exclude each other"),
        (["publish", "k", "i", "--idempotency-key", "\udcff"], "not UTF-8"),
        (["transact", "/nonexistent"], "cannot be read"),
        (["transact"], "Missing argument"),
    ],
)
def test_a_bad_command_line_is_refused(command: list[str], problem: str) -> None:
    ran = duostore(*command)
    assert ran.exit_code == 2
    assert problem in " ".join(re.sub("[│╭╮╰╯─]", " ", ran.stderr).split())
