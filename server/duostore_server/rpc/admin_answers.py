"""Values of the domain as the messages that those who operate the service are answered with."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from duostore.v1 import admin_pb2 as pb
from duostore.v1 import entity_pb2
from duostore_server.rpc.answers import message_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from duostore_server.domain.backfills import Backfill
    from duostore_server.domain.controls import FlagState, FlagValue, ReadOnly
    from duostore_server.domain.drift import CheckProgress, Drift, Finding, FoundDrift
    from duostore_server.domain.explained import Explained, TierState
    from duostore_server.domain.status import SloStanding, Status, StoreStanding

# Of the drifts in one message: far below the 4 MiB that clients take by default, though each
# may tell of many places with long names.
_TOLD_BYTES: Final = 256 * 1024


def explain_response(explained: Explained) -> pb.ExplainResponse:
    """Return the answer to an Explain."""
    response = pb.ExplainResponse(
        key=message_of(explained.key),
        aurora=None if explained.aurora is None else _tier(explained.aurora),
        dynamodb=_tier(explained.dynamodb),
        cache=_tier(explained.cache),
        drifts=[_finding(finding) for finding in explained.drifts],
        verdict=explained.verdict,
    )
    if (pending := explained.outbox) is not None:
        response.outbox.create_time.CopyFrom(_time(pending.create_time))
        response.outbox.due_time.CopyFrom(_time(pending.due_time))
    if (newest := explained.snapshot) is not None:
        response.snapshot.sequence = newest.sequence
        response.snapshot.snapshot_time.CopyFrom(_time(newest.time))
    if (look := explained.verification) is not None:
        response.verification.verify_time.CopyFrom(_time(look.time))
        response.verification.version = look.version
        response.verification.drifts.extend(map(_drift_kind, look.drifts))
    return response


def check_responses(progress: CheckProgress) -> Iterator[bytes]:
    """Yield serialized CheckConsistencyResponses: one, or more if it tells of many drifts.

    The last of them alone is ``done``, if it is.
    """
    told: list[pb.Drift] = []
    size = 0
    for found in progress.drifts:
        drift = _found(found)
        if told and size + drift.ByteSize() > _TOLD_BYTES:
            yield _checked(progress, told, done=False)
            told, size = [], 0
        told.append(drift)
        size += drift.ByteSize()
    yield _checked(progress, told, done=progress.done)


def backfill_response(backfill: Backfill, remaining: timedelta | None) -> pb.BackfillResponse:
    """Return how far a backfill is."""
    return pb.BackfillResponse(
        kind=backfill.kind,
        state=pb.BackfillResponse.State.Value(f"STATE_{backfill.state.name}"),
        done_count=backfill.done,
        estimated_total=backfill.estimated_total,
        projected_count=backfill.projected,
        failed_count=backfill.failed,
        part_count=backfill.parts,
        parts_done=backfill.parts_done,
        rate=backfill.rate,
        start_time=_time(backfill.start_time),
        update_time=_time(backfill.update_time),
        remaining=None if remaining is None else _duration(remaining),
    )


def set_read_only_response(read_only: Iterable[ReadOnly]) -> pb.SetReadOnlyResponse:
    """Return the answer to a SetReadOnly."""
    return pb.SetReadOnlyResponse(read_only=map(_read_only, read_only))


def list_flags_response(flags: Iterable[FlagState], provider: str) -> pb.ListFlagsResponse:
    """Return the answer to a ListFlags."""
    return pb.ListFlagsResponse(flags=map(_flag, flags), provider=provider)


def set_flag_response(flag: FlagState) -> pb.SetFlagResponse:
    """Return the answer to a SetFlag."""
    return pb.SetFlagResponse(flag=_flag(flag))


def get_status_response(status: Status) -> pb.GetStatusResponse:
    """Return the answer to a GetStatus."""
    response = pb.GetStatusResponse(
        release=status.release,
        start_time=_time(status.start_time),
        stores=map(_store, status.stores),
        read_only=map(_read_only, status.read_only),
        slos=map(_slo, status.figures.slos),
        consistency=[
            pb.Consistency(
                age=_duration(found.age), verified=found.verified, inconsistent=found.inconsistent
            )
            for found in status.figures.consistency
        ],
        backfills=[
            backfill_response(backfill, remaining) for backfill, remaining in status.backfills
        ],
    )
    if status.backlog is not None:
        response.outbox_depth = status.backlog.depth
        response.projection_lag.CopyFrom(_seconds(status.backlog.oldest_seconds))
    return response


def _tier(state: TierState) -> pb.TierState:
    return pb.TierState(
        holding=pb.TierState.Holding.Value(f"HOLDING_{state.holding.name}"),
        version=state.version,
        stored_bytes=state.stored_bytes,
        time=None if state.time is None else _time(state.time),
        expire_time=None if state.expire_time is None else _time(state.expire_time),
        projection_versions=state.shapes,
        fault=state.fault,
    )


def _drift_kind(drift: Drift) -> pb.DriftKind.ValueType:
    return pb.DriftKind.Value(f"DRIFT_KIND_{drift.name}")


def _finding(finding: Finding) -> pb.Drift:
    return pb.Drift(
        key=message_of(finding.key),
        kind=_drift_kind(finding.drift),
        expected_version=finding.expected_version,
        found_version=finding.found_version,
        differences=[
            pb.Difference(path=place.path, difference=place.departure.value)
            for place in finding.differences
        ],
    )


def _found(found: FoundDrift) -> pb.Drift:
    drift = _finding(found.finding)
    drift.repaired = found.repaired
    drift.repair_error = found.repair_error
    return drift


def _checked(progress: CheckProgress, drifts: Sequence[pb.Drift], *, done: bool) -> bytes:
    response = pb.CheckConsistencyResponse(
        checked=progress.checked,
        estimated_total=progress.estimated_total,
        drifts=drifts,
        drift_count=progress.drift_count,
        repaired_count=progress.repaired_count,
        undecided_count=progress.undecided_count,
        done=done,
    )
    return response.SerializeToString()


def _read_only(found: ReadOnly) -> pb.ReadOnly:
    return pb.ReadOnly(
        kind=found.kind,
        reason=found.reason,
        caller=found.caller,
        update_time=_time(found.update_time),
    )


def _flag(state: FlagState) -> pb.Flag:
    return pb.Flag(
        name=state.name,
        value=_value(state.value),
        default_value=_value(state.default),
        set=state.is_set,
        description=state.description,
        caller=state.caller,
        update_time=None if state.update_time is None else _time(state.update_time),
        used=state.used,
    )


def _value(value: FlagValue | None) -> Value | None:
    match value:
        case None:
            return None
        case str():
            return Value(string_value=value)
        case _:
            return Value(number_value=value)


def _store(standing: StoreStanding) -> pb.StoreStatus:
    status = pb.StoreStatus(
        store=entity_pb2.Store.Value(f"STORE_{standing.store.name}"), up=standing.up
    )
    if (calls := standing.calls) is not None:
        status.calls = calls.calls
        status.error_ratio = calls.error_ratio
        if calls.p95 is not None:
            status.p95.CopyFrom(_seconds(calls.p95))
    return status


def _slo(standing: SloStanding) -> pb.SloStatus:
    return pb.SloStatus(
        name=standing.name,
        objective=standing.objective,
        target=standing.target,
        ratio=standing.ratio,
        ratio_hour=standing.ratio_hour,
        burn_rate=standing.burn_rate,
        holds=standing.holds,
    )


def _time(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _duration(length: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


def _seconds(seconds: float) -> Duration:
    return _duration(timedelta(seconds=seconds))
