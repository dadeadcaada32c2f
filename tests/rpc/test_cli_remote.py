from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2_grpc

from duostore.v1 import entity_pb2
from tests.support.client_commands import duostore, start
from tests.support.ports import free_port
from tests.support.recording_service import (
    HEALTHY,
    UNHEALTHY,
    RecordingService,
    Served,
    invalid,
    serving,
    status,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.rpc import status_pb2


@pytest.fixture
def service() -> RecordingService:
    return RecordingService()


@pytest.fixture
def served(service: RecordingService) -> Iterator[Served]:
    with serving(service) as served:
        yield served


def test_get_prints_the_entity_as_json(service: RecordingService, served: Served) -> None:
    data = {"title": "Zoë → €", "b": 1, "a": [1.5, 2.0, -0.0, None, True, {"y": 1, "x": 9e15}]}
    service.saved["p 1"] = [{}, data]
    ran = duostore("get", "proposal", "p 1", "--tenant", "t", "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    printed = ran.stdout_bytes.decode()
    assert json.loads(printed) == {
        "key": {"tenant": "t", "kind": "proposal", "id": "p 1"},
        "version": 2,
        "data": data,
        "create_time": "2026-01-02T03:04:05Z",
        "update_time": "2026-01-02T03:04:05.678901Z",
        "served_from": "aurora",
    }
    assert list(json.loads(printed)["data"]) == ["a", "b", "title"]
    assert '\n  "version": 2,' in printed
    assert '"title": "Zoë → €"' in printed
    numbers = re.sub(r"\s", "", printed)
    assert '"a":[1.5,2,0,null,true,{"x":9000000000000000,"y":1}],"b":1' in numbers
    [asked] = service.asked
    assert asked.request.WhichOneof("freshness") is None


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        (["--strong"], "strong", True),
        (["--min-version", "7"], "min_version", 7),
        (["--min-version", "0"], "min_version", 0),
    ],
)
def test_get_asks_for_the_freshness_that_is_told(
    service: RecordingService, served: Served, option: list[str], field: str, value: object
) -> None:
    service.saved["p1"] = [{}]
    assert duostore("get", "proposal", "p1", *option, DUOSTORE_TARGET=served.address).exit_code == 0
    [asked] = service.asked
    assert asked.request.WhichOneof("freshness") == field
    assert getattr(asked.request, field) == value


def test_save_prints_what_became_of_it(service: RecordingService, served: Served) -> None:
    service.projection = entity_pb2.PROJECTION_PENDING
    text = '{"title": "Zoë", "price": 19.99, "count": 9007199254740991}'
    ran = duostore("save", "proposal", "p1", "--data", text, "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == {
        "key": {"tenant": "", "kind": "proposal", "id": "p1"},
        "version": 1,
        "update_time": "2026-01-02T03:04:05Z",
        "projection": "pending",
        "replayed": False,
    }
    assert service.saved == {"p1": [json.loads(text)]}
    assert service.asked[0].request.WhichOneof("precondition") is None


def test_save_reads_a_file_or_standard_input(
    service: RecordingService, served: Served, tmp_path: Path
) -> None:
    path = tmp_path / "document.json"
    path.write_text('{"from": "Zoë"}', encoding="utf-8")
    target = ("--target", served.address)
    assert duostore("save", "proposal", "p1", "--file", str(path), *target).exit_code == 0
    ran = duostore("save", "proposal", "p1", "-", *target, stdin='{"from": "stdin"}')
    assert ran.exit_code == 0
    assert service.saved == {"p1": [{"from": "Zoë"}, {"from": "stdin"}]}


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [(["--if-version", "3"], "if_version", 3), (["--if-absent"], "if_absent", True)],
)
def test_save_sends_its_precondition(
    service: RecordingService, served: Served, option: list[str], field: str, value: object
) -> None:
    ran = duostore("save", "k", "i", "--data", "{}", *option, "--target", served.address)
    assert ran.exit_code == 0
    [asked] = service.asked
    assert asked.request.WhichOneof("precondition") == field
    assert getattr(asked.request, field) == value
    assert asked.request.HasField("data"), "an empty document is a document, too"


def test_a_document_that_would_be_changed_is_not_sent(
    service: RecordingService, served: Served
) -> None:
    text = '{"a": {"n": 12345678901234567890}, "b": [0.1234567890123456789, NaN]}'
    ran = duostore("save", "k", "i", "--data", text, "--target", served.address)
    assert ran.exit_code == 2
    assert ran.stdout == ""
    lines = ran.stderr.splitlines()
    assert lines[0] == "the document cannot be saved as it is; nothing was sent"
    assert lines[1].startswith("  data.a.n: is 12345678901234567890, a number of 2^53 or")
    assert lines[2].startswith("  data.b[0]: is 0.1234567890123456789, which a double would turn")
    assert lines[3:] == ["  data.b[1]: is NaN; JSON has no such value"]
    assert service.asked == []


def test_delete_prints_the_version_that_it_is(service: RecordingService, served: Served) -> None:
    ran = duostore("delete", "k", "i", "--if-version", "8", "--target", served.address)
    assert ran.exit_code == 0
    printed = json.loads(ran.stdout)
    assert (printed["version"], printed["projection"]) == (9, "done")
    [asked] = service.asked
    assert (asked.method, asked.request.if_version) == ("Delete", 8)
    duostore("delete", "k", "i", "--target", served.address)
    assert service.asked[1].request.WhichOneof("precondition") is None


@pytest.mark.parametrize("command", [["save", "k", "i", "--data", "{}"], ["delete", "k", "i"]])
def test_a_write_with_an_idempotency_key_is_just_repeated(
    service: RecordingService, served: Served, command: list[str]
) -> None:
    late = status(grpc.StatusCode.DEADLINE_EXCEEDED, "too late", "DEADLINE_EXCEEDED")
    service.failing = lambda _: late
    ran = duostore(*command, "--idempotency-key", "job 7", "--target", served.address)
    assert ran.exit_code == 3
    assert ran.stderr.splitlines()[1] == (
        "It may or may not have been applied: repeat the command with --idempotency-key 'job 7', "
        "and it is applied once."
    )
    assert [asked.request.idempotency_key for asked in service.asked] == ["job 7"]


@pytest.mark.parametrize("command", [["save", "k", "i", "--data", "{}"], ["delete", "k", "i"]])
def test_a_write_without_an_idempotency_key_is_given_a_new_one(
    service: RecordingService, served: Served, command: list[str]
) -> None:
    for _ in range(2):
        assert duostore(*command, "--target", served.address).exit_code == 0
    first, second = (asked.request.idempotency_key for asked in service.asked)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


def test_every_call_has_a_request_id_of_its_own(service: RecordingService, served: Served) -> None:
    for _ in range(2):
        duostore("delete", "k", "i", "--target", served.address)
    first, second = (asked.metadata["x-request-id"] for asked in service.asked)
    assert re.fullmatch("[0-9a-f]{32}", str(first))
    assert first != second


RETRY = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=3))
REPEAT = (
    "It may or may not have been applied: repeat the command with --idempotency-key KEY, and it is "
    "applied once."
)


@pytest.mark.parametrize(
    ("answer", "code", "lines"),
    [
        (
            status(grpc.StatusCode.NOT_FOUND, "it does not exist", "ENTITY_NOT_FOUND"),
            1,
            [
                "it does not exist (ENTITY_NOT_FOUND, request id r-1)",
                "Check --tenant, the kind and the id.",
            ],
        ),
        (
            status(grpc.StatusCode.ALREADY_EXISTS, "the entity exists", "ENTITY_EXISTS"),
            1,
            [
                "the entity exists (ENTITY_EXISTS, request id r-1)",
                "To replace it leave --if-absent out, or name its version with --if-version.",
            ],
        ),
        (
            status(grpc.StatusCode.ABORTED, "expected 3, but it has 4", "VERSION_MISMATCH"),
            1,
            [
                "expected 3, but it has 4 (VERSION_MISMATCH, request id r-1)",
                "Read it again and decide anew.",
            ],
        ),
        (
            status(grpc.StatusCode.FAILED_PRECONDITION, "wrong token?", "MIN_VERSION_NOT_REACHED"),
            1,
            ["wrong token? (MIN_VERSION_NOT_REACHED, request id r-1)"],
        ),
        (
            invalid(key__kind="is not configured", data__price="must be a number"),
            2,
            [
                "the request was refused (INVALID_REQUEST, request id r-1)",
                "  key.kind: is not configured",
                "  data.price: must be a number",
            ],
        ),
        (
            status(grpc.StatusCode.UNAVAILABLE, "aurora is down", "STORE_UNAVAILABLE", RETRY),
            3,
            ["aurora is down (STORE_UNAVAILABLE, request id r-1)", "Try again in 3 s."],
        ),
        (
            status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much work", "OVERLOADED", RETRY),
            3,
            ["too much work (OVERLOADED, request id r-1)", "Try again in 3 s."],
        ),
        (
            status(grpc.StatusCode.UNKNOWN, "answer lost", "WRITE_OUTCOME_UNKNOWN"),
            3,
            ["answer lost (WRITE_OUTCOME_UNKNOWN, request id r-1)", REPEAT],
        ),
        (
            status(grpc.StatusCode.ABORTED, "under way", "DUPLICATE_IN_PROGRESS", RETRY),
            3,
            [
                "under way (DUPLICATE_IN_PROGRESS, request id r-1)",
                "Repeat the command as it is, in 3 s.",
            ],
        ),
        (
            status(grpc.StatusCode.INVALID_ARGUMENT, "used before", "IDEMPOTENCY_KEY_REUSED"),
            2,
            [
                "used before (IDEMPOTENCY_KEY_REUSED, request id r-1)",
                "Give each intention an --idempotency-key of its own.",
            ],
        ),
        (
            status(grpc.StatusCode.NOT_FOUND, "no snapshot 4", "SNAPSHOT_NOT_FOUND"),
            1,
            [
                "no snapshot 4 (SNAPSHOT_NOT_FOUND, request id r-1)",
                "`duostore snapshots` lists those that there are.",
            ],
        ),
        (
            status(grpc.StatusCode.DEADLINE_EXCEEDED, "too late", "DEADLINE_EXCEEDED"),
            3,
            ["too late (DEADLINE_EXCEEDED, request id r-1)", REPEAT],
        ),
        (
            status(grpc.StatusCode.INTERNAL, "a fault", "INTERNAL"),
            1,
            ["a fault (INTERNAL, request id r-1)", REPEAT],
        ),
        (
            status(grpc.StatusCode.UNAVAILABLE, "something newer", "NEW_REASON"),
            3,
            ["something newer (UNAVAILABLE, request id r-1)", REPEAT],
        ),
        (
            status(grpc.StatusCode.PERMISSION_DENIED, "who are you"),
            1,
            ["ADDRESS: who are you (PERMISSION_DENIED)"],
        ),
        (
            status(grpc.StatusCode.UNAVAILABLE, "connection reset"),
            3,
            ["ADDRESS: connection reset (UNAVAILABLE)", REPEAT],
        ),
        (
            status(grpc.StatusCode.UNIMPLEMENTED, "what"),
            1,
            [
                "ADDRESS: what (UNIMPLEMENTED)",
                "Is it a Duostore that answers there, and as new as this program?",
            ],
        ),
    ],
)
def test_a_failed_write_says_what_happened_and_what_to_do(
    service: RecordingService,
    served: Served,
    answer: status_pb2.Status,
    code: int,
    lines: list[str],
) -> None:
    service.failing = lambda _: answer
    ran = duostore("save", "k", "i", "--data", "{}", "--target", served.address)
    [asked] = service.asked
    known = {"ADDRESS": served.address, "KEY": asked.request.idempotency_key}
    expected = [re.sub(r"\bADDRESS\b|\bKEY\b", lambda name: known[name[0]], s) for s in lines]
    assert ran.stderr.splitlines() == expected
    assert (ran.exit_code, ran.stdout) == (code, "")


INTERRUPTED = "interrupted: it may or may not have been applied"
KEYED = f"{INTERRUPTED}: repeat the command with --idempotency-key KEY, and it is applied once.\n"


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("4", "It was deleted, as version 4; `duostore save` creates it again."),
        ("0", "Check --tenant, the kind and the id."),
        ("x", "Check --tenant, the kind and the id."),
    ],
)
@pytest.mark.parametrize("command", [["get"], ["delete"]])
def test_what_was_deleted_is_said_to_be(
    service: RecordingService, served: Served, command: list[str], version: str, advice: str
) -> None:
    info = error_details_pb2.ErrorInfo(
        reason="ENTITY_NOT_FOUND", domain="duostore", metadata={"version": version}
    )
    absent = status(grpc.StatusCode.NOT_FOUND, "not there", "", info)
    service.failing = lambda _: absent
    ran = duostore(*command, "k", "i", "--target", served.address)
    assert (ran.exit_code, ran.stderr.splitlines()[1]) == (1, advice)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["get", "k", "i"], "interrupted\n"),
        (["snapshots", "k", "i"], "interrupted\n"),
        (["save", "k", "i", "--data", "{}"], KEYED),
        (["delete", "k", "i", "--idempotency-key", "a b"], KEYED),
        (["publish", "k", "i"], KEYED),
        (["transact", "FILE"], KEYED),
        (
            ["snapshot", "k", "i", "--data", "{}"],
            f"{INTERRUPTED}: repeat the command; to be stored twice does no harm.\n",
        ),
    ],
)
def test_an_interrupted_call_says_what_may_have_become_of_it(
    service: RecordingService, served: Served, tmp_path: Path, command: list[str], told: str
) -> None:
    path = tmp_path / "mutations"
    path.write_text('{"delete": {"key": {"kind": "k", "id": "i"}}}')
    command = [str(path) if word == "FILE" else word for word in command]
    released = threading.Event()

    def wait(_: Any) -> None:
        released.wait(60)

    service.failing = wait
    try:
        with start(*command, "--timeout", "50", "--target", served.address) as ran:
            eventually(lambda: service.asked, within=30, what="it has called")
            ran.send_signal(signal.SIGINT)
            out, err = ran.communicate(timeout=30)
    finally:
        released.set()
    key = getattr(service.asked[0].request, "idempotency_key", "")
    assert (ran.returncode, out, err) == (130, "", told.replace("KEY", shlex.quote(key)))


@pytest.mark.parametrize(
    "command",
    [
        ["get", "k", "i"],
        ["save", "k", "i", "--data", "{}"],
        ["delete", "k", "i"],
        ["transact", "-"],
        ["snapshot", "k", "i", "--data", "{}"],
        ["get-snapshot", "k", "i"],
        ["snapshots", "k", "i"],
        ["publish", "k", "i"],
    ],
)
def test_who_calls_goes_with_every_call(
    service: RecordingService, served: Served, command: list[str]
) -> None:
    stdin = '{"delete": {"key": {"kind": "k", "id": "i"}}}'
    target = ("--target", served.address)
    duostore(*command, *target, "--caller", "ann@example.com", stdin=stdin)
    duostore(*command, *target, stdin=stdin, DUOSTORE_CALLER="jobs/billing:7")
    duostore(*command, *target, stdin=stdin, DUOSTORE_CALLER="")
    assert [asked.metadata.get("x-caller") for asked in service.asked] == [
        "ann@example.com",
        "jobs/billing:7",
        None,
    ]
    ran = duostore(*command, *target, "--caller", "Zoë", stdin=stdin)
    assert ran.exit_code == 2
    assert "--caller may hold" in ran.stderr
    assert len(service.asked) == 3


def test_a_failed_read_is_just_tried_again(service: RecordingService, served: Served) -> None:
    late = status(grpc.StatusCode.DEADLINE_EXCEEDED, "too late", "DEADLINE_EXCEEDED")
    service.failing = lambda _: late
    ran = duostore("get", "k", "i", "--target", served.address)
    assert ran.exit_code == 3
    assert ran.stderr.splitlines()[1] == "Try again; --timeout waits longer."


def test_a_service_that_does_not_answer_is_not_waited_for(
    service: RecordingService, served: Served
) -> None:
    released = threading.Event()

    def wait(_: Any) -> None:
        released.wait(30)

    service.failing = wait
    try:
        ran = duostore("get", "k", "i", "--timeout", "0.2", "--target", served.address)
    finally:
        released.set()
    assert ran.exit_code == 3
    assert ran.stderr.startswith(f"{served.address}: no answer came in time (DEADLINE_EXCEEDED)")


def test_a_service_that_is_not_there_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    for command in (["get", "k", "i"], ["save", "k", "i", "--data", "{}"], ["delete", "k", "i"]):
        ran = duostore(*command, "--target", address)
        assert ran.exit_code == 3
        assert ran.stderr.startswith(f"{address}: failed to connect")
        assert "Connection refused (UNAVAILABLE)" in ran.stderr
        assert ran.stderr.splitlines()[1].startswith("Does the service run there?")


def test_a_document_larger_than_any_message_is_bad_input(service: RecordingService) -> None:
    with serving(service, max_message_bytes=1000) as served:
        text = json.dumps({"text": "x" * 2000})
        ran = duostore("save", "k", "i", "--data", text, "--target", served.address)
    assert ran.exit_code == 2
    assert "larger than max" in ran.stderr


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["get", "k"], "Missing argument 'ID'"),
        (["get", "k", "i", "--strong", "--min-version", "1"], "exclude each other"),
        (["get", "k", "i", "--min-version", "-1"], "--min-version"),
        (["get", "k", "i", "--target", "nowhere"], "is not HOST:PORT"),
        (["get", "k", "i", "--ca-file", "x"], "with --tls only"),
        (["get", "k", "i\udcff"], "not UTF-8"),
        (["save", "k", "i"], "give the document once"),
        (["save", "k", "i", "-", "--data", "{}"], "give the document once"),
        (["save", "k", "i", "x.json"], "only - can stand here"),
        (["save", "k", "i", "--file", "/nonexistent"], "cannot be read"),
        (["save", "k", "i", "--data", "{}", "--if-version", "0"], "--if-version"),
        (
            ["save", "k", "i", "--data", "{}", "--if-version", "1", "--if-absent"],
            "exclude each other",
        ),
    ],
)
def test_a_bad_command_line_is_refused(command: list[str], problem: str) -> None:
    ran = duostore(*command)
    assert ran.exit_code == 2
    assert problem in " ".join(re.sub("[│╭╮╰╯─]", " ", ran.stderr).split())


def test_health_tells_of_the_whole_and_of_each_store(served: Served) -> None:
    for name, is_healthy in (("", True), ("aurora", True), ("dynamodb", False), ("cache", True)):
        served.health.set(name, HEALTHY if is_healthy else UNHEALTHY)
    ran = duostore("health", "--target", served.address)
    assert ran.exit_code == 0
    assert ran.stdout.splitlines() == [
        "duostore  SERVING",
        "aurora    SERVING",
        "dynamodb  NOT_SERVING",
        "cache     SERVING",
    ]


def test_health_fails_if_the_whole_does_not_serve(served: Served) -> None:
    served.health.set("", UNHEALTHY)
    served.health.set("aurora", HEALTHY)
    ran = duostore("health", "--target", served.address)
    assert ran.exit_code == 1
    assert ran.stdout.splitlines() == [
        "duostore  NOT_SERVING",
        "aurora    SERVING",
        "dynamodb  SERVICE_UNKNOWN",
        "cache     SERVICE_UNKNOWN",
    ]


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("aurora", 0, "aurora  SERVING"),
        ("cache", 1, "cache  NOT_SERVING"),
        ("nobody", 1, "nobody  SERVICE_UNKNOWN"),
    ],
)
def test_health_can_be_asked_of_one_alone(served: Served, name: str, code: int, line: str) -> None:
    served.health.set("aurora", HEALTHY)
    served.health.set("cache", UNHEALTHY)
    ran = duostore("health", "--service", name, "--target", served.address)
    assert (ran.exit_code, ran.stdout) == (code, f"{line}\n")


def test_health_of_a_service_that_is_not_there_fails_with_one(tmp_path: Path) -> None:
    ran = duostore("health", "--target", f"127.0.0.1:{free_port()}")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "failed to connect" in ran.stderr
    missing = str(tmp_path / "ca.pem")
    ran = duostore("health", "--tls", "--ca-file", missing)
    assert (ran.exit_code, ran.stderr) == (
        1,
        f"{missing} cannot be read: No such file or directory\n",
    )


def test_a_look_at_the_health_can_be_interrupted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with start("health", "--timeout", "50", "--target", address) as ran:
            called, _ = silent.accept()
            with called:
                ran.send_signal(signal.SIGINT)
                assert ran.communicate(timeout=30) == ("", "interrupted\n")
        assert ran.returncode == 130


class _Asked(health.HealthServicer):
    """Healthy, and remembers who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[str | bytes | None] = []

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.callers.append(dict(context.invocation_metadata()).get("x-caller"))
        return super().Check(request, context)


def test_who_calls_goes_with_a_look_at_the_health() -> None:
    asked = _Asked()
    asked.set("", HEALTHY)
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(asked, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            ran = duostore("health", "--service", "", "--target", address, "--caller", "probe")
        finally:
            server.stop(None).wait()
    assert (ran.exit_code, asked.callers) == (0, ["probe"])


def test_a_proxy_is_not_asked_for_a_service_on_this_machine(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    served.health.set("", HEALTHY)
    assert duostore("health", "--service", "", "--target", served.address).exit_code == 0


def test_help_does_not_wait_for_grpc() -> None:
    program = """
import sys
from tests.support.client_commands import app
try:
    app(["load", "--help"])
except SystemExit:
    assert "grpc" not in sys.modules and "google.protobuf" not in sys.modules, "imported"
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "FILE.jsonl.rejected" in ran.stdout
