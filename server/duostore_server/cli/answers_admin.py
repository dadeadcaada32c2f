"""What the command line prints of Admin's answers as JSON, for scripts.

Times are RFC 3339, lengths of time are seconds. What is unknown or not there is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duostore.v1 import admin_pb2, entity_pb2
from duostore_server.cli.answers import key_shown
from duostore_server.cli.wording import seconds_of, word
from duostore_server.domain.documents import normalized

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.struct_pb2 import Value
    from google.protobuf.timestamp_pb2 import Timestamp


def explained_shown(answer: admin_pb2.ExplainResponse) -> dict[str, Any]:
    """Return what each store holds of an entity."""
    outbox = snapshot = verification = None
    if answer.HasField("outbox"):
        outbox = {
            "create_time": _time(answer.outbox.create_time),
            "due_time": _time(answer.outbox.due_time),
        }
    if answer.HasField("snapshot"):
        snapshot = {
            "sequence": answer.snapshot.sequence,
            "snapshot_time": _time(answer.snapshot.snapshot_time),
        }
    if answer.HasField("verification"):
        verification = {
            "verify_time": _time(answer.verification.verify_time),
            "version": answer.verification.version,
            "drifts": [drift_name(drift) for drift in answer.verification.drifts],
        }
    return {
        "key": key_shown(answer.key),
        "aurora": _tier(answer.aurora) if answer.HasField("aurora") else None,
        "dynamodb": _tier(answer.dynamodb),
        "cache": _tier(answer.cache),
        "outbox": outbox,
        "snapshot": snapshot,
        "verification": verification,
        "drifts": [finding_shown(drift) for drift in answer.drifts],
        "verdict": answer.verdict,
    }


def drift_name(kind: admin_pb2.DriftKind.ValueType) -> str:
    """Return a drift by its name in metrics and logs."""
    return word(admin_pb2.DriftKind, kind, "DRIFT_KIND_")


def holding_name(holding: admin_pb2.TierState.Holding.ValueType) -> str:
    """Return what is held in one word."""
    return word(admin_pb2.TierState.Holding, holding, "HOLDING_")


def finding_shown(drift: admin_pb2.Drift) -> dict[str, Any]:
    """Return what does not agree."""
    return {
        "key": key_shown(drift.key),
        "drift": drift_name(drift.kind),
        "expected_version": drift.expected_version,
        "found_version": drift.found_version,
        "differences": [
            {"path": place.path, "difference": place.difference} for place in drift.differences
        ],
    }


def drift_shown(drift: admin_pb2.Drift) -> dict[str, Any]:
    """Return what does not agree, and what was done about it."""
    repair = {"repaired": drift.repaired, "repair_error": drift.repair_error or None}
    return {**finding_shown(drift), **repair}


def backfill_shown(answer: admin_pb2.BackfillResponse) -> dict[str, Any]:
    """Return how far a backfill is."""
    return {
        "kind": answer.kind,
        "state": state_name(answer.state),
        "done": answer.done_count,
        "estimated_total": answer.estimated_total,
        "projected": answer.projected_count,
        "failed": answer.failed_count,
        "parts": answer.part_count,
        "parts_done": answer.parts_done,
        "rate": answer.rate,
        "start_time": _time(answer.start_time),
        "update_time": _time(answer.update_time),
        "remaining_seconds": _seconds(answer.remaining) if answer.HasField("remaining") else None,
    }


def state_name(state: admin_pb2.BackfillResponse.State.ValueType) -> str:
    """Return how a backfill stands in one word."""
    return word(admin_pb2.BackfillResponse.State, state, "STATE_")


def read_only_shown(found: admin_pb2.ReadOnly) -> dict[str, Any]:
    """Return what is read-only; of the whole service the kind is null."""
    return {
        "kind": found.kind or None,
        "reason": found.reason,
        "caller": found.caller or None,
        "update_time": _time(found.update_time),
    }


def flag_shown(flag: admin_pb2.Flag) -> dict[str, Any]:
    """Return a flag; of one that nobody asks for the default is null."""
    return {
        "name": flag.name,
        "value": flag_value(flag.value) if flag.HasField("value") else None,
        "default": flag_value(flag.default_value) if flag.HasField("default_value") else None,
        "set": flag.set,
        "used": flag.used,
        "caller": flag.caller or None,
        "update_time": _time(flag.update_time) if flag.HasField("update_time") else None,
        "description": flag.description,
    }


def flag_value(value: Value) -> Any:  # noqa: ANN401 - a string or a number, of this release
    """Return what a flag is."""
    if value.WhichOneof("kind") == "number_value":
        return normalized(value.number_value)
    return value.string_value if value.WhichOneof("kind") == "string_value" else None


def store_name(store: entity_pb2.Store.ValueType) -> str:
    """Return the name of a store."""
    return word(entity_pb2.Store, store, "STORE_")


def status_shown(answer: admin_pb2.GetStatusResponse) -> dict[str, Any]:
    """Return how the service is."""
    return {
        "release": answer.release,
        "start_time": _time(answer.start_time),
        "stores": [_store(store) for store in answer.stores],
        "outbox_depth": answer.outbox_depth if answer.HasField("projection_lag") else None,
        "projection_lag_seconds": (
            _seconds(answer.projection_lag) if answer.HasField("projection_lag") else None
        ),
        "read_only": [read_only_shown(found) for found in answer.read_only],
        "slos": [_slo(slo) for slo in answer.slos],
        "consistency": [
            {
                "age_seconds": _seconds(found.age),
                "verified": found.verified,
                "inconsistent": found.inconsistent,
            }
            for found in answer.consistency
        ],
        "backfills": [backfill_shown(backfill) for backfill in answer.backfills],
    }


def _store(store: admin_pb2.StoreStatus) -> dict[str, Any]:
    return {
        "store": store_name(store.store),
        "up": store.up,
        "calls": store.calls,
        "error_ratio": store.error_ratio,
        "p95_seconds": _seconds(store.p95) if store.HasField("p95") else None,
    }


def _slo(slo: admin_pb2.SloStatus) -> dict[str, Any]:
    return {
        "name": slo.name,
        "objective": slo.objective,
        "target": slo.target,
        "ratio": slo.ratio if slo.HasField("ratio") else None,
        "ratio_hour": slo.ratio_hour if slo.HasField("ratio_hour") else None,
        "burn_rate": slo.burn_rate,
        "holds": slo.holds,
    }


def _tier(tier: admin_pb2.TierState) -> dict[str, Any]:
    return {
        "holding": holding_name(tier.holding),
        "version": tier.version,
        "stored_bytes": tier.stored_bytes,
        "time": _time(tier.time) if tier.HasField("time") else None,
        "expire_time": _time(tier.expire_time) if tier.HasField("expire_time") else None,
        "projection_versions": list(tier.projection_versions),
        "fault": tier.fault or None,
    }


def _time(moment: Timestamp) -> str:
    return moment.ToJsonString()


def _seconds(length: Duration) -> float:
    return round(seconds_of(length), 9)
