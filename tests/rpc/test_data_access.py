"""What each RPC promises, over real stores."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from duostore.v1 import data_access_pb2, entity_pb2
from duostore.v1.entity_pb2 import (
    PROJECTION_DONE,
    PROJECTION_PENDING,
    STORE_AURORA,
    STORE_CACHE,
    STORE_DYNAMODB,
)
from duostore_server import codec
from duostore_server.domain.documents import MAX_DEPTH
from duostore_server.rpc.server import DATA_ACCESS
from tests.support.service import CALL_SECONDS, Caller, struct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.in_process import InProcess


class Refusal:
    """What a caller is told of a call that failed."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.reason = ""
        self.metadata: dict[str, str] = {}
        self.fields: dict[str, str] = {}
        self.subjects: list[str] = []
        self.retries = False
        self.message = ""
        self.request_id = ""


@contextmanager
def refused() -> Iterator[Refusal]:
    """Expect the call in the block to fail; the refusal is filled in afterwards."""
    refusal = Refusal()
    with pytest.raises(grpc.RpcError) as caught:
        yield refusal
    call = cast("grpc.Call", caught.value)
    refusal.code = call.code()
    status = rpc_status.from_call(call)
    assert status is not None, call
    refusal.message = status.message
    for packed in status.details:
        info, bad, failure, request = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.PreconditionFailure(),
            error_details_pb2.RequestInfo(),
        )
        if packed.Unpack(info):
            refusal.reason, refusal.metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(bad):
            refusal.fields = {v.field: v.description for v in bad.field_violations}
        elif packed.Unpack(failure):
            refusal.subjects = [v.subject for v in failure.violations]
        elif packed.Unpack(request):
            refusal.request_id = request.request_id
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            refusal.retries = True


def data_of(response: data_access_pb2.GetResponse) -> dict[str, Any]:
    return codec.plain(response.entity.data)


# Save and Get


def test_what_is_saved_is_read_from_every_tier_in_turn(notes: Caller, id_: str) -> None:
    document = {
        "title": "Ünïcode 漢字 😀",
        "n": 2**53 - 1,
        "x": 0.1,
        "deep": [{"a": [None, True]}],
        "": 1,
    }
    saved = notes.save(id_, document)
    assert (saved.version, saved.projection, saved.key) == (1, PROJECTION_DONE, notes.key(id_))
    first, second, strong = notes.get(id_), notes.get(id_), notes.get(id_, strong=True)
    assert [r.receipt.served_from for r in (first, second, strong)] == [
        STORE_DYNAMODB,
        STORE_CACHE,
        STORE_AURORA,
    ]
    assert first.entity == second.entity == strong.entity
    assert data_of(first) == document
    assert first.entity.update_time == saved.update_time == first.entity.create_time
    assert second.receipt.cached_time.ToDatetime(UTC) >= saved.update_time.ToDatetime(UTC)


def test_each_save_is_one_version_and_is_seen_at_once(either: Caller, id_: str) -> None:
    created = either.save(id_, {"n": 1}).update_time
    for n in range(2, 12):
        saved = either.save(id_, {"n": n})
        assert saved.version == n
        read = either.get(id_).entity
        assert (read.version, codec.plain(read.data)) == (n, {"n": n})
        assert read.create_time == created
        assert read.update_time == saved.update_time


def test_an_async_save_is_answered_at_once_and_seen_with_its_version(
    channel: grpc.Channel, id_: str
) -> None:
    tags = Caller(channel, kind="tag")
    for n in range(1, 4):
        saved = tags.save(id_, {"n": n})
        assert saved.projection == PROJECTION_PENDING
        assert tags.get(id_, min_version=saved.version).entity.version == n
    eventually(
        lambda: tags.get(id_).receipt.served_from == STORE_CACHE, within=20, what="projected"
    )
    assert tags.get(id_).entity.version == 3


def test_tenants_and_kinds_are_apart(notes: Caller, proposals: Caller, id_: str) -> None:
    notes.save(id_, {"of": "note"})
    proposals.save(id_, {"title": "proposal"})
    other = entity_pb2.EntityKey(tenant="acme", kind="note", id=id_)
    with refused() as refusal:
        notes.stub.Get(data_access_pb2.GetRequest(key=other), timeout=CALL_SECONDS)
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert data_of(notes.get(id_)) == {"of": "note"}
    assert data_of(proposals.get(id_)) == {"title": "proposal"}


@pytest.mark.parametrize(
    "odd", ["a b", "a#b/c?d", "ü😀", "x" * 512, "%", "'; DROP TABLE duostore.entity; --", "\\"]
)
def test_ids_may_hold_anything_but_control_characters(notes: Caller, odd: str) -> None:
    odd_id = (secrets.token_hex(4) + odd)[:512]
    notes.save(odd_id, {"id": odd_id})
    for _ in range(3):
        assert data_of(notes.get(odd_id)) == {"id": odd_id}


@pytest.mark.parametrize("size", [100, 5_000, 390_000, 420_000, 1_100_000, 3_500_000])
def test_documents_of_any_size_come_back(notes: Caller, id_: str, size: int) -> None:
    # Does not compress: past 400 KB DynamoDB holds a stub, past 1 MB the cache holds nothing.
    document = {"text": secrets.token_hex(size // 2)}
    assert notes.save(id_, document).projection == PROJECTION_DONE
    for _ in range(3):
        assert data_of(notes.get(id_)) == document
    notes.save(id_, {"text": "small"})
    assert data_of(notes.get(id_)) == {"text": "small"}


# Preconditions, Delete


def test_if_version_lets_one_of_two_writers_through(either: Caller, id_: str) -> None:
    either.save(id_, {"n": 1})
    assert either.save(id_, {"n": 2}, if_version=1).version == 2
    with refused() as refusal:
        either.save(id_, {"n": "lost"}, if_version=1)
    assert refusal.code is grpc.StatusCode.ABORTED
    assert refusal.reason == "VERSION_MISMATCH"
    assert refusal.metadata == {"expected": "1", "version": "2"}
    assert data_of(either.get(id_)) == {"n": 2}


def test_if_absent(either: Caller, id_: str) -> None:
    assert either.save(id_, {"n": 1}, if_absent=True).version == 1
    with refused() as refusal:
        either.save(id_, {"n": 2}, if_absent=True)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ENTITY_EXISTS")
    assert refusal.metadata == {"version": "1"}
    either.delete(id_)
    assert either.save(id_, {"n": 3}, if_absent=True).version == 3


def test_a_deleted_entity_is_gone_from_every_tier_and_its_versions_go_on(
    either: Caller, id_: str
) -> None:
    either.save(id_, {"n": 1})
    either.get(id_)
    deleted = either.delete(id_)
    assert (deleted.version, deleted.projection) == (2, PROJECTION_DONE)
    for freshness in ({}, {}, {"min_version": 2}, {"strong": True}):
        with refused() as refusal:
            either.get(id_, **freshness)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "ENTITY_NOT_FOUND")
        assert refusal.metadata == {"version": "2"}
    saved = either.save(id_, {"n": 3})
    entity = either.get(id_).entity
    assert (saved.version, entity.version) == (3, 3)
    assert entity.create_time == saved.update_time


def test_deletes_that_cannot_be(either: Caller, id_: str) -> None:
    with refused() as absent:
        either.delete(id_)
    assert (absent.code, absent.metadata) == (grpc.StatusCode.NOT_FOUND, {"version": "0"})
    either.save(id_, {"n": 1})
    with refused() as mismatch:
        either.delete(id_, if_version=4)
    assert (mismatch.code, mismatch.reason) == (grpc.StatusCode.ABORTED, "VERSION_MISMATCH")
    either.delete(id_, if_version=1)
    with refused() as twice:
        either.delete(id_)
    assert (twice.code, twice.metadata) == (grpc.StatusCode.NOT_FOUND, {"version": "2"})


# Freshness


def test_a_known_absence_does_not_hide_a_newer_version(either: Caller, id_: str) -> None:
    for _ in range(2):
        with refused():
            either.get(id_)
    token = either.save(id_, {"n": 1}).version
    assert either.get(id_, min_version=token).entity.version == 1


def test_a_version_that_was_never_reached_is_told(either: Caller, id_: str) -> None:
    either.save(id_, {"n": 1})
    with refused() as refusal:
        either.get(id_, min_version=7)
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "MIN_VERSION_NOT_REACHED",
    )
    assert refusal.metadata == {"min_version": "7", "version": "1"}
    assert either.get(id_).entity.version == 1


# BatchGet


def test_a_batch_returns_what_is_found_in_order_and_what_is_missing(
    notes: Caller, proposals: Caller
) -> None:
    run = secrets.token_hex(4)
    keys = []
    for n in range(300):
        key = (proposals if n % 3 else notes).key(f"{run}-{n}")
        keys.append(key)
        if n % 5:
            (proposals if n % 3 else notes).save(key.id, {"title": str(n)})
    request = data_access_pb2.BatchGetRequest(keys=keys)
    answers = [notes.stub.BatchGet(request, timeout=CALL_SECONDS) for _ in range(3)]
    for answer in answers:
        assert [e.key for e in answer.entities] == [k for n, k in enumerate(keys) if n % 5]
        assert [e.data["title"] for e in answer.entities] == [str(n) for n in range(300) if n % 5]
        assert list(answer.missing) == [k for n, k in enumerate(keys) if not n % 5]
    assert answers[2].receipt.served_from == STORE_CACHE
    assert answers[2].receipt.HasField("cached_time")


def test_a_batch_sees_each_save_at_once(either: Caller, id_: str) -> None:
    request = data_access_pb2.BatchGetRequest(keys=[either.key(id_), either.key(f"{id_}-other")])
    assert len(either.stub.BatchGet(request, timeout=CALL_SECONDS).missing) == 2
    for n in range(1, 6):
        either.save(id_, {"n": n})
        answer = either.stub.BatchGet(request, timeout=CALL_SECONDS)
        assert [entity.version for entity in answer.entities] == [n]


# Bad input


def nested(levels: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(levels - 1):
        document = {"a": document}
    return document


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        ({"a": {"b": [1, float(2**53 + 2)]}}, "data.a.b[1]", "string"),
        ({"a": float("nan")}, "data.a", "finite"),
        ({"a": float("-inf")}, "data.a", "finite"),
        ({"a": "x\0y"}, "data.a", "U+0000"),
        (nested(MAX_DEPTH + 1), "data" + ".a" * MAX_DEPTH, "deeper"),
        ({"text": "x" * (4 * 2**20)}, "data", "bytes"),
    ],
)
def test_documents_that_cannot_be_kept(
    notes: Caller, id_: str, document: dict[str, Any], field: str, words: str
) -> None:
    with refused() as refusal:
        notes.save(id_, document)
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert list(refusal.fields) == [field]
    assert words in refusal.fields[field]


def test_a_document_too_deep_to_be_parsed_is_refused_as_such(notes: Caller, id_: str) -> None:
    raw = b""
    for _ in range(200):  # struct_value { fields { key: "a", value: ... } }
        value = b"\x2a" + _length(raw) + raw
        entry = b"\x0a\x01a\x12" + _length(value) + value
        raw = b"\x0a" + _length(entry) + entry
    request = notes.key(id_).SerializeToString()
    request = b"\x0a" + _length(request) + request + b"\x12" + _length(raw) + raw
    with refused() as refusal:
        save_raw(notes)(request, timeout=CALL_SECONDS)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "too deep" in refusal.message


def save_raw(notes: Caller) -> Any:
    """Return the RPC Save for requests that are serialized already."""
    return notes.channel.unary_unary(f"/{DATA_ACCESS.full_name}/Save")


def _length(raw: bytes) -> bytes:
    size, encoded = len(raw), b""
    while size > 0x7F:
        encoded += bytes([size & 0x7F | 0x80])
        size >>= 7
    return encoded + bytes([size])


def test_every_violation_of_a_schema_is_listed_by_its_path(proposals: Caller, id_: str) -> None:
    with refused() as refusal:
        proposals.save(id_, {"title": "", "pages": 1.5, "parts": [{}, {"price": 1}], "odd": 1})
    assert set(refusal.fields) == {
        "data.title",
        "data.pages",
        "data.parts[0].price",
        "data.odd",
    }


def test_every_bad_field_of_a_request_is_named(notes: Caller) -> None:
    request = data_access_pb2.SaveRequest(
        key=entity_pb2.EntityKey(tenant="a#b", kind="unknown", id="x\n"), if_version=0
    )
    with refused() as refusal:
        notes.stub.Save(request, timeout=CALL_SECONDS)
    assert set(refusal.fields) == {"key.tenant", "key.kind", "key.id", "if_version", "data"}
    assert "proposal" in refusal.fields["key.kind"]


def test_unset_parts_of_requests(notes: Caller, id_: str) -> None:
    with refused() as no_key:
        notes.stub.Get(data_access_pb2.GetRequest(), timeout=CALL_SECONDS)
    assert set(no_key.fields) == {"key.kind", "key.id"}
    with refused() as negative:
        notes.get(id_, min_version=-1)
    assert set(negative.fields) == {"min_version"}
    with refused() as if_absent:
        notes.save(id_, {}, if_absent=False)
    assert set(if_absent.fields) == {"if_absent"}


def test_batches_that_are_refused(notes: Caller) -> None:
    def batch(*ids: str) -> None:
        keys = [notes.key(name) for name in ids]
        notes.stub.BatchGet(data_access_pb2.BatchGetRequest(keys=keys), timeout=CALL_SECONDS)

    with refused() as empty:
        batch()
    assert set(empty.fields) == {"keys"}
    with refused() as long:
        batch(*map(str, range(501)))
    assert set(long.fields) == {"keys"}
    with refused() as twice:
        batch("a", "b", "a", "", "c\n")
    assert set(twice.fields) == {"keys[2]", "keys[3].id", "keys[4].id"}
    assert "keys[0]" in twice.fields["keys[2]"]


def test_garbage_is_refused(notes: Caller) -> None:
    with refused() as refusal:
        save_raw(notes)(b"\xff\xff\xff", timeout=CALL_SECONDS)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT


# Around every call


def test_a_deadline_that_has_no_time_for_a_write_leaves_nothing_behind(
    notes: Caller, id_: str
) -> None:
    request = data_access_pb2.SaveRequest(key=notes.key(id_), data=struct({"n": 1}))
    with pytest.raises(grpc.RpcError) as late:
        notes.stub.Save(request, timeout=0.01)
    assert cast("grpc.Call", late.value).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with refused() as refusal:
        notes.get(id_, strong=True)
    assert refusal.code is grpc.StatusCode.NOT_FOUND


def test_the_caller_may_name_its_request(notes: Caller, id_: str) -> None:
    request = data_access_pb2.GetRequest(key=notes.key(id_))
    with refused() as named:
        notes.stub.Get(request, timeout=CALL_SECONDS, metadata=(("x-request-id", "mine-1"),))
    assert named.request_id == "mine-1"
    with refused() as unacceptable:
        notes.stub.Get(request, timeout=CALL_SECONDS, metadata=(("x-request-id", "no;id"),))
    assert len(unacceptable.request_id) == 32


def test_every_rpc_is_measured(api: InProcess, notes: Caller, id_: str) -> None:
    def count(method: str, code: str) -> float:
        return api.metric("duostore_rpc_duration_seconds_count", method=method, code=code)

    before = {
        (m.name, c): count(m.name, c) for m in DATA_ACCESS.methods for c in ("OK", "NOT_FOUND")
    }
    notes.save(id_, {"n": 1})
    notes.get(id_)
    notes.stub.BatchGet(
        data_access_pb2.BatchGetRequest(keys=[notes.key(id_)]), timeout=CALL_SECONDS
    )
    notes.delete(id_)
    key = notes.key(f"{id_}-other")
    save = data_access_pb2.Mutation(save=data_access_pb2.SaveMutation(key=key, data=struct({})))
    notes.stub.Transact(data_access_pb2.TransactRequest(mutations=[save]), timeout=CALL_SECONDS)
    notes.stub.Snapshot(
        data_access_pb2.SnapshotRequest(key=key, data=struct({})), timeout=CALL_SECONDS
    )
    notes.stub.GetSnapshot(data_access_pb2.GetSnapshotRequest(key=key), timeout=CALL_SECONDS)
    notes.stub.ListSnapshots(data_access_pb2.ListSnapshotsRequest(key=key), timeout=CALL_SECONDS)
    reserve = data_access_pb2.QuotaRequest(
        quota="fixed", subject=id_, mode=data_access_pb2.MODE_RESERVE
    )
    held = notes.stub.Quota(reserve, timeout=CALL_SECONDS)
    settle = data_access_pb2.SettleQuotaRequest(reservation=held.reservation, cost=1)
    notes.stub.SettleQuota(settle, timeout=CALL_SECONDS)
    three = struct({"count": 3})
    query = data_access_pb2.QueryRequest(query="tally", params=three)
    notes.stub.Query(query, timeout=CALL_SECONDS)
    export = data_access_pb2.ExportRequest(query="tally", params=three)
    assert (
        sum(len(portion.rows) for portion in notes.stub.Export(export, timeout=CALL_SECONDS)) == 3
    )
    with refused():
        notes.get(id_)
    for method in DATA_ACCESS.methods:
        assert count(method.name, "OK") - before[method.name, "OK"] == 1, method.name
    assert count("Get", "NOT_FOUND") - before["Get", "NOT_FOUND"] == 1


# Not what goes on in the background at the same time.
STORE_CALLS = [
    ("aurora", "read"),
    ("aurora", "write"),
    ("dynamodb", "read"),
    ("dynamodb", "put"),
    ("dynamodb", "put_all"),
    ("dynamodb", "read_heads"),
    ("dynamodb", "write_head"),
    ("dynamodb", "read_record"),
    ("dynamodb", "snapshot_append"),
    ("dynamodb", "snapshot_read"),
    ("dynamodb", "snapshot_page"),
    ("cache", "read"),
    ("cache", "lease"),
    ("cache", "fill"),
    ("cache", "invalidate"),
]


def test_each_call_makes_only_the_store_calls_that_it_must(
    api: InProcess, notes: Caller, channel: grpc.Channel, id_: str
) -> None:
    def calls() -> list[float]:
        return [
            api.metric("duostore_store_calls_total", store=store, op=op)
            for store, op in STORE_CALLS
        ]

    def made(call: Callable[[], object]) -> dict[tuple[str, str], float]:
        before = calls()
        call()
        counts = zip(STORE_CALLS, calls(), before, strict=True)
        return {name: now - then for name, now, then in counts if now != then}

    def snapshot(idempotency_key: str = "") -> object:
        request = data_access_pb2.SnapshotRequest(
            key=notes.key(id_), data=struct({}), idempotency_key=idempotency_key
        )
        return notes.stub.Snapshot(request, timeout=CALL_SECONDS)

    def newest() -> object:
        request = data_access_pb2.GetSnapshotRequest(key=notes.key(id_))
        return notes.stub.GetSnapshot(request, timeout=CALL_SECONDS)

    def miss(home_read: str) -> dict[tuple[str, str], float]:
        steps = [("cache", "read"), ("cache", "lease"), ("dynamodb", home_read), ("cache", "fill")]
        return dict.fromkeys(steps, 1)

    states = Caller(channel, kind="state")
    saved = {("aurora", "write"): 1, ("dynamodb", "put_all"): 1, ("cache", "invalidate"): 1}
    assert made(lambda: notes.save(id_, {"n": 1})) == saved
    assert made(lambda: notes.get(id_)) == miss("read")
    assert made(lambda: notes.get(id_)) == {("cache", "read"): 1}
    recalled = {**saved, ("dynamodb", "read_record"): 1}
    assert made(lambda: notes.save(id_, {"n": 2}, idempotency_key=id_)) == recalled
    once = {("dynamodb", "write_head"): 1, ("cache", "invalidate"): 1}
    assert made(lambda: states.save(id_, {"n": 1})) == once
    assert made(lambda: states.get(id_)) == miss("read_heads")
    assert made(lambda: states.get(id_)) == {("cache", "read"): 1}
    assert made(snapshot) == {("dynamodb", "snapshot_append"): 1}
    assert made(lambda: snapshot(f"{id_}-2")) == {("dynamodb", "snapshot_append"): 1}
    assert made(newest) == {("dynamodb", "snapshot_read"): 1}


def test_the_api_can_be_asked_for(channel: grpc.Channel) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # noqa: PLC0415
        ProtoReflectionDescriptorDatabase,
    )

    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert DATA_ACCESS.full_name in services


def test_an_unset_value_is_null(notes: Caller, id_: str) -> None:
    document = Struct()
    document.fields["a"].SetInParent()
    request = data_access_pb2.SaveRequest(key=notes.key(id_), data=document)
    notes.stub.Save(request, timeout=CALL_SECONDS)
    assert data_of(notes.get(id_)) == {"a": None}
