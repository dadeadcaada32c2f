"""What those who operate the service are answered, and what they ask, in messages and values."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import ListValue, NullValue, Value
from google.protobuf.timestamp_pb2 import Timestamp

from duostore.v1 import admin_pb2 as pb
from duostore.v1 import entity_pb2
from duostore_server.domain.backfills import Backfill, BackfillState
from duostore_server.domain.controls import FlagState, ReadOnly
from duostore_server.domain.drift import (
    CheckProgress,
    Departure,
    Difference,
    Drift,
    Finding,
    FoundDrift,
    Verified,
)
from duostore_server.domain.entities import Backlog, PendingChange
from duostore_server.domain.errors import InvalidRequestError, Store
from duostore_server.domain.explained import Explained, Holding, NewestSnapshot, TierState
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.status import (
    Consistency,
    Figures,
    SloStanding,
    Status,
    StoreCalls,
    StoreStanding,
)
from duostore_server.rpc import admin_answers as answers
from duostore_server.rpc import admin_converters as converters

KEY = EntityKey("acme", "proposal", "p1")
VALUE, STUB = pb.TierState.HOLDING_VALUE, pb.TierState.HOLDING_STUB
UNREADABLE = pb.TierState.HOLDING_UNREADABLE
NAMED = entity_pb2.EntityKey(tenant="acme", kind="proposal", id="p1")


def at(second: int) -> dt.datetime:
    return dt.datetime(2026, 1, 2, 3, 4, second, 500_000, tzinfo=dt.UTC)


def stamp(second: int) -> Timestamp:
    return Timestamp(seconds=1767323040 + second, nanos=500_000_000)


def milliseconds(count: float) -> Duration:
    seconds, rest = divmod(round(count * 1000), 1_000_000)
    return Duration(seconds=seconds, nanos=rest * 1000)


def backfill(**changed: Any) -> Backfill:
    values = {
        "id": 7,
        "kind": "proposal",
        "state": BackfillState.RUNNING,
        "done": 10,
        "projected": 3,
        "failed": 1,
        "estimated_total": 40,
        "parts": 4,
        "parts_done": 2,
        "rate": 500,
        "caller": "ops",
        "start_time": at(1),
        "update_time": at(2),
    }
    return Backfill(**{**values, **changed})


# What is asked.


@pytest.mark.parametrize(("asked", "sample"), [({"sample": 5}, 5), ({"all": True}, None)])
def test_a_check_is_of_some_or_of_all(asked: dict[str, Any], sample: int | None) -> None:
    assert converters.sample_of(pb.CheckConsistencyRequest(**asked)) == sample


@pytest.mark.parametrize(("asked", "field"), [({}, "extent"), ({"all": False}, "all")])
def test_a_check_of_nothing_is_refused(asked: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        converters.sample_of(pb.CheckConsistencyRequest(**asked))
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Value(string_value="both"), "both"),
        (Value(string_value=""), ""),
        (Value(number_value=25), 25),
        (Value(number_value=0), 0),
        (Value(number_value=2.5), 2.5),
        (Value(number_value=math.inf), math.inf),
        (None, None),
    ],
)
def test_a_flag_is_a_string_or_a_number(value: Value | None, expected: object) -> None:
    found = converters.flag_value_of(pb.SetFlagRequest(name="f", value=value))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        Value(),
        Value(null_value=NullValue.NULL_VALUE),
        Value(bool_value=True),
        Value(list_value=ListValue()),
    ],
)
def test_a_flag_is_nothing_else_and_not_forgotten_by_mistake(value: Value) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        converters.flag_value_of(pb.SetFlagRequest(name="f", value=value))
    assert [violation.field for violation in refused.value.violations] == ["value"]


# What is answered.


def test_what_each_store_holds_is_told_whole() -> None:
    explained = Explained(
        key=KEY,
        aurora=TierState(Holding.VALUE, 3, 120, at(1)),
        dynamodb=TierState(Holding.STUB, 2, 90, at(2), shapes=(1, 2)),
        cache=TierState(Holding.UNREADABLE, 1, 80, at(3), at(4), (1,), "no magic byte"),
        outbox=PendingChange(9, at(5), at(6), dt.timedelta()),
        snapshot=NewestSnapshot(12, at(7)),
        verification=Verified(KEY, dt.timedelta(seconds=1), 3, at(8), (Drift.CACHE_OLDER,)),
        drifts=(
            Finding(
                KEY,
                Drift.PROJECTION_CONTENT,
                3,
                2,
                (Difference("author.name", Departure.TYPE),),
            ),
        ),
        verdict="It is not well.",
    )
    response = answers.explain_response(explained)
    assert response == pb.ExplainResponse(
        key=NAMED,
        aurora=pb.TierState(holding=VALUE, version=3, stored_bytes=120, time=stamp(1)),
        dynamodb=pb.TierState(
            holding=STUB, version=2, stored_bytes=90, time=stamp(2), projection_versions=[1, 2]
        ),
        cache=pb.TierState(
            holding=UNREADABLE,
            version=1,
            stored_bytes=80,
            time=stamp(3),
            expire_time=stamp(4),
            projection_versions=[1],
            fault="no magic byte",
        ),
        outbox=pb.OutboxState(create_time=stamp(5), due_time=stamp(6)),
        snapshot=pb.SnapshotState(sequence=12, snapshot_time=stamp(7)),
        verification=pb.Verification(
            verify_time=stamp(8), version=3, drifts=[pb.DRIFT_KIND_CACHE_OLDER]
        ),
        drifts=[
            pb.Drift(
                key=NAMED,
                kind=pb.DRIFT_KIND_PROJECTION_CONTENT,
                expected_version=3,
                found_version=2,
                differences=[pb.Difference(path="author.name", difference="type")],
            )
        ],
        verdict="It is not well.",
    )


def test_what_there_is_not_is_not_told() -> None:
    nothing = TierState(Holding.NOTHING)
    explained = Explained(KEY, None, nothing, nothing, None, None, None, (), "There is nothing.")
    response = answers.explain_response(explained)
    set_fields = {field.name for field, _ in response.ListFields()}
    assert set_fields == {"key", "dynamodb", "cache", "verdict"}
    assert not response.cache.HasField("time")


@pytest.mark.parametrize("holding", Holding)
def test_every_holding_has_its_name(holding: Holding) -> None:
    tier = TierState(holding)
    response = answers.explain_response(Explained(KEY, tier, tier, tier, None, None, None, (), ""))
    assert pb.TierState.Holding.Name(response.aurora.holding) == f"HOLDING_{holding.name}"


def checked(progress: CheckProgress) -> list[pb.CheckConsistencyResponse]:
    return [
        pb.CheckConsistencyResponse.FromString(raw) for raw in answers.check_responses(progress)
    ]


@pytest.mark.parametrize("drift", Drift)
def test_every_drift_has_its_name(drift: Drift) -> None:
    found = FoundDrift(Finding(KEY, drift, 3, 2), repaired=True)
    [response] = checked(CheckProgress(1, 2, (found,), 1, 1, 0))
    assert response == pb.CheckConsistencyResponse(
        checked=1,
        estimated_total=2,
        drifts=[
            pb.Drift(
                key=NAMED,
                kind=pb.DriftKind.Value(f"DRIFT_KIND_{drift.name}"),
                expected_version=3,
                found_version=2,
                repaired=True,
            )
        ],
        drift_count=1,
        repaired_count=1,
    )


def test_a_check_tells_how_far_it_is_though_nothing_was_found() -> None:
    [response] = checked(CheckProgress(5, 10, (), 0, 0, 2))
    assert response == pb.CheckConsistencyResponse(checked=5, estimated_total=10, undecided_count=2)


def test_many_drifts_take_many_messages_that_clients_can_read_and_one_is_the_last() -> None:
    places = tuple(Difference(f"{n}" + "x" * 3000, Departure.EXTRA) for n in range(20))
    found = tuple(
        FoundDrift(
            Finding(EntityKey("", "proposal", str(number)), Drift.CACHE_CONTENT, 1, 1, places),
            repair_error="a store is down",
        )
        for number in range(30)
    )
    responses = checked(CheckProgress(30, 30, found, 30, 0, 0, done=True))
    assert [drift.key.id for response in responses for drift in response.drifts] == [
        str(number) for number in range(30)
    ]
    assert all(response.ByteSize() < 512 * 1024 for response in responses)
    assert [response.done for response in responses] == [False] * (len(responses) - 1) + [True]
    assert len(responses) > 3
    assert all(response.drifts for response in responses)
    assert {drift.repair_error for response in responses for drift in response.drifts} == {
        "a store is down"
    }


@pytest.mark.parametrize("state", BackfillState)
def test_a_backfill_is_told_whole(state: BackfillState) -> None:
    remaining = dt.timedelta(seconds=90, milliseconds=500)
    response = answers.backfill_response(backfill(state=state), remaining)
    assert response == pb.BackfillResponse(
        kind="proposal",
        state=pb.BackfillResponse.State.Value(f"STATE_{state.name}"),
        done_count=10,
        estimated_total=40,
        projected_count=3,
        failed_count=1,
        part_count=4,
        parts_done=2,
        rate=500,
        start_time=stamp(1),
        update_time=stamp(2),
        remaining=milliseconds(90_500),
    )
    assert not answers.backfill_response(backfill(), None).HasField("remaining")


def test_flags_are_told_with_what_they_may_be() -> None:
    flags = (
        FlagState("read", 25, 0, "Percent.", is_set=True, caller="ops", update_time=at(1)),
        FlagState("write", "old", "old", "Which."),
        FlagState("gone", None, is_set=True),
    )
    response = answers.list_flags_response(flags, "duostore")
    assert response == pb.ListFlagsResponse(
        provider="duostore",
        flags=[
            pb.Flag(
                name="read",
                value=Value(number_value=25),
                default_value=Value(number_value=0),
                set=True,
                description="Percent.",
                caller="ops",
                update_time=stamp(1),
                used=True,
            ),
            pb.Flag(
                name="write",
                value=Value(string_value="old"),
                default_value=Value(string_value="old"),
                description="Which.",
                used=True,
            ),
            pb.Flag(name="gone", set=True),
        ],
    )
    assert answers.set_flag_response(flags[0]).flag == response.flags[0]
    # Zero is a value, and set.
    assert response.flags[0].default_value.WhichOneof("kind") == "number_value"


READ_ONLY = ReadOnly("proposal", "a migration", "ops", at(3))


def test_the_status_is_told_whole() -> None:
    status = Status(
        release="1.2.3",
        start_time=at(1),
        stores=(
            StoreStanding(Store.AURORA, up=True, calls=StoreCalls(Store.AURORA, 10, 0.25, 0.0015)),
            StoreStanding(Store.DYNAMODB, up=True, calls=StoreCalls(Store.DYNAMODB, 0, 0.0, None)),
            StoreStanding(Store.CACHE, up=False, calls=None),
        ),
        backlog=Backlog(5, 2.5),
        read_only=(READ_ONLY,),
        backfills=((backfill(), None),),
        figures=Figures(
            slos=(
                SloStanding("availability", "It answers.", 0.999, 1.0, None, 0.0, holds=True),
                SloStanding("consistency", "It agrees.", 0.9, 0.0, 0.5, 14.5, holds=False),
            ),
            consistency=(Consistency(dt.timedelta(minutes=5), 100, 1),),
        ),
    )
    response = answers.get_status_response(status)
    assert response == pb.GetStatusResponse(
        release="1.2.3",
        start_time=stamp(1),
        stores=[
            pb.StoreStatus(
                store=entity_pb2.STORE_AURORA,
                up=True,
                calls=10,
                error_ratio=0.25,
                p95=milliseconds(1.5),
            ),
            pb.StoreStatus(store=entity_pb2.STORE_DYNAMODB, up=True),
            pb.StoreStatus(store=entity_pb2.STORE_CACHE),
        ],
        outbox_depth=5,
        projection_lag=milliseconds(2500),
        read_only=[
            pb.ReadOnly(kind="proposal", reason="a migration", caller="ops", update_time=stamp(3))
        ],
        slos=[
            pb.SloStatus(
                name="availability", objective="It answers.", target=0.999, ratio=1.0, holds=True
            ),
            pb.SloStatus(
                name="consistency",
                objective="It agrees.",
                target=0.9,
                ratio=0.0,
                ratio_hour=0.5,
                burn_rate=14.5,
            ),
        ],
        consistency=[pb.Consistency(age=milliseconds(300_000), verified=100, inconsistent=1)],
        backfills=[answers.backfill_response(backfill(), None)],
    )
    # Nothing counted, and nothing good, are two things.
    assert not response.slos[0].HasField("ratio_hour")
    assert response.slos[1].HasField("ratio")
    assert answers.set_read_only_response([READ_ONLY]).read_only == response.read_only


def test_what_aurora_does_not_tell_is_left_out() -> None:
    status = Status("1", at(1), (), None, (), (), Figures())
    response = answers.get_status_response(status)
    assert not response.HasField("projection_lag")
