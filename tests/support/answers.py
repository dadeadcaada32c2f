"""Answers of the service, as messages, for the tests of the client."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from duostore.v1 import data_access_pb2, entity_pb2

if TYPE_CHECKING:
    from duostore import Key

CREATED = datetime(2024, 2, 29, 23, 59, 59, 123456, UTC)
UPDATED = datetime(2025, 1, 1, 0, 0, 0, 1, UTC)


def key_message(key: Key) -> entity_pb2.EntityKey:
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)


def stored(key: Key, data: dict[str, Any], version: int = 1) -> entity_pb2.Entity:
    message = entity_pb2.Entity(key=key_message(key), version=version)
    message.data.update(data)
    message.create_time.FromDatetime(CREATED)
    message.update_time.FromDatetime(UPDATED)
    return message


def written(
    kind: type[data_access_pb2.SaveResponse | data_access_pb2.DeleteResponse],
    version: int,
    projection: entity_pb2.Projection.ValueType,
) -> data_access_pb2.SaveResponse | data_access_pb2.DeleteResponse:
    response = kind(version=version, projection=projection)
    response.update_time.FromDatetime(UPDATED)
    return response


def result(key: Key, version: int) -> data_access_pb2.MutationResult:
    message = data_access_pb2.MutationResult(key=key_message(key), version=version)
    message.update_time.FromDatetime(UPDATED)
    return message


def appended(sequence: int) -> data_access_pb2.SnapshotResponse:
    message = data_access_pb2.SnapshotResponse(sequence=sequence)
    message.snapshot_time.FromDatetime(UPDATED)
    return message


def snapshot_message(key: Key, sequence: int) -> entity_pb2.EntitySnapshot:
    message = entity_pb2.EntitySnapshot(key=key_message(key), sequence=sequence)
    message.data.update({"n": sequence})
    message.snapshot_time.FromDatetime(UPDATED)
    return message


def page(key: Key, *sequences: int, token: str = "") -> data_access_pb2.ListSnapshotsResponse:
    return data_access_pb2.ListSnapshotsResponse(
        snapshots=[snapshot_message(key, sequence) for sequence in sequences],
        next_page_token=token,
    )
