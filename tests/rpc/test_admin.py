"""What each RPC of Admin promises, over real stores."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import structlog
from structlog.testing import capture_logs

from duostore.v1 import admin_pb2 as pb
from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.keys import EntityKey
from duostore_server.rpc.server import ADMIN
from tests.rpc.test_data_access import refused
from tests.support.administrator import BACKFILL, Administrator
from tests.support.service import CALL_SECONDS, Caller, struct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.in_process import InProcess

# Two by promise, and as long again on a busy machine.
IN_FORCE_SECONDS = 4.0
WRITE, READ = "projection_write.label.2", "projection_read.label.2"


@pytest.fixture
def labels(channel: grpc.Channel) -> Caller:
    """Somebody who calls for a kind with a second projection version."""
    return Caller(channel, kind="label")


def plant_newer(api: InProcess, key: EntityKey) -> None:
    """Put a projection of a version that Aurora does not have."""
    deadline = Deadline.after(CALL_SECONDS)
    held = api.stores.projections.read((key,), deadline)[key]
    planted = replace(held, version=held.version + 10)
    assert api.stores.projections.put(key, planted, deadline) == planted


# Explain


def test_a_key_is_explained_store_by_store_and_nothing_is_changed(
    admin: Administrator, notes: Caller, id_: str
) -> None:
    nothing = admin.explain("note", id_)
    states = (nothing.aurora, nothing.dynamodb, nothing.cache)
    assert {state.holding for state in states} == {pb.TierState.HOLDING_NOTHING}
    notes.save(id_, {"n": 1})
    cold = admin.explain("note", id_)
    assert (cold.aurora.holding, cold.aurora.version) == (pb.TierState.HOLDING_VALUE, 1)
    assert (cold.dynamodb.holding, cold.dynamodb.version) == (pb.TierState.HOLDING_VALUE, 1)
    assert list(cold.dynamodb.projection_versions) == [1]
    assert cold.cache.holding == pb.TierState.HOLDING_NOTHING
    assert cold.aurora.stored_bytes == len('{"n":1}')
    assert datetime.now(UTC) - cold.aurora.time.ToDatetime(UTC) < timedelta(minutes=5)
    # It filled nothing, and leased nothing.
    assert admin.explain("note", id_).cache.holding == pb.TierState.HOLDING_NOTHING
    notes.get(id_)
    warm = admin.explain("note", id_)
    assert (warm.cache.holding, warm.cache.version) == (pb.TierState.HOLDING_VALUE, 1)
    assert warm.cache.HasField("expire_time")
    assert warm.drifts == []
    assert warm.verdict
    assert notes.get(id_).receipt.served_from == entity_pb2.STORE_CACHE


def test_what_does_not_agree_is_explained(
    api: InProcess, admin: Administrator, notes: Caller, id_: str
) -> None:
    notes.save(id_, {"n": 1})
    plant_newer(api, EntityKey("", "note", id_))
    explained = admin.explain("note", id_)
    [drift] = explained.drifts
    assert drift.kind == pb.DRIFT_KIND_PROJECTION_NEWER
    assert (drift.expected_version, drift.found_version) == (1, 11)
    assert "DynamoDB" in explained.verdict
    assert [found.kind for found in admin.check("note", repair=True)[0]] == [drift.kind]


def test_what_can_be_no_key_is_not_explained(admin: Administrator) -> None:
    with refused() as refusal:
        admin.explain("nothing", "")
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.fields) == {"key.id", "key.kind"}


# CheckConsistency


def test_drift_is_found_and_repaired_and_then_there_is_none(
    api: InProcess, admin: Administrator, notes: Caller, id_: str
) -> None:
    notes.save(id_, {"n": 1})
    plant_newer(api, EntityKey("", "note", id_))
    found, summary = admin.check("note")
    assert [(drift.key.id, drift.kind, drift.repaired) for drift in found] == [
        (id_, pb.DRIFT_KIND_PROJECTION_NEWER, False)
    ]
    assert (summary.done, summary.drift_count, summary.repaired_count) == (True, 1, 0)
    with capture_logs((structlog.contextvars.merge_contextvars,)) as logs:
        mended, summary = admin.check("note", repair=True)
    assert [(drift.key.id, drift.repaired, drift.repair_error) for drift in mended] == [
        (id_, True, "")
    ]
    assert (summary.done, summary.drift_count, summary.repaired_count) == (True, 1, 1)
    [line] = [line for line in logs if line["event"] == "drift repaired"]
    assert (line["repaired"], line["caller"], line["method"]) == (1, "ops", "CheckConsistency")
    found, summary = admin.check()
    assert (found, summary.drift_count, summary.undecided_count) == ([], 0, 0)
    assert summary.checked > 0
    # Nobody is told what is not there any more.
    assert notes.get(id_).entity.version == 1


def test_some_may_be_checked(admin: Administrator, notes: Caller, id_: str) -> None:
    for number in range(5):
        notes.save(f"{id_}-{number}", {"n": number})
    found, summary = admin.check("note", sample=3)
    assert found == []
    assert 3 <= summary.checked <= 6


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"kind": "nothing"}, "kind"),
        ({"kind": "state"}, "kind"),
        ({"sample": 0}, "sample"),
        ({"sample": 1_000_001}, "sample"),
        ({"all": False}, "all"),
    ],
    ids=str,
)
def test_a_check_that_cannot_be_is_refused(
    admin: Administrator, asked: dict[str, Any], field: str
) -> None:
    with refused() as refusal:
        admin.check(**asked)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.fields) == {field}


# Backfill


def test_a_backfill_is_watched_until_it_has_ended(
    admin: Administrator, labels: Caller, id_: str
) -> None:
    for number in range(10):
        labels.save(f"{id_}-{number}", {"name": str(number)})
    with refused() as none_yet:
        admin.backfill("label", BACKFILL.ACTION_SHOW)
    assert (none_yet.code, none_yet.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "BACKFILL_NOT_FOUND",
    )
    assert none_yet.metadata == {"kind": "label"}
    admin.set_flag(WRITE, "both")
    eventually(
        lambda: admin.flags()[WRITE].value.string_value == "both",
        within=IN_FORCE_SECONDS,
        what="it is in force",
    )
    with capture_logs((structlog.contextvars.merge_contextvars,)) as logs:
        told = admin.backfill("label", BACKFILL.ACTION_RUN, parallel=2)
    assert told[0].state in {pb.BackfillResponse.STATE_RUNNING, pb.BackfillResponse.STATE_DONE}
    last = told[-1]
    assert last.state == pb.BackfillResponse.STATE_DONE
    assert (last.done_count, last.projected_count, last.failed_count) == (10, 10, 0)
    assert last.part_count == last.parts_done
    [line] = [line for line in logs if line["event"] == "backfill set"]
    assert (line["kind"], line["caller"]) == ("label", "ops")
    assert list(admin.explain("label", f"{id_}-3").dynamodb.projection_versions) == [1, 2]
    [shown] = admin.backfill("label", BACKFILL.ACTION_SHOW)
    assert shown.done_count == 10
    with refused() as over:
        admin.backfill("label", BACKFILL.ACTION_CANCEL)
    assert over.reason == "BACKFILL_NOT_FOUND"
    admin.set_flag(WRITE, None)


def test_who_stops_watching_is_gone_within_a_second_and_the_backfill_goes_on(
    api: InProcess, admin: Administrator, notes: Caller, id_: str
) -> None:
    def gone() -> float:
        name = "duostore_rpc_duration_seconds_count"
        return api.metric(name, method="Backfill", code="DEADLINE_EXCEEDED")

    for number in range(20):
        notes.save(f"{id_}-{number}", {"n": number})
    before = gone()
    # So slowly that it does not end before it is ended.
    stream = admin.watching("note", rate=1, parallel=1)
    began = time.monotonic()
    states = [next(stream).state for _ in range(4)]
    assert states == [pb.BackfillResponse.STATE_RUNNING] * 4
    assert time.monotonic() - began < 4
    stream.cancel()
    began = time.monotonic()
    eventually(lambda: gone() > before, within=5, what="it has ended")
    assert time.monotonic() - began < 1.5
    for action, state in (
        (BACKFILL.ACTION_SHOW, pb.BackfillResponse.STATE_RUNNING),
        (BACKFILL.ACTION_PAUSE, pb.BackfillResponse.STATE_PAUSED),
        (BACKFILL.ACTION_START, pb.BackfillResponse.STATE_RUNNING),
    ):
        [told] = admin.backfill("note", action)
        assert told.state == state
    assert [found.kind for found in admin.status().backfills] == ["note"]
    [told] = admin.backfill("note", BACKFILL.ACTION_CANCEL)
    assert told.state == pb.BackfillResponse.STATE_CANCELLED
    assert list(admin.status().backfills) == []


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"kind": "nothing"}, "kind"),
        ({"kind": "state"}, "kind"),
        ({"rate": -1}, "rate"),
        ({"parallel": 65}, "parallel"),
        ({"action": 99}, "action"),
    ],
    ids=str,
)
def test_a_backfill_that_cannot_be_is_refused(
    admin: Administrator, asked: dict[str, Any], field: str
) -> None:
    with refused() as refusal:
        admin.backfill(**{"kind": "note", "action": BACKFILL.ACTION_START, **asked})
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.fields) == {field}


# Read-only mode


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except grpc.RpcError:
        return True
    return False


@pytest.mark.parametrize("kind", ["note", ""])
def test_writes_are_refused_for_a_while_and_all_else_goes_on(
    admin: Administrator, notes: Caller, proposals: Caller, id_: str, kind: str
) -> None:
    notes.save(id_, {"n": 1})
    with capture_logs((structlog.contextvars.merge_contextvars,)) as logs:
        [told] = admin.set_read_only(kind, "the tables are moved")
    assert (told.kind, told.reason, told.caller) == (kind, "the tables are moved", "ops")
    # As it is set, whether or not it is in force here by now.
    assert [found.kind for found in admin.status().read_only] == [kind]
    [line] = [line for line in logs if line["event"] == "read-only mode set"]
    assert (line["reason"], line["caller"]) == ("the tables are moved", "ops")
    try:
        eventually(
            lambda: is_refused(lambda: notes.save(id_, {"n": 2})),
            within=IN_FORCE_SECONDS,
            what="it is in force",
        )
        for write in (
            lambda: notes.save(id_, {"n": 2}),
            lambda: notes.delete(id_),
            lambda: notes.transact(
                data_access_pb2.Mutation(
                    save=data_access_pb2.SaveMutation(key=notes.key(id_), data=struct({}))
                )
            ),
        ):
            with refused() as refusal:
                write()
            assert (refusal.code, refusal.reason) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "READ_ONLY",
            )
            assert refusal.metadata == {"kind": kind}
            assert refusal.retries
            assert "the tables are moved" in refusal.message
        assert notes.get(id_).entity.version <= notes.get(id_, strong=True).entity.version
        assert notes.snapshot(id_, {"n": 3}).sequence == 1
        assert is_refused(lambda: proposals.save(id_, {"title": "t"})) is (kind == "")
        assert [found.kind for found in admin.status().read_only] == [kind]
    finally:
        assert admin.set_read_only(kind, None) == []
    eventually(
        lambda: not is_refused(lambda: notes.save(id_, {"n": 4})),
        within=IN_FORCE_SECONDS,
        what="writes are taken",
    )


@pytest.mark.parametrize(
    ("kind", "reason", "fields"),
    [("nothing", "", {"kind", "reason"}), ("", "r" * 201, {"reason"}), ("", "a\nb", {"reason"})],
)
def test_read_only_mode_needs_a_reason_and_a_kind_that_there_is(
    admin: Administrator, kind: str, reason: str, fields: set[str]
) -> None:
    with refused() as refusal:
        admin.set_read_only(kind, reason)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.fields) == fields


# Flags


def test_flags_are_listed_set_and_forgotten(admin: Administrator) -> None:
    assert {WRITE, READ} <= set(admin.flags())
    before = admin.flags()[READ]
    assert (before.value.number_value, before.set, before.used) == (0, False, True)
    with capture_logs((structlog.contextvars.merge_contextvars,)) as logs:
        flag = admin.set_flag(READ, 25)
    assert (flag.value.number_value, flag.default_value.number_value) == (25, 0)
    assert (flag.set, flag.caller) == (True, "ops")
    [line] = [line for line in logs if line["event"] == "flag set"]
    assert (line["flag"], line["value"], line["caller"]) == (READ, 25, "ops")
    eventually(
        lambda: admin.flags()[READ].value.number_value == 25,
        within=IN_FORCE_SECONDS,
        what="it is in force",
    )
    forgotten = admin.set_flag(READ, None)
    assert (forgotten.value.number_value, forgotten.set) == (0, False)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        (READ, 101, "value"),
        (READ, 2.5, "value"),
        (READ, "all", "value"),
        (WRITE, "neither", "value"),
        ("projection_read.label.3", 1, "name"),
        ("projection_read.label.3", None, "name"),
    ],
)
def test_a_flag_is_only_what_it_may_be(
    admin: Administrator, name: str, value: str | float | None, field: str
) -> None:
    with refused() as refusal:
        admin.set_flag(name, value)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refusal.fields) == {field}


# GetStatus


def test_the_status_says_how_the_service_is(admin: Administrator, notes: Caller, id_: str) -> None:
    notes.save(id_, {"n": 1})
    eventually(
        lambda: all(store.up for store in admin.status().stores), within=10, what="all are found up"
    )
    status = admin.status()
    assert [store.store for store in status.stores] == [
        entity_pb2.STORE_AURORA,
        entity_pb2.STORE_DYNAMODB,
        entity_pb2.STORE_CACHE,
    ]
    assert status.release
    assert datetime.now(UTC) - status.start_time.ToDatetime(UTC) < timedelta(minutes=10)
    assert status.HasField("projection_lag")
    assert list(status.read_only) == []
    eventually(lambda: admin.status().outbox_depth == 0, within=10, what="all is projected")


# Permission


@pytest.fixture(
    params=[
        (None, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
        ("guess-guess-guess-guess", grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    ],
    ids=["nobody", "another"],
)
def other(
    channel: grpc.Channel, request: pytest.FixtureRequest
) -> tuple[Administrator, grpc.StatusCode, str]:
    """Somebody who may not operate the service, and how that is told."""
    token, code, reason = request.param
    return Administrator(channel, token=token, caller="ops"), code, reason


def calls_of(stranger: Administrator) -> Iterator[Callable[[], object]]:
    """Yield one call for each RPC."""
    yield lambda: stranger.explain("note", "a")
    yield stranger.check
    yield lambda: stranger.backfill("note", BACKFILL.ACTION_START)
    yield lambda: stranger.set_read_only("", "a reason")
    yield stranger.flags
    yield lambda: stranger.set_flag(READ, 100)
    yield stranger.status


def test_who_may_not_call_changes_nothing_and_learns_nothing(
    other: tuple[Administrator, grpc.StatusCode, str],
    admin: Administrator,
    api: InProcess,
) -> None:
    stranger, code, reason = other
    calls = list(calls_of(stranger))
    assert len(calls) == len(ADMIN.methods)
    for call in calls:
        with refused() as refusal:
            call()
        assert (refusal.code, refusal.reason) == (code, reason)
        assert "guess" not in refusal.message
    assert not admin.flags()[READ].set
    assert list(admin.status().read_only) == []
    count = "duostore_rpc_duration_seconds_count"
    for method in ADMIN.methods:
        assert api.metric(count, method=method.name, code=code.name) == 1
