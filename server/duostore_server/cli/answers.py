"""What the command line prints of answers: JSON, for people and for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duostore.v1 import entity_pb2
from duostore_server.codec import plain
from duostore_server.domain.documents import normalized

if TYPE_CHECKING:
    from google.protobuf.struct_pb2 import Struct

    from duostore.v1 import data_access_pb2


def entity_shown(response: data_access_pb2.GetResponse) -> dict[str, Any]:
    """Return an entity that was read, and where."""
    entity, receipt = response.entity, response.receipt
    served_from = name_shown(entity_pb2.Store, receipt.served_from)
    answer = {
        "key": key_shown(entity.key),
        "version": entity.version,
        "data": document_shown(entity.data),
        "create_time": entity.create_time.ToJsonString(),
        "update_time": entity.update_time.ToJsonString(),
        "served_from": served_from.removeprefix("STORE_").lower(),
    }
    if receipt.HasField("cached_time"):
        answer["cached_time"] = receipt.cached_time.ToJsonString()
    return answer


def written_shown(
    response: data_access_pb2.SaveResponse | data_access_pb2.DeleteResponse,
) -> dict[str, Any]:
    """Return what became of a write."""
    return {
        "key": key_shown(response.key),
        "version": response.version,
        "update_time": response.update_time.ToJsonString(),
        "projection": projection_shown(response.projection),
        "replayed": response.replayed,
    }


def transacted_shown(response: data_access_pb2.TransactResponse) -> dict[str, Any]:
    """Return what became of a transaction."""
    return {
        "results": [
            {
                "key": key_shown(result.key),
                "version": result.version,
                "update_time": result.update_time.ToJsonString(),
            }
            for result in response.results
        ],
        "projection": projection_shown(response.projection),
        "replayed": response.replayed,
    }


def snapshot_shown(snapshot: entity_pb2.EntitySnapshot) -> dict[str, Any]:
    """Return a snapshot that was read."""
    return {
        "key": key_shown(snapshot.key),
        "sequence": snapshot.sequence,
        "data": document_shown(snapshot.data),
        "snapshot_time": snapshot.snapshot_time.ToJsonString(),
    }


def quota_shown(response: data_access_pb2.QuotaResponse) -> dict[str, Any]:
    """Return what a quota answered; what is not set is left out."""
    answer: dict[str, Any] = {
        "allowed": response.allowed,
        "limit": response.limit,
        "remaining": response.remaining,
    }
    if response.HasField("reset_time"):
        answer["reset_time"] = response.reset_time.ToJsonString()
    if response.HasField("retry_after"):
        answer["retry_after"] = response.retry_after.ToJsonString()
    if response.reservation:
        answer["reservation"] = response.reservation
        answer["expire_time"] = response.expire_time.ToJsonString()
    return {**answer, "replayed": response.replayed, "unchecked": response.unchecked}


def settled_shown(response: data_access_pb2.SettleQuotaResponse) -> dict[str, Any]:
    """Return how a reservation was settled."""
    return {
        "committed": response.committed,
        "refunded": response.refunded,
        "covered": response.covered,
        "replayed": response.replayed,
    }


def key_shown(key: entity_pb2.EntityKey) -> dict[str, str]:
    """Return a key, all parts of it."""
    return {"tenant": key.tenant, "kind": key.kind, "id": key.id}


def document_shown(data: Struct) -> Any:  # noqa: ANN401 - any JSON value
    """Return a document with all names sorted: a Struct knows no order."""
    return _in_order(normalized(plain(data)))


def projection_shown(projection: entity_pb2.Projection.ValueType) -> str:
    """Return how far a write has come, in the words of this program."""
    return name_shown(entity_pb2.Projection, projection).removeprefix("PROJECTION_").lower()


def name_shown(enum: Any, number: int) -> str:  # noqa: ANN401 - protobuf's types are its own
    """Return the name of an enum's value, or its number if it is newer than this program."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return value.name if value is not None else str(number)


def _in_order(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {name: _in_order(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_in_order(item) for item in value]
    return value
