"""Messages made of stored bytes, and requests made of messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from duostore.v1 import data_access_pb2 as pb
from duostore.v1 import entity_pb2
from duostore_server import codec
from duostore_server.access.drafting import SnapshotList
from duostore_server.access.exporting import ExportPortion
from duostore_server.access.querying import QueryPage
from duostore_server.domain.entities import Entity, Reading
from duostore_server.domain.errors import AnswerTooLargeError, InvalidRequestError, Store
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import KindPolicy, Policies, ProjectionMode
from duostore_server.domain.queries import Column, Result
from duostore_server.domain.quotas import CounterKey, Mode, QuotaAnswer, Settled
from duostore_server.domain.snapshots import Appended
from duostore_server.domain.transactions import (
    Applied,
    Check,
    Delete,
    FromSnapshot,
    IfAbsent,
    IfVersion,
    Outcome,
    Save,
)
from duostore_server.rpc import answers, converters

if TYPE_CHECKING:
    from duostore_server.domain.transactions import Request

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
LATER = datetime(2026, 11, 23, 13, tzinfo=UTC)


def key(number: int) -> EntityKey:
    return EntityKey("t", "proposal", str(number))


def payload(number: int, size: int = 0) -> bytes:
    return codec.encode(Entity(key(number), 3, {"text": "x" * size}, NOON, LATER))


@pytest.mark.parametrize("size", [0, 30, 100, 127, 128, 300, 16_500, 3_000_000])
def test_the_stored_bytes_are_the_response(size: int) -> None:
    stored = payload(1, size)
    raw = answers.get_response(Reading(3, stored, Store.CACHE, NOON))
    assert stored in raw
    response = pb.GetResponse.FromString(raw)
    assert response.entity == entity_pb2.Entity.FromString(stored)
    assert response.receipt.served_from == entity_pb2.STORE_CACHE
    assert response.receipt.cached_time.ToDatetime(UTC) == NOON


def test_only_the_cache_tells_when_it_was_filled() -> None:
    raw = answers.get_response(Reading(3, payload(1), Store.DYNAMODB))
    receipt = pb.GetResponse.FromString(raw).receipt
    assert receipt == entity_pb2.Receipt(served_from=entity_pb2.STORE_DYNAMODB)


def test_a_batch_keeps_the_order_of_the_request() -> None:
    keys = [key(number) for number in (5, 1, 4, 2)]
    readings = {
        key(1): Reading(0, None, Store.AURORA),
        key(2): Reading(3, payload(2), Store.CACHE, LATER),
        key(4): Reading(3, payload(4), Store.CACHE, NOON),
        key(5): Reading(3, payload(5), Store.DYNAMODB),
    }
    response = pb.BatchGetResponse.FromString(
        answers.batch_get_response(keys, readings, max_bytes=10_000)
    )
    assert [entity.key.id for entity in response.entities] == ["5", "4", "2"]
    assert [missing.id for missing in response.missing] == ["1"]
    assert response.receipt.served_from == entity_pb2.STORE_AURORA


def test_a_batch_from_the_cache_is_as_old_as_its_oldest_entry() -> None:
    readings = {
        key(1): Reading(3, payload(1), Store.CACHE, LATER),
        key(2): Reading(3, payload(2), Store.CACHE, NOON),
    }
    response = pb.BatchGetResponse.FromString(
        answers.batch_get_response([key(1), key(2)], readings, max_bytes=10_000)
    )
    assert response.receipt.cached_time.ToDatetime(UTC) == NOON


@pytest.mark.parametrize("size", [0, 100, 120, 200, 20_000])
def test_an_answer_may_be_as_large_as_its_limit_and_no_larger(size: int) -> None:
    keys = [key(number) for number in range(5)]
    readings = {k: Reading(3, payload(n, size), Store.DYNAMODB) for n, k in enumerate(keys[:4])}
    readings[keys[4]] = Reading(0, None, Store.AURORA)
    whole = answers.batch_get_response(keys, readings, max_bytes=10**6)
    assert answers.batch_get_response(keys, readings, max_bytes=len(whole)) == whole
    with pytest.raises(AnswerTooLargeError) as refused:
        answers.batch_get_response(keys, readings, max_bytes=len(whole) - 1)
    assert refused.value.metadata == {"size": str(len(whole)), "limit": str(len(whole) - 1)}


POLICIES = Policies(
    {"proposal": KindPolicy(60, 10, ProjectionMode.INLINE, max_bytes=len('{"a":[1,1,1]}'))}
)


MESSAGE = entity_pb2.EntityKey(tenant="t", kind="proposal", id="1")
TOO_LARGE = "has more bytes as compact JSON than its kind allows, 13"


def saving(data: dict[str, Any], kind: str = "proposal") -> pb.SaveRequest:
    request = pb.SaveRequest(key=entity_pb2.EntityKey(kind=kind, id="1"))
    request.data.update(data)
    return request


def violations(error: InvalidRequestError) -> dict[str, str]:
    return {violation.field: violation.description for violation in error.violations}


def test_what_its_kind_may_allow_is_converted() -> None:
    save = converters.save_of(saving({"a": [1, 1, 1]}), POLICIES)
    assert save == Save(EntityKey("", "proposal", "1"), {"a": [1.0, 1.0, 1.0]}, None)
    assert converters.save_of(pb.SaveRequest(key=MESSAGE), POLICIES).content is None
    empty = pb.SaveRequest(key=MESSAGE)
    empty.data.SetInParent()
    assert converters.save_of(empty, POLICIES).content == {}


def test_what_its_kind_cannot_allow_is_refused_unseen() -> None:
    with pytest.raises(InvalidRequestError, match=f"data: {TOO_LARGE}"):
        converters.save_of(saving({"a": [1] * 9}), POLICIES)
    # Refused for its kind: see Checks.
    assert converters.save_of(saving({"a": [1] * 9}, kind="other"), POLICIES).content == {}


def test_a_snapshot_is_looked_at_as_a_save_is() -> None:
    request = pb.SnapshotRequest(key=MESSAGE)
    assert converters.document_of(request, POLICIES) is None
    request.data.update({"a": [1, 1, 1]})
    assert converters.document_of(request, POLICIES) == {"a": [1.0, 1.0, 1.0]}
    request.data.update({"a": [1] * 9})
    with pytest.raises(InvalidRequestError, match=f"data: {TOO_LARGE}"):
        converters.document_of(request, POLICIES)


@pytest.mark.parametrize("sequence", [0, 7, -1])
def test_content_may_be_a_snapshot(sequence: int) -> None:
    request = pb.SaveRequest(key=MESSAGE, from_snapshot=sequence)
    assert converters.save_of(request, POLICIES).content == FromSnapshot(sequence)


def test_what_writes_require() -> None:
    def required(**options: Any) -> object:
        return converters.save_of(pb.SaveRequest(key=MESSAGE, **options), POLICIES).precondition

    assert required() is None
    assert required(if_version=0) == IfVersion(0)
    assert required(if_version=3) == IfVersion(3)
    assert required(if_absent=True) == IfAbsent()
    with pytest.raises(InvalidRequestError, match="if_absent: must be true if set"):
        required(if_absent=False)
    assert converters.delete_of(pb.DeleteRequest(key=MESSAGE)) == Delete(key(1), None)
    deletion = pb.DeleteRequest(key=MESSAGE, if_version=0)
    assert converters.delete_of(deletion) == Delete(key(1), IfVersion(0))


def test_a_transaction_is_converted_in_its_order() -> None:
    request = pb.TransactRequest()
    request.mutations.add().save.key.CopyFrom(MESSAGE)
    request.mutations[0].save.data.update({"a": 1})
    request.mutations[0].save.if_absent = True
    request.mutations.add().delete.CopyFrom(pb.DeleteMutation(key=MESSAGE, if_version=4))
    request.mutations.add().check.CopyFrom(pb.VersionCheck(key=MESSAGE, if_version=5))
    request.mutations.add().save.CopyFrom(pb.SaveMutation(key=MESSAGE, from_snapshot=6))
    assert converters.requests_of(request, POLICIES) == [
        Save(key(1), {"a": 1.0}, IfAbsent()),
        Delete(key(1), IfVersion(4)),
        Check(key(1), 5),
        Save(key(1), FromSnapshot(6), None),
    ]


def test_every_mutation_that_is_refused_unseen_is_named() -> None:
    request = pb.TransactRequest(mutations=[pb.Mutation() for _ in range(4)])
    request.mutations[1].save.if_absent = False
    request.mutations[2].save.key.CopyFrom(MESSAGE)
    request.mutations[2].save.data.update({"a": [1] * 9})
    request.mutations[3].check.SetInParent()
    with pytest.raises(InvalidRequestError) as refused:
        converters.requests_of(request, POLICIES)
    assert violations(refused.value) == {
        "mutations[0]": "must have one of save, delete and check",
        "mutations[1].save.if_absent": "must be true if set",
        "mutations[2].save.data": TOO_LARGE,
    }


@pytest.mark.parametrize("count", [0, 101])
def test_a_transaction_of_the_wrong_size_is_refused_unseen(count: int) -> None:
    request = pb.TransactRequest(mutations=[pb.Mutation()] * count)
    with pytest.raises(InvalidRequestError) as refused:
        converters.requests_of(request, POLICIES)
    assert violations(refused.value) == {"mutations": f"has {count}; 1 to 100 are allowed"}


def test_too_many_keys_are_refused_unseen() -> None:
    request = pb.BatchGetRequest(keys=[entity_pb2.EntityKey(id="1")] * 501)
    with pytest.raises(InvalidRequestError, match="keys: has 501 keys; 1 to 500 are allowed"):
        converters.keys_of(request)
    del request.keys[500]
    assert converters.keys_of(request) == [EntityKey("", "", "1")] * 500


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("replayed", [False, True])
def test_a_write_is_answered_with_what_came_of_it(*, projected: bool, replayed: bool) -> None:
    outcome = Outcome((Applied(4, LATER),), projected=projected, replayed=replayed)
    done = entity_pb2.PROJECTION_DONE if projected else entity_pb2.PROJECTION_PENDING
    for response in (
        answers.save_response(key(1), outcome),
        answers.delete_response(key(1), outcome),
    ):
        assert (response.key, response.version) == (MESSAGE, 4)
        assert response.update_time.ToDatetime(UTC) == LATER
        assert (response.projection, response.replayed) == (done, replayed)
    together = answers.transact_response([Delete(key(1), None)], outcome)
    assert (together.projection, together.replayed) == (done, replayed)


def test_a_transaction_is_answered_in_its_order() -> None:
    requests: list[Request] = [Save(key(2), {}, None), Check(key(1), 5), Delete(key(3), None)]
    outcome = Outcome(
        (Applied(1, NOON), Applied(5, NOON), Applied(9, LATER)), projected=True, replayed=False
    )
    results = answers.transact_response(requests, outcome).results
    assert [(r.key.id, r.version, r.update_time.ToDatetime(UTC)) for r in results] == [
        ("2", 1, NOON),
        ("1", 5, NOON),
        ("3", 9, LATER),
    ]


def snapshot(sequence: int, size: int) -> bytes:
    return codec.numbered(codec.encode_snapshot(key(1), {"text": "x" * size}, NOON), sequence)


def test_a_snapshot_is_answered_with_its_place() -> None:
    response = answers.snapshot_response(Appended(7, LATER, replayed=True))
    assert (response.sequence, response.replayed) == (7, True)
    assert response.snapshot_time.ToDatetime(UTC) == LATER


@pytest.mark.parametrize("size", [0, 30, 127, 128, 20_000])
def test_stored_snapshots_are_the_response(size: int) -> None:
    stored = [snapshot(sequence, size) for sequence in (9, 8, 3)]
    one = pb.GetSnapshotResponse.FromString(answers.get_snapshot_response(stored[0]))
    assert one.snapshot == entity_pb2.EntitySnapshot.FromString(stored[0])
    assert one.snapshot.sequence == 9
    for token in ("", "next"):
        page = SnapshotList(stored, token)
        several = pb.ListSnapshotsResponse.FromString(answers.list_snapshots_response(page))
        assert [s.sequence for s in several.snapshots] == [9, 8, 3]
        assert {s.data["text"] for s in several.snapshots} == {"x" * size}
        assert several.next_page_token == token
    assert answers.list_snapshots_response(SnapshotList([], "")) == b""


@pytest.mark.parametrize(
    ("sent", "mode"),
    [
        (pb.MODE_UNSPECIFIED, Mode.CONSUME),
        (pb.MODE_CONSUME, Mode.CONSUME),
        (pb.MODE_PEEK, Mode.PEEK),
        (pb.MODE_RESERVE, Mode.RESERVE),
    ],
)
def test_a_quota_is_asked_as_it_is_meant(sent: pb.Mode.ValueType, mode: Mode) -> None:
    request = pb.QuotaRequest(tenant="t", quota="q", subject="s", mode=sent)
    assert converters.mode_of(request) is mode
    assert converters.counter_key_of(request) == CounterKey("t", "q", "s")


def test_a_mode_that_is_not_known_is_not_taken_for_another() -> None:
    newer: Any = max(pb.Mode.values()) + 1
    with pytest.raises(InvalidRequestError, match=f"mode: is {newer}"):
        converters.mode_of(pb.QuotaRequest(mode=newer))


@pytest.mark.parametrize("request_class", [pb.QueryRequest, pb.ExportRequest])
def test_parameters_are_plain_values(request_class: Any) -> None:
    request = request_class(query="q")
    assert converters.params_of(request) == {}
    given = {"Since": "2026-01-01", "ids": [1, None], "open": True, "x": None}
    request.params.update(given)
    assert converters.params_of(request) == given


def test_parameters_that_are_too_large_are_refused_unseen() -> None:
    request = pb.QueryRequest(query="q")
    most = 1024 * 1024
    longer = "x" * 20_000
    request.params["a"] = longer
    around = request.params.ByteSize() - len(longer)
    # From 16 KiB to 2 MiB a length takes three bytes.
    request.params["a"] = longest = "x" * (most - around)
    assert converters.params_of(request) == {"a": longest}
    request.params["a"] = f"{longest}x"
    with pytest.raises(InvalidRequestError) as refused:
        converters.params_of(request)
    assert violations(refused.value) == {
        "params": f"has {most + 1} bytes as protobuf; at most {most} are allowed"
    }


COLUMNS = (Column("id", "text"), Column("n", "bigint"))


def test_a_page_of_a_result_is_the_response() -> None:
    stored = codec.encode_result(Result(COLUMNS, [["a", 1], ["b", None]], NOON))
    raw = answers.query_response(QueryPage(stored, "next", Store.CACHE, LATER))
    assert raw.startswith(stored)
    response = pb.QueryResponse.FromString(raw)
    assert list(response.columns) == ["id", "n"]
    assert list(response.column_types) == ["text", "bigint"]
    assert [list(row) for row in response.rows] == [["a", 1], ["b", None]]
    assert response.as_of.ToDatetime(UTC) == NOON
    assert response.next_page_token == "next"
    assert response.receipt.served_from == entity_pb2.STORE_CACHE
    assert response.receipt.cached_time.ToDatetime(UTC) == LATER


def test_a_result_that_was_computed_has_no_time_in_the_cache() -> None:
    raw = answers.query_response(QueryPage(b"", "", Store.AURORA))
    assert pb.QueryResponse.FromString(raw) == pb.QueryResponse(
        receipt=entity_pb2.Receipt(served_from=entity_pb2.STORE_AURORA)
    )


def exported(portion: ExportPortion) -> list[pb.ExportResponse]:
    return [pb.ExportResponse.FromString(raw) for raw in answers.export_responses(portion)]


def test_the_first_portion_alone_says_what_the_rows_are() -> None:
    [first] = exported(ExportPortion([["a", 1]], COLUMNS, NOON))
    assert list(first.columns) == ["id", "n"]
    assert list(first.column_types) == ["text", "bigint"]
    assert first.as_of.ToDatetime(UTC) == NOON
    assert [list(row) for row in first.rows] == [["a", 1]]
    [further] = exported(ExportPortion([["b", 2]]))
    assert {field.name for field, _ in further.ListFields()} == {"rows"}


def test_a_result_without_rows_is_one_message_and_an_empty_portion_is_none() -> None:
    [only] = exported(ExportPortion([], COLUMNS, NOON))
    assert list(only.columns) == ["id", "n"]
    assert exported(ExportPortion([])) == []


def test_a_large_portion_is_several_messages_and_none_of_them_is_large() -> None:
    rows = [[f"{n}", "x" * 1000] for n in range(1000)]
    rows[500] = ["500", "y" * 300_000]
    messages = exported(ExportPortion(rows, COLUMNS, NOON))
    assert [list(row) for message in messages for row in message.rows] == rows
    sizes = [message.ByteSize() for message in messages]
    assert len(sizes) == 5
    assert sorted(sizes)[-2] < 257 * 1024
    assert [len(message.rows) for message in messages if message.ByteSize() > 257 * 1024] == [1]
    assert [bool(message.columns) for message in messages] == [True, *[False] * 4]


NOON_NS = int(NOON.timestamp()) * 10**9


def test_a_quota_is_answered_to_the_nanosecond() -> None:
    full = QuotaAnswer(
        allowed=True,
        limit=9,
        remaining=4,
        reset_time=NOON_NS + 1,
        retry_after=1_000_000_002,
        reservation="r1",
        expire_time=NOON_NS + 3,
        replayed=True,
        unchecked=True,
    )
    response = answers.quota_response(full)
    assert (response.allowed, response.limit, response.remaining) == (True, 9, 4)
    assert response.reset_time.ToNanoseconds() == NOON_NS + 1
    assert response.retry_after.ToNanoseconds() == 1_000_000_002
    assert response.expire_time.ToNanoseconds() == NOON_NS + 3
    assert (response.reservation, response.replayed, response.unchecked) == ("r1", True, True)


def test_what_a_quota_does_not_know_is_unset_and_a_zero_is_not() -> None:
    unknown = QuotaAnswer(allowed=False, limit=9, remaining=0, reset_time=None)
    assert answers.quota_response(unknown) == pb.QuotaResponse(limit=9)
    at_once = QuotaAnswer(allowed=False, limit=9, remaining=0, reset_time=0, retry_after=0)
    response = pb.QuotaResponse.FromString(answers.quota_response(at_once).SerializeToString())
    assert response.HasField("retry_after")
    assert response.HasField("reset_time")


def test_a_settlement_is_answered_in_units() -> None:
    response = answers.settle_quota_response(Settled(7, 3, covered=True, replayed=True))
    assert response == pb.SettleQuotaResponse(committed=7, refunded=3, covered=True, replayed=True)
