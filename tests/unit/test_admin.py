"""What the servicer of Admin does with a request, and what the log says of it."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.struct_pb2 import Value
from structlog.testing import capture_logs

from duostore.v1 import admin_pb2 as pb
from duostore_server.domain.backfills import Backfill, BackfillState
from duostore_server.domain.controls import FlagState, ReadOnly
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.drift import CheckProgress, Drift, Finding, FoundDrift
from duostore_server.domain.errors import (
    BackfillNotFoundError,
    InvalidRequestError,
    StoreUnavailableError,
)
from duostore_server.domain.errors import Store as DomainStore
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Origin
from duostore_server.rpc.admin import Admin
from duostore_server.rpc.chain import Call

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
CALL = Call(Deadline.after(60), Origin("ops", "request-1"))
BACKFILL = Backfill(
    id=1,
    kind="note",
    state=BackfillState.RUNNING,
    done=0,
    projected=0,
    failed=0,
    estimated_total=100,
    parts=4,
    parts_done=0,
    rate=50,
    caller="ops",
    start_time=NOW,
    update_time=NOW,
)
FOUND = FoundDrift(Finding(EntityKey("", "note", "a"), Drift.PROJECTION_NEWER, 1, 2), repaired=True)
STEPS = (
    CheckProgress(0, 10, (), 0, 0, 0),
    CheckProgress(5, 10, (FOUND,), 1, 1, 0),
    CheckProgress(10, 10, (), 1, 1, 0, done=True),
)
ACTIONS = pb.BackfillRequest


class UseCases:
    """All use cases of Admin; notes what each is asked, and raises ``error`` if it has one."""

    provider = "duostore"

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.closed = 0
        self.error: Exception | None = None

    def check(self, *args: Any, **kwargs: Any) -> Generator[CheckProgress, None, None]:
        self._note("check", args, kwargs)
        return self._steps(STEPS)

    def run(self, *args: Any, **kwargs: Any) -> Generator[tuple[Backfill, None], None, None]:
        self._note("run", args, kwargs)
        ended = replace(BACKFILL, done=100, state=BackfillState.DONE)
        return self._steps(((BACKFILL, None), (ended, None)))

    def start(self, *args: Any, **kwargs: Any) -> tuple[Backfill, None]:
        self._note("start", args, kwargs)
        return BACKFILL, None

    def show(self, *args: Any, **kwargs: Any) -> tuple[Backfill, None]:
        self._note("show", args, kwargs)
        return BACKFILL, None

    def pause(self, *args: Any, **kwargs: Any) -> tuple[Backfill, None]:
        self._note("pause", args, kwargs)
        return replace(BACKFILL, state=BackfillState.PAUSED), None

    def cancel(self, *args: Any, **kwargs: Any) -> tuple[Backfill, None]:
        self._note("cancel", args, kwargs)
        return replace(BACKFILL, state=BackfillState.CANCELLED), None

    def set_read_only(self, *args: Any, **kwargs: Any) -> Sequence[ReadOnly]:
        self._note("set_read_only", args, kwargs)
        return [ReadOnly("note", "a reason", "ops", NOW)]

    def set_flag(self, *args: Any, **kwargs: Any) -> FlagState:
        self._note("set_flag", args, kwargs)
        return FlagState(args[0], args[1], 0)

    def _steps(self, steps: Sequence[Any]) -> Generator[Any, None, None]:
        try:
            yield from steps
        finally:
            self.closed += 1

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.asked.append((name, args, kwargs))
        if self.error is not None:
            raise self.error


@pytest.fixture
def cases() -> UseCases:
    return UseCases()


@pytest.fixture
def admin(cases: UseCases) -> Any:
    every: Any = cases
    return Admin(
        explaining=every,
        checking=every,
        backfilling=every,
        controlling=every,
        reporting=every,
    )


def logged(entries: Sequence[Any]) -> list[dict[str, Any]]:
    assert {entry["log_level"] for entry in entries} <= {"info"}
    return [{k: v for k, v in entry.items() if k != "log_level"} for entry in entries]


def test_a_check_streams_what_was_found(admin: Any, cases: UseCases) -> None:
    request = pb.CheckConsistencyRequest(kind="note", sample=5)
    with capture_logs() as logs:
        raw = list(admin.CheckConsistency(request, CALL))
    assert cases.asked == [("check", ("note", 5, CALL.deadline), {"repair": False})]
    responses = [pb.CheckConsistencyResponse.FromString(each) for each in raw]
    assert [response.checked for response in responses] == [0, 5, 10]
    assert [len(response.drifts) for response in responses] == [0, 1, 0]
    assert [response.done for response in responses] == [False, False, True]
    # Who only looks changes nothing.
    assert logs == []


def test_what_was_repaired_is_logged_though_the_caller_goes(admin: Any, cases: UseCases) -> None:
    request = pb.CheckConsistencyRequest(all=True, repair=True)
    with capture_logs() as logs:
        stream = admin.CheckConsistency(request, CALL)
        next(stream)
        next(stream)
        stream.close()
    assert cases.asked == [("check", ("", None, CALL.deadline), {"repair": True})]
    assert cases.closed == 1
    assert logged(logs) == [
        {"event": "drift repaired", "drifts": 1, "repaired": 1, "complete": False}
    ]
    with capture_logs() as logs:
        list(admin.CheckConsistency(request, CALL))
    [line] = logged(logs)
    assert line["complete"] is True


def test_a_check_that_is_refused_is_no_repair(admin: Any, cases: UseCases) -> None:
    cases.error = InvalidRequestError([])
    with capture_logs() as logs, pytest.raises(InvalidRequestError):
        list(admin.CheckConsistency(pb.CheckConsistencyRequest(all=True, repair=True), CALL))
    with pytest.raises(InvalidRequestError):
        list(admin.CheckConsistency(pb.CheckConsistencyRequest(repair=True), CALL))
    assert logs == []
    assert len(cases.asked) == 1


START = {"rate": 50, "parallel": 3, "caller": "ops", "deadline": CALL.deadline}
MOVE = {"caller": "ops", "deadline": CALL.deadline}


@pytest.mark.parametrize(
    ("action", "asked", "state"),
    [
        (ACTIONS.ACTION_UNSPECIFIED, ("run", ("note",), START), "running"),
        (ACTIONS.ACTION_RUN, ("run", ("note",), START), "running"),
        (ACTIONS.ACTION_START, ("start", ("note",), START), "running"),
        (ACTIONS.ACTION_PAUSE, ("pause", ("note",), MOVE), "paused"),
        (ACTIONS.ACTION_CANCEL, ("cancel", ("note",), MOVE), "cancelled"),
        (ACTIONS.ACTION_SHOW, ("show", ("note", CALL.deadline), {}), None),
    ],
    ids=["unspecified", "run", "start", "pause", "cancel", "show"],
)
def test_each_action_of_a_backfill_is_done_and_logged_once_but_a_look(
    admin: Any,
    cases: UseCases,
    action: pb.BackfillRequest.Action.ValueType,
    asked: tuple[str, tuple[Any, ...], dict[str, Any]],
    state: str | None,
) -> None:
    request = pb.BackfillRequest(kind="note", action=action, rate=50, parallel=3)
    with capture_logs() as logs:
        raw = list(admin.Backfill(request, CALL))
    assert cases.asked == [asked]
    told = [pb.BackfillResponse.FromString(each) for each in raw]
    assert [each.done_count for each in told] == ([0, 100] if asked[0] == "run" else [0])
    expected = {"event": "backfill set", "kind": "note", "state": state, "rate": 50, "parts": 4}
    assert logged(logs) == ([] if state is None else [expected])


def test_an_action_that_is_not_known_is_refused(admin: Any, cases: UseCases) -> None:
    request = pb.BackfillRequest(kind="note", action=99)  # type: ignore[arg-type]  # of a newer client
    with pytest.raises(InvalidRequestError, match="is 99") as refused:
        list(admin.Backfill(request, CALL))
    assert [violation.field for violation in refused.value.violations] == ["action"]
    assert cases.asked == []


def test_who_stops_watching_a_backfill_leaves_nothing_open(admin: Any, cases: UseCases) -> None:
    stream = admin.Backfill(pb.BackfillRequest(kind="note"), CALL)
    next(stream)
    stream.close()
    assert cases.closed == 1


@pytest.mark.parametrize(
    ("read_only", "reason"), [(True, "a migration"), (False, None)], ids=["refused", "taken"]
)
def test_read_only_mode_is_set_and_logged(
    admin: Any, cases: UseCases, *, read_only: bool, reason: str | None
) -> None:
    request = pb.SetReadOnlyRequest(kind="note", read_only=read_only, reason="a migration")
    with capture_logs() as logs:
        response = admin.SetReadOnly(request, CALL)
    asked = {"read_only": read_only, "reason": "a migration", **MOVE}
    assert cases.asked == [("set_read_only", ("note",), asked)]
    assert [found.reason for found in response.read_only] == ["a reason"]
    assert logged(logs) == [
        {
            "event": "read-only mode set",
            "kind": "note",
            "read_only": read_only,
            "reason": reason,
        }
    ]


@pytest.mark.parametrize(("value", "given"), [(Value(number_value=25), 25), (None, None)])
def test_a_flag_is_set_and_logged(
    admin: Any, cases: UseCases, value: Value | None, given: int | None
) -> None:
    with capture_logs() as logs:
        response = admin.SetFlag(pb.SetFlagRequest(name="f", value=value), CALL)
    assert cases.asked == [("set_flag", ("f", given), MOVE)]
    assert response.flag.name == "f"
    assert logged(logs) == [{"event": "flag set", "flag": "f", "value": given}]


@pytest.mark.parametrize(
    "error", [StoreUnavailableError(DomainStore.AURORA), BackfillNotFoundError("note")]
)
def test_what_was_not_done_is_not_logged(admin: Any, cases: UseCases, error: Exception) -> None:
    cases.error = error
    with capture_logs() as logs:
        for call in (
            lambda: admin.SetReadOnly(pb.SetReadOnlyRequest(), CALL),
            lambda: admin.SetFlag(pb.SetFlagRequest(), CALL),
            lambda: list(admin.Backfill(pb.BackfillRequest(), CALL)),
        ):
            with pytest.raises(type(error)):
                call()
    assert logs == []
