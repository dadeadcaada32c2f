"""What the client sends, and what it makes of the answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from duostore import (
    AnswerTooLargeError,
    Client,
    DeadlineExceededError,
    Entity,
    InternalError,
    InvalidRequestError,
    Key,
    NotFoundError,
    ResourceExhaustedError,
    Saved,
    Store,
    UnavailableError,
)
from duostore.v1 import data_access_pb2, entity_pb2
from tests.support.answers import (
    CREATED,
    UPDATED,
    appended,
    key_message,
    page,
    snapshot_message,
    stored,
    written,
)
from tests.support.scripted_service import (
    DIRECT,
    ScriptedService,
    client_of,
    hold,
    reason,
    serving,
    status,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.rpc import status_pb2

# Deadlines travel with two or three digits, rounded up.
ROUNDED = 1.05

CACHED = datetime(2025, 1, 1, 0, 0, 7, tzinfo=UTC)

FROM_CACHE = entity_pb2.Receipt(served_from=entity_pb2.STORE_CACHE)
FROM_CACHE.cached_time.FromDatetime(CACHED)
FROM_AURORA = entity_pb2.Receipt(served_from=entity_pb2.STORE_AURORA)


def got(key: Key, data: dict[str, Any], version: int = 1) -> data_access_pb2.GetResponse:
    return data_access_pb2.GetResponse(entity=stored(key, data, version), receipt=FROM_CACHE)


P1 = Key("proposal", "p1")
ACME = Key("proposal", "пропозиція/7 ✓", "acme")


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


def test_get_returns_the_entity_as_plain_values(service: ScriptedService) -> None:
    data = {"title": "A roof", "price": 12.5, "count": 3, "of": {"a": [1, None, True]}}
    service.script("Get", got(ACME, data, version=7))
    with client_of(service) as client:
        entity = client.get("proposal", ACME.id, tenant="acme")
    assert entity == Entity(
        "acme", "proposal", ACME.id, 7, data, CREATED, UPDATED, Store.CACHE, CACHED
    )
    assert entity.key == ACME
    assert (entity.served_from, entity.cached_time) == ("cache", CACHED)
    assert type(entity.data["count"]) is int
    assert type(entity.data["of"]["a"][0]) is int
    assert entity.update_time.utcoffset() == UPDATED.utcoffset()
    assert service.asked[0].request == data_access_pb2.GetRequest(key=key_message(ACME))


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (entity_pb2.STORE_CACHE, Store.CACHE),
        (entity_pb2.STORE_DYNAMODB, Store.DYNAMODB),
        (entity_pb2.STORE_AURORA, Store.AURORA),
        (99, Store.UNKNOWN),
    ],
)
def test_the_store_that_answered_is_named(service: ScriptedService, sent: Any, named: str) -> None:
    receipt = entity_pb2.Receipt(served_from=sent)
    service.script("Get", data_access_pb2.GetResponse(entity=stored(P1, {}), receipt=receipt))
    with client_of(service) as client:
        entity = client.get("proposal", "p1")
    assert (entity.served_from, entity.cached_time) == (named, None)


@pytest.mark.parametrize(
    ("arguments", "freshness"),
    [
        ({}, None),
        ({"min_version": 0}, "min_version"),
        ({"min_version": 2**53 + 1}, "min_version"),
        ({"strong": True}, "strong"),
    ],
)
def test_freshness_is_sent_as_asked_for(
    service: ScriptedService, arguments: dict[str, Any], freshness: str | None
) -> None:
    service.script("Get", got(P1, {}))
    with client_of(service) as client:
        client.get("proposal", "p1", **arguments)
    request = service.asked[0].request
    assert request.WhichOneof("freshness") == freshness
    assert freshness is None or getattr(request, freshness) == arguments[freshness]


def test_get_or_none_tells_absent_from_all_else(service: ScriptedService) -> None:
    absent = status(
        grpc.StatusCode.NOT_FOUND, "it does not exist", reason("ENTITY_NOT_FOUND", version="4")
    )
    other = status(grpc.StatusCode.NOT_FOUND, "no such page")
    service.script("Get", got(P1, {"a": 1}), absent, other)
    with client_of(service) as client:
        assert client.get_or_none("proposal", "p1") == client_entity(P1, {"a": 1})
        assert client.get_or_none("proposal", "p1", tenant="t", min_version=4) is None
        with pytest.raises(NotFoundError, match="no such page"):
            client.get_or_none("proposal", "p1")
    asked = service.asked[1].request
    assert (asked.key.tenant, asked.min_version) == ("t", 4)


def client_entity(key: Key, data: dict[str, Any], version: int = 1) -> Entity:
    return Entity(
        key.tenant, key.kind, key.id, version, data, CREATED, UPDATED, Store.CACHE, CACHED
    )


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(data_access_pb2.GetResponse(receipt=FROM_CACHE), id="no entity"),
        pytest.param(got(Key("proposal", "p2"), {}), id="another id"),
        pytest.param(got(Key("proposal", "p1", "acme"), {}), id="another tenant"),
    ],
)
def test_an_answer_about_something_else_is_refused(
    service: ScriptedService, answer: data_access_pb2.GetResponse
) -> None:
    service.script("Get", answer, answer)
    with client_of(service) as client:
        for method in (client.get, client.get_or_none):
            with pytest.raises(InternalError, match=r"get\('proposal', 'p1'\)") as raised:
                method("proposal", "p1")
            assert raised.value.request_id == service.asked[-1].metadata["x-request-id"]


@pytest.mark.parametrize(
    ("arguments", "precondition"),
    [
        ({}, None),
        ({"if_version": 0}, "if_version"),  # the server's to refuse, not ours to drop
        ({"if_version": 3}, "if_version"),
        ({"if_absent": True}, "if_absent"),
        ({"if_absent": False}, None),
    ],
)
def test_save_sends_the_document_and_its_precondition(
    service: ScriptedService, arguments: dict[str, Any], precondition: str | None
) -> None:
    service.script("Save", written(data_access_pb2.SaveResponse, 8, entity_pb2.PROJECTION_DONE))
    with client_of(service) as client:
        saved = client.save("proposal", ACME.id, {"n": 1}, tenant="acme", **arguments)
    assert saved == Saved(8, UPDATED, projected=True)
    request = service.asked[0].request
    assert request.key == key_message(ACME)
    assert request.data == stored(ACME, {"n": 1}).data
    assert request.WhichOneof("precondition") == precondition
    assert precondition is None or getattr(request, precondition) == arguments[precondition]


def test_an_empty_document_is_sent_as_one(service: ScriptedService) -> None:
    service.script("Save", written(data_access_pb2.SaveResponse, 1, entity_pb2.PROJECTION_PENDING))
    with client_of(service) as client:
        assert client.save("proposal", "p1", {}) == Saved(1, UPDATED, projected=False)
    assert service.asked[0].request.HasField("data")


@pytest.mark.parametrize(
    ("arguments", "precondition"), [({}, None), ({"if_version": 3}, "if_version")]
)
def test_delete_sends_its_precondition(
    service: ScriptedService, arguments: dict[str, Any], precondition: str | None
) -> None:
    service.script("Delete", written(data_access_pb2.DeleteResponse, 4, entity_pb2.PROJECTION_DONE))
    with client_of(service) as client:
        deleted = client.delete("proposal", ACME.id, tenant="acme", **arguments)
    assert deleted == Saved(4, UPDATED, projected=True)
    request = service.asked[0].request
    assert request.key == key_message(ACME)
    assert request.WhichOneof("precondition") == precondition
    assert request.if_version == arguments.get("if_version", 0)


def test_what_cannot_be_meant_is_refused_unsent(service: ScriptedService) -> None:
    with client_of(service) as client:
        with pytest.raises(InvalidRequestError, match="strong: excludes min_version"):
            client.get("proposal", "p1", min_version=1, strong=True)
        with pytest.raises(InvalidRequestError, match="if_absent: excludes if_version"):
            client.save("proposal", "p1", {}, if_version=1, if_absent=True)
        with pytest.raises(ValueError, match=r"data\.n: .*str\(value\)"):
            client.save("proposal", "p1", {"n": 2**53 + 1})
        with pytest.raises(TypeError, match=r"id is 17, of type int; .* str\(number\)"):
            client.get("proposal", 17)  # type: ignore[arg-type]
    assert service.asked == []


def found_and_missing(
    keys: Iterable[Key], absent: frozenset[Key], receipt: entity_pb2.Receipt = FROM_CACHE
) -> data_access_pb2.BatchGetResponse:
    keys = list(keys)
    return data_access_pb2.BatchGetResponse(
        entities=[stored(key, {"id": key.id}) for key in keys if key not in absent],
        missing=[key_message(key) for key in keys if key in absent],
        receipt=receipt,
    )


def test_batch_get_sends_500_at_a_time_and_keeps_the_order(service: ScriptedService) -> None:
    keys = [Key("proposal", f"p{(n * 7919) % 1201}", "acme") for n in range(1201)]
    absent = frozenset(keys[1:1201:300])
    parts = (keys[:500], keys[500:1000], keys[1000:])
    receipts = (FROM_CACHE, FROM_AURORA, FROM_CACHE)
    for part, receipt in zip(parts, receipts, strict=True):
        service.script("BatchGet", found_and_missing(part, absent, receipt))
    with client_of(service) as client:
        found = client.batch_get([*keys, keys[0], keys[700]])
    assert [len(asked.request.keys) for asked in service.asked] == [500, 500, 201]
    sent = [message for asked in service.asked for message in asked.request.keys]
    assert sent == [key_message(key) for key in keys]
    assert list(found) == [key for key in keys if key not in absent]
    assert all(entity.key == key for key, entity in found.items())
    assert all(entity.data == {"id": key.id} for key, entity in found.items())
    assert found[keys[0]].served_from is Store.CACHE
    assert found[keys[500]].served_from is Store.AURORA


def test_batch_get_keeps_the_order_of_the_keys_whatever_that_of_the_answer(
    service: ScriptedService,
) -> None:
    keys = [Key("proposal", name) for name in "abc"]
    service.script("BatchGet", found_and_missing(reversed(keys), frozenset()))
    with client_of(service) as client:
        assert list(client.batch_get(iter(keys))) == keys


def test_a_batch_of_nothing_asks_nothing(service: ScriptedService) -> None:
    with client_of(service) as client:
        assert client.batch_get([]) == {}
    assert service.asked == []


A, B, C = (Key("proposal", name) for name in "abc")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(found_and_missing([A], frozenset()), id="a key is not answered"),
        pytest.param(found_and_missing([A, B, C], frozenset()), id="another is answered"),
        pytest.param(found_and_missing([A, C], frozenset()), id="another in its place"),
        pytest.param(found_and_missing([A, C], frozenset([C])), id="another is missing"),
        pytest.param(
            data_access_pb2.BatchGetResponse(
                entities=[stored(A, {}), stored(B, {})], missing=[key_message(B)]
            ),
            id="found and missing",
        ),
    ],
)
def test_absent_is_only_what_the_server_says_to_be(
    service: ScriptedService, answer: data_access_pb2.BatchGetResponse
) -> None:
    service.script("BatchGet", answer)
    with client_of(service) as client, pytest.raises(InternalError, match=r"keys\[0:2\]"):
        client.batch_get([A, B])


def too_large(size: int, limit: int) -> status_pb2.Status:
    return status(
        grpc.StatusCode.FAILED_PRECONDITION,
        "the answer is too large",
        reason("ANSWER_TOO_LARGE", size=str(size), limit=str(limit)),
    )


@pytest.mark.parametrize(
    ("size", "limit", "fewer"),
    [(1000, 100, 50), (1000, 999, 250), (10**12, 100, 1), (0, 0, 1)],
)
def test_of_a_batch_that_is_too_large_fewer_are_asked_for(
    service: ScriptedService, size: int, limit: int, fewer: int
) -> None:
    keys = [Key("proposal", str(n)) for n in range(501)]
    service.script("BatchGet", too_large(size, limit))
    sent = [keys[start : start + fewer] for start in range(0, 501, fewer)]
    service.script("BatchGet", *[found_and_missing(part, frozenset()) for part in sent])
    with client_of(service, timeout=60) as client:
        assert list(client.batch_get(keys)) == keys
    assert [len(asked.request.keys) for asked in service.asked] == [500, *map(len, sent)]


def test_one_entity_that_is_too_large_is_an_error(service: ScriptedService) -> None:
    service.script("BatchGet", *[too_large(300, 100)] * 2)
    with client_of(service) as client, pytest.raises(AnswerTooLargeError) as raised:
        client.batch_get([A, B])
    assert (raised.value.size, raised.value.limit) == (300, 100)
    assert [len(asked.request.keys) for asked in service.asked] == [2, 1]


def test_if_one_batch_fails_the_call_does(service: ScriptedService) -> None:
    keys = [Key("proposal", str(n)) for n in range(501)]
    service.script(
        "BatchGet",
        found_and_missing(keys[:500], frozenset()),
        status(grpc.StatusCode.INTERNAL, "a fault"),
    )
    with (
        client_of(service) as client,
        pytest.raises(InternalError, match=r"batch_get\(keys\[500:501\]\): a fault"),
    ):
        client.batch_get(keys)


def test_every_call_has_a_deadline(service: ScriptedService) -> None:
    service.script("Get", got(P1, {}), got(P1, {}))
    with client_of(service) as client:
        client.get("proposal", "p1")
        client.get("proposal", "p1", timeout=100)
    assert 3 < service.asked[0].remaining <= 5 * ROUNDED
    assert 95 < service.asked[1].remaining <= 100 * ROUNDED


def test_the_client_s_timeout_counts_for_every_method(service: ScriptedService) -> None:
    service.script("Get", got(P1, {}))
    service.script("BatchGet", found_and_missing([P1], frozenset()))
    service.script("Save", data_access_pb2.SaveResponse(version=1))
    service.script("Save", data_access_pb2.SaveResponse(version=1))
    service.script("Delete", data_access_pb2.DeleteResponse(version=2))
    service.script("Transact", data_access_pb2.TransactResponse())
    service.script("Snapshot", appended(1))
    service.script(
        "GetSnapshot", data_access_pb2.GetSnapshotResponse(snapshot=snapshot_message(P1, 1))
    )
    service.script("ListSnapshots", page(P1, 2, token="t"), page(P1, 1))
    with client_of(service, timeout=50) as client:
        client.get("proposal", "p1")
        client.batch_get([P1])
        client.save("proposal", "p1", {})
        client.publish("proposal", "p1")
        client.delete("proposal", "p1")
        client.transact([])
        client.snapshot("proposal", "p1", {})
        client.get_snapshot("proposal", "p1")
        list(client.list_snapshots("proposal", "p1"))
    assert len(service.asked) == 10
    assert all(45 < asked.remaining <= 50 * ROUNDED for asked in service.asked)


def test_a_call_ends_at_its_deadline(service: ScriptedService) -> None:
    service.script("Get", hold)
    with client_of(service) as client, pytest.raises(DeadlineExceededError) as raised:
        client.get("proposal", "p1", timeout=0.1)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert raised.value.maybe_applied is False


def test_one_timeout_bounds_all_batches(service: ScriptedService) -> None:
    keys = [Key("proposal", str(n)) for n in range(501)]

    def late(_: Any, context: grpc.ServicerContext) -> data_access_pb2.BatchGetResponse:
        eventually(lambda: context.time_remaining() < 3.6, within=10, what="0.4 s have passed")
        return found_and_missing(keys[:500], frozenset())

    service.script("BatchGet", late, found_and_missing(keys[500:], frozenset()))
    with client_of(service, timeout=4) as client:
        client.batch_get(keys)
    assert service.asked[1].remaining < 3.7


def test_a_timeout_that_has_passed_fails_at_once(service: ScriptedService) -> None:
    with client_of(service) as client, pytest.raises(DeadlineExceededError):
        client.get("proposal", "p1", timeout=-1)
    assert service.asked == []


def test_metadata_and_a_request_id_go_with_every_call(service: ScriptedService) -> None:
    service.script("Get", got(P1, {}), got(P1, {}))
    metadata = [("Authorization", "Bearer t ~"), ("x-bin", b"\0\xff"), ("X.y_0", "")]
    with client_of(service, metadata=metadata, caller="jobs/billing:7") as client:
        client.get("proposal", "p1")
        client.get("proposal", "p1")
    assert all(asked.metadata["authorization"] == "Bearer t ~" for asked in service.asked)
    assert all(asked.metadata["x-bin"] == b"\0\xff" for asked in service.asked)
    assert all(asked.metadata["x.y_0"] == "" for asked in service.asked)
    assert all(asked.metadata["x-caller"] == "jobs/billing:7" for asked in service.asked)
    ids = {asked.metadata["x-request-id"] for asked in service.asked}
    assert len(ids) == 2


def test_large_answers_are_received_unless_an_option_forbids_it(service: ScriptedService) -> None:
    text = "x" * 5 * 2**20
    service.script("Get", got(P1, {"text": text}))
    with client_of(service) as client:
        assert client.get("proposal", "p1").data == {"text": text}
    service.script("Get", got(P1, {"text": text}))
    small = ("grpc.max_receive_message_length", 2**20)
    with client_of(service, options=[small]) as client, pytest.raises(ResourceExhaustedError):
        client.get("proposal", "p1")


def test_credentials_are_used(service: ScriptedService) -> None:
    service.script("Get", got(P1, {}))
    credentials = grpc.ssl_channel_credentials()
    with (
        client_of(service, credentials=credentials, retries=False) as client,
        pytest.raises(UnavailableError),
    ):
        client.get("proposal", "p1")  # TLS, to a server that has none
    assert service.asked == []


def test_a_closed_client_stays_closed(service: ScriptedService) -> None:
    service.script("Get", got(P1, {}), got(P1, {}))
    with client_of(service) as client:
        client.get("proposal", "p1")
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="create another"):
            client.get("proposal", "p1")
    with serving(service) as (_, target):
        unused = Client(target)
        unused.close()
        with pytest.raises(RuntimeError, match="create another"):
            unused.get("proposal", "p1")
    assert len(service.asked) == 1


def test_a_client_needs_no_with_block(service: ScriptedService) -> None:
    service.script("Get", got(P1, {}))
    with serving(service) as (_, target):
        client = Client(target, options=[DIRECT])
        try:
            assert client.get("proposal", "p1").key == P1
        finally:
            client.close()


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_client_without_a_deadline_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        Client("127.0.0.1:1", timeout=timeout)


def test_a_call_without_a_deadline_is_refused(service: ScriptedService) -> None:
    with client_of(service) as client, pytest.raises(ValueError, match="timeout is inf"):
        client.get("proposal", "p1", timeout=float("inf"))
    assert service.asked == []


def test_a_client_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="host:port"):
        Client("")


def test_a_call_that_is_not_scripted_fails_and_is_remembered() -> None:
    service = ScriptedService()
    with (
        client_of(service) as client,
        pytest.raises(Exception, match="no reply to Get is scripted"),
    ):
        client.get("proposal", "p1")
    assert [asked.method for asked in service.asked] == ["Get"]
