"""Values of the domain as the messages that callers are answered with.

Stored bytes are answered with as they are: protobuf messages concatenate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server import codec
from duostore_server.domain.errors import AnswerTooLargeError, Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from duostore_server.access.drafting import SnapshotList
    from duostore_server.access.exporting import ExportPortion
    from duostore_server.access.querying import QueryPage
    from duostore_server.domain.entities import Reading
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.quotas import QuotaAnswer, Settled
    from duostore_server.domain.snapshots import Appended
    from duostore_server.domain.transactions import Outcome, Request

_Written = TypeVar("_Written", data_access_pb2.SaveResponse, data_access_pb2.DeleteResponse)

_STORES: Final = {
    Store.CACHE: entity_pb2.STORE_CACHE,
    Store.DYNAMODB: entity_pb2.STORE_DYNAMODB,
    Store.AURORA: entity_pb2.STORE_AURORA,
}
_SLOWEST_FIRST: Final = (Store.AURORA, Store.DYNAMODB, Store.CACHE)

# Field 1 with a length before it: entity or entities, snapshot or snapshots. All responses
# of stored bytes begin so.
_STORED_TAG: Final = b"\x0a"

# Of the rows in one message of a stream: large enough to cost little, and far below the
# 4 MiB that clients take by default.
_STREAMED_BYTES: Final = 256 * 1024


def get_response(reading: Reading) -> bytes:
    """Return the serialized GetResponse: the stored bytes as they are, then the receipt."""
    tail = data_access_pb2.GetResponse(receipt=_receipt((reading,)))
    return b"".join((*_stored(reading.payload or b""), tail.SerializeToString()))


def batch_get_response(
    keys: Sequence[EntityKey], readings: Mapping[EntityKey, Reading], *, max_bytes: int
) -> bytes:
    """Return the serialized BatchGetResponse: stored bytes in the order of the request.

    Raises ``AnswerTooLargeError``, before anything is copied, if it has more than ``max_bytes``.
    """
    tail = data_access_pb2.BatchGetResponse(
        missing=[message_of(key) for key in keys if readings[key].payload is None],
        receipt=_receipt(tuple(readings.values())),
    )
    parts: list[bytes] = []
    for key in keys:
        if (payload := readings[key].payload) is not None:
            parts += _stored(payload)
    parts.append(tail.SerializeToString())
    size = sum(map(len, parts))
    if size > max_bytes:
        raise AnswerTooLargeError(size, max_bytes)
    return b"".join(parts)


def save_response(key: EntityKey, outcome: Outcome) -> data_access_pb2.SaveResponse:
    """Return the answer to a Save."""
    return _written(data_access_pb2.SaveResponse, key, outcome)


def delete_response(key: EntityKey, outcome: Outcome) -> data_access_pb2.DeleteResponse:
    """Return the answer to a Delete."""
    return _written(data_access_pb2.DeleteResponse, key, outcome)


def transact_response(
    requests: Sequence[Request], outcome: Outcome
) -> data_access_pb2.TransactResponse:
    """Return the answer to a Transact: what came of each request, in their order."""
    response = data_access_pb2.TransactResponse(
        projection=_projection(outcome), replayed=outcome.replayed
    )
    for request, applied in zip(requests, outcome.answer, strict=True):
        result = response.results.add(key=message_of(request.key), version=applied.version)
        result.update_time.FromDatetime(applied.update_time)
    return response


def snapshot_response(appended: Appended) -> data_access_pb2.SnapshotResponse:
    """Return the answer to a Snapshot."""
    response = data_access_pb2.SnapshotResponse(
        sequence=appended.sequence, replayed=appended.replayed
    )
    response.snapshot_time.FromDatetime(appended.time)
    return response


def get_snapshot_response(payload: bytes) -> bytes:
    """Return the serialized GetSnapshotResponse around a serialized EntitySnapshot."""
    return b"".join(_stored(payload))


def list_snapshots_response(page: SnapshotList) -> bytes:
    """Return the serialized ListSnapshotsResponse around serialized EntitySnapshots."""
    parts = [part for payload in page.payloads for part in _stored(payload)]
    tail = data_access_pb2.ListSnapshotsResponse(next_page_token=page.next_page_token)
    return b"".join((*parts, tail.SerializeToString()))


def quota_response(answer: QuotaAnswer) -> data_access_pb2.QuotaResponse:
    """Return the answer to a Quota."""
    response = data_access_pb2.QuotaResponse(
        allowed=answer.allowed,
        limit=answer.limit,
        remaining=answer.remaining,
        reservation=answer.reservation,
        replayed=answer.replayed,
        unchecked=answer.unchecked,
    )
    if answer.reset_time is not None:
        response.reset_time.FromNanoseconds(answer.reset_time)
    if answer.retry_after is not None:
        response.retry_after.FromNanoseconds(answer.retry_after)
    if answer.expire_time is not None:
        response.expire_time.FromNanoseconds(answer.expire_time)
    return response


def settle_quota_response(settled: Settled) -> data_access_pb2.SettleQuotaResponse:
    """Return the answer to a SettleQuota."""
    return data_access_pb2.SettleQuotaResponse(
        committed=settled.committed,
        refunded=settled.refunded,
        covered=settled.covered,
        replayed=settled.replayed,
    )


def query_response(page: QueryPage) -> bytes:
    """Return the serialized QueryResponse: the page as it is, then what is of this answer."""
    tail = data_access_pb2.QueryResponse(
        next_page_token=page.next_page_token,
        receipt=_receipt_of(page.served_from, page.cached_time),
    )
    return page.payload + tail.SerializeToString()


def export_responses(portion: ExportPortion) -> Iterator[bytes]:
    """Yield the serialized ExportResponses of a portion; none if there is nothing in it.

    However large a portion is, a message is not, unless a single row is.
    """
    head = data_access_pb2.ExportResponse(
        columns=[column.name for column in portion.columns],
        column_types=[column.type for column in portion.columns],
    )
    if portion.as_of is not None:
        head.as_of.FromDatetime(portion.as_of)
    parts = [head.SerializeToString()]
    size = 0
    for row in portion.rows:
        encoded = codec.encode_row(row)
        if size and size + len(encoded) > _STREAMED_BYTES:
            yield b"".join(parts)
            parts.clear()
            size = 0
        parts.append(encoded)
        size += len(encoded)
    if message := b"".join(parts):
        yield message


def message_of(key: EntityKey) -> entity_pb2.EntityKey:
    """Return the message that names a key."""
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)


def _written(kind: type[_Written], key: EntityKey, outcome: Outcome) -> _Written:
    [applied] = outcome.answer
    response = kind(
        key=message_of(key),
        version=applied.version,
        projection=_projection(outcome),
        replayed=outcome.replayed,
    )
    response.update_time.FromDatetime(applied.update_time)
    return response


def _projection(outcome: Outcome) -> entity_pb2.Projection.ValueType:
    return entity_pb2.PROJECTION_DONE if outcome.projected else entity_pb2.PROJECTION_PENDING


def _receipt(readings: Sequence[Reading]) -> entity_pb2.Receipt:
    asked = {reading.served_from for reading in readings}
    slowest = next(store for store in _SLOWEST_FIRST if store in asked)
    if slowest is not Store.CACHE:
        return _receipt_of(slowest, None)
    return _receipt_of(slowest, min(r.cached_time for r in readings if r.cached_time is not None))


def _receipt_of(store: Store, cached_time: datetime | None) -> entity_pb2.Receipt:
    receipt = entity_pb2.Receipt(served_from=_STORES[store])
    if cached_time is not None:
        receipt.cached_time.FromDatetime(cached_time)
    return receipt


def _stored(payload: bytes) -> tuple[bytes, bytes]:
    """Return a serialized message as the first field of another: what goes before it, and it."""
    return _STORED_TAG + codec.varint(len(payload)), payload
